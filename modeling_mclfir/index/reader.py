# SPDX-License-Identifier: Apache-2.0
"""Reading an index of several spaces: searches and entries."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from .fusion import Ranked, distinct_results, factors_of, fused_search
from .opened import OpenIndex
from .policies import choose_calibration
from .spaces import IncompatibleRevisionError, IndexEntries, Space
from .store import Filter, SearchResult, checked_embeds, checked_ids, checked_number
from .view import Queries, View, as_ids, index_entries, search_one


class IndexReader(OpenIndex):
    """
    An index as it stood when it was opened, or refreshed: what others have switched since, it takes up by `refresh`,
    so that a reader can load the new checkpoint first. Entries that others add are found as soon as the stores show
    them.

    Args:
        folder: of the manifest and the maps.
        make_store: name and dim of a store → the store, made where there is none. Names are of letters, digits and _.

    Raises:
        FileNotFoundError: there is no index.
    """

    def search(
        self,
        spaces: str | Sequence[str],
        queries: Queries,
        k: int,
        *,
        fingerprint: str | Mapping[str, str] | None = None,
        weights: Mapping[str, float | np.ndarray] | None = None,
        filter: Filter | None = None,
        exclude: Sequence[str] = (),
        include_self: bool = False,
        distinct: tuple[str, float] | None = None,
        unknown_spread: float | None = None,
    ) -> SearchResult:
        """
        The k best items of each query, in one space or several.

        In one space scores are its inner products. In several, or with weights, they are Σ_s weight_s / spread_s ·
        <query_s, item_s>, over items with a vector in each space that the query has a weight above 0 for; see
        `fused_search`. Exact where the stores are.

        Args:
            spaces: names of spaces or attributes; of an attribute, all of its spaces.
            queries: vectors (N, D) of the one space; space, or attribute of one space → vectors (N, D); or ids of N
                items, whose stored vectors are taken.
            k: at least 1.
            fingerprint: of what made the queries, one for all spaces or one a space; none for ids.
            weights: space or attribute → a number, or one a query (N,), say of a router; default 1.
            filter: only items of these values, in every space that is searched.
            exclude: ids never to be found.
            include_self: an item that is the query is found, too.
            distinct: (space, cosine): of results whose vectors in that space are more alike, only the best.
            unknown_spread: what counts as the spread of a space in which it is not known; default: that is an error.

        Raises:
            ValueError: an unknown name, queries of another shape, or for other spaces, a weight that is none.
            IncompatibleRevisionError: queries that something else made than the entries, and no map between.
            KeyError: an id without a vector in one of the spaces.
        """
        view, k, exclude = self._view, checked_number("k", k), checked_ids(exclude, unique=False)
        names = view.names(spaces)
        own, vectors = self._queries(view, names, queries, fingerprint)
        own = None if include_self else own
        live = [view.spaces[name].live for name in names]
        ranked = self._ranked(live, vectors, own, weights, filter, exclude, unknown_spread)
        rows = np.arange(len(vectors[0]))
        try:
            if distinct is None:
                found = ranked(rows, k)
            else:
                live.append(view.space(distinct[0]).live)
                found = distinct_results(ranked, len(rows), k, self._stores.of(live[-1]), distinct[1])
        finally:  # of a store that was deleted meanwhile, too
            self._stores.check_kept(view, live)
        return SearchResult([ids for ids, _ in found], [scores for _, scores in found])

    def map_queries(self, space: str, queries: np.ndarray, fingerprint: str) -> np.ndarray:
        """
        Vectors of a revision in the coordinates of a space's live one: float32 (N, D), as `search` maps them. To mix
        them with queries of the old encoder, see `spherical_mix`; search with the mix under the live fingerprint.

        Raises:
            IncompatibleRevisionError: no map leads there.
        """
        return self._mapped(self._view.space(space), queries, fingerprint)

    def get(self, space: str, ids: Sequence[str]) -> IndexEntries:
        """Entries of a space's live revision. KeyError names those that are not there."""
        view = self._view
        return self._get(view, view.space(space), ids)

    def export(
        self, space: str, batch_size: int = 1000, revision: str | None = None, filter: Filter | None = None
    ) -> Iterator[IndexEntries]:
        """
        Every entry of a space, in batches.

        Args:
            revision: model revision or fingerprint; default: the live one.
        """
        view = self._view
        found = view.space(space)
        stored = found.live if revision is None else found.find(revision)
        store = self._stores.of(stored)

        def batches() -> Iterator[IndexEntries]:
            try:
                for batch in store.scroll(batch_size, filter):
                    yield index_entries(found.name, stored, batch)
            except FileNotFoundError:
                self._stores.check_kept(view, [stored])
                raise
            self._stores.check_kept(view, [stored])

        return batches()

    def calibration(self, space: str, num_items: int, seed: int = 0) -> IndexEntries:
        """Stored items to fit a drift map on, spread over a space; see `choose_calibration`."""
        view = self._view
        found = view.space(space)
        return self._get(view, found, choose_calibration(self._stores.of(found.live), num_items, seed))

    def _ranked(
        self, live, vectors, own, weights, filter, exclude, unknown_spread
    ) -> Callable[[np.ndarray, int], list[Ranked]]:
        """What gives so many results of some rows of the queries."""
        stores, factors = [self._stores.of(one) for one in live], None
        if len(live) > 1 or weights is not None:
            names, attributes, spreads = zip(
                *((one.description.space, one.description.attribute, one.description.spread) for one in live),
                strict=True,
            )
            factors = factors_of(names, attributes, spreads, weights, len(vectors[0]), unknown_spread)

        def ranked(rows: np.ndarray, count: int) -> list[Ranked]:
            parts = [part[rows] for part in vectors]
            their = None if own is None else [own[row] for row in rows]
            if factors is None:
                return search_one(stores[0], parts[0], count, filter, exclude, their)
            return fused_search(stores, parts, factors[rows], count, filter, exclude, their)

        return ranked

    def _queries(self, view: View, names, queries, fingerprint) -> tuple[list[str] | None, list[np.ndarray]]:
        """Ids of the queries, where they are items, and their vectors in the coordinates of each space."""
        ids = as_ids(queries)
        if ids is not None:
            return ids, [self._stored_vectors(view, name, ids) for name in names]
        if isinstance(queries, Mapping):
            queries = {view.space(key).name: part for key, part in queries.items()}
        elif len(names) == 1:
            queries = {names[0]: queries}
        if not isinstance(queries, Mapping) or set(queries) != set(names):
            got = sorted(queries) if isinstance(queries, Mapping) else f"one array, {np.shape(queries)}"
            raise ValueError(f"Queries must be vectors of each of {names}, as a mapping of space → (N, D); got {got}.")
        vectors = []
        for name in names:
            made_by = fingerprint.get(name) if isinstance(fingerprint, Mapping) else fingerprint
            if made_by is None:
                raise IncompatibleRevisionError(
                    f"What made the queries for {name!r}? Give its fingerprint: vectors of other weights than "
                    f"{view.spaces[name].live.fingerprint!r} would be searched in vain."
                )
            vectors.append(self._mapped(view.spaces[name], queries[name], made_by))
        if len({len(part) for part in vectors}) > 1:
            raise ValueError(f"Every space needs a vector of every query; got {[len(part) for part in vectors]}.")
        return None, vectors

    def _stored_vectors(self, view: View, name: str, ids: list[str]) -> np.ndarray:
        try:
            return self._get(view, view.spaces[name], ids).embeds
        except KeyError as error:
            raise KeyError(f"In {name!r}: {error.args[0]}") from None

    def _get(self, view: View, space: Space, ids: Sequence[str]) -> IndexEntries:
        try:
            return index_entries(space.name, space.live, self._stores.of(space.live).get(ids))
        finally:
            self._stores.check_kept(view, [space.live])

    def _mapped(self, space: Space, vectors: np.ndarray, fingerprint: str) -> np.ndarray:
        path = space.path(fingerprint)
        vectors = checked_embeds(vectors, path[0].dim if path else space.live.description.dim)
        for link in path:
            vectors = vectors if link.file is None else self._stores.map(link).apply(vectors)
        return vectors
