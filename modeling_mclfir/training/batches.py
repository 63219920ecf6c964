# SPDX-License-Identifier: Apache-2.0
"""The training batches of one increment: doublets from a table (as images or as cached features) or a stream."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from ..data.augmentation import Augmentation
from ..data.collators import DoubletPlan, local_slice
from ..data.images import DistinctBadRows
from ..data.increments import Increment, select_rows
from ..data.stream_batches import DoubletStream
from ..data.streams import open_stream
from ..data.table import ImageTable
from .feature_cache import load_pixels


class TableBatches(Dataset):
    """
    What batches of a table's rows have in common: a batch is a function of its step alone, so any process can make its
    slice of it and a run can be taken up at any step.

    Args:
        table: all training rows.
        views: cached features of each view, or None: images are decoded and augmented for every batch.
        num_views: how many views there are (cached), or how many to draw from (images).
        increment_id: the model's increment that learns it; None: all that the model has, in their order.
        seed: any tuple of whole numbers.
        teacher: whether a second view of each row is wanted.
        replay: batches of earlier increments' exemplars, of which each batch brings one by turns.
    """

    def __init__(
        self,
        table: ImageTable,
        views: list[np.ndarray] | None,
        num_views: int,
        processor,
        augmentation: Augmentation,
        accelerator: Accelerator,
        *,
        increment_id: int | None,
        seed: tuple[int, ...],
        teacher: bool,
        replay: Sequence["TableBatches"],
    ):
        self.table, self.views, self.num_views = table, views, num_views
        self.processor, self.augmentation, self.teacher = processor, augmentation, teacher
        self.increment_id, self.replay, self.device = increment_id, list(replay), accelerator.device
        self.seed = tuple(seed)

    def loader(self, first_step: int, last_step: int, num_workers: int) -> DataLoader:
        """Batches first_step..last_step-1. Already sharded: this must not go through `accelerator.prepare`."""
        workers = num_workers if self.views is None else 0
        return DataLoader(self, batch_size=None, sampler=range(first_step, last_step), num_workers=workers)

    def state_dict(self) -> dict:
        """Nothing: a batch depends on its step alone."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """See `state_dict`."""

    def end(self) -> None:
        """The increment is learned."""

    def _replayed(self, step: int) -> dict:
        """The exemplars' part of a batch; empty where there are none."""
        if not self.replay:
            return {}
        turn, replayed = divmod(step, len(self.replay))
        return {"replay": self.replay[replayed][turn]}

    def _image_inputs(self, rows: np.ndarray, views: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        if self.views is None:
            # Crops are drawn anew at each step here, where a cache has a fixed number of them.
            seed = draw_seed((*self.seed, step, 2))
            pixels = load_pixels(self.table, rows, views.tolist(), self.processor, self.augmentation, seed)
            return {"pixel_values": pixels, "increment_id": self.increment_id}
        features = np.stack([self.views[view][row] for row, view in zip(rows, views, strict=True)])
        return {"shared_features": torch.from_numpy(features), "increment_id": self.increment_id}


def parts_of_rows(rows: np.ndarray, size: int, most: int | None) -> Iterator[np.ndarray]:
    """Rows in parts of `size`; of more than `most` that many, at even distances."""
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class IncrementBatches(TableBatches):
    """
    Item `step` is this process's slice of the global batch of that step.

    Args:
        table: all training rows.
        increments: what is learned; rows outside them never come up, values outside them count as no label.
        increment_id: the model's increment that learns it; None: all that the model has, in their order.
        plan_seed, batch_size, value_balance: see `DoubletPlan`.
        views: cached features of each view, or None: images are decoded and augmented for every batch.
        num_views: how many views there are (cached), or how many to draw from (images).
        teacher: whether a second view of each row is wanted.
        triplets: attribute without labels → (T, 3) rows of `table`.
        only: rows of `table` that may come up (exemplars, of which some attributes may have no pair); None: all.
        replay: batches of earlier increments' exemplars, of which each batch brings one by turns.
    """

    def __init__(
        self,
        table: ImageTable,
        increments: Sequence[Increment],
        views: list[np.ndarray] | None,
        num_views: int,
        processor,
        augmentation: Augmentation,
        accelerator: Accelerator,
        *,
        increment_id: int | None,
        plan_seed: tuple[int, ...],
        batch_size: int,
        value_balance: float = 1.0,
        teacher: bool = False,
        triplets: dict[str, np.ndarray] | None = None,
        only: np.ndarray | None = None,
        replay: Sequence["IncrementBatches"] = (),
    ):
        super().__init__(
            table, views, num_views, processor, augmentation, accelerator, increment_id=increment_id, seed=plan_seed,
            teacher=teacher, replay=replay,
        )  # fmt: skip
        labels = increment_labels(table, increments, only)
        triplets = {name: rows for name, rows in (triplets or {}).items() if name in labels}
        self.num_rows = num_in_use(labels, triplets)
        self.plan = DoubletPlan(
            labels, table.image_ids, batch_size, plan_seed, value_balance, only is not None, triplets
        )
        self.attributes = list(labels)
        self.labels = torch.from_numpy(np.stack(list(labels.values()), axis=1))  # (N, A)
        self.image_ids = torch.from_numpy(table.image_ids)
        self.local = local_slice(batch_size, accelerator.process_index, accelerator.num_processes)

    def __getitem__(self, step: int) -> dict:
        rows, triplets = self.plan.draw(step)
        rows = rows[self.local]
        # Drawn for the global batch and then cut, so that the number of processes makes no difference.
        views, others = draw_views((*self.plan.seed, step, 1), self.plan.batch_size, self.num_views)
        batch = {
            "inputs": self._image_inputs(rows, views[self.local], step),
            "labels": self.labels[rows],
            "image_ids": self.image_ids[rows],
        }
        if triplets is not None:
            batch["sets"] = torch.from_numpy(triplets.sets[self.local])
            learned_so = torch.from_numpy(triplets.attributes)
            batch["labels"] = torch.where(learned_so, torch.from_numpy(triplets.labels[self.local]), batch["labels"])
        if self.teacher:
            batch["teacher_inputs"] = self._image_inputs(rows, others[self.local], step)
        return batch | self._replayed(step)

    def without_negatives(self, num_batches: int = 8) -> list[str]:
        """Attributes of which most of the first batches show one value only: their doublets meet no negatives."""
        counts = np.zeros(len(self.attributes))
        for step in range(num_batches):
            rows, _ = self.plan.draw(step)
            labels = self.labels[rows].numpy()
            counts += [len(np.unique(codes[codes >= 0])) < 2 for codes in labels.T]
        from_triplets = {attribute for attribute, _ in self.plan.triplets.values()}
        lacking = [place for place, count in enumerate(counts) if 2 * count > num_batches]
        return [self.attributes[place] for place in lacking if place not in from_triplets]

    def chunks(self, size: int = 64, most: int | None = None) -> Iterator[dict]:
        """See `IncrementRows`; every process gets them all. Of more than `most` rows, that many at even distances."""
        rows = np.flatnonzero((self.labels >= 0).any(dim=1).numpy())
        for chunk in parts_of_rows(rows, size, most):
            batch = {
                "inputs": self._image_inputs(chunk, np.zeros(len(chunk), dtype=np.int64), 0),
                "labels": self.labels[chunk],
                "image_ids": self.image_ids[chunk],
                "rows": torch.from_numpy(chunk),
            }
            yield to_device(batch, self.device, torch.float32)


class StreamBatches:
    """
    The same out of a stream: each process draws its share of the batch from a pool of its own rows.

    So another number of processes makes another run, unlike with `IncrementBatches`.

    Args:
        data_dir: the prepared data set.
        increments, increment_id: see `IncrementBatches`.
        labels: table of the training rows, of which only labels and vocabulary are read.
        shuffle_buffer: rows of a pool, on each process.
        bad_rows: gets what the stream leaves out; more than `max_bad_fraction` of all rows stop the run.
    """

    views = None

    def __init__(
        self,
        data_dir: Path,
        labels: ImageTable,
        increments: Sequence[Increment],
        num_views: int,
        processor,
        augmentation: Augmentation,
        accelerator: Accelerator,
        *,
        increment_id: int,
        plan_seed: tuple[int, ...],
        batch_size: int,
        shuffle_buffer: int,
        value_balance: float = 1.0,
        teacher: bool = False,
        bad_rows: DistinctBadRows | None = None,
        max_bad_fraction: float = 0.01,
    ):
        if len(increments) > 1:
            raise ValueError(
                "A stream gives the rows of one increment; a method that learns several at once needs a table: leave "
                "--streaming out."
            )
        rank, world_size = accelerator.process_index, accelerator.num_processes
        self.increment_id = increment_id
        local = local_slice(batch_size, rank, world_size)
        self.num_views, self.teacher = num_views, teacher
        self.processor, self.augmentation, self.accelerator = processor, augmentation, accelerator
        self.num_rows = num_in_use(increment_labels(labels, increments))
        self.bad_rows = DistinctBadRows() if bad_rows is None else bad_rows
        self.seed = (*plan_seed, rank)
        stream = open_stream(
            data_dir, "train", rank=rank, world_size=world_size, shuffle_buffer=shuffle_buffer,
            seed=draw_seed(plan_seed),
        )  # fmt: skip
        stream.bad_rows = self.bad_rows
        self.doublets = DoubletStream(
            stream, increments[0], labels.vocabulary, pool_size=shuffle_buffer, batch_size=local.stop - local.start,
            seed=self.seed, value_balance=value_balance, total_rows=len(labels), max_bad_fraction=max_bad_fraction,
        )  # fmt: skip

    def loader(self, first_step: int, last_step: int, num_workers: int) -> Iterator[dict]:
        """Batches first_step..last_step-1, read on from where the stream stands (no workers: it has one reader)."""
        for step in range(first_step, last_step):
            pool, rows = next(self.doublets)
            views, others = draw_views((*self.seed, step, 1), len(rows), self.num_views)
            seed = draw_seed((*self.seed, step, 2))
            labels = np.stack([codes[rows] for codes in pool.labels.values()], axis=1)  # (n, A)
            batch = {
                "inputs": self._inputs(pool, rows, views, seed),
                "labels": torch.from_numpy(labels),
                "image_ids": torch.from_numpy(pool.image_ids[rows]),
            }
            if self.teacher:
                batch["teacher_inputs"] = self._inputs(pool, rows, others, seed)
            yield batch

    def _inputs(self, pool, rows: np.ndarray, views: np.ndarray, seed: int) -> dict[str, torch.Tensor]:
        pixels = load_pixels(pool, rows, views.tolist(), self.processor, self.augmentation, seed)
        return {"pixel_values": pixels, "increment_id": self.increment_id}

    def state_dict(self) -> dict:
        """Where this process's stream stands, as plain data."""
        return self.doublets.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Goes back to there. ValueError where the run was started with another number of processes."""
        self.doublets.load_state_dict(state)

    def end(self) -> None:
        """The increment is learned: every process gets to know what the others left out."""
        for state in gather_object([self.bad_rows.state_dict()]):
            self.bad_rows.load_state_dict(state)


def increment_labels(
    table: ImageTable, increments: Sequence[Increment], only: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """
    The labels of increments, attribute → (N,), -1 for rows that lie outside: of an attribute in several of them,
    outside all of those.

    Args:
        only: rows that may have labels; None: all.
    """
    allowed = np.ones(len(table), dtype=bool)
    if only is not None:
        allowed[:] = False
        allowed[only] = True
    labels: dict[str, np.ndarray] = {}
    for increment in increments:
        inside = np.zeros(len(table), dtype=bool)
        inside[select_rows(increment, table)] = True
        for name in increment.attributes:
            before = labels.get(name, np.full(len(table), -1))
            labels[name] = np.where(inside & allowed, table.labels(name), before)
    return labels


def num_in_use(labels: dict[str, np.ndarray], triplets: dict[str, np.ndarray] | None = None) -> int:
    """Rows with a label of at least one of the attributes, or in one of the triplets."""
    used = (np.stack(list(labels.values())) >= 0).any(axis=0)
    for rows in (triplets or {}).values():
        used[rows.ravel()] = True
    return int(used.sum())


def draw_views(seed: tuple[int, ...], num_rows: int, num_views: int) -> tuple[np.ndarray, np.ndarray]:
    """A view for each row, and another one (where there are others) for the teacher."""
    rng = np.random.default_rng(seed)
    views = rng.integers(0, num_views, num_rows)
    shift = rng.integers(1, max(num_views, 2), num_rows)
    return views, (views + shift) % num_views


def draw_seed(seed: tuple[int, ...]) -> int:
    """A number that a tuple of numbers stands for."""
    return int(np.random.default_rng(seed).integers(2**31))


def to_device(batch: dict, device: torch.device, dtype: torch.dtype) -> dict:
    """The batch on the device; cached features, stored in half precision, in the model's dtype."""
    moved = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            moved[name] = to_device(value, device, dtype)
        elif not isinstance(value, torch.Tensor):
            moved[name] = value
        else:
            layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
            kind = dtype if value.is_floating_point() else None
            moved[name] = value.to(device, kind, non_blocking=True, memory_format=layout)
    return moved
