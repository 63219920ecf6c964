# SPDX-License-Identifier: Apache-2.0
"""An index at one moment, and the queries and results of a search in it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .fusion import Ranked
from .manifest import IndexManifest
from .policies import MADE_BY
from .spaces import IndexEntries, Space, StoredRevision
from .store import Entries, Filter, VectorStore, checked_ids

Queries = np.ndarray | Mapping[str, np.ndarray] | Sequence[str]


class View(NamedTuple):
    """A manifest and its bytes. A call takes one and keeps to it, whatever is refreshed meanwhile."""

    manifest: IndexManifest
    text: bytes

    @property
    def spaces(self) -> dict[str, Space]:
        """Of the manifest."""
        return self.manifest.spaces

    def names(self, spaces: str | Sequence[str]) -> list[str]:
        """Names of spaces: those given, and all spaces of the attributes given. ValueError names those there are."""
        found: dict[str, None] = {}
        for name in [spaces] if isinstance(spaces, str) else spaces:
            of = [name] if name in self.spaces else []
            of = of or [space.name for space in self.spaces.values() if space.live.description.attribute == name]
            if not of:
                attributes = sorted({space.live.description.attribute for space in self.spaces.values()})
                raise ValueError(
                    f"There is neither a space nor an attribute {name!r}; spaces: {sorted(self.spaces)}, attributes: "
                    f"{attributes}."
                )
            found |= dict.fromkeys(of)
        if not found:
            raise ValueError("Name one space or attribute at least.")
        return list(found)

    def space(self, name: str) -> Space:
        """The space of this name, or the only one of an attribute. ValueError names those that there are."""
        names = self.names(name)
        if len(names) > 1:
            raise ValueError(f"{name!r} has several spaces; name one of {names}.")
        return self.spaces[names[0]]


def search_one(
    store: VectorStore,
    queries: np.ndarray,
    k: int,
    filter: Filter | None,
    exclude: Sequence[str],
    own: Sequence[str] | None,
) -> list[Ranked]:
    """The store's own results, without an id of each query that is not to be found."""
    found = store.search(queries, k if own is None else k + 1, filter, exclude)
    results = []
    for place, (ids, scores) in enumerate(zip(found.ids, found.scores, strict=True)):
        kept = [rank for rank, name in enumerate(ids) if own is None or name != own[place]][:k]
        results.append(([ids[rank] for rank in kept], scores[kept]))
    return results


def as_ids(queries: Queries) -> list[str] | None:
    """Queries that are ids of items, or None: they are vectors."""
    if isinstance(queries, str):
        raise ValueError(f"Ids as queries must be a sequence; write [{queries!r}].")
    if isinstance(queries, Mapping) or (isinstance(queries, np.ndarray) and queries.dtype.kind not in "UO"):
        return None
    given = list(queries)
    return checked_ids(given, unique=False) if given and isinstance(given[0], str) else None


def index_entries(space: str, revision: StoredRevision, entries: Entries) -> IndexEntries:
    """Entries of a revision's store, with what made them instead of its mark."""
    made_by = [columns.get(MADE_BY, revision.fingerprint) for columns in entries.metadata]
    metadata = [{name: value for name, value in columns.items() if name != MADE_BY} for columns in entries.metadata]
    return IndexEntries(entries.ids, entries.embeds, metadata, space, revision.fingerprint, made_by)
