# SPDX-License-Identifier: Apache-2.0
"""The images of a folder, batch by batch, as a model takes them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.images import BadImage, BadRows, decode_image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def check_checkpoint(checkpoint: str) -> None:
    """
    Raises FileNotFoundError where a folder is meant that is not there; what else it may be, only the Hub knows.
    """
    folder = Path(checkpoint)
    if folder.exists() or not (folder.is_absolute() or checkpoint.startswith(".") or len(folder.parts) > 2):
        return
    others = sorted(path.name for path in folder.parent.glob("increment-*")) if folder.parent.is_dir() else []
    found = f"{folder.parent} has {', '.join(others)}" if others else f"{folder.parent} has no increment-XX"
    raise FileNotFoundError(f"--checkpoint {checkpoint}: no such folder; {found}.")


def folder_batches(
    folder: Path, processor, batch_size: int, max_bad_fraction: float, desc: str
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """
    Names inside the folder, sorted, and pixel values (n, 3, H, W) of each batch.

    Raises:
        FileNotFoundError: no image in it.
        ValueError: at the end, more of them are unusable than `max_bad_fraction`.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    bad_rows = BadRows()
    for start in tqdm(range(0, len(files), batch_size), desc=desc, unit="batch"):
        images, kept = [], []
        for path in files[start : start + batch_size]:
            try:
                images.append(decode_image(path))
                kept.append(str(path.relative_to(folder)))
            except BadImage as error:
                bad_rows.add(error.cause, str(path))
        if images:
            yield kept, processor(images, return_tensors="pt")["pixel_values"]
    bad_rows.check(len(files), max_bad_fraction)
