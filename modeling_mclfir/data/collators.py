# SPDX-License-Identifier: Apache-2.0
"""Rows → doublets: which images meet in a batch."""

from collections.abc import Mapping

import numpy as np

_MAX_DRAWS = 16


class NoDoubletError(ValueError):
    """There are no two different images of the same value."""


class DoubletPlan:
    """
    The global batches of one increment: a pure function of seed and step, so that any process can take its slice
    and a run can be taken up at any step.

    A batch serves all attributes of the increment: its doublets (rows 2k and 2k+1: anchor and positive) take the
    attributes in turn, then a value, then two different images of it.

    Args:
        labels: attribute → (N,) integers, -1 for no label.
        image_ids: (N,), equal for byte-identical images, which never pair up.
        batch_size: rows of a batch, over all processes; even.
        seed: any tuple of non-negative integers.
        value_balance: 1.0 draws values uniformly (the papers' way: rare values are over-sampled), 0.0 as often as
            they occur; in between, with weight count ** (1 - value_balance).
        skip_unpaired: leave out attributes without any pair; one that has a pair is enough.

    Raises:
        ValueError: an odd batch, a balance outside 0..1, an attribute with fewer than two images of any one value.
    """

    def __init__(
        self,
        labels: Mapping[str, np.ndarray],
        image_ids: np.ndarray,
        batch_size: int,
        seed: tuple[int, ...],
        value_balance: float = 1.0,
        skip_unpaired: bool = False,
    ):
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"A batch is made of doublets: batch_size must be even and at least 2; got {batch_size}.")
        if not 0.0 <= value_balance <= 1.0:
            raise ValueError(f"value_balance must lie in 0..1; got {value_balance}.")
        self.batch_size = batch_size
        self.seed = tuple(seed)
        self.image_ids = np.asarray(image_ids)
        self.groups: list[list[np.ndarray]] = []
        self.weights: list[np.ndarray] = []
        for attribute, codes in labels.items():
            groups = self._groups(np.asarray(codes))
            if not groups and skip_unpaired:
                continue
            if not groups:
                raise NoDoubletError(
                    f"Attribute {attribute!r} has no value with two different images among {len(self.image_ids)} "
                    "training rows, so no doublet can be drawn. Leave it out of the increment, or add images."
                )
            counts = np.array([len(group) for group in groups], dtype=np.float64) ** (1.0 - value_balance)
            self.groups.append(groups)
            self.weights.append(np.cumsum(counts / counts.sum()))
        if not self.groups:
            given = ", ".join(labels) or "no attributes"
            raise NoDoubletError(f"Nothing to draw doublets from among {len(self.image_ids)} rows; given: {given}.")

    def _groups(self, codes: np.ndarray) -> list[np.ndarray]:
        order = np.argsort(codes, kind="stable")
        order = order[codes[order] >= 0]
        parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
        return [part for part in parts if (self.image_ids[part] != self.image_ids[part[0]]).any()]

    def rows(self, step: int) -> np.ndarray:
        """Rows of the global batch of one step: (batch_size,) int64."""
        rng = np.random.default_rng((*self.seed, step))
        num_doublets = self.batch_size // 2
        # Each batch begins at another attribute, so that none is favoured where they do not divide the batch.
        turn = (np.arange(num_doublets) + rng.integers(len(self.groups))) % len(self.groups)
        drawn = rng.random(num_doublets)
        rows = np.empty(self.batch_size, dtype=np.int64)
        for doublet, attribute in enumerate(turn):
            weights = self.weights[attribute]
            value = min(int(np.searchsorted(weights, drawn[doublet], side="right")), len(weights) - 1)
            rows[2 * doublet : 2 * doublet + 2] = self._pair(self.groups[attribute][value], rng)
        return rows

    def _pair(self, group: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        anchor = group[rng.integers(len(group))]
        for _ in range(_MAX_DRAWS):
            positive = group[rng.integers(len(group))]
            if self.image_ids[positive] != self.image_ids[anchor]:
                return anchor, positive
        # Nearly all of the group are copies of the anchor: look for the others.
        others = group[self.image_ids[group] != self.image_ids[anchor]]
        return anchor, others[rng.integers(len(others))]


def local_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """
    A process's part of the global batch; doublets stay whole.

    Raises:
        ValueError: the batch does not divide into doublets for each process.
    """
    if batch_size % (2 * world_size):
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {world_size} processes in whole doublets; choose a multiple "
            f"of {2 * world_size}."
        )
    size = batch_size // world_size
    return slice(rank * size, (rank + 1) * size)
