# SPDX-License-Identifier: Apache-2.0
"""`mclfir train`: train_mclfir.py, wherever the package is installed."""


def main(arguments: list[str]) -> None:
    """Run the main script with these flags."""
    import train_mclfir

    train_mclfir.tell(train_mclfir.main(arguments))
