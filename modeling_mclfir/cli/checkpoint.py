# SPDX-License-Identifier: Apache-2.0
"""Opens a finished checkpoint, for the commands that use one."""

from pathlib import Path

import torch

from ..modeling_mclfir import MclfirForImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from ..training.memory import keep_freed_memory


def open_checkpoint(checkpoint: str) -> tuple[MclfirForImageRetrieval, MclfirImageProcessor]:
    """
    The model, in eval mode and where there is a GPU on it, and its processor.

    Raises:
        FileNotFoundError: a folder is meant that is not there; what else it may be, only the Hub knows.
    """
    _check(checkpoint)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MclfirForImageRetrieval.from_pretrained(checkpoint).to(device).eval()
    return model, MclfirImageProcessor.from_pretrained(checkpoint)


def _check(checkpoint: str) -> None:
    folder = Path(checkpoint)
    if folder.exists() or not (folder.is_absolute() or checkpoint.startswith(".") or len(folder.parts) > 2):
        return
    others = sorted(path.name for path in folder.parent.glob("increment-*")) if folder.parent.is_dir() else []
    found = f"{folder.parent} has {', '.join(others)}" if others else f"{folder.parent} has no increment-XX"
    raise FileNotFoundError(f"--checkpoint {checkpoint}: no such folder; {found}.")
