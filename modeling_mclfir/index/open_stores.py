# SPDX-License-Identifier: Apache-2.0
"""The stores and maps of an index that a process has opened."""

import threading
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

from .manifest import IndexManifest, read_index
from .policies import DriftMap
from .spaces import IncompatibleRevisionError, Link, StoredRevision
from .store import VectorStore
from .view import View


class OpenStores:
    """
    Stores and maps by name, each opened when it is first asked for. Threads may share it.

    Args:
        folder: of the index.
        make_store: name and dim of a store → the store, made where there is none.
    """

    def __init__(self, folder: Path, make_store: Callable[[str, int], VectorStore]):
        self._folder, self._make_store = folder, make_store
        self._guard = threading.RLock()
        self._stores: dict[str, VectorStore] = {}
        self._maps: dict[str, DriftMap] = {}
        self._closed = False

    def of(self, revision: StoredRevision) -> VectorStore:
        """The store of a revision. IncompatibleRevisionError: it was dropped."""
        with self._guard:
            self.check_open()
            if revision.store not in self._stores:
                self.check_kept(None, [revision])  # it would be made anew, and be empty
                self._stores[revision.store] = self._make_store(revision.store, revision.description.dim)
            return self._stores[revision.store]

    def make(self, name: str, dim: int) -> None:
        """Make a store that no manifest names yet."""
        store = self._make_store(name, dim)
        with self._guard:
            self._stores[name] = store

    def empty(self, name: str, dim: int, batch_size: int) -> None:
        """Remove all entries of a store."""
        with self._make_store(name, dim) as store:
            for ids in store.scroll_ids(batch_size):
                store.remove(ids)

    def missing(self, source: StoredRevision, target: StoredRevision) -> Iterator[list[str]]:
        """Ids of one revision that another one does not have, some at a time: none of both is in memory as a whole."""
        there = self.of(target)
        for ids in self.of(source).scroll_ids():
            lacking = [name for name, is_there in zip(ids, there.has(ids), strict=True) if not is_there]
            if lacking:
                yield lacking

    def map(self, link: Link) -> DriftMap:
        """The map of a link. IncompatibleRevisionError: another one has taken its place."""
        with self._guard:
            if link.file not in self._maps:
                try:
                    content = (self._folder / link.file).read_bytes()
                except FileNotFoundError:
                    raise IncompatibleRevisionError(
                        f"The map of {link.model_revision!r} was replaced since this index looked; call refresh()."
                    ) from None
                self._maps[link.file] = DriftMap.from_bytes(content, link.details["kind"], link.details["mix"])
            return self._maps[link.file]

    def keep(self, names: Set[str]) -> None:
        """Close all stores but these."""
        with self._guard:
            gone = [self._stores.pop(name) for name in set(self._stores) - names]
        for store in gone:
            store.close()

    def close(self) -> None:
        """Close all stores. Twice does no harm."""
        self._closed = True
        self.keep(set())

    def check_open(self) -> None:
        """ValueError: it is closed."""
        if self._closed:
            raise ValueError("The index is closed; open another one.")

    def check_kept(self, view: View | None, revisions: Sequence[StoredRevision]) -> None:
        """
        After stores were read: what was dropped since the view was taken may have been empty already.

        Raises:
            IncompatibleRevisionError: one of the revisions was dropped.
        """
        text = read_index(self._folder)
        if view is not None and text == view.text:
            return
        stores = set() if text is None else IndexManifest.from_json(text, self._folder).stores()
        gone = [one.description for one in revisions if one.store not in stores]
        if gone:
            raise IncompatibleRevisionError(
                f"Revision {gone[0].model_revision!r} of {gone[0].space!r} has been dropped since this index looked; "
                "call refresh(), and embed queries with the checkpoint of the live revision."
            )
