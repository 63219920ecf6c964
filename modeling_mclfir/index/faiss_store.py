# SPDX-License-Identifier: Apache-2.0
"""The store in process: FAISS over vectors in memory or in a folder that several processes share."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from . import approximate, folder_state
from .columns import to_table
from .exact import search_blocks
from .folder_state import Settings, State
from .rows import Rows
from .segments import LOCK, MANIFEST, Batch, Manifest, ManifestFile, clean, locked, read_manifest, write_manifest
from .store import (
    Entries,
    Filter,
    SearchResult,
    VectorStore,
    checked_embeds,
    checked_filter,
    checked_ids,
    checked_metadata,
)

_TRIES = 100
_ENDED_ROWS = 10_000
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
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if rescore < 0:
            raise ValueError(f"rescore must be at least 0; got {rescore}.")
        self._settings = Settings(device, mmap, ef_search, nprobe, rescore)
        self._folder = None if folder is None else Path(folder)
        self._file = None if folder is None else ManifestFile(self._folder)
        self._guard = threading.RLock()
        self._lock_timeout = lock_timeout
        self._text: bytes | None = None
        self._is_clean = self._closed = False
        if self._folder is None or read_manifest(self._folder) is None:
            self._create(dim, factory or "Flat")
        else:
            self._state = None
            self._refresh()
        manifest = self._state.manifest
        self.dim, self.factory = manifest.dim, manifest.factory
        for name, given, found in (("dim", dim, self.dim), ("factory", factory, self.factory)):
            if given not in (None, found):
                raise ValueError(f"The store in {folder} has {name} {found!r}; got {given!r}. Leave {name} out.")

    def add(self, ids: Sequence[str], embeds: np.ndarray, metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """As the contract says. In a folder, TimeoutError where another writer holds it for too long."""
        ids = checked_ids(ids)
        embeds = checked_embeds(embeds, self.dim, len(ids))
        columns = to_table(checked_metadata(metadata, len(ids)))
        if not ids:
            return
        with self._writing() as state:
            rows = state.rows.find(ids)
            self._commit(Batch(pa.array(ids, type=pa.large_string()), embeds, columns, rows[rows >= 0]))

    def remove(self, ids: Sequence[str]) -> int:
        """As the contract says. In a folder, TimeoutError where another writer holds it for too long."""
        ids = checked_ids(ids)
        if not ids:
            return 0
        with self._writing() as state:
            rows = state.rows.find(ids)
            rows = rows[rows >= 0]
            if len(rows):
                empty = np.zeros((0, self.dim), dtype=np.float32)
                self._commit(Batch(pa.array([], type=pa.large_string()), empty, to_table([]), rows))
            return len(rows)

    def optimize(self) -> None:
        """
        Rewrite all entries as one segment, without those that were removed or replaced, and build the index of the
        factory from them. Others read on meanwhile, and write when it is done; a kill leaves everything as it was.

        Raises:
            ValueError: the factory needs more entries to learn from than there are.
        """
        with self._writing() as state:
            if state.is_optimal(self._settings):
                return
            try:
                state = folder_state.optimized(state, self._folder, self._settings)
                if self._folder is not None:
                    self._text = write_manifest(self._folder, state.manifest)
                self._state = state
            finally:
                if self._folder is not None:
                    clean(self._folder, self._state.manifest)

    def search(
        self, embeds: np.ndarray, k: int, filter: Filter | None = None, exclude: Sequence[str] = ()
    ) -> SearchResult:
        """As the contract says; equal scores and approximate kinds: see the class."""
        queries = checked_embeds(embeds, self.dim)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1; got {k!r}.")
        wanted, exclude = checked_filter(filter), checked_ids(exclude, unique=False)
        with self._guard:
            self._refresh()
            # What is taken here never changes, so that other threads may write while this one searches.
            rows, index = self._state.rows, self._state.index
            allowed, blocks, names = rows.mask(wanted, exclude), rows.blocks(), rows.id_array()
        k = min(int(k), len(names))
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
        with self._reading() as state:
            rows = state.rows.find(ids)
            missing = [name for name, row in zip(ids, rows.tolist(), strict=True) if row < 0]
            if missing:
                raise KeyError(f"{len(missing)} ids are not in the store: {missing[:10]}")
            return state.rows.entries(rows)

    def has(self, ids: Sequence[str]) -> list[bool]:
        """As the contract says."""
        ids = checked_ids(ids, unique=False)
        with self._reading() as state:
            return (state.rows.find(ids) >= 0).tolist()

    def scroll(self, batch_size: int = 1000, filter: Filter | None = None) -> Iterator[Entries]:
        """As the contract says: the entries of this moment, in the order in which they were added."""
        return self._batches(batch_size, filter, lambda rows, some: rows.entries(some))

    def scroll_ids(self, batch_size: int = 10_000, filter: Filter | None = None) -> Iterator[list[str]]:
        """As the contract says: the entries of this moment, in the order in which they were added."""
        return self._batches(batch_size, filter, lambda rows, some: rows.id_array().take(pa.array(some)).to_pylist())

    def count(self, filter: Filter | None = None) -> int:
        """As the contract says."""
        wanted = checked_filter(filter)
        with self._reading() as state:
            return int(np.count_nonzero(state.rows.mask(wanted))) if wanted else len(state.rows)

    def save(self, folder: str | Path) -> None:
        """A copy as a folder that `load` or FaissStore opens, with the index. ValueError where it is not empty."""
        with self._reading() as state:
            folder_state.save(state, Path(folder), self._settings)

    @classmethod
    def load(cls, folder: str | Path, **settings: Any) -> "FaissStore":
        """Open a folder; FileNotFoundError where no store is in it. `settings`: those of a search, see the class."""
        if read_manifest(Path(folder)) is None:
            raise FileNotFoundError(f"{folder} holds no store ({MANIFEST}); FaissStore.save or FaissStore make one.")
        return cls(folder, **settings)

    def close(self) -> None:
        """As the contract says. Nothing needs to be written: every batch is."""
        with self._guard:
            self._state, self._closed = None, True
            if self._file is not None:
                self._file.close()

    def _batches(self, batch_size: int, filter: Filter | None, take: Callable[[Rows, np.ndarray], T]) -> Iterator[T]:
        """What `take` makes of the rows of this moment, some at a time."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1; got {batch_size!r}.")
        wanted = checked_filter(filter)
        with self._reading() as state:
            allowed, rows = state.rows.mask(wanted), state.rows
            found = np.arange(rows.num_rows) if allowed is None else np.flatnonzero(allowed)

        def batches() -> Iterator[T]:
            for start in range(0, len(found), batch_size):
                with self._guard:
                    part = take(rows, found[start : start + batch_size])
                yield part

        return batches()

    def _create(self, dim: int | None, factory: str) -> None:
        if dim is None:
            raise ValueError("A new store needs a dim, the length of its vectors.")
        approximate.check_factory(factory, dim)
        self._state = State.of(Manifest(dim, factory))
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in self._folder.iterdir() if not path.name.startswith((LOCK, MANIFEST)))
        with locked(self._folder, self._lock_timeout):
            if read_manifest(self._folder) is None:  # another process may have been quicker
                if others:
                    raise ValueError(f"{self._folder} holds something else than a store: {others[:5]}. Take another.")
                self._text = write_manifest(self._folder, self._state.manifest)
        self._refresh()

    def _commit(self, batch: Batch) -> None:
        state = self._state
        if self._folder is None:
            state.rows.append(batch)
        else:
            manifest = folder_state.write_batch(self._folder, state.manifest, batch)
            text = write_manifest(self._folder, manifest)
            self._text = None  # cut off from here on, the rows are read anew
            state.rows.append(batch)
            state.manifest, self._text = manifest, text
        if approximate.is_flat(self.factory) and state.rows.num_ended > len(state.rows) + _ENDED_ROWS:
            self.optimize()
        elif self._folder is not None:
            merged = folder_state.merge_small(self._folder, state.manifest)
            if merged != state.manifest:
                self._text = write_manifest(self._folder, merged)
                state.manifest = merged
                clean(self._folder, merged)

    @contextmanager
    def _reading(self) -> Iterator[State]:
        with self._guard:
            self._refresh()
            yield self._state

    @contextmanager
    def _writing(self) -> Iterator[State]:
        with self._guard:
            if self._folder is None:
                self._refresh()
                yield self._state
                return
            with locked(self._folder, self._lock_timeout):
                self._refresh()
                if not self._is_clean:  # nobody else is writing: what no manifest names was cut off
                    clean(self._folder, self._state.manifest)
                    self._is_clean = True
                yield self._state

    def _refresh(self) -> None:
        """Take in what other processes have written; where nothing is new, it costs one look at a small file."""
        if self._closed:
            raise ValueError("The store is closed; open another one.")
        if self._folder is None or self._file.is_still(self._text):
            return
        for _ in range(_TRIES):
            text = self._file.read()
            if text is None:
                raise FileNotFoundError(f"{self._folder / MANIFEST} is gone: somebody deleted or moved the store.")
            if text == self._text:
                self._text = text  # the very one that `is_still` compares
                return
            state, before, self._text = self._state if self._text else None, self._text, None
            try:
                self._state = folder_state.refreshed(state, self._folder, text, self._settings)
            except FileNotFoundError:
                # Put together by another process since the manifest was read; or really gone.
                self._text = before
                if read_manifest(self._folder) == text:
                    raise
            else:
                self._text = text
                return
        raise RuntimeError(f"{self._folder} changed faster than it could be read, {_TRIES} times over.")
