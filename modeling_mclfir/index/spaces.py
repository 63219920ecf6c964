# SPDX-License-Identifier: Apache-2.0
"""A space of an index: its revisions, the one that answers, and the maps that lead other revisions' vectors there."""

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from .store import Entries

LIVE, BUILDING, RETIRED = "live", "building", "retired"


class IncompatibleRevisionError(ValueError):
    """Vectors of one revision were to meet those of another one that nothing leads to."""


def now() -> str:
    """This moment, UTC, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class SpaceRevision:
    """
    What makes vectors of a space, in plain values.

    Attributes:
        space: its name, "neckline@tops" say: never an attribute's, as later increments may bring the attribute again.
        attribute: or task.
        increment: that brought the space.
        model_revision: name of a checkpoint, or of a commit.
        fingerprint: digest of weights, adapter, head and preprocessing. Vectors are compared where it is the same.
        dim: D.
        spread: standard deviation of the scores of different items, by which scores of several spaces are made
            comparable; None: not known, see `VersionedIndex.measure_spread`.
        created: ISO 8601.

    Raises:
        ValueError: an empty text, a space named as its attribute, a dim below 1, a spread not above 0.
    """

    space: str
    attribute: str
    increment: str
    model_revision: str
    fingerprint: str
    dim: int
    spread: float | None = None
    created: str = field(default_factory=now)

    def __post_init__(self):
        for name in ("space", "attribute", "increment", "model_revision", "fingerprint", "created"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} of a space's revision must be a text that is not empty; got {value!r}.")
        if self.space == self.attribute:
            raise ValueError(
                f"A space may not be named as its attribute, {self.attribute!r}: the attribute may get further "
                f"spaces. Name it '{self.attribute}@{self.increment}'."
            )
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"dim of {self.space!r} must be a whole number of at least 1; got {self.dim!r}.")
        if self.spread is not None and not (math.isfinite(self.spread) and self.spread > 0):
            raise ValueError(
                f"spread of {self.space!r} must be above 0 and finite, or None where it is not known; got "
                f"{self.spread}. 0: the vectors of the space are all the same."
            )


@dataclass(frozen=True)
class IndexEntries(Entries):
    """
    Entries of one space.

    Attributes:
        space: its name.
        revision: fingerprint of the revision in whose coordinates the vectors are.
        made_by: of each entry the fingerprint of what made its vector; another one than `revision` where it came
            through a map.
    """

    space: str = ""
    revision: str = ""
    made_by: list[str] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class StoredRevision:
    """
    Attributes:
        description: what makes its vectors.
        store: name of the store that holds them.
        state: live (it answers), building (beside the live one), retired (it was live).
        policy: under which it landed.
    """

    description: SpaceRevision
    store: str
    state: str
    policy: str

    @property
    def fingerprint(self) -> str:
        """Of its description."""
        return self.description.fingerprint


@dataclass(frozen=True)
class Link:
    """
    A way for vectors of a revision that has no store of its own, or not yet.

    Attributes:
        source: fingerprint of the vectors.
        target: fingerprint in whose coordinates they are after the map.
        policy: none (as they are) or drift_compensated.
        model_revision, dim: of the source.
        file: of the map, in the index's folder; None where they stay as they are.
        details: kind of map, number of pairs, mean cosine before and after.
    """

    source: str
    target: str
    policy: str
    model_revision: str
    dim: int
    file: str | None = None
    created: str = field(default_factory=now)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """
    Attributes:
        revisions: in the order of landing; exactly one is live, at most one is being built.
        links: ways to their vectors.
        past: fingerprints that were live before the one that is, oldest first.
    """

    name: str
    revisions: tuple[StoredRevision, ...]
    links: tuple[Link, ...] = ()
    past: tuple[str, ...] = ()

    @property
    def live(self) -> StoredRevision:
        """The revision that answers."""
        return next(revision for revision in self.revisions if revision.state == LIVE)

    @property
    def building(self) -> StoredRevision | None:
        """The revision that is being built beside the live one."""
        return next((revision for revision in self.revisions if revision.state == BUILDING), None)

    def find(self, revision: str) -> StoredRevision:
        """By model revision or fingerprint. ValueError names those that there are."""
        for stored in self.revisions:
            if revision in (stored.description.model_revision, stored.fingerprint):
                return stored
        known = [stored.description.model_revision for stored in self.revisions]
        raise ValueError(f"{self.name!r} has no revision {revision!r}; it has {known}.")

    def knows(self, fingerprint: str) -> bool:
        """Whether vectors of a fingerprint can be searched with, or are being built."""
        if self.building and self.building.fingerprint == fingerprint:
            return True
        try:
            return self.path(fingerprint) is not None
        except IncompatibleRevisionError:
            return False

    def users_of(self, link: Link) -> set[str]:
        """Fingerprints whose vectors go, or would go, through a link."""
        found, count = {link.source}, 0
        while count != len(found):
            count = len(found)
            found |= {other.source for other in self.links if other.target in found}
        return found

    def path(self, fingerprint: str) -> list[Link]:
        """
        The fewest links from vectors of a fingerprint to the live revision; none: they are its own.

        Raises:
            IncompatibleRevisionError: there is no way.
        """
        waiting, seen = deque([(fingerprint, [])]), {fingerprint}
        while waiting:
            place, links = waiting.popleft()
            if place == self.live.fingerprint:
                return links
            for link in self.links:
                if link.source == place and link.target not in seen:
                    seen.add(link.target)
                    waiting.append((link.target, [*links, link]))
        raise IncompatibleRevisionError(self._refusal(fingerprint))

    def _refusal(self, fingerprint: str) -> str:
        live, given = self.live.description, self._described(fingerprint)
        ways = [
            f"load the checkpoint of {live.model_revision!r} and embed with it",
            "reindex: land the revision under the policy 'full', add every item, switch",
            "or register a drift map: land it under 'drift_compensated' with a calibration",
        ]
        return (
            f"Vectors of {given} can't be compared with the entries of {self.name!r}: those are of revision "
            f"{live.model_revision!r}, fingerprint {live.fingerprint!r}, and no map leads there. Ways out: "
            f"{'; '.join(ways)}."
        )

    def _described(self, fingerprint: str) -> str:
        for stored in self.revisions:
            if stored.fingerprint == fingerprint:
                how = "is still being built; switch when it is complete" if stored.state == BUILDING else "is retired"
                return f"revision {stored.description.model_revision!r}, fingerprint {fingerprint!r} (it {how}),"
        return f"fingerprint {fingerprint!r}"
