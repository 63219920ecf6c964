# SPDX-License-Identifier: Apache-2.0
"""Outputs of the shared part of the trunk on disk, once for each image and view.

A cached map is keyed by the images, the view, the preprocessing and the weights below the first adapted unit: change
one of them and another file is written.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from tqdm import tqdm

from ..data.augmentation import Augmentation, view_generator
from ..data.table import ImageTable
from .fingerprint import shared_fingerprint

logger = get_logger(__name__)
_CHUNK = 32


class FeatureCache:
    """
    Fills and opens memory-mapped arrays of shared features.

    Args:
        folder: where the files go.
        max_bytes: cap over all files of this cache; a table that would pass it is not cached (`open` gives None).
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def open(
        self,
        model,
        processor,
        table: ImageTable,
        view: int,
        accelerator: Accelerator,
        *,
        augmentation: Augmentation,
        seed: int,
        dtype: str = "float16",
    ) -> np.ndarray | None:
        """
        Features of every row of `table` in one view, (N, …), read-only; None where the cap forbids it.

        Filled on first use, by all processes together: whichever has the work, chunks and so values are the same.
        Of several runs with one cache, one fills and the others wait for it.
        """
        with torch.no_grad():
            pixels = load_pixels(table, [0], view, processor, augmentation, seed).to(accelerator.device)
            sample = model.mclfir.shared_forward(pixels)
        shape = (len(table), *sample.shape[1:])
        key = self._key(model, processor, table, view, augmentation, seed, dtype)
        path = self.folder / f"{table.split}-view{view}-{key}.npy"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self._lock(accelerator):
            used = sum(file.stat().st_size for file in self.folder.glob("*.npy"))
            # Other runs may share the folder: one process looks, or each would look at its own time.
            missing, fits = broadcast_object_list([not path.exists(), used + size <= self.max_bytes])
            if missing and not fits:
                logger.warning(
                    f"{table.split} view {view} would need {size / 2**30:.1f} GiB of feature cache, past the cap of "
                    f"{self.max_bytes / 2**30:.1f} GiB (--max_cache_gib): it is computed afresh each time instead."
                )
                return None
            if missing:
                self._fill(path, shape, dtype, model, processor, table, view, accelerator, augmentation, seed)
        return np.load(path, mmap_mode="r")

    def _fill(self, path, shape, dtype, model, processor, table, view, accelerator, augmentation, seed) -> None:
        partial = path.with_suffix(".partial")
        if accelerator.is_main_process:
            np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape).flush()
        accelerator.wait_for_everyone()
        target = np.lib.format.open_memmap(partial, mode="r+")
        starts = range(0, len(table), _CHUNK)[accelerator.process_index :: accelerator.num_processes]
        progress = tqdm(
            starts, desc=f"features {table.split} view {view}", unit="batch", disable=not accelerator.is_main_process
        )
        with torch.no_grad():
            for start in progress:
                rows = range(start, min(start + _CHUNK, len(table)))
                pixels = load_pixels(table, rows, view, processor, augmentation, seed).to(accelerator.device)
                features = model.mclfir.shared_forward(pixels)
                target[rows.start : rows.stop] = features.float().cpu().numpy().astype(dtype)
        target.flush()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            os.replace(partial, path)
        accelerator.wait_for_everyone()

    def _lock(self, accelerator: Accelerator):
        if not accelerator.is_main_process:
            return nullcontext()
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def _key(self, model, processor, table, view, augmentation, seed, dtype) -> str:
        digest = hashlib.sha256()
        digest.update(shared_fingerprint(model).encode())
        settings = {
            # Saving a processor adds where its code lies, which changes no pixel.
            "processor": {key: value for key, value in processor.to_dict().items() if key != "auto_map"},
            "view": [view, seed, repr(augmentation)] if view else 0,
            "dtype": dtype,
        }
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(np.ascontiguousarray(table.image_ids).tobytes())
        return digest.hexdigest()[:20]


def load_pixels(table: ImageTable, rows, views, processor, augmentation: Augmentation, seed: int) -> torch.Tensor:
    """Images of some rows, each in its view (one number for all, or one a row), preprocessed: (n, 3, H, W)."""
    rows = list(rows)
    views = [views] * len(rows) if isinstance(views, int) else list(views)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pixels = list(pool.map(_loader(table, processor, augmentation, seed), rows, views))
    return torch.stack(pixels)


def _loader(table: ImageTable, processor, augmentation: Augmentation, seed: int) -> Callable[[int, int], torch.Tensor]:
    def load(row: int, view: int) -> torch.Tensor:
        image = augmentation(table.image(row), view, view_generator(seed, table.image_ids[row], view))
        return processor(image, return_tensors="pt")["pixel_values"][0]

    return load
