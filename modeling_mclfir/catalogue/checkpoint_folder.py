# SPDX-License-Identifier: Apache-2.0
"""Folders that are given for checkpoints and are none: what they are, and which one was meant."""

import re
from pathlib import Path

from transformers import PreTrainedConfig


def model_type_of(checkpoint: str) -> str | None:
    """`model_type` in a checkpoint's configuration, a folder or a Hub id. FileNotFoundError: see `check_folder`."""
    check_folder(checkpoint)
    return PreTrainedConfig.get_config_dict(checkpoint)[0].get("model_type")


def check_folder(checkpoint: str) -> None:
    """
    Refuse a folder that is not there, or that holds no checkpoint; what else a name may be, only the Hub knows.

    Raises:
        FileNotFoundError: it names the increments of the run that the folder is of, or would be of.
    """
    folder = Path(checkpoint)
    if folder.is_dir() and not (folder / "config.json").is_file():
        there = _increments(folder)
        if not there:
            raise FileNotFoundError(
                f"--checkpoint {checkpoint}: no checkpoint (config.json) in it, and no increment-XX of a run."
            )
        raise FileNotFoundError(
            f"--checkpoint {checkpoint}: the folder of a run; a checkpoint is one of its increments, "
            f"{', '.join(path.name for path in there)}. Take {there[-1]}, the last one."
        )
    if folder.exists() or not (folder.is_absolute() or checkpoint.startswith(".") or len(folder.parts) > 2):
        return
    others = [path.name for path in _increments(folder.parent)]
    found = f"{folder.parent} has {', '.join(others)}" if others else f"{folder.parent} has no increment-XX"
    raise FileNotFoundError(f"--checkpoint {checkpoint}: no such folder; {found}.")


def _increments(run: Path) -> list[Path]:
    """Checkpoints of a run, in the order in which they were trained."""
    found = [path for path in run.glob("increment-*") if re.fullmatch(r"increment-\d+", path.name)]
    return sorted((path for path in found if (path / "config.json").is_file()), key=lambda path: int(path.name[10:]))
