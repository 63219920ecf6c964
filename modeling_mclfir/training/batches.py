# SPDX-License-Identifier: Apache-2.0
"""The training batches of one increment: doublets from a table, as images or as cached features."""

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ..data.augmentation import Augmentation
from ..data.collators import DoubletPlan, local_slice
from ..data.increments import Increment, select_rows
from ..data.table import ImageTable
from .feature_cache import load_pixels


class IncrementBatches(Dataset):
    """
    Item `step` is this process's slice of the global batch of that step.

    Args:
        table: all training rows.
        increment: what is learned; rows outside it never come up, values outside it count as no label.
        plan_seed, batch_size, value_balance: see `DoubletPlan`.
        views: cached features of each view, or None: images are decoded and augmented for every batch.
        num_views: how many views there are (cached), or how many to draw from (images).
        teacher: whether a second view of each row is wanted.
    """

    def __init__(
        self,
        table: ImageTable,
        increment: Increment,
        views: list[np.ndarray] | None,
        num_views: int,
        processor,
        augmentation: Augmentation,
        accelerator: Accelerator,
        *,
        plan_seed: tuple[int, ...],
        batch_size: int,
        value_balance: float = 1.0,
        teacher: bool = False,
    ):
        self.table, self.views, self.num_views = table, views, num_views
        self.processor, self.augmentation, self.accelerator = processor, augmentation, accelerator
        self.teacher = teacher
        labels = increment_labels(table, increment)
        self.num_rows = int((np.stack(list(labels.values())) >= 0).any(axis=0).sum())
        self.plan = DoubletPlan(labels, table.image_ids, batch_size, plan_seed, value_balance)
        self.labels = torch.from_numpy(np.stack(list(labels.values()), axis=1))  # (N, A)
        self.image_ids = torch.from_numpy(table.image_ids)
        self.local = local_slice(batch_size, accelerator.process_index, accelerator.num_processes)

    def __getitem__(self, step: int) -> dict:
        rows = self.plan.rows(step)[self.local]
        # Drawn for the global batch and then cut, so that the number of processes makes no difference.
        rng = np.random.default_rng((*self.plan.seed, step, 1))
        views = rng.integers(0, self.num_views, self.plan.batch_size)
        shift = rng.integers(1, max(self.num_views, 2), self.plan.batch_size)
        batch = {
            "inputs": self._inputs(rows, views[self.local], step),
            "labels": self.labels[rows],
            "image_ids": self.image_ids[rows],
        }
        if self.teacher:
            batch["teacher_inputs"] = self._inputs(rows, ((views + shift) % self.num_views)[self.local], step)
        return batch

    def _inputs(self, rows: np.ndarray, views: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        if self.views is None:
            # Crops are drawn anew at each step here, where a cache has a fixed number of them.
            seed = int(np.random.default_rng((*self.plan.seed, step, 2)).integers(2**31))
            pixels = load_pixels(self.table, rows, views.tolist(), self.processor, self.augmentation, seed)
            return {"pixel_values": pixels}
        features = np.stack([self.views[view][row] for row, view in zip(rows, views, strict=True)])
        return {"shared_features": torch.from_numpy(features)}


def increment_labels(table: ImageTable, increment: Increment) -> dict[str, np.ndarray]:
    """The increment's labels, attribute → (N,), -1 for rows that lie outside it."""
    inside = np.zeros(len(table), dtype=bool)
    inside[select_rows(increment, table)] = True
    return {name: np.where(inside, table.labels(name), -1) for name in increment.attributes}


def batch_loader(batches: IncrementBatches, first_step: int, last_step: int, num_workers: int) -> DataLoader:
    """A loader of steps first_step..last_step-1. Already sharded: it must not go through `accelerator.prepare`."""
    workers = num_workers if batches.views is None else 0
    return DataLoader(batches, batch_size=None, sampler=range(first_step, last_step), num_workers=workers)


def to_device(batch: dict, device: torch.device, dtype: torch.dtype) -> dict:
    """The batch on the device; cached features, stored in half precision, in the model's dtype."""
    moved = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            moved[name] = to_device(value, device, dtype)
        else:
            moved[name] = value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
    return moved
