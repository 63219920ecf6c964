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
# Items of each space that are looked at where an item's best space counts: of a catalogue that is no larger, all.
_LOOKED_AT = 1000
# Of a space that is filled and has too few different vectors to know its own.
_NO_SPREAD = 1.0


@dataclass(frozen=True)
class Hit:
    """
    Attributes:
        id: of the item.
        score: the larger, the better. Of one space the cosine, at most 1. Of several the sum of the cosines, each
            times its weight and divided by its space's spread (how much scores of different items differ there): it
            grows with the number of attributes. Of captions and images the logarithm of how much likelier than
            another item this one is what was looked for. Scores of one search can be compared, no others.
        metadata: column → value.
    """

    id: str
    score: float
    metadata: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Fusion:
    """
    A space's part in the score of an item, where several spaces are searched as one: factor * inner product + offset.

    Attributes:
        factor: of each query, float64 (N,).
        offset: of each query; the largest part is the item's score then. None: its parts are added up.
        temperature: with offsets: to a part comes the logarithm of what the space counts for the item, a softmax of
            what is kept as SPACE_FIT over this.
    """

    factor: np.ndarray
    offset: np.ndarray | None = None
    temperature: float = 1.0


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
    index: CatalogueIndex,
    names: Sequence[str] | None,
    weights: Sequence[float] | Mapping[str, float] | None,
    is_one_task: bool = False,
) -> SearchPlan:
    """
    Which spaces a search over attributes is in. Of an attribute with several, those that are still being filled are
    left out: their items alone would be found.

    Args:
        names: attributes, or spaces by name; None: all attributes.
        weights: one a name, in their order or by name; default 1.
        is_one_task: all spaces are of captions and images; the model weighs those that are named.

    Raises:
        ValueError: an unknown name, another number of weights, weights where the model chooses.
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
    if is_one_task and len(spaces) > 1:
        if weights is not None:
            raise ValueError("What each space of captions and images counts, the query says; leave the weights out.")
        routed = {revisions[next(iter(spaces))].attribute: list(spaces)}
    return SearchPlan(list(spaces), routed, {name: float((weights or {}).get(name, 1.0)) for name in names}, notes)


def space_weights(
    index: CatalogueIndex, plan: SearchPlan, fusions: Mapping[str, Fusion]
) -> dict[str, float | np.ndarray] | None:
    """
    What `VersionedIndex.search` is to weigh each space with; None: nothing, there is one.

    The index divides each space's scores by their spread. Within an attribute of several spaces the model says what
    is divided by what (`fuse_queries`); beside other attributes, their sum is scaled as a whole to a like spread.

    Args:
        fusions: of spaces of such attributes, by space.
    """
    if len(plan.spaces) == 1 or _have_offsets(fusions):
        return None
    found: dict[str, float | np.ndarray] = {name: weight for name, weight in plan.weights.items()}
    for names in plan.routed.values():
        spreads = [index.spaces[name].spread or _NO_SPREAD for name in names]
        scale = 1.0
        if len(plan.weights) > 1:
            # The weights of a photo sum to 1, so that the sum of its factors is 1 over a spread as the model has it.
            total = sum(fusions[name].factor for name in names)
            scale = 1 / (np.mean(spreads) * np.where(total > 0, total, 1.0))
        for name, spread in zip(names, spreads, strict=True):
            found[name] = fusions[name].factor * spread * scale * plan.weights.get(name, 1.0)
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
    fusions: Mapping[str, Fusion],
    where: Filter | None,
    exclude: Sequence[str],
    include_self: bool,
    distinct: float | tuple[str, float] | None,
) -> SearchResult:
    """The k best of each query: ids of items, or vectors of each space."""
    weights = space_weights(index, plan, fusions)
    by_vectors = isinstance(queries, Mapping)
    num_queries = len(next(iter(queries.values()))) if by_vectors else len(queries)

    def ranked_in(spaces: Sequence[str], rows: np.ndarray, count: int) -> list[Ranked]:
        some = {name: queries[name][rows] for name in spaces} if by_vectors else [queries[row] for row in rows]
        found = index.search(
            spaces,
            some,
            count,
            fingerprint=None if fingerprints is None else {name: fingerprints[name] for name in spaces},
            weights=None if weights is None else {name: _rows(weight, rows) for name, weight in weights.items()},
            filter=where,
            exclude=exclude,
            include_self=include_self,
            unknown_spread=_NO_SPREAD,
        )
        return list(zip(found.ids, found.scores, strict=True))

    def ranked(rows: np.ndarray, count: int) -> list[Ranked]:
        if not _have_offsets(fusions):
            return ranked_in(plan.spaces, rows, count)
        found = {name: ranked_in([name], rows, max(_LOOKED_AT, 4 * count)) for name in plan.spaces}
        return _by_best_space(index, found, fusions, rows, count)

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


def _have_offsets(fusions: Mapping[str, Fusion]) -> bool:
    return any(fusion.offset is not None for fusion in fusions.values())


def _by_best_space(
    index: CatalogueIndex,
    found: Mapping[str, Sequence[Ranked]],
    fusions: Mapping[str, Fusion],
    rows: np.ndarray,
    count: int,
) -> list[Ranked]:
    """Of some queries the items of the largest scores, each item's the largest of its parts (see `Fusion`)."""
    items = list(dict.fromkeys(item for lists in found.values() for ids, _ in lists for item in ids))
    shares = _shares(index, list(found), items, fusions[next(iter(found))].temperature)
    best: list[dict[str, float]] = [{} for _ in rows]
    for name, lists in found.items():
        factors, offsets = fusions[name].factor[rows], fusions[name].offset[rows]
        for row, (ids, scores) in enumerate(lists):
            parts = factors[row] * scores + offsets[row] + [shares[name][item] for item in ids]
            for item, part in zip(ids, parts.tolist(), strict=True):
                best[row][item] = max(part, best[row].get(item, part))
    return [_best(scores, count) for scores in best]


def _shares(
    index: CatalogueIndex, spaces: Sequence[str], items: Sequence[str], temperature: float
) -> dict[str, dict[str, float]]:
    """Space → item → logarithm of what the space counts for it; 0 where some space keeps nothing of it."""
    fits = np.array([index.fits(space, items) for space in spaces], dtype=np.float64) / temperature
    logs = fits - fits.max(axis=0)
    logs = np.nan_to_num(logs - np.log(np.exp(logs).sum(axis=0)))
    return {space: dict(zip(items, row.tolist(), strict=True)) for space, row in zip(spaces, logs, strict=True)}


def _best(scores: Mapping[str, float], count: int) -> Ranked:
    """The items of the largest scores; equal ones in the order of their ids."""
    order = sorted(scores, key=lambda name: (-scores[name], name))[:count]
    return order, np.array([scores[name] for name in order], dtype=np.float32)


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
