# SPDX-License-Identifier: Apache-2.0
"""`mclfir prepare NAME …`: one of the data scripts."""

import importlib
import pkgutil
import sys


def main(arguments: list[str]) -> None:
    """Run data_scripts.NAME with the rest of the flags. ValueError for an unknown name."""
    import data_scripts

    modules = pkgutil.iter_modules(data_scripts.__path__)
    others = ("command", "__main__")
    names = sorted(module.name for module in modules if module.name not in others and not module.ispkg)
    if arguments[:1] in (["-h"], ["--help"]):
        usage = f"usage: mclfir prepare NAME …\n\nNAME: {', '.join(names)}"
        sys.stdout.write(f"{usage}\n\n`mclfir prepare NAME --help` tells its flags.\n")
        return
    if not arguments or arguments[0] not in names:
        given = arguments[0] if arguments else "nothing"
        raise ValueError(f"mclfir prepare takes one of {names} and its flags; got {given}.")
    importlib.import_module(f"data_scripts.{arguments[0]}").main(arguments[1:])
