# SPDX-License-Identifier: Apache-2.0
"""What every writer of an index needs: the lock, the manifest's change, stores made and emptied."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import numpy as np

from .durable import locked, make_folder
from .fusion import get_present
from .landing import BUILT, OPENED
from .manifest import IndexManifest, clean_maps, read_index, write_index
from .policies import MADE_BY
from .reader import IndexReader
from .spaces import RETIRED, IncompatibleRevisionError, Link, Space, SpaceRevision, StoredRevision
from .store import VectorStore
from .view import View

_BATCH = 10_000
# Of a vector's length: what another batch size or half precision moves, and no other image does.
_SAME = 1e-2


class IndexWriter(IndexReader):
    """An index that can be changed; see `VersionedIndex`."""

    def __init__(
        self,
        folder: str | Path,
        make_store: Callable[[str, int], VectorStore],
        drop_store: Callable[[str], None] | None = None,
        *,
        lock_timeout: float = 60.0,
    ):
        folder = Path(folder)
        self._drop_store, self._lock_timeout = drop_store, lock_timeout
        if read_index(folder) is None:
            make_folder(folder)
            with locked(folder, lock_timeout):
                if read_index(folder) is None:  # another process may have been quicker
                    write_index(folder, IndexManifest())
        super().__init__(folder, make_store)

    @contextmanager
    def _writing(self) -> Iterator[View]:
        """The index as it stands, while nobody else writes."""
        with locked(self._folder, self._lock_timeout):
            self.refresh()
            self._finish_drops()
            yield self._view

    def _write(self, manifest: IndexManifest) -> None:
        view = View(manifest, write_index(self._folder, manifest))
        with self._guard:
            self._view = view
            self._stores.keep(manifest.stores())
        clean_maps(self._folder, manifest)

    def _finish_drops(self) -> None:
        """Empty the stores of dropped revisions; after a kill, the next writer does it."""
        manifest = self._view.manifest
        for name, dim in manifest.dropping:
            if self._drop_store is None:
                self._stores.empty(name, dim, _BATCH)
            else:
                self._drop_store(name)
        if manifest.dropping:
            self._write(replace(manifest, dropping=()))

    def _make_stores(self, view: View, revisions: Sequence[SpaceRevision], found: Mapping[str, str]) -> dict[str, str]:
        """Names of stores for what is opened and built, and the stores: one that can't be made lets nothing land."""
        names = {}
        for revision in revisions:
            known = view.spaces[revision.space].revisions if revision.space in view.spaces else ()
            if found[revision.space] == OPENED or (
                found[revision.space] == BUILT and all(old.fingerprint != revision.fingerprint for old in known)
            ):
                # Drawn, not counted: one left over by a kill, or of another index, is never taken for it.
                name = f"{_slug(revision.space)}_{token_hex(4)}"
                self._stores.make(name, revision.dim)
                names[revision.space] = name
        return names

    def _is_registered(self, space: Space, link: Link, content: bytes | None) -> bool:
        """
        Whether a link is there already.

        Raises:
            IncompatibleRevisionError: entries came through another one that it would replace.
        """
        old = next((one for one in space.links if (one.source, one.target) == (link.source, link.target)), None)
        if old is not None and old.policy == link.policy:
            before = None if old.file is None else (self._folder / old.file).read_bytes()
            if before == content and old.details == link.details:
                return True
        users = sorted(space.users_of(link))
        count = sum(self._stores.of(stored).count({MADE_BY: users}) for stored in space.revisions)
        if count:
            raise IncompatibleRevisionError(
                f"{count} entries of {space.name!r} came from {users} on the way that is registered; another "
                "map would not fit them. Remove them first, or reindex: land the revision under 'full'."
            )
        return False

    def _admitted(
        self, view: View, target: StoredRevision, ids: list[str], replace_present: bool, only_known: bool
    ) -> list[int]:
        """Places of the ids that an `add` may write; see there. Only under the lock, where nobody else removes any."""
        places = list(range(len(ids)))
        if not replace_present:
            there = self._stores.of(target).has(ids)
            places = [place for place in places if not there[place]]
        known: set[str] = set()
        for space in view.spaces.values() if only_known else ():
            waiting = [ids[place] for place in places if ids[place] not in known]
            there = self._stores.of(space.live).has(waiting)
            known |= {name for name, is_there in zip(waiting, there, strict=True) if is_there}
        return [place for place in places if not only_known or ids[place] in known]

    def _forget_changed(self, space: Space, ids: list[str], embeds: np.ndarray, metadata: list[dict]) -> None:
        others = [stored for stored in space.revisions if stored is not space.live]
        if not others:
            return
        old, changed = get_present(self._stores.of(space.live), ids), []
        for name, embed, columns in zip(ids, embeds, metadata, strict=True):
            if name in old:
                before, their = old[name]
                if columns != their or np.linalg.norm(embed - before) > _SAME * np.linalg.norm(before):
                    changed.append(name)
        # What a retired revision has of items that are new here came after a switch that was rolled back: whether
        # they are what they were then, nothing tells.
        new = [name for name in ids if name not in old]
        for stored in others:
            self._stores.of(stored).remove(changed + (new if stored.state == RETIRED else []))

    def _check_complete(self, space: Space) -> None:
        count, some = 0, []
        for ids in self._stores.missing(space.live, space.building):
            count, some = count + len(ids), (some + ids)[:3]
        if count:
            raise ValueError(
                f"{count} items of {space.name!r} have no vector of {space.building.description.model_revision!r} "
                f"yet, {some} among them. Add the items that `pending` names, or allow_pending."
            )


def _slug(space: str) -> str:
    """A space's name in letters, digits and _, as part of a store's name."""
    return "space_" + "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in space)[:40]
