# SPDX-License-Identifier: Apache-2.0
"""Streams: the rows of a prepared data set read on from disk, shuffled, shared out over ranks and resumed exactly."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .images import BadImage, BadRows, decode_image
from .schema import SPLITS, attribute_names, check_data_dir, check_splits

if TYPE_CHECKING:
    from datasets import IterableDataset

# Without shuffling, rows are still read in blocks: a resumed stream starts at a block.
_PLAIN_BLOCK = 100
# From so many row groups a rank, a rank reads only its own; the ranks then differ by one group, 2 % of the rows.
_MANY_GROUPS = 50


# Iterators over files. Those that are still open at the end of a program are closed while Arrow can still do so;
# left to the interpreter's own tidying, they complain or abort the process.
_OPEN: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for rows in list(_OPEN):
        rows.close()


class RowStream:
    """The rows of one rank, epoch after epoch; iterate it once an epoch.

    The order of an epoch: the row groups of all shards are shuffled (alike on all ranks), shared out over the ranks,
    read on, and shuffled again in blocks of `shuffle_buffer` rows. Over the ranks, every row comes exactly once.
    (The shuffle buffer of datasets loses its rows when its state is loaded; a block is simply read again.)

    Attributes:
        attributes: names, in order.
        epoch: of the next row; one more at the end of an iteration.
        bad_rows: what was skipped so far; another counter may be put in its place.
        keep: labels of a row → whether it is wanted (None: all are); others are neither decoded nor yielded.
    """

    def __init__(
        self, dataset: IterableDataset, rank: int, world_size: int, shuffle_buffer: int, seed: int, decode: bool
    ):
        self.attributes = attribute_names(dataset.features)
        self.epoch = 0
        self.bad_rows = BadRows()
        self.keep: Callable[[dict[str, str | None]], bool] | None = None
        self._dataset = dataset
        self._rank, self._world_size = rank, world_size
        self._shuffle_buffer, self._seed, self._decode = shuffle_buffer, seed, decode
        self._restart()

    def set_epoch(self, epoch: int) -> None:
        """Starts this epoch from its first row."""
        self.epoch = epoch
        self._restart()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the rest of the epoch; a row with a bad image is skipped and counted.

        A row has `image` as `{"bytes", "path"}` (with `decode` a PIL image), `attributes`, `caption`, `product_id`.
        """
        from datasets.distributed import split_dataset_by_node

        # Whole row groups where there are many, and else single rows, which are shared out evenly.
        many = self._dataset.num_shards >= _MANY_GROUPS * self._world_size
        strategy = "shards" if many else "examples"
        # Single rows are dealt out by turns, and groups have an even number of them: without a change of places a rank
        # would meet the same rows in every epoch.
        place = self._rank if many else (self._rank + self.epoch) % self._world_size
        dataset = split_dataset_by_node(self._dataset, place, self._world_size, strategy=strategy)
        if self._shuffle_buffer:
            # An epoch number above 0 shuffles the row groups, and is all that the order depends on.
            dataset.set_epoch(int(np.random.default_rng([self._seed, self.epoch]).integers(1, 2**31)))
        if self._source is not None:
            dataset.load_state_dict(self._source)
        rows = iter(dataset)
        _OPEN.add(rows)
        try:
            while block := list(islice(rows, self._shuffle_buffer or _PLAIN_BLOCK)):
                for index in self._order(len(block))[self._offset :]:
                    self._offset += 1  # before the yield: the state of a stopped stream is after this row
                    row = self._checked(block[index])
                    if row is not None:
                        yield row
                self._source = dataset.state_dict()
                self._block, self._offset = self._block + 1, 0
        finally:
            rows.close()
        self.set_epoch(self.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain data: after the last row that was yielded."""
        return {
            "epoch": self.epoch,
            "block": self._block,
            "offset": self._offset,
            "source": self._source,
            "bad_rows": self.bad_rows.state_dict(),
            "order": self._order_settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken.

        Raises:
            ValueError: the stream was opened with another seed, buffer, rank or number of ranks.
        """
        if state["order"] != self._order_settings():
            raise ValueError(
                f"the state belongs to a stream opened with {state['order']}, this one has {self._order_settings()}; "
                "open it with the same settings to go on exactly"
            )
        self.epoch, self._block, self._offset = state["epoch"], state["block"], state["offset"]
        self._source = state["source"]
        self.bad_rows.load_state_dict(state["bad_rows"])

    def _restart(self) -> None:
        self._block, self._offset, self._source = 0, 0, None

    def _order_settings(self) -> dict[str, int]:
        return {
            "seed": self._seed,
            "shuffle_buffer": self._shuffle_buffer,
            "rank": self._rank,
            "world_size": self._world_size,
        }

    def _order(self, size: int) -> np.ndarray:
        if not self._shuffle_buffer:
            return np.arange(size)
        return np.random.default_rng([self._seed, self.epoch, self._rank, self._block]).permutation(size)

    def _checked(self, row: dict[str, Any]) -> dict[str, Any] | None:
        if self.keep is not None and not self.keep(row.get("attributes") or {}):
            return None
        try:
            image = decode_image(row["image"])
        except BadImage as error:
            self.bad_rows.add(error.cause, (row["image"] or {}).get("path") or "a row without an image path")
            return None
        return {**row, "image": image} if self._decode else row


def open_stream(
    data_dir: str | os.PathLike,
    split: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    shuffle_buffer: int = 1000,
    seed: int = 0,
    decode: bool = False,
) -> RowStream:
    """Opens a split of a prepared data set as a stream. Ranks are shared out here and nowhere else.

    Args:
        data_dir: a folder written by one of the data_scripts.
        split: train, val, query or gallery.
        rank: of this process.
        world_size: number of processes.
        shuffle_buffer: rows held and shuffled at a time; 0 keeps the order of the files.
        seed: of the order.
        decode: give decoded RGB images instead of the bytes.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: there is no such split, or a number is out of range.
    """
    from datasets import Image, load_dataset

    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes; expected 0 ≤ rank < world_size")
    if shuffle_buffer < 0 or seed < 0:
        raise ValueError(f"shuffle_buffer is {shuffle_buffer} and seed {seed}; expected 0 or more")
    check_data_dir(Path(data_dir))
    splits = load_dataset(str(Path(data_dir).resolve()), streaming=True)
    check_splits(splits, str(data_dir))
    if split not in SPLITS:
        raise ValueError(f"{data_dir} has no split {split!r}; expected one of {', '.join(SPLITS)}")
    # A split without rows has no file. Row groups are the unit of shuffling and of sharing out, so that a data set of
    # one file is shuffled as well.
    dataset = splits[split].reshard() if split in splits else next(iter(splits.values())).take(0)
    attribute_names(dataset.features, str(data_dir))
    return RowStream(dataset.cast_column("image", Image(decode=False)), rank, world_size, shuffle_buffer, seed, decode)
