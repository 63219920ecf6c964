# SPDX-License-Identifier: Apache-2.0
"""Value-aware batches out of a stream: a pool of rows is read, some batches are drawn from it, then the next pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .collators import DoubletPlan, NoDoubletError
from .images import decode_image
from .increments import Increment
from .streams import RowStream

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class RowPool:
    """Rows of a stream at hand.

    Attributes:
        files: the image file of each row as `{"bytes", "path"}`.
        image_ids: int64 (N,), as `ImageTable.image_ids`.
        labels: attribute of the increment → int64 (N,), place of the value in the vocabulary, -1 for no label.
    """

    files: list[dict]
    image_ids: np.ndarray
    labels: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image:
        """The image of a row, decoded to RGB."""
        return decode_image(self.files[index])


class DoubletStream:
    """
    The batches of one increment on one rank, without end; `next` gives the pool and the rows of the batch in it.

    Only the rows of the increment are read on, and held no longer than their pool. An attribute without a pair in a
    pool takes no turn there; a pool without any pair is passed over.

    Args:
        stream: the rows of this rank; its `keep` is set here.
        increment: what is learned.
        vocabulary: attribute → names of its values, whose places are the labels.
        pool_size: rows of a pool.
        batch_size: rows of a batch on this rank; even.
        seed: of the doublets, another one on each rank.
        value_balance: see `DoubletPlan`.
        total_rows, max_bad_fraction: more bad rows than this share stop the run.

    Raises:
        ValueError (by `next`): too many bad rows, or a whole epoch without any doublet.
    """

    def __init__(
        self,
        stream: RowStream,
        increment: Increment,
        vocabulary: Mapping[str, Sequence[str]],
        *,
        pool_size: int,
        batch_size: int,
        seed: tuple[int, ...],
        value_balance: float = 1.0,
        total_rows: int,
        max_bad_fraction: float = 0.01,
    ):
        self.stream, self.increment = stream, increment
        self.codes = {name: {v: i for i, v in enumerate(vocabulary[name])} for name in increment.attributes}
        self.pool_size, self.batch_size = max(pool_size, batch_size), batch_size
        self.seed, self.value_balance = tuple(seed), value_balance
        self.total_rows, self.max_bad_fraction = total_rows, max_bad_fraction
        stream.keep = self._wanted
        self._rows = iter(stream)
        self._pool: RowPool | None = None
        self._plan: DoubletPlan | None = None
        self._start = stream.state_dict()
        self._number, self._turn, self._turns = 0, 0, 0

    def __iter__(self) -> DoubletStream:
        return self

    def __next__(self) -> tuple[RowPool, np.ndarray]:
        if self._turn == self._turns:
            self._open_pool()
        self._turn += 1
        return self._pool, self._plan.rows(self._turn - 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain data: the start of the pool and the batches taken from it."""
        return {"start": self._start, "number": self._number, "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken; reads that pool again. ValueError: of another stream."""
        self.stream.load_state_dict(state["start"])
        self._rows = iter(self.stream)
        self._number, self._turn, self._turns = state["number"], 0, 0
        self._start = state["start"]
        if state["turn"]:
            self._number -= 1
            self._open_pool()
            self._turn = state["turn"]

    def _open_pool(self) -> None:
        first_epoch = self.stream.epoch
        while True:
            self._start = self.stream.state_dict()
            self._pool = self._read_pool()
            self.stream.bad_rows.check(self.total_rows, self.max_bad_fraction)
            self._number += 1
            try:
                self._plan = DoubletPlan(
                    self._pool.labels, self._pool.image_ids, self.batch_size, (*self.seed, self._number),
                    self.value_balance, skip_unpaired=True,
                )  # fmt: skip
                break
            except NoDoubletError as error:
                if self.stream.epoch - first_epoch > 1:
                    raise ValueError(
                        f"increment {self.increment.name!r}: a whole epoch of the stream brought no two different "
                        f"images with the same value of {', '.join(self.increment.attributes)} into one pool of "
                        f"{self.pool_size} rows. Raise --shuffle_buffer, or do without --streaming."
                    ) from error
        # A row is drawn once an epoch on average, as from a table.
        self._turn, self._turns = 0, max(1, round(len(self._pool) / self.batch_size))

    def _read_pool(self) -> RowPool:
        rows: list[dict] = []
        # Near the end of an epoch the next one is begun, so that no batch is made of a handful of rows; an increment
        # that has no more rows than that gives all of them once.
        ends = 1 if self._start["block"] == 0 and self._start["offset"] == 0 else 0
        while len(rows) < self.pool_size:
            row = next(self._rows, None)
            if row is not None:
                rows.append(row)
                continue
            self._rows = iter(self.stream)
            ends += 1
            if ends > 1 or len(rows) >= self.batch_size:
                break
        return self._pool_of(rows)

    def _pool_of(self, rows: list[dict]) -> RowPool:
        import xxhash

        files = [row["image"] for row in rows]
        data = [file["bytes"] if file["bytes"] is not None else str(file["path"]).encode() for file in files]
        ids = np.array([xxhash.xxh3_64_intdigest(part) for part in data], dtype=np.uint64).view(np.int64)
        labels = {
            name: np.array([codes.get(row["attributes"][name], -1) for row in rows], dtype=np.int64)
            for name, codes in self.codes.items()
        }
        return RowPool(files, ids, labels)

    def _wanted(self, labels: Mapping[str, str | None]) -> bool:
        known = any(labels.get(name) in codes for name, codes in self.codes.items())
        return known and self.increment.matches(labels)
