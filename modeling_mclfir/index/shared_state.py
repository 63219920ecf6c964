# SPDX-License-Identifier: Apache-2.0
"""The state of a FAISS store as threads and processes share it: read anew where it changed, changed batch by batch."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from . import approximate, folder_state
from .approximate import ApproximateIndex
from .durable import LOCK, locked, make_folder
from .folder_state import Settings, State
from .rows import Names
from .segments import (
    MANIFEST,
    Batch,
    Manifest,
    ManifestFile,
    clean,
    read_manifest,
    write_manifest,
)
from .store import Value

_TRIES = 100
_ENDED_ROWS = 10_000


class SharedState:
    """
    What a store holds, in memory or in a folder.

    Args:
        folder: None: in memory.
        dim, factory: of a store that is made; see `FaissStore`.
        settings: how this process searches.
        lock_timeout: seconds to wait for another writer.

    Attributes:
        state: as it was read last.

    Raises:
        ValueError: a new store without a dim, a factory that FAISS does not know, a folder of something else.
    """

    def __init__(
        self, folder: Path | None, dim: int | None, factory: str | None, settings: Settings, lock_timeout: float
    ):
        self._folder, self._settings, self._lock_timeout = folder, settings, lock_timeout
        self._file = None if folder is None else ManifestFile(folder)
        # A thread that writes takes its turn before the guard: while it waits for another process, or builds an index,
        # other threads search.
        self._turn, self._guard = threading.Lock(), threading.RLock()
        self._text: bytes | None = None  # of the manifest that `state` is
        self._is_clean = self._closed = False
        self.state: State | None = None
        if folder is None or read_manifest(folder) is None:
            self._create(dim, factory or "Flat")
        else:
            self._refresh()

    @contextmanager
    def reading(self) -> Iterator[State]:
        """The state as it stands; no other thread of this store changes it meanwhile."""
        with self._guard:
            self._refresh()
            yield self.state

    def searched(
        self, wanted: Mapping[str, tuple[Value, ...]], exclude: Sequence[str]
    ) -> tuple[ApproximateIndex | None, np.ndarray | None, list[tuple[int, np.ndarray]], Names]:
        """
        What a search looks at: the index, see `Rows.mask`, `Rows.blocks` and `Rows.names`. Nothing of it ever
        changes, so that other threads may write while one searches.
        """
        with self._guard:
            self._refresh()
            rows = self.state.rows
            return self.state.index, rows.mask(wanted, exclude), rows.blocks(), rows.names()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Without a look at the folder: for a state that was taken before, whose rows only grow."""
        with self._guard:
            yield

    @contextmanager
    def writing(self) -> Iterator[State]:
        """The state as it stands, while nobody else writes. TimeoutError: another writer holds it for too long."""
        with self._only_writer(), self._guard:
            yield self.state

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        """The state is as it stands, and nobody else writes; others of this process read."""
        with self._turn, nullcontext() if self._folder is None else locked(self._folder, self._lock_timeout):
            with self._guard:
                self._refresh()
                if self._folder is not None and not self._is_clean:
                    clean(self._folder)  # nobody else is writing: what no manifest names was cut off
                    self._is_clean = True
            yield

    def commit(self, batch: Batch) -> None:
        """Add a batch and end what it ends; durable when it returns. Only while `writing`."""
        state = self.state
        if self._folder is None:
            state.rows.append(batch)
        else:
            manifest = folder_state.write_batch(self._folder, state.manifest, batch)
            text = write_manifest(self._folder, manifest)
            self._text = None  # cut off from here on, the rows are read anew
            state.rows.append(batch)
            state.manifest, self._text = manifest, text
        if approximate.is_flat(state.manifest.factory) and state.rows.num_ended > len(state.rows) + _ENDED_ROWS:
            self._optimize()
        elif self._folder is not None:
            merged = folder_state.merge_small(self._folder, state.manifest)
            if merged != state.manifest:
                text = write_manifest(self._folder, merged)
                # Last of all the text: cut off before it, everything is read again.
                state.manifest, self._text = merged, text
                clean(self._folder)

    def optimize(self) -> None:
        """See `FaissStore.optimize`."""
        with self._only_writer():
            self._optimize()

    def _optimize(self) -> None:
        if self.state.is_optimal(self._settings):
            return
        try:
            state = folder_state.optimized(self.state, self._folder, self._settings)
            with self._guard:
                text = None if self._folder is None else write_manifest(self._folder, state.manifest)
                self.state, self._text = state, text
        finally:
            if self._folder is not None:
                clean(self._folder)

    def close(self) -> None:
        """Let go of files and memory. Twice does no harm."""
        with self._guard:
            self.state, self._closed = None, True
            if self._file is not None:
                self._file.close()

    def _create(self, dim: int | None, factory: str) -> None:
        if dim is None:
            raise ValueError("A new store needs a dim, the length of its vectors.")
        approximate.check_factory(factory, dim)
        self.state = State.of(Manifest(dim, factory))
        if self._folder is None:
            return
        make_folder(self._folder)
        others = sorted(path.name for path in self._folder.iterdir() if not path.name.startswith((LOCK, MANIFEST)))
        with locked(self._folder, self._lock_timeout):
            if read_manifest(self._folder) is None:  # another process may have been quicker
                if others:
                    raise ValueError(f"{self._folder} holds something else than a store: {others[:5]}. Take another.")
                self._text = write_manifest(self._folder, self.state.manifest)
        self._refresh()

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
            state, before, self._text = self.state if self._text else None, self._text, None
            try:
                self.state = folder_state.refreshed(state, self._folder, text, self._settings)
            except FileNotFoundError:
                # Put together by another process since the manifest was read; or really gone.
                self._text = before
                if read_manifest(self._folder) == text:
                    raise
            else:
                self._text = text
                return
        raise RuntimeError(f"{self._folder} changed faster than it could be read, {_TRIES} times over.")
