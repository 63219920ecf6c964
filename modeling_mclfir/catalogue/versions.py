# SPDX-License-Identifier: Apache-2.0
"""The versioned index of a catalogue: what many items need, a few at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..index.fusion import get_present
from ..index.policies import MADE_BY
from ..index.versioned import VersionedIndex

# Metadata of an entry: how like what its space was learned from the photo looks to the model.
SPACE_FIT = "mclfir.space_fit"
MARKS = MADE_BY, SPACE_FIT


class CatalogueIndex(VersionedIndex):
    """`VersionedIndex`, and questions about ids that need neither vectors nor a list of all of them."""

    def has(self, space: str, ids: Sequence[str], fingerprint: str | None = None) -> list[bool]:
        """Of each id whether `stored` has it."""
        return self.store(space, fingerprint).has(ids)

    def knows_any(self, ids: Sequence[str]) -> list[bool]:
        """Of each id whether a live revision of any space has it."""
        found = dict.fromkeys(ids, False)
        for space in self.spaces:
            waiting = [name for name, there in found.items() if not there]
            if waiting:
                found |= zip(waiting, self.has(space, waiting), strict=True)
        return [found[name] for name in ids]

    def num_stored(self, space: str, fingerprint: str | None = None) -> int:
        """Entries of `stored`."""
        return self.store(space, fingerprint).count()

    def num_items(self) -> int:
        """Entries of the live revision that has most."""
        return max(map(self.num_stored, self.spaces), default=0)

    def metadata(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Metadata of items, from any space that has them, without the marks of the index and the catalogue."""
        found: dict[str, dict[str, Any]] = {}
        for space in self.spaces:
            waiting = [name for name in ids if name not in found]
            there = [name for name, is_there in zip(waiting, self.has(space, waiting), strict=True) if is_there]
            for name, (_, columns) in get_present(self.store(space), there).items():
                found[name] = {column: value for column, value in columns.items() if column not in MARKS}
        return found

    def fits(self, space: str, ids: Sequence[str]) -> list[float]:
        """Of each item what its entry in a space has as SPACE_FIT; NaN: nothing, minus infinity: there is no entry."""
        there = get_present(self.store(space), ids)
        return [there[name][1].get(SPACE_FIT, np.nan) if name in there else -np.inf for name in ids]

    def optimize(self, space: str, fingerprint: str | None = None) -> None:
        """
        Build the index of `stored`'s entries, where its store has one to build.

        Raises:
            ValueError: there are too few entries for the index to learn from.
        """
        store = self.store(space, fingerprint)
        if getattr(store, "factory", "Flat") != "Flat":
            store.optimize()


def last_switched(info: Mapping[str, Any]) -> list[str]:
    """
    Of `VersionedIndex.info`, spaces of the newest switch that was not rolled back since, and can be.

    Raises:
        ValueError: there is none.
    """
    switches: list[set[str]] = []
    for event in info["history"]:
        if event["event"] == "switch":
            switches.append(set(event["spaces"]))
        for name in event["spaces"] if event["event"] == "roll back" else ():
            next((names for names in reversed(switches) if name in names), set()).discard(name)
    for names in reversed(switches):
        able = [name for name, space in info["spaces"].items() if name in names and space["roll_back_to"]]
        if able:
            return able
    raise ValueError(
        f"There is no switch to undo in {info['folder']}: none was made, all are undone, or what was live before has "
        "been dropped."
    )
