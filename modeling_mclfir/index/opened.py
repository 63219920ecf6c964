# SPDX-License-Identifier: Apache-2.0
"""An index that is open, and where it stands: its spaces, revisions and stores, and what is still to be done."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .manifest import MANIFEST, IndexManifest, read_index
from .open_stores import OpenStores
from .spaces import IncompatibleRevisionError, SpaceRevision, StoredRevision
from .store import Filter, VectorStore
from .view import View


class OpenIndex:
    """What `IndexReader` and all that can be changed have in common; see there."""

    def __init__(self, folder: str | Path, make_store: Callable[[str, int], VectorStore]):
        self._folder = Path(folder)
        self._stores = OpenStores(self._folder, make_store)
        self._guard = threading.Lock()
        self._view: View | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Take up what landed, was switched or dropped since → whether anything was. It reads one small file."""
        with self._guard:
            self._stores.check_open()
            text = read_index(self._folder)
            if text is None:
                raise FileNotFoundError(f"{self._folder} holds no index ({MANIFEST}); VersionedIndex makes one.")
            if self._view is not None and text == self._view.text:
                return False
            self._view = View(IndexManifest.from_json(text, self._folder), text)
            self._stores.keep(self._view.manifest.stores())
            return True

    @property
    def spaces(self) -> dict[str, SpaceRevision]:
        """Name of each space → its live revision."""
        return {name: space.live.description for name, space in self._view.spaces.items()}

    def spaces_of(self, name: str) -> list[str]:
        """The space of this name, or all spaces of an attribute. ValueError names those that there are."""
        return self._view.names(name)

    def building(self) -> dict[str, str]:
        """Space → fingerprint of the revision that is being built beside the live one."""
        return {name: space.building.fingerprint for name, space in self._view.spaces.items() if space.building}

    def stored(self, space: str, fingerprint: str | None = None) -> StoredRevision:
        """The revision that vectors of a fingerprint are added to: the one being built, or else the live one."""
        found = self._view.space(space)
        if fingerprint is not None and found.building and found.building.fingerprint == fingerprint:
            return found.building
        return found.live

    def store(self, space: str, fingerprint: str | None = None) -> VectorStore:
        """
        The store of `stored`, for what has no verb here. It is the index's own: it is neither to be closed nor, but
        by `VersionedIndex`, to be written to.

        Raises:
            IncompatibleRevisionError: another process has dropped the revision.
        """
        return self._stores.of(self.stored(space, fingerprint))

    def answers(self, space: str, fingerprint: str) -> bool:
        """Whether queries of a fingerprint can be compared with a space's entries."""
        try:
            self._view.space(space).path(fingerprint)
        except IncompatibleRevisionError:
            return False
        return True

    def knows(self, space: str, fingerprint: str) -> bool:
        """Whether vectors of a fingerprint can be added to a space: `answers`, or it is being built."""
        return self._view.space(space).knows(fingerprint)

    def count(self, space: str, filter: Filter | None = None) -> int:
        """How many entries the live revision of a space has."""
        view = self._view
        live = view.space(space).live
        try:
            return self._stores.of(live).count(filter)
        finally:
            self._stores.check_kept(view, [live])

    def scroll_pending(self, space: str, reference: str | None = None) -> Iterator[list[str]]:
        """
        Ids of items that still need a vector, some at a time: of the live revision's those that the one being built
        does not have; or, with a reference, of that other space's items those that this one does not have.

        Raises:
            ValueError: nothing is being built, and no reference is given.
            IncompatibleRevisionError: at the end, a revision was dropped meanwhile.
        """
        view = self._view
        found = view.space(space)
        if reference is None and found.building is None:
            raise ValueError(f"Nothing is being built in {space!r}; name a space whose items it is to have.")
        target, source = found.building or found.live, view.space(reference or space).live

        def parts() -> Iterator[list[str]]:
            yield from self._stores.missing(source, target)
            self._stores.check_kept(view, [target, source])

        return parts()

    def pending(self, space: str, reference: str | None = None) -> list[str]:
        """All of `scroll_pending` in one list: of a large index it is as long as what is left to do."""
        return [name for ids in self.scroll_pending(space, reference) for name in ids]

    def share_done(self, space: str, reference: str | None = None) -> float:
        """Share of the items of `pending` that have their vector, 0..1."""
        pending = sum(map(len, self.scroll_pending(space, reference)))
        return 1 - pending / max(1, self.count(reference or space), pending)

    def info(self) -> dict[str, Any]:
        """
        What the index consists of, in plain values. The share of a build that is done is by numbers of entries;
        `pending` knows it exactly.
        """
        view, spaces = self._view, {}
        for name, space in view.spaces.items():
            revisions = []
            for stored in space.revisions:
                entries = self._stores.of(stored).count()
                revisions.append(
                    asdict(stored.description)
                    | {"state": stored.state, "policy": stored.policy, "store": stored.store, "entries": entries}
                )
            counts = {entry["state"]: entry["entries"] for entry in revisions}
            live = space.live.description
            spaces[name] = {
                "attribute": live.attribute,
                "increment": live.increment,
                "live": live.model_revision,
                "entries": counts["live"],
                "revisions": revisions,
                "links": [asdict(link) for link in space.links],
                "roll_back_to": space.find(space.past[-1]).description.model_revision if space.past else None,
                "building": space.building and space.building.description.model_revision,
                "share_built": None,
            }
            if space.building:
                spaces[name]["share_built"] = min(1.0, counts["building"] / counts["live"]) if counts["live"] else 1.0
        return {"folder": str(self._folder), "spaces": spaces, "history": list(view.manifest.landings)}

    def close(self) -> None:
        """Close every store; the index is of no use afterwards. Twice does no harm."""
        self._stores.close()

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
