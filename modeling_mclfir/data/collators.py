# SPDX-License-Identifier: Apache-2.0
"""Rows → doublets: which images meet in a batch."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_MAX_DRAWS = 16
_DOUBLETS_OF_TRIPLETS = 3  # of two triplets: both pairs of anchor and positive, then both negatives


class NoDoubletError(ValueError):
    """There are no two different images of the same value."""


class Triplets(NamedTuple):
    """The triplets of one batch.

    Attributes:
        sets: (N, A) int64, number of the triplet that a row is in for an attribute, -1 for none.
        labels: (N, A) int64, equal for the anchor and the positive of a triplet, another one for its negative; -1.
        attributes: (A,) bool, the attributes that are learned from triplets.
    """

    sets: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray


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
        triplets: attribute without labels → (T, 3) rows: anchor, positive, negative. Of such an attribute's doublets,
            each third one holds the negatives of the two before it, so a batch needs three of them at least.

    Raises:
        ValueError: an odd batch, one too small for triplets, a balance outside 0..1, an attribute with fewer than two
            images of any one value.
    """

    def __init__(
        self,
        labels: Mapping[str, np.ndarray],
        image_ids: np.ndarray,
        batch_size: int,
        seed: tuple[int, ...],
        value_balance: float = 1.0,
        skip_unpaired: bool = False,
        triplets: Mapping[str, np.ndarray] | None = None,
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
        self.triplets: dict[int, tuple[int, np.ndarray]] = {}  # place among the groups → attribute, triplets
        self._num_attributes = len(labels)
        for column, (attribute, codes) in enumerate(labels.items()):
            if triplets and len(triplets.get(attribute, ())):
                self.triplets[len(self.groups)] = column, np.asarray(triplets[attribute])
                self.groups.append([])
                self.weights.append(np.empty(0))
                continue
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
        least = 2 * _DOUBLETS_OF_TRIPLETS * len(self.groups)
        if self.triplets and batch_size < least:
            raise ValueError(
                f"Triplets take {_DOUBLETS_OF_TRIPLETS} doublets of each attribute: batch_size must be at least "
                f"{least} for {len(self.groups)} attributes; got {batch_size}."
            )

    def _groups(self, codes: np.ndarray) -> list[np.ndarray]:
        order = np.argsort(codes, kind="stable")
        order = order[codes[order] >= 0]
        parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
        return [part for part in parts if (self.image_ids[part] != self.image_ids[part[0]]).any()]

    def rows(self, step: int) -> np.ndarray:
        """Rows of the global batch of one step: (batch_size,) int64."""
        return self.draw(step)[0]

    def draw(self, step: int) -> tuple[np.ndarray, Triplets | None]:
        """Rows of the global batch of one step, (batch_size,) int64, and the triplets among them, if any."""
        rng = np.random.default_rng((*self.seed, step))
        num_doublets = self.batch_size // 2
        # Each batch begins at another attribute, so that none is favoured where they do not divide the batch.
        turn = (np.arange(num_doublets) + rng.integers(len(self.groups))) % len(self.groups)
        drawn = rng.random(num_doublets)
        rows = np.empty(self.batch_size, dtype=np.int64)
        found = self._draw_triplets(rows, turn, rng)
        for doublet, attribute in enumerate(turn):
            if attribute in self.triplets:
                continue
            weights = self.weights[attribute]
            value = min(int(np.searchsorted(weights, drawn[doublet], side="right")), len(weights) - 1)
            rows[2 * doublet : 2 * doublet + 2] = self._pair(self.groups[attribute][value], rng)
        return rows, found

    def _draw_triplets(self, rows: np.ndarray, turn: np.ndarray, rng: np.random.Generator) -> Triplets | None:
        """Fills the doublets of attributes with triplets."""
        if not self.triplets:
            return None
        shape = (self.batch_size, self._num_attributes)
        sets, labels = np.full(shape, -1, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        number = 0
        for group, (attribute, triplets) in self.triplets.items():
            doublets = np.flatnonzero(turn == group)
            pairs = [doublet for place, doublet in enumerate(doublets) if place % _DOUBLETS_OF_TRIPLETS < 2]
            for place, doublet in enumerate(pairs):
                anchor, positive, negative = triplets[rng.integers(len(triplets))]
                at = [2 * doublet, 2 * doublet + 1]
                rows[at] = anchor, positive
                third = _DOUBLETS_OF_TRIPLETS * (place // 2) + 2
                if third >= len(doublets):
                    continue  # without its negative it teaches nothing: it takes no part
                at.append(2 * doublets[third] + place % 2)
                rows[at[2]] = negative
                labels[at, attribute] = 2 * number, 2 * number, 2 * number + 1
                sets[at, attribute] = number
                number += 1
        learned_so = np.isin(np.arange(self._num_attributes), [attribute for attribute, _ in self.triplets.values()])
        return Triplets(sets, labels, learned_so)

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
