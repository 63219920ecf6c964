# SPDX-License-Identifier: Apache-2.0
"""Exact search by inner product with FAISS's own loops, over vectors where they lie, without an index or a copy."""

from collections.abc import Sequence
from itertools import accumulate
from operator import gt

import faiss
import numpy as np

from .rows import FEW, Names, take_rows

# From so many queries on, FAISS multiplies matrices, which it can't with a selector: rows are copied out instead.
_SELECTOR_QUERIES = 4
_GATHERED_ROWS = 65_536
_DROPPED = 16


class Found:
    """
    The best rows of each query so far: scores (N, m) descending, -inf behind the last; rows (N, m), -1 there.

    `is_full`: it is known that each query has as many rows as there are columns.
    """

    def __init__(self, num_queries: int, k: int):
        self.k, self.is_full = k, False
        self._listed: list[int] | None = None
        self.scores = np.empty((num_queries, 0), dtype=np.float32)
        self.rows = np.empty((num_queries, 0), dtype=np.int64)

    @classmethod
    def of_one(cls, k: int, scores: np.ndarray, rows: np.ndarray) -> "Found | None":
        """
        Of a search with one query for k + 1 rows, or all that there are: the first k. None: some are equal, up to
        and with the one behind the last, so that the order is not known, nor that they are the best.
        """
        listed, falling = rows[0].tolist(), scores[0].tolist()
        if not listed or listed[-1] < 0 or not all(map(gt, falling, falling[1:])):
            return None
        found = cls.__new__(cls)
        found.k, found.is_full, found._listed = k, True, listed[:k]
        found.scores, found.rows = scores[:, :k], rows[:, :k]
        return found

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """Merge in further rows, none of which is there yet; of equal scores the lower row comes first."""
        self._listed = None
        if not self.scores.shape[1] and _is_sorted(scores, rows):
            self.scores, self.rows, self.is_full = scores[:, : self.k], rows[:, : self.k], True
            return
        scores = np.where(rows >= 0, scores, -np.inf)
        if self.scores.shape[1]:
            scores, rows = np.concatenate([self.scores, scores], 1), np.concatenate([self.rows, rows], 1)
        self.scores, self.rows = _best_columns(scores, rows, self.k)
        self.is_full = self.rows.size > 0 and bool(self.rows[:, -1].min() >= 0)

    def counts(self) -> np.ndarray:
        """How many rows each query has: (N,)."""
        return np.count_nonzero(self.rows >= 0, axis=1)

    def named(self, names: Names) -> tuple[list[list[str]], list[np.ndarray]]:
        """Ids and scores of each query, where `names` are those of all rows."""
        if self._listed is not None:
            return [names.of_few(self._listed)], [self.scores[0]]
        if self.is_full:
            width = self.rows.shape[1]
            ids = names.of(self.rows.ravel())
            return [ids[start : start + width] for start in range(0, len(ids), width)], list(self.scores)
        counts = self.counts().tolist()
        ids = names.of(self.rows[self.rows >= 0])
        starts = [0, *accumulate(counts)]
        ids = [ids[start : start + count] for start, count in zip(starts, counts, strict=False)]
        return ids, [row[:count] for row, count in zip(self.scores, counts, strict=True)]


def search_blocks(
    queries: np.ndarray, k: int, blocks: Sequence[tuple[int, np.ndarray]], allowed: np.ndarray | None
) -> Found:
    """
    The k best rows of each query, equal scores in the order of rows.

    Args:
        queries: float32 (N, D), N at least 1.
        blocks: first row and vectors of each block.
        allowed: bool, by row; None: all.
    """
    if allowed is None and len(blocks) == 1 and not blocks[0][0]:
        if len(queries) == 1 and k < FEW:
            return _search_one(queries, k, blocks[0][1])
        return _search_block(queries, k, blocks[0][1], None, len(blocks[0][1]))
    found = Found(len(queries), k)
    for start, vectors in blocks:
        part = None if allowed is None else allowed[start : start + len(vectors)]
        kept = len(vectors) if part is None else int(np.count_nonzero(part))
        if kept:
            best = _search_block(queries, k, vectors, part, kept)
            found.add(best.scores, np.where(best.rows >= 0, best.rows + start, -1))
    return found


def search_rows(queries: np.ndarray, k: int, blocks: Sequence[tuple[int, np.ndarray]], rows: np.ndarray) -> Found:
    """The k best among a few rows, given in rising order."""
    found = Found(len(queries), k)
    for first in range(0, len(rows), _GATHERED_ROWS):
        part = rows[first : first + _GATHERED_ROWS]
        scores, places = _best(queries, k, take_rows(blocks, part, queries.shape[1]))
        found.add(scores, np.where(places >= 0, part[places], -1))
    return found


def _is_sorted(scores: np.ndarray, rows: np.ndarray) -> bool:
    """Whether no row is lacking, and each score is lower than the one before it."""
    if len(rows) == 1 and rows.size <= FEW:
        one = scores[0].tolist()
        return min(rows[0].tolist(), default=-1) >= 0 and all(map(gt, one, one[1:]))
    return rows.size > 0 and rows.min() >= 0 and bool((scores[:, 1:] < scores[:, :-1]).all())


def _best_columns(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query in order, of equal ones the lowest rows; -1 last."""
    order = np.argsort(-scores, axis=1)[:, : k + 1]  # several times quicker than by two keys
    first, their = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    equal = np.flatnonzero(((first[:, 1:] == first[:, :-1]) & (their[:, 1:] >= 0)).any(axis=1))
    first, their = first[:, :k], their[:, :k]
    if len(equal):
        scores, rows = scores[equal], rows[equal]
        order = np.lexsort((np.where(rows >= 0, rows, np.iinfo(np.int64).max), -scores), axis=1)[:, :k]
        first[equal], their[equal] = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return first, their


def _search_one(query: np.ndarray, k: int, vectors: np.ndarray) -> Found:
    """As `_search_block`, with one query and all rows: what most searches are."""
    best = _knn(query, min(k + 1, len(vectors)), vectors)
    found = Found.of_one(k, *best)
    if found is None:
        found = Found(1, k)
        found.add(*_best(query, k, vectors, first=best))
    return found


def _search_block(queries: np.ndarray, k: int, vectors: np.ndarray, allowed: np.ndarray | None, kept: int) -> Found:
    """As `search_blocks`, of one block of which `kept` rows are allowed; rows are counted from its first."""
    found, dropped = Found(len(queries), k), len(vectors) - kept
    if not dropped:
        found.add(*_best(queries, k, vectors))
    elif 2 * kept >= len(vectors):
        # Look for a few more than k and drop those that are not allowed: quicker than anything that asks for each row.
        wanted = k + (dropped if dropped <= _DROPPED else int(1.3 * k * dropped / kept) + _DROPPED)
        scores, rows = _best(queries, wanted, vectors)
        found.add(scores, np.where(allowed[rows], rows, -1))
        lacking = np.flatnonzero(found.counts() < min(k, kept))
        if len(lacking):
            again = _among(np.ascontiguousarray(queries[lacking]), k, vectors, allowed)
            width = again.rows.shape[1]
            found.scores[lacking, :width], found.rows[lacking, :width] = again.scores, again.rows
    else:
        return _among(queries, k, vectors, allowed)
    return found


def _among(queries: np.ndarray, k: int, vectors: np.ndarray, allowed: np.ndarray) -> Found:
    if len(queries) >= _SELECTOR_QUERIES:
        return search_rows(queries, k, [(0, vectors)], np.flatnonzero(allowed))
    found = Found(len(queries), k)
    found.add(*_best(queries, k, vectors, faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))))
    return found


def _best(
    queries: np.ndarray,
    k: int,
    vectors: np.ndarray,
    selector=None,
    first: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Scores and rows of the k best, of equal ones those of the lowest rows; in no order among equals.

    FAISS keeps any of those that are equal at the end: where the one behind it is equal, it is asked for more.

    Args:
        first: scores and rows of the k + 1 best, or of all, where they are known already.
    """
    limit = len(vectors)
    scores, rows = first or _knn(queries, min(k + 1, limit), vectors, selector)
    if k >= limit:
        return scores, rows
    if len(rows) == 1:
        equal = [0] if rows[0, k] >= 0 and scores[0, k - 1] == scores[0, k] else []
    else:
        equal = np.flatnonzero((rows[:, k] >= 0) & (scores[:, k - 1] == scores[:, k])).tolist()
    for place in equal:
        query, wanted = queries[place : place + 1], k + 1
        several = scores[place : place + 1], rows[place : place + 1]
        while wanted < limit and several[1][0, -1] >= 0 and several[0][0, -1] == several[0][0, k - 1]:
            wanted = min(4 * wanted, limit)
            several = _knn(query, wanted, vectors, selector)
        more = Found(1, k)
        more.add(*several)
        scores[place, :k], rows[place, :k] = more.scores[0], more.rows[0]
    return scores[:, :k], rows[:, :k]


def _knn(queries: np.ndarray, k: int, vectors: np.ndarray, selector=None) -> tuple[np.ndarray, np.ndarray]:
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    pointers = (faiss.swig_ptr(array) for array in (queries, vectors))
    sizes = (queries.shape[1], len(queries), len(vectors), k)
    selectors = () if selector is None else (selector,)
    faiss.knn_inner_product(*pointers, *sizes, faiss.swig_ptr(scores), faiss.swig_ptr(rows), *selectors)
    return scores, rows
