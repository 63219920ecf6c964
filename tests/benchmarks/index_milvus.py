# SPDX-License-Identifier: Apache-2.0
"""A part of index.py: the same entries and queries in an embedded Milvus, a Milvus server and FaissStore, in turn."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from index_vectors import BLOCK, in_turn, names, recall, seconds, vectors

from modeling_mclfir.index import FaissStore, VectorStore

sys.path.append(str(Path(__file__).resolve().parents[1] / "index"))

from milvus_server import MilvusServer  # noqa: E402

_DIM, _K, _QUERIES = 64, 10, 256


def milvus(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """Inserts, and searches of 1 and 32 queries: seconds over those of FaissStore Flat in a folder. Both are exact."""
    try:
        import pymilvus
    except ModuleNotFoundError:
        yield "skipped: pymilvus is not installed: pip install 'mclfir[milvus]' 'milvus==2.3.5'", ""
        return
    rows, pool = vectors(args.milvus_rows, _DIM), vectors(_QUERIES, _DIM, seed=2)
    yield f"{len(rows):,} x {_DIM}, pymilvus {pymilvus.__version__}", "insert", "1 query", "32 queries", "recall@10"
    with FaissStore(folder / "beside", _DIM) as flat:
        fill(flat, rows)
        best = flat.search(pool, _K).ids
        yield from embedded(folder, rows, pool, flat, best)
        yield from served(folder, rows, pool, flat, best)


def embedded(folder: Path, rows, pool, flat: VectorStore, best) -> Iterator[tuple[str, ...]]:
    try:
        import milvus_lite  # noqa: F401
    except ModuleNotFoundError:
        yield "embedded: skipped: milvus-lite is not installed: pip install 'mclfir[milvus]'", ""
        return
    from modeling_mclfir.index.milvus_store import MilvusStore

    with MilvusStore(str(folder / "lite.db"), "items", _DIM) as store:
        yield "embedded / FaissStore", *compared(store, folder / "faiss-lite", rows, pool, flat, best)


def served(folder: Path, rows, pool, flat: VectorStore, best) -> Iterator[tuple[str, ...]]:
    try:
        server = MilvusServer(folder / "server", session_ttl=60).start()
    except RuntimeError as error:
        yield f"server: skipped: {error}", ""
        return
    from pymilvus.exceptions import MilvusException

    from modeling_mclfir.index.milvus_store import MilvusStore

    try:
        for kind, options in {
            "FLAT": {},
            "HNSW, M 16, ef 64": {
                "index_type": "HNSW",
                "index_params": {"M": 16, "efConstruction": 100},
                "search_params": {"ef": 64},
            },
        }.items():
            place, what = folder / f"faiss-{kind[:4]}", f"server {kind} / FaissStore"
            try:
                with MilvusStore(server.uri, f"items_{kind[:4].lower()}", _DIM, **options) as store:
                    yield what, *compared(store, place, rows, pool, flat, best)
            except (MilvusException, ConnectionError) as error:  # a server of a busy machine loses its own parts
                yield f"{what}: failed: {str(error)[:200]}", ""
        yield "server: resident memory / raw vectors", f"{server.memory() / rows.nbytes:.0f}"
    finally:
        server.kill()


def compared(store: VectorStore, folder: Path, rows, pool, flat: VectorStore, best) -> list[str]:
    """Ratios of seconds on the wall: another process does the work of a server."""
    clock = time.perf_counter
    with FaissStore(folder, _DIM) as other:
        theirs = seconds(lambda: fill(store, rows), clock)
        cells = [theirs / seconds(lambda: fill(other, rows), clock)]
    for size in (1, 32):
        works = {"milvus": lambda some: store.search(some, _K), "faiss": lambda some: flat.search(some, _K)}
        took = in_turn(works, pool, size, clock)
        cells.append(took["milvus"] / took["faiss"])
    return [f"{cell:.1f}" for cell in cells] + [f"{recall(store.search(pool, _K).ids, best):.3f}"]


def fill(store: VectorStore, rows) -> None:
    """A tenth of the usual block: what a service adds at a time."""
    size = BLOCK // 10
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        store.add(names(start, len(part)), part, [{"colour": "red"}] * len(part))
