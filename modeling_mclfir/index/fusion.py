# SPDX-License-Identifier: Apache-2.0
"""Searches over several spaces at once, exact where the stores are, and results without near-duplicates."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .store import Filter, VectorStore, checked_filter, matches

_FIRST_DEPTH, _GROWTH = 256, 4
# Milvus gives no more answers to a query; beyond it, everything is looked at.
_MOST_DEPTH = 16_384
_CANDIDATES = 100_000
# Of scores: room for float32's rounding, so that no item is missed for it.
_SLACK = 1e-5
Ranked = tuple[list[str], np.ndarray]


def factors_of(
    names: Sequence[str],
    attributes: Sequence[str],
    spreads: Sequence[float | None],
    weights: Mapping[str, float | np.ndarray] | None,
    num_queries: int,
    unknown_spread: float | None = None,
) -> np.ndarray:
    """
    What each space's inner products are multiplied by: weight / spread, float64 (N, S).

    Args:
        names, attributes, spreads: of the spaces.
        weights: of a space or of an attribute (then of all of its spaces; both multiply), a number or one a query;
            those that are not named have 1.
        unknown_spread: what counts as a spread that is not known; None: that is an error.

    Raises:
        ValueError: a weight for something else, another shape, below 0 or not finite, a query with no weight above 0,
            a spread that is not known.
    """
    weights = dict(weights or {})
    unknown = [name for name in weights if name not in names and name not in attributes]
    if unknown:
        raise ValueError(f"Weights for {unknown}, but the search is over {list(names)} of {sorted(set(attributes))}.")
    spreads = [unknown_spread if spread is None else spread for spread in spreads]
    for name, spread in zip(names, spreads, strict=True):
        if spread is None:
            raise ValueError(
                f"The spread of scores in {name!r} is not known, so that they can't be added to other spaces'; "
                "VersionedIndex.measure_spread measures it from the stored vectors, or land the space with one."
            )
    found = np.ones((num_queries, len(names)))
    for place, (name, attribute) in enumerate(zip(names, attributes, strict=True)):
        for key in (name, attribute):
            if key in weights:
                found[:, place] *= _checked_weight(key, weights[key], num_queries)
    if not (found > 0).any(axis=1).all():
        raise ValueError("Every query needs a weight above 0 for one space at least.")
    return found / np.array(spreads, dtype=np.float64)


def fused_search(
    stores: Sequence[VectorStore],
    queries: Sequence[np.ndarray],
    factors: np.ndarray,
    k: int,
    filter: Filter | None = None,
    exclude: Sequence[str] = (),
    own: Sequence[str] | None = None,
) -> list[Ranked]:
    """
    The k items of the largest Σ_s factor_s · <query_s, item_s> of each query, equal ones in the order of their ids.

    An item counts where every space in which the query has a factor above 0 has a vector of it that passes the
    filter. Each space gives its best items; none that was not given can have more than the sum of the spaces' last
    scores, and once k items have more than that, they are the best (the threshold algorithm, Fagin, Lotem and Naor
    2003). Vectors are fetched only of items that can be among the best. Exact where the stores' searches are.

    Args:
        queries: of each space (N, D_s).
        factors: (N, S), at least 0.
        own: of each query an id that is not to be found.

    Returns:
        Of each query ids and float32 scores.
    """
    search = _FusedSearch(stores, queries, factors, k, filter, exclude, own)
    waiting, depth = np.arange(len(factors)), max(_FIRST_DEPTH, 2 * k)
    while len(waiting) and depth <= _MOST_DEPTH:
        step = max(1, _CANDIDATES // (depth * len(stores)))
        for start in range(0, len(waiting), step):
            search.look(waiting[start : start + step], depth)
        waiting = np.array([row for row in waiting if not search.done[row]], dtype=np.int64)
        depth *= _GROWTH
    for row in waiting:
        search.look_everywhere(int(row))
    return search.results


class _FusedSearch:
    def __init__(self, stores, queries, factors, k, filter, exclude, own):
        self.stores, self.factors, self.k, self.own = stores, factors, k, own
        self.queries = [np.asarray(part, dtype=np.float64) for part in queries]
        self.filter, self.exclude = filter, exclude
        self.wanted, self.excluded = checked_filter(filter), frozenset(exclude)
        self.done = [False] * len(factors)
        # Query that is not done → space's place → vectors that were fetched.
        self.vectors: dict[int, dict[int, dict[str, np.ndarray]]] = {}
        self.results: list[Ranked] = [([], np.zeros(0, dtype=np.float32))] * len(factors)

    def look(self, rows: np.ndarray, depth: int) -> None:
        """Results of some queries from the `depth` best of each space, and whether that was enough."""
        lists: dict[int, dict[int, Ranked]] = {int(row): {} for row in rows}
        for place, store in enumerate(self.stores):
            asked = [int(row) for row in rows if self.factors[row, place] > 0]
            if asked:
                found = store.search(self.queries[place][asked], depth, self.filter, self.exclude)
                for row, ids, scores in zip(asked, found.ids, found.scores, strict=True):
                    lists[row][place] = ids, scores
        for row, given in lists.items():
            query = _OneQuery(self, row, given, depth)
            self.results[row] = query.results()
            self.done[row] = query.is_complete(self.results[row][1])
            if self.done[row]:
                del self.vectors[row]

    def look_everywhere(self, row: int) -> None:
        """Results of a query from every item of one of its spaces."""
        active = np.flatnonzero(self.factors[row] > 0).tolist()
        names, scores = self.results[row]
        self.vectors.pop(row, None)
        for batch in self.stores[active[0]].scroll(filter=self.filter):
            more = sorted(set(batch.ids) - self.excluded - set(names) - {self.own and self.own[row]})
            query = _OneQuery(self, row, {place: ([], np.zeros(0)) for place in active}, 0)
            more, their = query.exact(more)
            del self.vectors[row]
            names, scores = _best([*names, *more], np.concatenate([scores, their]), self.k)
        self.results[row], self.done[row] = (names, scores), True


class _OneQuery:
    """
    A query with the best items of its spaces, of which as few as possible are fetched.

    Args:
        given: space's place → its `depth` best, or all it has.
    """

    def __init__(self, search: _FusedSearch, row: int, given: Mapping[int, Ranked], depth: int):
        self._search, self._row, self._given, self._depth = search, row, given, depth
        self._factors = {place: float(search.factors[row, place]) for place in given}
        self._queries = {place: search.queries[place][row] for place in given}
        self._vectors = search.vectors.setdefault(row, {place: {} for place in given})
        # What an item has at most where a space did not give it: nothing counts where the space gave all it has.
        self._last = {
            place: float(scores[-1]) if len(ids) >= depth > 0 else -np.inf for place, (ids, scores) in given.items()
        }
        self._slack = 0.0
        for place, (_, scores) in given.items():
            length = float(np.linalg.norm(self._queries[place]))
            self._slack += _SLACK * self._factors[place] * max(length, float(np.abs(scores).max(initial=0.0)))

    def results(self) -> Ranked:
        """The best of the items that were given."""
        names, most, known = self._bounds()
        k = self._search.k
        scores = np.full(len(names), -np.inf)
        scores[known] = most[known]
        waiting, size = [place for place in np.argsort(-most, kind="stable").tolist() if not known[place]], 4 * k
        while waiting:
            least = np.partition(scores, len(scores) - k)[len(scores) - k] if len(scores) >= k else -np.inf
            part = [place for place in waiting[:size] if most[place] > -np.inf and most[place] >= least - self._slack]
            if not part:
                break
            found, their = self.exact([names[place] for place in part])
            of = dict(zip(found, their.tolist(), strict=True))
            scores[part] = [of.get(names[place], -np.inf) for place in part]
            waiting, size = waiting[len(part) :] if len(part) == size else [], 2 * size
        least = np.partition(scores, len(scores) - k)[len(scores) - k] if len(scores) >= k else -np.inf
        near = np.flatnonzero((scores > -np.inf) & (scores >= least - 2 * self._slack))
        return _best(*self.exact([names[place] for place in near.tolist()]), k)

    def is_complete(self, best: np.ndarray) -> bool:
        """Whether no item that was not given can be among the best."""
        bound = sum(self._factors[place] * last for place, last in self._last.items())
        return bound == -np.inf or (len(best) == self._search.k and float(best[-1]) >= bound + self._slack)

    def exact(self, names: Sequence[str]) -> Ranked:
        """Those of the names that count in every space, and their scores, float64, from the stored vectors."""
        for place, vectors in self._vectors.items():
            sure = set(self._given[place][0])
            for asked in (
                [name for name in names if name not in vectors and name in sure],
                [name for name in names if name not in vectors and name not in sure],
            ):
                found = get_present(self._search.stores[place], asked)
                wanted = self._search.wanted
                vectors |= {name: embed for name, (embed, columns) in found.items() if matches(wanted, columns)}
        names = [name for name in names if all(name in vectors for vectors in self._vectors.values())]
        scores = np.zeros(len(names))
        for place, vectors in self._vectors.items() if names else ():
            embeds = np.stack([vectors[name] for name in names]).astype(np.float64)
            scores += self._factors[place] * (embeds @ self._queries[place])
        return names, scores

    def _bounds(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Items that were given, the most that each can have, and whether that is its score."""
        own = self._search.own and self._search.own[self._row]
        names = list(dict.fromkeys(name for ids, _ in self._given.values() for name in ids if name != own))
        rows = {name: row for row, name in enumerate(names)}
        most, known = np.zeros(len(names)), np.ones(len(names), dtype=bool)
        for place, (ids, scores) in self._given.items():
            own_scores = np.full(len(names), self._last[place])
            there = [(rows[name], rank) for rank, name in enumerate(ids) if name != own]
            at, ranks = np.array(there, dtype=np.int64).reshape(-1, 2).T
            own_scores[at] = scores[ranks]
            most += self._factors[place] * own_scores
            given = np.zeros(len(names), dtype=bool)
            given[at] = True
            known &= given
        return names, most, known


def _best(names: Sequence[str], scores: np.ndarray, k: int) -> Ranked:
    # Equal vectors in float64 may differ in the last bit: equal is what float32 says.
    scores = np.asarray(scores, dtype=np.float32)
    order = np.lexsort((np.array(names, dtype=object).astype(str), -scores))[:k]
    return [names[place] for place in order], scores[order]


def get_present(store: VectorStore, ids: Sequence[str]) -> dict[str, tuple[np.ndarray, dict]]:
    """Vector and metadata of those ids that a store has: the contract's `get` wants all of them to be there."""
    found: dict[str, tuple[np.ndarray, dict]] = {}
    waiting = [list(ids)] if len(ids) else []
    while waiting:
        part = waiting.pop()
        try:
            entries = store.get(part)
        except KeyError:
            if len(part) > 1:
                waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
            continue
        found |= zip(entries.ids, zip(entries.embeds, entries.metadata, strict=True), strict=True)
    return found


def distinct_results(
    search: Callable[[np.ndarray, int], list[Ranked]], num_queries: int, k: int, store: VectorStore, cosine: float
) -> list[Ranked]:
    """
    Results without near-duplicates: best first, an item is left out where its cosine with a better one that stayed is
    above a threshold. An item that the store has no vector of stays.

    Args:
        search: rows of queries, a number of results → these.
        store: whose vectors say what is a near-duplicate.

    Raises:
        ValueError: a threshold outside -1..1.
    """
    if not -1 <= cosine <= 1:
        raise ValueError(f"A cosine above which results are near-duplicates must be -1..1; got {cosine}.")
    results: list[Ranked] = [([], np.zeros(0, dtype=np.float32))] * num_queries
    waiting, wanted = np.arange(num_queries), 2 * k
    while len(waiting):
        left = []
        for row, (ids, scores) in zip(waiting, search(waiting, wanted), strict=True):
            kept = _distinct(ids, get_present(store, ids), cosine, k)
            results[row] = [ids[place] for place in kept], scores[kept]
            if len(kept) < k and len(ids) == wanted:
                left.append(row)
        waiting, wanted = np.array(left, dtype=np.int64), wanted * _GROWTH
    return results


def _distinct(ids: Sequence[str], vectors: Mapping[str, tuple[np.ndarray, dict]], cosine: float, k: int) -> list[int]:
    kept: list[int] = []
    seen: list[np.ndarray] = []
    for place, name in enumerate(ids):
        if len(kept) == k:
            break
        if name in vectors:
            vector = vectors[name][0].astype(np.float64)
            vector /= np.linalg.norm(vector) or 1.0
            if seen and (np.stack(seen) @ vector).max() > cosine:
                continue
            seen.append(vector)
        kept.append(place)
    return kept


def _checked_weight(name: str, weight: float | np.ndarray, num_queries: int) -> np.ndarray:
    found = np.asarray(weight, dtype=np.float64)
    if found.shape not in ((), (num_queries,)):
        raise ValueError(
            f"The weight of {name!r} must be a number or one a query, ({num_queries},); got {found.shape}."
        )
    if not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError(f"The weight of {name!r} must be at least 0 and finite; got {weight}.")
    return found
