# SPDX-License-Identifier: Apache-2.0
"""What a collection of Milvus is asked: rows by condition, all rows page by page, the nearest ones."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .milvus_client import MilvusConnection, Turns
from .milvus_rows import VECTOR

# Milvus gives no more answers to one query, and no more rows to one request.
MAX_ROWS = 16_384
# Of one request or answer: a message holds 64 MB at most.
MAX_BYTES = 16 * 2**20
# Rows that an embedded file may hold in memory when it is read: it searches them many times slower than its files.
MAX_PENDING = 1000


class MilvusReading:
    """
    Args:
        milvus: an open connection.
        turns: of the users of the collection in this process.
        collection, dim, index_type, search_params, consistency: see `MilvusStore`.
    """

    def __init__(
        self,
        milvus: MilvusConnection,
        turns: Turns,
        collection: str,
        dim: int,
        index_type: str,
        search_params: Mapping[str, Any],
        consistency: str,
    ):
        self._milvus, self._turns, self._collection, self._dim = milvus, turns, collection, dim
        self._index_type, self._search_params = index_type, dict(search_params)
        self._consistency = consistency

    def page(self, batch_size: int) -> int:
        """Rows that one answer can hold, vectors and metadata of 2 KB each included."""
        return max(1, min(batch_size, MAX_ROWS, MAX_BYTES // (4 * self._dim + 2048)))

    def rows(self, condition: str, fields: list[str], consistency: str = "") -> list[dict[str, Any]]:
        """All rows of a condition. Only in a turn, of reading or of writing."""
        level = consistency or self._consistency
        return self._milvus.call(
            "query", self._collection, filter=condition, output_fields=fields, consistency_level=level
        )

    def hits(self, queries: np.ndarray, limit: int, condition: str) -> list[list[dict[str, Any]]]:
        """Of each query up to `limit` nearest rows, and no more than `MAX_ROWS`: id and distance."""
        limit, params = min(limit, MAX_ROWS), dict(self._search_params)
        if self._index_type == "HNSW":
            params["ef"] = max(limit, int(params.get("ef", 64)))
        # Of each query its vector goes out and its answers come back, about 100 bytes each.
        step = max(1, min(1000, MAX_BYTES // (4 * self._dim + 100 * limit)))
        hits: list[list[dict[str, Any]]] = []
        self._settle()
        for start in range(0, len(queries), step):
            with self._turns.reading():
                hits += self._milvus.call(
                    "search",
                    self._collection,
                    data=queries[start : start + step],
                    anns_field=VECTOR,
                    limit=limit,
                    filter=condition,
                    search_params={"metric_type": "IP", "params": params},
                    consistency_level=self._consistency,
                )
        return hits

    def pages(self, page: int, condition: str | None, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        """All rows of a condition, by id; None: there are none."""
        if condition is None:
            return
        self._settle()
        with self._turns.reading():
            rows = self._milvus.call(
                "query_iterator",
                self._collection,
                batch_size=page,
                filter=condition,
                output_fields=fields,
                consistency_level=self._consistency,
            )
        try:
            while True:
                with self._turns.reading():
                    batch = self._milvus.tried(rows.next, "query_iterator")
                if not batch:
                    return
                yield batch
        finally:
            rows.close()

    def _settle(self) -> None:
        """Have an embedded file write what it holds in memory, where that is much."""
        if self._milvus.embedded and self._turns.pending >= MAX_PENDING:
            with self._turns.writing():
                self._milvus.call("flush", self._collection)
                self._turns.pending = 0
