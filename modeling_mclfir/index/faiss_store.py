# SPDX-License-Identifier: Apache-2.0
"""The store in process: FAISS over vectors in memory or in a folder that several processes share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from . import approximate, folder_state
from .columns import to_table
from .exact import search_blocks
from .folder_state import Settings
from .rows import Rows
from .segments import MANIFEST, Batch, read_manifest
from .shared_state import SharedState
from .store import (
    Entries,
    Filter,
    SearchResult,
    VectorStore,
    checked_embeds,
    checked_filter,
    checked_ids,
    checked_metadata,
    checked_number,
)

T = TypeVar("T")


class FaissStore(VectorStore):
    """
    Vectors in memory or in a folder, searched exactly or by an index of FAISS.

    "Flat" is exact: equal scores come in the order in which the entries were added (one added again counts from then
    on). Any other factory string needs `optimize`, which builds the index of all entries that are there; those added
    later are searched exactly beside it and merged, so that every entry is found at once and a removed one never
    again. Approximate kinds order equal scores in the same way among what they find. Scores of compressed vectors
    (PQ, SQ) are guesses: with `rescore` the candidates get their inner products.

    In a folder every batch of `add` and `remove` is on disk when they return. Any number of processes may read and
    write: writers wait for each other, and each call sees all that was acknowledged before it began. Files are
    memory-mapped; an index's, too.

    Args:
        folder: made where it is not there; None: in memory.
        dim: D; needed for a new store.
        factory: FAISS's factory string, "Flat", "HNSW32", "IVF256,PQ16", …; default: the folder's, or "Flat".
        device: "cpu", or "gpu" for an index on a GPU ("Flat", too, then needs `optimize`); needs faiss-gpu.
        mmap: read the index where a search needs it, instead of into memory.
        ef_search, nprobe: width of an HNSW search, lists of an IVF search; default: FAISS's own, 16 and 1.
        rescore: of compressed vectors, so many times k are looked for and scored exactly. 0: scores as FAISS has them.
        lock_timeout: seconds to wait for another writer.

    Raises:
        ValueError: a folder of something else or of another dim or factory, a factory that FAISS does not know.
        RuntimeError: device "gpu" where FAISS sees none.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        dim: int | None = None,
        factory: str | None = None,
        *,
        device: str = "cpu",
        mmap: bool = True,
        ef_search: int | None = None,
        nprobe: int | None = None,
        rescore: int = 4,
        lock_timeout: float = 60.0,
    ):
        approximate.check_device(device)
        for name, value in (("dim", dim), ("ef_search", ef_search), ("nprobe", nprobe)):
            if value is not None:
                checked_number(name, value)
        if rescore < 0:
            raise ValueError(f"rescore must be at least 0; got {rescore}.")
        self._settings = Settings(device, mmap, ef_search, nprobe, rescore)
        folder = None if folder is None else Path(folder)
        self._shared = SharedState(folder, dim, factory, self._settings, lock_timeout)
        manifest = self._shared.state.manifest
        self.dim, self.factory = manifest.dim, manifest.factory
        for name, given, found in (("dim", dim, self.dim), ("factory", factory, self.factory)):
            if given not in (None, found):
                self._shared.close()
                raise ValueError(f"The store in {folder} has {name} {found!r}; got {given!r}. Leave {name} out.")

    def add(self, ids: Sequence[str], embeds: np.ndarray, metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """As the contract says. In a folder, TimeoutError where another writer holds it for too long."""
        ids = checked_ids(ids)
        embeds = checked_embeds(embeds, self.dim, len(ids))
        columns = to_table(checked_metadata(metadata, len(ids)))
        if not ids:
            return
        with self._shared.writing() as state:
            rows = state.rows.find(ids)
            self._shared.commit(Batch(pa.array(ids, type=pa.large_string()), embeds, columns, rows[rows >= 0]))

    def remove(self, ids: Sequence[str]) -> int:
        """As the contract says. In a folder, TimeoutError where another writer holds it for too long."""
        ids = checked_ids(ids)
        if not ids:
            return 0
        with self._shared.writing() as state:
            rows = state.rows.find(ids)
            rows = rows[rows >= 0]
            if len(rows):
                empty = np.zeros((0, self.dim), dtype=np.float32)
                self._shared.commit(Batch(pa.array([], type=pa.large_string()), empty, to_table([]), rows))
            return len(rows)

    def optimize(self) -> None:
        """
        Rewrite all entries as one segment, without those that were removed or replaced, and build the index of the
        factory from them. Others read on meanwhile, and write when it is done; a kill leaves everything as it was.

        Raises:
            ValueError: the factory needs more entries to learn from than there are.
        """
        self._shared.optimize()

    def search(
        self, embeds: np.ndarray, k: int, filter: Filter | None = None, exclude: Sequence[str] = ()
    ) -> SearchResult:
        """As the contract says; equal scores and approximate kinds: see the class."""
        queries = checked_embeds(embeds, self.dim)
        k = checked_number("k", k)
        wanted = checked_filter(filter)
        exclude = checked_ids(exclude, unique=False) if len(exclude) else ()
        index, allowed, blocks, names = self._shared.searched(wanted, exclude)
        k = min(k, len(names))
        if not len(queries) or not k:
            return SearchResult([[] for _ in queries], [np.zeros(0, dtype=np.float32) for _ in queries])
        if index is None:
            return SearchResult(*search_blocks(queries, k, blocks, allowed).named(names))
        found = index.search(queries, k, blocks, allowed)
        if index.num_rows < len(names):
            rest = [
                (max(start, index.num_rows), vectors[max(0, index.num_rows - start) :])
                for start, vectors in blocks
                if start + len(vectors) > index.num_rows
            ]
            near, found = found, search_blocks(queries, k, rest, allowed)
            found.add(near.scores, near.rows)
        return SearchResult(*found.named(names))

    def get(self, ids: Sequence[str]) -> Entries:
        """As the contract says."""
        ids = checked_ids(ids, unique=False)
        with self._shared.reading() as state:
            rows = state.rows.find(ids)
            missing = [name for name, row in zip(ids, rows.tolist(), strict=True) if row < 0]
            if missing:
                raise KeyError(f"{len(missing)} ids are not in the store: {missing[:10]}")
            return state.rows.entries(rows)

    def has(self, ids: Sequence[str]) -> list[bool]:
        """As the contract says."""
        ids = checked_ids(ids, unique=False)
        with self._shared.reading() as state:
            return (state.rows.find(ids) >= 0).tolist()

    def scroll(self, batch_size: int = 1000, filter: Filter | None = None) -> Iterator[Entries]:
        """As the contract says: the entries of this moment, in the order in which they were added."""
        return self._batches(batch_size, filter, lambda rows, some: rows.entries(some))

    def scroll_ids(self, batch_size: int = 10_000, filter: Filter | None = None) -> Iterator[list[str]]:
        """As the contract says: the entries of this moment, in the order in which they were added."""
        return self._batches(batch_size, filter, lambda rows, some: rows.names().of(some))

    def count(self, filter: Filter | None = None) -> int:
        """As the contract says."""
        wanted = checked_filter(filter)
        with self._shared.reading() as state:
            return int(np.count_nonzero(state.rows.mask(wanted))) if wanted else len(state.rows)

    def save(self, folder: str | Path) -> None:
        """A copy as a folder that `load` or FaissStore opens, with the index. ValueError where it is not empty."""
        with self._shared.reading() as state:
            folder_state.save(state, Path(folder), self._settings)

    @classmethod
    def load(cls, folder: str | Path, **settings: Any) -> "FaissStore":
        """Open a folder; FileNotFoundError where no store is in it. `settings`: those of a search, see the class."""
        if read_manifest(Path(folder)) is None:
            raise FileNotFoundError(f"{folder} holds no store ({MANIFEST}); FaissStore.save or FaissStore make one.")
        return cls(folder, **settings)

    def close(self) -> None:
        """As the contract says. Nothing needs to be written: every batch is."""
        self._shared.close()

    def _batches(self, batch_size: int, filter: Filter | None, take: Callable[[Rows, np.ndarray], T]) -> Iterator[T]:
        """What `take` makes of the rows of this moment, some at a time."""
        batch_size, wanted = checked_number("batch_size", batch_size), checked_filter(filter)
        with self._shared.reading() as state:
            allowed, rows = state.rows.mask(wanted), state.rows
            found = np.arange(rows.num_rows) if allowed is None else np.flatnonzero(allowed)

        def batches() -> Iterator[T]:
            for start in range(0, len(found), batch_size):
                with self._shared.guarded():
                    part = take(rows, found[start : start + batch_size])
                yield part

        return batches()
