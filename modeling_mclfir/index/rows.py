# SPDX-License-Identifier: Apache-2.0
"""The rows of a FAISS store as a process holds them: ids, vectors in blocks, metadata, and which have ended."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from .columns import Columns
from .segments import Batch
from .store import Entries, Value

MAPPED_ROWS = 65_536  # vectors of smaller segments are copied to memory, where they lie in few blocks
_BLOCK_ROWS = 4096
_RECENT_IDS = 10_000
_KEPT_MASKS = 8
# Up to so many numbers are looked at by Python itself. A search has emptied the processor's cache: there, what NumPy
# and Arrow do for a whole array begins with a hundred microseconds of fetching their code.
FEW = 128


class Rows:
    """
    Rows in the order in which they were added. A row never changes: what removes or replaces an entry ends its row.

    Vectors are blocks: memory-mapped files, and blocks of memory that are filled up and never moved, so that a search
    in another thread keeps what it looks at.
    """

    def __init__(self, dim: int):
        self.dim = dim
        self.num_rows = 0
        self.num_ended = 0
        self.columns = Columns()
        self._ids = IdColumn()
        self._starts: list[int] = []
        self._blocks: list[np.ndarray] = []
        self._room = 0  # rows that the last block has left
        self._views: list[tuple[int, np.ndarray]] | None = None
        self._alive = np.ones(0, dtype=bool)
        self._masks: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """How many entries there are."""
        return self.num_rows - self.num_ended

    def append(self, batch: Batch, mapped: bool = False) -> None:
        """Take in a batch; what it ends it ends. Mapped vectors stay in their file where they are many."""
        self._masks.clear()
        if len(batch.ids):
            self._append(batch, mapped)
        self.end(batch.ended)  # last: of batches put together, one may end what another one brought

    def end(self, rows: np.ndarray) -> None:
        """Rows that are no entries from now on; some may have ended already."""
        if len(rows):
            self._masks.clear()
            self.num_ended += int(np.count_nonzero(self._alive[rows]))
            self._alive[rows] = False

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row of each id; -1 where it is no entry's."""
        return self._ids.find(ids, self._alive)

    def alive(self) -> np.ndarray:
        """Which rows are entries: bool (num_rows,), a copy."""
        return self._alive[: self.num_rows].copy()

    def blocks(self) -> list[tuple[int, np.ndarray]]:
        """First row and vectors of each block; the list is not to be written to."""
        if self._views is None:
            ends = [*self._starts, self.num_rows][1:]
            parts = zip(self._starts, ends, self._blocks, strict=True)
            self._views = [(start, block[: end - start]) for start, end, block in parts]
        return self._views

    def names(self) -> "Names":
        """Ids of all rows that there are now; it shares their memory."""
        return self._ids.names()

    def embeds(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of rows, in their order: a copy (n, D)."""
        return take_rows(self.blocks(), rows, self.dim)

    def entries(self, rows: np.ndarray) -> Entries:
        """Entries of rows, in their order."""
        ids = self.names().of(rows)
        return Entries(ids, self.embeds(rows), self.columns.take(rows))

    def mask(self, wanted: Mapping[str, tuple[Value, ...]], exclude: Sequence[str] = ()) -> np.ndarray | None:
        """
        Which rows are entries that pass a filter and are not excluded; None: all of them, and no row has ended.

        The last few masks are kept: they are not to be written to.
        """
        if not wanted and not len(exclude) and not self.num_ended:
            return None
        excluded = self.find(exclude) if len(exclude) else np.zeros(0, dtype=np.int64)
        excluded = excluded[excluded >= 0]
        if not wanted and not len(excluded) and not self.num_ended:
            return None
        # As texts: 1, 1.0 and True would be one key.
        key = repr(sorted(wanted.items()))
        if key not in self._masks:
            allowed = self.alive()
            if wanted:
                allowed &= self.columns.mask(wanted)
            self._masks[key] = allowed
            if len(self._masks) > _KEPT_MASKS:
                del self._masks[next(iter(self._masks))]
        if not len(excluded):
            return self._masks[key]
        allowed = self._masks[key].copy()
        allowed[excluded] = False
        return allowed

    def _append(self, batch: Batch, mapped: bool) -> None:
        count = len(batch.ids)
        self._ids.append(batch.ids)
        self.columns.append(batch.columns, mapped and count >= MAPPED_ROWS)
        if self.num_rows + count > len(self._alive):
            grown = np.ones(max(self.num_rows + count, len(self._alive) * 3 // 2), dtype=bool)
            grown[: self.num_rows] = self._alive[: self.num_rows]
            self._alive = grown
        if mapped and count >= MAPPED_ROWS:
            self._starts.append(self.num_rows)
            self._blocks.append(batch.embeds)
            self._room = 0
        else:
            self._fill(batch.embeds)
        self.num_rows += count
        self._views = None

    def _fill(self, embeds: np.ndarray) -> None:
        """Copy vectors to memory. A new block is half as long as everything before it: few blocks, none is moved."""
        done = 0
        while done < len(embeds):
            if not self._room:
                self._room = max(_BLOCK_ROWS, self.num_rows // 2, len(embeds) - done)
                # Memory that was not written to is not taken either.
                self._blocks.append(np.empty((self._room, self.dim), dtype=np.float32))
                self._starts.append(self.num_rows + done)
            block, count = self._blocks[-1], min(self._room, len(embeds) - done)
            start = len(block) - self._room
            block[start : start + count] = embeds[done : done + count]
            self._room -= count
            done += count


class Names:
    """
    Names of the first rows of a column, to be read while further ones are appended.

    Args:
        offsets: int64, where each name begins in `text`, and where the last one ends; there may be more behind it.
        text: uint8, UTF-8.
        num_rows: how many names there are.

    Attributes:
        array: large_string (num_rows,), of the same memory.
    """

    def __init__(self, offsets: np.ndarray, text: np.ndarray, num_rows: int):
        self.array = pa.LargeStringArray.from_buffers(num_rows, pa.py_buffer(offsets), pa.py_buffer(text))
        self._offsets, self._text, self._num_rows = memoryview(offsets), memoryview(text), num_rows

    def __len__(self) -> int:
        return self._num_rows

    def of(self, rows: np.ndarray) -> list[str]:
        """Names of rows (n,), each of them 0 or more, in their order."""
        if len(rows) <= FEW:
            return self.of_few(rows.tolist())
        # Made by Arrow's own loop; `to_pylist` takes several times longer.
        return self.array.take(pa.array(rows)).to_numpy(zero_copy_only=False).tolist()

    def of_few(self, rows: Sequence[int]) -> list[str]:
        """The same, one by one."""
        offsets, text = self._offsets, self._text
        return [str(text[offsets[row] : offsets[row + 1]], "utf-8") for row in rows]


class IdColumn:
    """Names of rows, as one Arrow array that grows, and the way back from a name to its row."""

    def __init__(self):
        self._offsets = np.zeros(1, dtype=np.int64)
        self._text = np.zeros(0, dtype=np.uint8)
        self._num_rows = 0
        self._names: Names | None = None
        # Of rows before `_known`: sorted hashes with their rows, and the newest in a dictionary. Python's own hash of
        # a text differs between processes, which is no harm: nothing of this is written.
        self._hashes = np.zeros(0, dtype=np.int64)
        self._rows = np.zeros(0, dtype=np.int64)
        self._recent: dict[str, int] = {}
        self._known = 0

    def append(self, ids: pa.Array) -> None:
        """Names of the next rows: large_string without nulls."""
        _, offsets, text = ids.buffers()
        offsets = np.frombuffer(offsets, dtype=np.int64)[ids.offset : ids.offset + len(ids) + 1]
        size, added = int(self._offsets[self._num_rows]), int(offsets[-1] - offsets[0])
        self._text = _grown(self._text, size, size + added)
        self._text[size : size + added] = np.frombuffer(text, dtype=np.uint8)[offsets[0] : offsets[-1]]
        end = self._num_rows + len(ids)
        self._offsets = _grown(self._offsets, self._num_rows + 1, end + 1)
        self._offsets[self._num_rows + 1 : end + 1] = offsets[1:] - offsets[0] + size
        self._num_rows = end
        self._names = None

    def names(self) -> "Names":
        """All names, without a copy."""
        if self._names is None:
            self._names = Names(self._offsets, self._text, self._num_rows)
        return self._names

    def find(self, ids: Sequence[str], alive: np.ndarray) -> np.ndarray:
        """The living row of each name, -1 where there is none."""
        self._catch_up(alive)
        rows = np.full(len(ids), -1, dtype=np.int64)
        hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
        low, high = (np.searchsorted(self._hashes, hashes, side=side) for side in ("left", "right"))
        names = self.names().array
        for place, (name, first, last) in enumerate(zip(ids, low.tolist(), high.tolist(), strict=True)):
            row = self._recent.get(name, -1)
            if row < 0 or not alive[row]:
                candidates = self._rows[first:last].tolist()
                row = next((row for row in candidates if alive[row] and names[row].as_py() == name), -1)
            rows[place] = row
        return rows

    def _catch_up(self, alive: np.ndarray) -> None:
        new, names = range(self._known, self._num_rows), self.names().array
        if len(self._recent) + len(new) <= max(_RECENT_IDS, self._num_rows // 16):
            for start, part in _parts(names, new):
                self._recent.update(zip(part, range(start, start + len(part)), strict=True))
        else:  # a dictionary of all names would be larger than their vectors
            rows = np.fromiter(self._recent.values(), dtype=np.int64, count=len(self._recent))
            hashes = np.fromiter(map(hash, self._recent), dtype=np.int64, count=len(self._recent))
            found, self._recent = [(hashes, rows)], {}
            for start, part in _parts(names, new):
                hashes = np.fromiter(map(hash, part), dtype=np.int64, count=len(part))
                found.append((hashes, np.arange(start, start + len(part))))
            self._merge(*(np.concatenate(parts) for parts in zip(*found, strict=True)), alive)
        self._known = self._num_rows

    def _merge(self, hashes: np.ndarray, rows: np.ndarray, alive: np.ndarray) -> None:
        """Put further hashes in their places, and leave out those of rows that have ended."""
        kept = alive[self._rows]
        if not kept.all():
            self._hashes, self._rows = self._hashes[kept], self._rows[kept]
        hashes, rows = hashes[alive[rows]], rows[alive[rows]]
        order = np.argsort(hashes)
        places = np.searchsorted(self._hashes, hashes[order])
        self._hashes, self._rows = (
            np.insert(old, places, new[order]) for old, new in ((self._hashes, hashes), (self._rows, rows))
        )


def take_rows(blocks: Sequence[tuple[int, np.ndarray]], rows: np.ndarray, dim: int) -> np.ndarray:
    """Vectors of rows that lie in blocks, in the rows' order: a copy (n, dim)."""
    found = np.empty((len(rows), dim), dtype=np.float32)
    owners = np.searchsorted([start for start, _ in blocks], rows, side="right") - 1
    for owner in np.unique(owners).tolist():
        start, block = blocks[owner]
        places = owners == owner
        found[places] = block[rows[places] - start]
    return found


def _parts(names: pa.Array, rows: range, size: int = 8192) -> Iterator[tuple[int, list[str]]]:
    """Names of consecutive rows, some at a time: as Python's objects they are large."""
    for start in range(rows.start, rows.stop, size):
        yield start, names.slice(start, min(size, rows.stop - start)).to_pylist()


def _grown(values: np.ndarray, used: int, needed: int) -> np.ndarray:
    """The same array, or a longer copy; an old one stays as it is for those who still read it."""
    if needed <= len(values):
        return values
    grown = np.empty(max(needed, len(values) * 3 // 2), dtype=values.dtype)
    grown[:used] = values[:used]
    return grown
