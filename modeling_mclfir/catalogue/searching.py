# SPDX-License-Identifier: Apache-2.0
"""Queries of a catalogue: from attributes and weights to spaces, and from spaces to hits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..index.fusion import Ranked, distinct_results
from ..index.store import Entries, Filter, SearchResult, Value
from .versions import CatalogueIndex

# Mean cosine over all spaces of a catalogue above which two photos pass for the same one. Of 493 photos of Stanford no
# two different ones reach it (0.9889); copies in another light do (0.993 and more), smaller and cropped ones may not.
DISTINCT_COSINE = 0.99


@dataclass(frozen=True)
class Hit:
    """
    Attributes:
        id: of the item.
        score: the larger, the better; of one space an inner product, of several a weighted sum.
        metadata: column → value.
    """

    id: str
    score: float
    metadata: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchPlan:
    """
    What a search is over.

    Attributes:
        spaces: names.
        routed: attribute that several spaces serve → their names.
        weights: of names as they were given.
        notes: what the user should know: spaces that are left out.
    """

    spaces: list[str]
    routed: dict[str, list[str]]
    weights: dict[str, float]
    notes: list[str]


def plan_search(
    index: CatalogueIndex, names: Sequence[str] | None, weights: Sequence[float] | Mapping[str, float] | None
) -> SearchPlan:
    """
    Which spaces a search over attributes is in. Of an attribute with several, those that are still being filled are
    left out: their items alone would be found.

    Args:
        names: attributes, or spaces by name; None: all attributes.
        weights: one a name, in their order or by name; default 1.

    Raises:
        ValueError: an unknown name, another number of weights.
    """
    revisions = index.spaces
    if not revisions:
        raise ValueError("The catalogue has no space yet; `mclfir index build` goes on where it stopped.")
    names = list(dict.fromkeys(names or [revision.attribute for revision in revisions.values()]))
    if weights is not None and not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise ValueError(f"Expected a weight for each of {names}; got {len(weights)}.")
        weights = dict(zip(names, weights, strict=True))
    unknown = sorted(set(weights or ()) - set(names))
    if unknown:
        raise ValueError(f"Weights for {unknown}, but the search is over {names}.")
    spaces: dict[str, None] = {}
    routed, notes = {}, []
    for name in names:
        found = index.spaces_of(name)
        if len(found) > 1:
            counts = {space: index.num_stored(space) for space in found}
            most = max(counts.values())
            partial = [space for space in found if counts[space] < most]
            found = [space for space in found if space not in partial]
            notes += [
                f"{space} has {counts[space]:,} of {most:,} items and is left out; `mclfir index backfill` fills it"
                for space in partial
            ]
            if len(found) > 1:
                routed[name] = found
        spaces |= dict.fromkeys(found)
    return SearchPlan(list(spaces), routed, {name: float((weights or {}).get(name, 1.0)) for name in names}, notes)


def space_weights(
    index: CatalogueIndex, plan: SearchPlan, factors: Mapping[str, np.ndarray]
) -> dict[str, float | np.ndarray] | None:
    """
    What `VersionedIndex.search` is to weigh each space with; None: nothing, there is one.

    The index divides each space's scores by their spread. Within an attribute of several spaces the model says what
    is divided by what (`fuse_queries`); beside other attributes, their sum is scaled as a whole to a like spread.

    Args:
        factors: of spaces of such attributes, by space: what the model multiplies their scores with, (N,).
    """
    if len(plan.spaces) == 1:
        return None
    found: dict[str, float | np.ndarray] = {name: weight for name, weight in plan.weights.items()}
    for names in plan.routed.values():
        spreads = [index.spaces[name].spread or 1.0 for name in names]
        scale = 1.0
        if len(plan.weights) > 1:
            # The weights of a photo sum to 1, so that the sum of its factors is 1 over a spread as the model has it.
            total = sum(factors[name] for name in names)
            scale = 1 / (np.mean(spreads) * np.where(total > 0, total, 1.0))
        for name, spread in zip(names, spreads, strict=True):
            found[name] = factors[name] * spread * scale * plan.weights.get(name, 1.0)
    return found


def parse_distinct(index: CatalogueIndex, distinct: float | tuple[str, float]) -> tuple[Any, float]:
    """What has `get(ids)` → the vectors that tell near-duplicates: of all spaces side by side, or of one."""
    space, cosine = (None, distinct) if isinstance(distinct, int | float) else distinct
    return _Vectors(index, list(index.spaces) if space is None else index.spaces_of(space)), float(cosine)


def search(
    index: CatalogueIndex,
    plan: SearchPlan,
    queries: Mapping[str, np.ndarray] | Sequence[str],
    k: int,
    *,
    fingerprints: Mapping[str, str] | None,
    factors: Mapping[str, np.ndarray],
    where: Filter | None,
    exclude: Sequence[str],
    include_self: bool,
    distinct: float | tuple[str, float] | None,
) -> SearchResult:
    """The k best of each query: ids of items, or vectors of each space."""
    weights = space_weights(index, plan, factors)
    by_vectors = isinstance(queries, Mapping)
    num_queries = len(next(iter(queries.values()))) if by_vectors else len(queries)

    def ranked(rows: np.ndarray, count: int) -> list[Ranked]:
        some = {name: part[rows] for name, part in queries.items()} if by_vectors else [queries[row] for row in rows]
        found = index.search(
            plan.spaces,
            some,
            count,
            fingerprint=fingerprints,
            weights=None if weights is None else {name: _rows(weight, rows) for name, weight in weights.items()},
            filter=where,
            exclude=exclude,
            include_self=include_self,
        )
        return list(zip(found.ids, found.scores, strict=True))

    rows = np.arange(num_queries)
    if distinct is None:
        found = ranked(rows, k)
    else:
        vectors, cosine = parse_distinct(index, distinct)
        found = distinct_results(ranked, num_queries, k, vectors, cosine)
    return SearchResult([ids for ids, _ in found], [scores for _, scores in found])


def hits_of(index: CatalogueIndex, found: SearchResult) -> list[list[Hit]]:
    """Results with their metadata."""
    columns = index.metadata(list(dict.fromkeys(name for ids in found.ids for name in ids)))
    return [
        [Hit(name, float(score), columns.get(name, {})) for name, score in zip(ids, scores, strict=True)]
        for ids, scores in zip(found.ids, found.scores, strict=True)
    ]


def _rows(weight: float | np.ndarray, rows: np.ndarray) -> float | np.ndarray:
    return weight[rows] if isinstance(weight, np.ndarray) else weight


class _Vectors:
    """As far as `distinct_results` looks, a store: unit-length vectors of several spaces side by side."""

    def __init__(self, index: CatalogueIndex, spaces: Sequence[str]):
        self._index, self._spaces = index, list(spaces)

    def get(self, ids: Sequence[str]) -> Entries:
        """Of a space that lacks an item zeros."""
        parts = []
        for space in self._spaces:
            there = np.array(self._index.has(space, ids), dtype=bool)
            rows = np.zeros((len(ids), self._index.spaces[space].dim), dtype=np.float32)
            if there.any():
                vectors = self._index.get(
                    space, [name for name, known in zip(ids, there, strict=True) if known]
                ).embeds
                lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
                rows[there] = vectors / np.where(lengths == 0, 1, lengths)
            parts.append(rows)
        return Entries(list(ids), np.concatenate(parts, axis=1), [{} for _ in ids])
