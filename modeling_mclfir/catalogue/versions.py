# SPDX-License-Identifier: Apache-2.0
"""The versioned index of a catalogue: what many items need, a few at a time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..index.fusion import get_present
from ..index.policies import MADE_BY, choose_calibration, score_spread
from ..index.spaces import IncompatibleRevisionError, StoredRevision
from ..index.versioned import VersionedIndex

_SPREAD_ITEMS = 2000


class CatalogueIndex(VersionedIndex):
    """`VersionedIndex`, and questions about ids that need neither vectors nor a list of all of them."""

    def stored(self, space: str, fingerprint: str | None = None) -> StoredRevision:
        """The revision that vectors of a fingerprint are added to: the one being built, or else the live one."""
        found = self._view.space(space)
        if fingerprint is not None and found.building and found.building.fingerprint == fingerprint:
            return found.building
        return found.live

    def building(self) -> dict[str, str]:
        """Space → fingerprint of the revision that is being built."""
        return {name: space.building.fingerprint for name, space in self._view.spaces.items() if space.building}

    def has(self, space: str, ids: Sequence[str], fingerprint: str | None = None) -> list[bool]:
        """Of each id whether `stored` has it."""
        return self._stores.of(self.stored(space, fingerprint)).has(ids)

    def knows_any(self, ids: Sequence[str]) -> list[bool]:
        """Of each id whether a live revision of any space has it."""
        found = dict.fromkeys(ids, False)
        for space in self._view.spaces.values():
            waiting = [name for name, there in found.items() if not there]
            if waiting:
                found |= zip(waiting, self._stores.of(space.live).has(waiting), strict=True)
        return [found[name] for name in ids]

    def num_stored(self, space: str, fingerprint: str | None = None) -> int:
        """Entries of `stored`."""
        return self._stores.of(self.stored(space, fingerprint)).count()

    def num_items(self) -> int:
        """Entries of the live revision that has most."""
        return max((self.num_stored(name) for name in self._view.spaces), default=0)

    def metadata(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Metadata of items, from any space that has them."""
        found: dict[str, dict[str, Any]] = {}
        for space in self._view.spaces.values():
            store, waiting = self._stores.of(space.live), [name for name in ids if name not in found]
            there = [name for name, is_there in zip(waiting, store.has(waiting), strict=True) if is_there]
            for name, (_, columns) in get_present(store, there).items():
                found[name] = {column: value for column, value in columns.items() if column != MADE_BY}
        return found

    def answers(self, space: str, fingerprint: str) -> bool:
        """Whether queries of a fingerprint can be compared with the live revision's entries."""
        try:
            self._view.spaces[space].path(fingerprint)
        except (KeyError, IncompatibleRevisionError):
            return False
        return True

    def knows(self, space: str, fingerprint: str) -> bool:
        """Whether vectors of a fingerprint can be added: `answers`, or it is being built."""
        return self._view.spaces[space].knows(fingerprint)

    def measure(self, space: str, fingerprint: str | None = None) -> float | None:
        """As `measure_spread`, of `stored`; None: there are too few different vectors to know it."""
        with self._writing() as view:
            found, stored = view.space(space), self.stored(space, fingerprint)
            store = self._stores.of(stored)
            embeds = store.get(choose_calibration(store, _SPREAD_ITEMS)).embeds
            spread = score_spread(embeds) if len(embeds) > 1 else 0.0
            if not spread > 0:
                return None
            known = replace(stored, description=replace(stored.description, spread=spread))
            revisions = tuple(known if other is stored else other for other in found.revisions)
            self._write(view.manifest.with_spaces([replace(found, revisions=revisions)]))
            return spread

    def optimize(self, space: str, fingerprint: str | None = None) -> None:
        """
        Build the index of `stored`'s entries, where its store has one to build.

        Raises:
            ValueError: there are too few entries for the index to learn from.
        """
        store = self._stores.of(self.stored(space, fingerprint))
        if getattr(store, "factory", "Flat") != "Flat":
            store.optimize()

    def _missing(self, source: StoredRevision, target: StoredRevision) -> list[str]:
        # Some ids at a time, where the base class has both revisions' in memory.
        store, missing = self._stores.of(target), []
        for ids in self._stores.of(source).scroll_ids():
            missing += [name for name, there in zip(ids, store.has(ids), strict=True) if not there]
        return missing
