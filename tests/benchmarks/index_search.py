# SPDX-License-Identifier: Apache-2.0
"""Two parts of index.py: our search against raw FAISS on the same index; build, memory, recall and speed at size."""

import argparse
import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import faiss
import numpy as np
from generated_rows import in_processes
from index_vectors import BLOCK, blocks, fill, in_turn, names, recall, resident, seconds, vectors

from modeling_mclfir.index import FaissStore

K = 10
SIZES, DEPTHS = (1, 32, 256), (10, 100)
WIDTHS = {"HNSW": (8, 16, 32, 64, 128, 256, 512), "IVF": (1, 2, 4, 8, 16, 32, 64, 128, 256)}


def factories(args: argparse.Namespace) -> list[str]:
    """Those asked for; by default the four kinds, with about as many lists as the root of the rows."""
    lists = 2 ** max(2, round(np.log2(args.rows**0.5)))
    return args.factories or ["Flat", "HNSW32", f"IVF{lists},Flat", f"IVF{lists},PQ16"]


@cache
def data(rows: int, dim: int) -> np.ndarray:
    return vectors(rows, dim)


@cache
def queries(count: int, dim: int) -> np.ndarray:
    return vectors(count, dim, seed=2)


@cache
def built(args_rows: int, dim: int, factory: str, folder: Path, compare: bool) -> tuple[Path, dict[str, float]]:
    """A store in a folder, and what its building took; with a raw index of the same factory, built before it."""
    rows, costs = data(args_rows, dim), {}
    if compare:
        raw = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        costs["raw"] = seconds(lambda: (raw.train(rows), raw.add(rows)))
        del raw
    path = folder / factory.replace(",", "-")
    with FaissStore(path, dim, factory) as store:
        costs["added"] = seconds(lambda: fill(store, rows))
        costs["ours"] = costs["added"] + seconds(store.optimize)
    return path, costs


def built_for(args: argparse.Namespace, factory: str, folder: Path) -> tuple[Path, dict[str, float]]:
    return built(args.rows, args.dim, factory, folder, not args.no_raw)


def raw_index(path: Path, rows: np.ndarray, settings: dict) -> tuple[faiss.Index, object]:
    """FAISS's own reading of the store's index, and the search parameters that the store uses."""
    files = list(path.glob("*.faiss"))
    if not files:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        return index, None
    index = faiss.read_index(str(files[0]))
    if isinstance(index, faiss.IndexIVF):
        return index, faiss.SearchParametersIVF(nprobe=settings["nprobe"])
    return index, faiss.SearchParametersHNSW(efSearch=settings["ef_search"])


def search(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """Ratios of seconds, and what ours takes more, in microseconds a query."""
    clock = time.process_time if args.threads == 1 else time.perf_counter
    pool, rows = queries(2048, args.dim), data(args.rows, args.dim)
    settings = {"ef_search": args.ef_search, "nprobe": args.nprobe}
    yield "index, queries, k", "ours / FAISS", "more, µs/query", "recall@k", "FAISS's"
    for factory in factories(args):
        path, _ = built_for(args, factory, folder)
        raw, parameters = raw_index(path, rows, settings)
        exact, _ = built_for(args, "Flat", folder)
        with FaissStore(exact) as flat:
            best = {k: flat.search(pool[:256], k).ids for k in DEPTHS}
        kinds = [(factory, raw, parameters, 0)]
        if "PQ" in factory:  # candidates are looked for, and their true inner products taken
            refined = faiss.IndexRefineFlat(raw, faiss.swig_ptr(rows))
            how = faiss.IndexRefineSearchParameters(k_factor=4, base_index_params=parameters)
            kinds.append((f"{factory} rescored", refined, how, 4))
        for name, index, parameters, rescore in kinds:
            with FaissStore(path, rescore=rescore, **settings) as store:
                for size in SIZES:
                    for k in DEPTHS:
                        works = {
                            "ours": lambda some, k=k, store=store: store.search(some, k),
                            "raw": lambda some, k=k, index=index, how=parameters: index.search(some, k, params=how),
                        }
                        took = in_turn(works, pool, size, clock)
                        yield (
                            f"{name}, {size}, {k}",
                            f"{took['ours'] / took['raw']:.2f}",
                            f"{1e6 * (took['ours'] - took['raw']) / size:.1f}",
                            f"{recall(store.search(pool[:256], k).ids, best[k]):.3f}",
                            f"{raw_recall(index, parameters, pool[:256], k, best[k]):.3f}",
                        )


def raw_recall(index: faiss.Index, parameters, some: np.ndarray, k: int, best: list[list[str]]) -> float:
    _, places = index.search(some, k, params=parameters)
    return recall([[f"item-{place:08d}" for place in row] for row in places], best)


def curve(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """Build and memory of each index, then recall@10 and speed by how far it looks; a plot of these."""
    clock = time.process_time if args.threads == 1 else time.perf_counter
    some, points = queries(2048, args.dim)[: args.queries], {}
    exact, costs = built_for(args, "Flat", folder)
    raw_bytes = 4 * args.rows * args.dim
    yield "memory / raw vectors", "all", "own", "mapped files"
    for name, work, call in (
        ("FaissStore Flat, in memory", in_memory, (args.rows, args.dim)),
        ("FaissStore Flat, in a folder", opened, (exact, args.dim, {})),
    ):
        yield name, *in_shares(in_processes(work, call)[0], raw_bytes)
    with FaissStore(exact) as flat:
        best, slowest = timed(flat, some, clock)
    points["Flat"] = [(0, 1.0, slowest)]
    for factory in factories(args):
        path, costs = built_for(args, factory, folder)
        if "raw" in costs:
            what = "adding, ours / FAISS (it copies)" if factory == "Flat" else "build, ours / FAISS"
            yield f"{factory}: {what}", f"{costs['ours'] / costs['raw']:.2f}"
        if factory == "Flat":
            continue
        yield f"{factory}: build / adding the entries", f"{costs['ours'] / costs['added']:.1f}"
        files = sum(file.stat().st_size for file in path.iterdir())
        yield f"{factory}: files / raw vectors", f"{files / raw_bytes:.2f}"
        name = "ef_search" if "HNSW" in factory else "nprobe"
        lists = int(factory.split("IVF")[1].split(",")[0]) if "IVF" in factory else max(WIDTHS["HNSW"])
        widths = [width for width in WIDTHS["HNSW" if "HNSW" in factory else "IVF"] if width <= lists]
        call = (path, args.dim, {name: widths[len(widths) // 2]})
        yield f"{factory}: memory / raw vectors", *in_shares(in_processes(opened, call)[0], raw_bytes)
        yield f"{factory}: {name}", "recall@10", "queries/s / flat", "queries/s"
        points[factory] = []
        for width in widths:
            with FaissStore(path, **{name: width}) as store:
                found, speed = timed(store, some, clock)
            points[factory].append((width, recall(found, best), speed))
            yield str(width), f"{recall(found, best):.3f}", f"{speed / slowest:.1f}", f"{speed:,.0f}"
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "index_curve.json").write_text(json.dumps({"rows": args.rows, "dim": args.dim} | points) + "\n")
        draw(points, args)
        yield "plot", str(args.output / "index_curve.png")


def timed(store: FaissStore, some: np.ndarray, clock) -> tuple[list[list[str]], float]:
    """Ids of the best, and queries a second, all of them in one batch."""
    store.search(some[:64], K)
    found = []
    took = seconds(lambda: found.append(store.search(some, K)), clock)
    return found[0].ids, len(some) / took


def in_shares(found: dict[str, int], raw_bytes: int) -> list[str]:
    return [f"{found[kind] / raw_bytes:.2f}" for kind in ("all", "own", "files")]


def in_memory(rows: int, dim: int) -> dict[str, int]:
    """What a store without a folder takes after a search; in a process of its own."""
    warm(dim)
    before, store = resident(), FaissStore(None, dim)
    for number, block in enumerate(blocks(rows, dim)):
        store.add(names(number * BLOCK, len(block)), block)
    store.search(queries(1, dim), K)
    return {kind: size - before[kind] for kind, size in resident().items()}


def opened(path: Path, dim: int, settings: dict) -> dict[str, int]:
    """What a store in a folder takes after 256 searches; in a process of its own."""
    warm(dim)
    before, store = resident(), FaissStore(path, **settings)
    store.search(queries(256, dim), K)
    return {kind: size - before[kind] for kind, size in resident().items()}


def warm(dim: int) -> None:
    """Let everything be imported, and threads be there, before memory is looked at."""
    with FaissStore(None, dim) as store:
        store.add(["one"], queries(1, dim))
        store.search(queries(1, dim), 1)
        store.get(["one"])


def draw(points: dict[str, list[tuple[int, float, float]]], args: argparse.Namespace) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for factory, line in points.items():
        _, shares, speeds = zip(*line, strict=True)
        if factory == "Flat":
            axes.axhline(speeds[0], color="0.4", linestyle=":", label="Flat (exact)")
            continue
        axes.plot(shares, speeds, marker="o", markersize=4, label=factory)
        for width, share, speed in line:
            axes.annotate(str(width), (share, speed), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xlabel="recall@10 against flat",
        ylabel=f"queries/s, {args.threads} thread{'s' if args.threads > 1 else ''}",
        yscale="log",
    )
    axes.set_title(f"{args.rows:,} vectors of {args.dim}; points: ef_search or nprobe", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(args.output / "index_curve.png", dpi=120)
