# SPDX-License-Identifier: Apache-2.0
"""Milvus as a vector store: an embedded file, a server or a cluster behind one client and one URI."""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .durable import flush_folder, write_file
from .milvus_client import MilvusConnection, Turns, is_file
from .milvus_collection import gone, open_collection
from .milvus_reading import MAX_BYTES, MAX_PENDING, MAX_ROWS, MilvusReading
from .milvus_rows import ID, METADATA, VECTOR, chunks, decoded_id, encoded_id, expression, in_list, rows_of
from .store import (
    Entries,
    Filter,
    SearchResult,
    VectorStore,
    checked_embeds,
    checked_filter,
    checked_ids,
    checked_metadata,
    checked_number,
)

_MARK, _FILE = "milvus_store.json", "entries.db"
# Up to so many excluded ids are fetched and dropped here: cheaper than a filter, and exact with any index.
_FEW_EXCLUDED = 100
# Of the users of one process, by address and collection. The embedded engine bears one writer at a time; and a server
# of 2.3 may show a reader an entry that was replaced long ago, while it is being replaced once more.
_TURNS: dict[tuple[str, str], Turns] = {}
_TURNS_LOCK = threading.Lock()


class MilvusStore(VectorStore):
    """
    Entries in a collection of Milvus, made where there is none.

    Embedded or served, what `add` and `remove` acknowledge is in Milvus's log and outlives its process; that of an
    embedded file reaches the disk when the operating system writes it, so that a power cut may take its last seconds.
    With the consistency "Strong" every client sees it at once; weaker ones ("Bounded", "Session", "Eventually")
    answer sooner and see it later. An embedded file looks at every row for a filter, in Python (tenths of a second for
    10,000 of them): it is for tests and small catalogues.

    Ids are stored percent-encoded where they hold other signs than letters, digits and `-._~/: @`; beside the
    metadata (JSON) stands a list of its values as plain texts, over which filters go: equality is then the same
    everywhere, and no value or column name can become a part of an expression.

    Args:
        uri: see `MilvusConnection`.
        collection: its name: letters, digits and _.
        dim: D, of every vector.
        index_type: FLAT is exact; HNSW, IVF_FLAT, IVF_PQ, ... of the server (an embedded file has no IVF_PQ).
        index_params: of the index, say {"M": 16, "efConstruction": 200}.
        search_params: of a search, say {"ef": 128} or {"nprobe": 32}; HNSW's ef is raised to k where it is below.
        token, timeout, num_tries, connection: see `MilvusConnection`.
        consistency_level: of reads.
        batch_size: entries a request, at most.
        must_exist: entries were put there before: a collection, or a file, that is gone is not made anew and empty.

    Raises:
        FileNotFoundError: see `must_exist`.
        ValueError: a collection of that name with another dimension, metric, index or schema; an index that this
            Milvus does not have.
    """

    def __init__(
        self,
        uri: str,
        collection: str,
        dim: int,
        index_type: str = "FLAT",
        index_params: Mapping[str, Any] | None = None,
        search_params: Mapping[str, Any] | None = None,
        token: str = "",
        consistency_level: str = "Strong",
        batch_size: int = 1000,
        timeout: float = 30.0,
        num_tries: int = 8,
        must_exist: bool = False,
        **connection: Any,
    ):
        self.dim, self.collection, self.index_type = checked_number("dim", dim), collection, index_type
        self._batch_size = min(checked_number("batch_size", batch_size), MAX_ROWS)
        if must_exist and is_file(uri) and not Path(uri).exists():
            raise gone(collection, uri)  # before the file is made anew
        self._milvus = MilvusConnection(uri, token, timeout, num_tries, **connection)
        with _TURNS_LOCK:
            self._turns = _TURNS.setdefault((self._milvus.uri, collection), Turns())
        self._reading = MilvusReading(
            self._milvus, self._turns, collection, self.dim, index_type, search_params or {}, consistency_level
        )
        try:
            with self._turns.writing():
                kind = index_type, dict(index_params or {}), consistency_level
                open_collection(self._milvus, collection, dim, *kind, must_exist)
                self._turns.pending = MAX_PENDING  # what an earlier process left in the log, it may be
        except BaseException:
            self._milvus.close()
            raise

    def add(self, ids: Sequence[str], embeds: np.ndarray, metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Add or replace entries, a request a batch. After an error the first batches may be in: add them again."""
        ids = checked_ids(ids)
        vectors = checked_embeds(embeds, self.dim, len(ids))
        rows = rows_of(ids, vectors, checked_metadata(metadata, len(ids)))
        # An upsert that is sent again, for want of an answer, changes nothing.
        for batch in chunks(rows, self._batch_size, MAX_BYTES):
            with self._turns.writing():
                self._milvus.call("upsert", self.collection, batch)
                self._turns.pending += len(batch)

    def remove(self, ids: Sequence[str]) -> int:
        """Remove entries → how many of them were there."""
        keys, removed = [encoded_id(name) for name in checked_ids(ids)], 0
        for start in range(0, len(keys), self._batch_size):
            with self._turns.writing():
                wanted = in_list(ID, keys[start : start + self._batch_size])
                # What a weaker consistency did not see would stay.
                there = [row[ID] for row in self._reading.rows(wanted, [ID], consistency="Strong")]
                if there:
                    self._milvus.call("delete", self.collection, filter=in_list(ID, there))
                removed += len(there)
        return removed

    def search(
        self, embeds: np.ndarray, k: int, filter: Filter | None = None, exclude: Sequence[str] = ()
    ) -> SearchResult:
        """The k best of each query. ValueError, too: more than 16,384 asked for, and as many found."""
        queries = checked_embeds(embeds, self.dim)
        k = checked_number("k", k)
        condition, excluded = expression(checked_filter(filter)), set(checked_ids(exclude, unique=False))
        limit = k + len(excluded)
        if excluded and (len(excluded) > _FEW_EXCLUDED or limit > MAX_ROWS):
            wanted, limit = f"not ({in_list(ID, map(encoded_id, sorted(excluded)))})", k
            condition = None if condition is None else f"{condition} and {wanted}" if condition else wanted
        hits = [[] for _ in queries] if condition is None else self._reading.hits(queries, limit, condition)
        if k > MAX_ROWS and any(len(found) == MAX_ROWS for found in hits):
            raise ValueError(f"Milvus finds at most {MAX_ROWS} entries a query; got k={k}. Ask for fewer, or scroll.")
        ids, scores = [], []
        for found in hits:
            pairs = [(decoded_id(hit[ID]), hit["distance"]) for hit in found]
            pairs = [pair for pair in pairs if pair[0] not in excluded][:k]
            ids.append([name for name, _ in pairs])
            scores.append(np.array([score for _, score in pairs], dtype=np.float32))
        return SearchResult(ids, scores)

    def get(self, ids: Sequence[str]) -> Entries:
        """The entries of these ids. KeyError names those that are not there."""
        names, found = checked_ids(ids, unique=False), {}
        keys = list(dict.fromkeys(encoded_id(name) for name in names))
        page = self._reading.page(self._batch_size)
        for start in range(0, len(keys), page):
            with self._turns.reading():
                rows = self._reading.rows(in_list(ID, keys[start : start + page]), [ID, VECTOR, METADATA])
            found |= {decoded_id(row[ID]): row for row in rows}
        missing = [name for name in names if name not in found]
        if missing:
            raise KeyError(f"{len(missing)} ids are not in {self.collection!r}: {missing[:10]}.")
        return self._entries([found[name] for name in names])

    def has(self, ids: Sequence[str]) -> list[bool]:
        """Of each id whether it is there."""
        keys = [encoded_id(name) for name in checked_ids(ids, unique=False)]
        found, wanted = set(), list(dict.fromkeys(keys))
        for start in range(0, len(wanted), self._batch_size):
            with self._turns.reading():
                rows = self._reading.rows(in_list(ID, wanted[start : start + self._batch_size]), [ID])
            found |= {row[ID] for row in rows}
        return [key in found for key in keys]

    def scroll(self, batch_size: int = 1000, filter: Filter | None = None) -> Iterator[Entries]:
        """Every entry once, by id; what is added meanwhile may be among them."""
        page = self._reading.page(checked_number("batch_size", batch_size))
        condition = expression(checked_filter(filter))
        return map(self._entries, self._reading.pages(page, condition, [ID, VECTOR, METADATA]))

    def scroll_ids(self, batch_size: int = 10_000, filter: Filter | None = None) -> Iterator[list[str]]:
        """As `scroll`."""
        page = min(checked_number("batch_size", batch_size), MAX_ROWS)
        pages = self._reading.pages(page, expression(checked_filter(filter)), [ID])
        return ([decoded_id(row[ID]) for row in page] for page in pages)

    def count(self, filter: Filter | None = None) -> int:
        """How many entries there are, or match: counted, not estimated."""
        condition = expression(checked_filter(filter))
        if condition is None:
            return 0
        with self._turns.reading():
            return int(self._reading.rows(condition, ["count(*)"])[0]["count(*)"])

    def save(self, folder: str | Path) -> None:
        """
        Write a copy of every entry as an embedded file with an exact index: a backup that `load` opens without a
        server. The collection itself needs no saving.
        """
        folder = Path(folder)
        if self._milvus.embedded and Path(self._milvus.uri) == folder.resolve() / _FILE:
            return  # the store of this very folder, which `load` opened
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / _MARK).is_file():
            raise ValueError(f"{folder} holds something else than a saved store; choose another folder.")
        partial, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.old")
        if old.exists() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir(parents=True)
        with MilvusStore(str(partial / _FILE), self.collection, self.dim) as copy:
            for entries in self.scroll():
                copy.add(entries.ids, entries.embeds, entries.metadata)
        mark = (json.dumps({"collection": self.collection, "dim": self.dim}) + "\n").encode()
        write_file(partial / _MARK, lambda file: file.write(mark))
        flush_folder(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        flush_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> "MilvusStore":
        """Open what `save` wrote, as an embedded store. FileNotFoundError where there is none."""
        mark = Path(folder) / _MARK
        if not mark.is_file():
            raise FileNotFoundError(f"{folder} holds no saved Milvus store ({_MARK}); MilvusStore.save writes one.")
        return cls(str(Path(folder) / _FILE), **json.loads(mark.read_text()), must_exist=True)

    def close(self) -> None:
        """Let go of the connection, and of an embedded file with the last store of this process on it."""
        self._milvus.close()

    def _entries(self, rows: Sequence[Mapping[str, Any]]) -> Entries:
        embeds = np.array([row[VECTOR] for row in rows], dtype=np.float32).reshape(len(rows), self.dim)
        return Entries([decoded_id(row[ID]) for row in rows], embeds, [dict(row[METADATA]) for row in rows])
