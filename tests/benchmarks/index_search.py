# SPDX-License-Identifier: Apache-2.0
"""Two parts of index.py: our search against raw FAISS on the same index; build, memory, recall and speed at size."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
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
def built(
    count: int, dim: int, factory: str, folder: Path, compare: bool, clock: Callable[[], float]
) -> tuple[Path, dict[str, float]]:
    """A store in a folder, and what its building took; with a raw index of the same factory, built before it."""
    rows, costs = data(count, dim), {}
    if compare:
        raw = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        costs["raw"] = seconds(lambda: (raw.train(rows), raw.add(rows)), clock)
        del raw
    path = folder / factory.replace(",", "-")
    with FaissStore(path, dim, factory) as store:
        costs["added"] = seconds(lambda: fill(store, rows), clock)
        costs["ours"] = costs["added"] + seconds(store.optimize, clock)
    return path, costs


def built_for(args: argparse.Namespace, factory: str, folder: Path) -> tuple[Path, dict[str, float]]:
    return built(args.rows, args.dim, factory, folder, not args.no_raw, clock_of(args))


def clock_of(args: argparse.Namespace) -> Callable[[], float]:
    """Of this process alone, where one thread does all the work; else the one on the wall."""
    return time.process_time if args.threads == 1 else time.perf_counter


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
    clock = clock_of(args)
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
    """Build and memory of each index, then recall@10 and speed by how far it looks; a plot of all of it."""
    some, started = queries(2048, args.dim)[: args.queries], time.perf_counter()
    exact, costs = built_for(args, "Flat", folder)
    found = {"curve": {}, "build": {"Flat": costs["ours"]}, "memory": {}}
    yield "memory / raw vectors", "all", "own", "mapped files"
    for name, work, call in (
        ("Flat, in memory", in_memory, (args.rows, args.dim)),
        ("Flat", opened, (exact, args.dim, {})),
    ):
        found["memory"][name] = in_processes(work, call)[0]
        yield f"FaissStore {name}", *in_shares(found["memory"][name], args)
    with FaissStore(exact) as flat:
        best, slowest = timed(flat, some, clock_of(args))
    found["curve"]["Flat"] = [(0, 1.0, slowest)]
    if "raw" in costs:
        yield "Flat: adding, ours / FAISS (it copies)", f"{costs['ours'] / costs['raw']:.2f}"
    for factory in factories(args):
        if factory != "Flat":
            yield from curve_of(args, factory, folder, some, best, found)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        values = {"rows": args.rows, "dim": args.dim, "threads": args.threads} | found
        (args.output / "index_curve.json").write_text(json.dumps(values) + "\n")
        draw(found, args)
        yield "plot", str(args.output / "index_curve.png")
    yield "seconds on the wall, all of it", f"{time.perf_counter() - started:.0f}"


def curve_of(
    args: argparse.Namespace, factory: str, folder: Path, some: np.ndarray, best: list[list[str]], found: dict
) -> Iterator[tuple[str, ...]]:
    """One index: what it costs, and how well and how quickly it finds; both are noted in `found`."""
    path, costs = built_for(args, factory, folder)
    slowest = found["curve"]["Flat"][0][2]
    if "raw" in costs:
        yield f"{factory}: build, ours / FAISS", f"{costs['ours'] / costs['raw']:.2f}"
    yield f"{factory}: build / adding the entries", f"{costs['ours'] / costs['added']:.1f}"
    files = sum(file.stat().st_size for file in path.iterdir())
    yield f"{factory}: files / raw vectors", f"{files / raw_bytes(args):.2f}"
    name = "ef_search" if "HNSW" in factory else "nprobe"
    lists = int(factory.split("IVF")[1].split(",")[0]) if "IVF" in factory else max(WIDTHS["HNSW"])
    widths = [width for width in WIDTHS["HNSW" if "HNSW" in factory else "IVF"] if width <= lists]
    memory = in_processes(opened, (path, args.dim, {name: widths[len(widths) // 2]}))[0]
    yield f"{factory}: memory / raw vectors", *in_shares(memory, args)
    yield f"{factory}: {name}", "recall@10", "queries/s / flat", "queries/s"
    points = []
    for width in widths:
        with FaissStore(path, **{name: width}) as store:
            ids, speed = timed(store, some, clock_of(args))
        points.append((width, recall(ids, best), speed))
        yield str(width), f"{points[-1][1]:.3f}", f"{speed / slowest:.1f}", f"{speed:,.0f}"
    found["build"][factory], found["memory"][factory], found["curve"][factory] = costs["ours"], memory, points


def timed(store: FaissStore, some: np.ndarray, clock) -> tuple[list[list[str]], float]:
    """Ids of the best, and queries a second, all of them in one batch."""
    store.search(some[:64], K)
    found = []
    took = seconds(lambda: found.append(store.search(some, K)), clock)
    return found[0].ids, len(some) / took


def in_shares(found: dict[str, int], args: argparse.Namespace) -> list[str]:
    return [f"{found[kind] / raw_bytes(args):.2f}" for kind in ("all", "own", "files")]


def raw_bytes(args: argparse.Namespace) -> int:
    return 4 * args.rows * args.dim


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


def draw(found: dict, args: argparse.Namespace) -> None:
    """Recall against speed, and beside it what each index costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    axes = figure.add_subplot(grid[:, 0])
    for factory, line in found["curve"].items():
        _, shares, speeds = zip(*line, strict=True)
        if factory == "Flat":
            axes.axhline(speeds[0], color="0.4", linestyle=":", label="Flat (exact)")
            continue
        axes.plot(shares, speeds, marker="o", markersize=4, label=factory)
        for width, share, speed in line:
            axes.annotate(str(width), (share, speed), (4, 4), textcoords="offset points", fontsize=7)
    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    axes.set(xlabel="recall@10 against flat", ylabel=f"queries/s, {threads}", yscale="log")
    axes.set_title(f"{args.rows:,} vectors of {args.dim}; points: ef_search or nprobe", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    build, memory = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    bars = build.barh(list(found["build"]), list(found["build"].values()), color="tab:blue")
    build.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    build.set_title(f"Adding and building, seconds, {threads}", loc="left")
    left = np.zeros(len(found["memory"]))
    for kind, name, colour in (("own", "own", "tab:blue"), ("files", "mapped files", "tab:cyan")):
        shares = np.array([sizes[kind] / raw_bytes(args) for sizes in found["memory"].values()])
        memory.barh(list(found["memory"]), shares, left=left, color=colour, label=name)
        left += shares
    memory.axvline(1, color="0.4", linestyle=":")
    memory.set_title("Memory in search, over raw vectors", loc="left")
    memory.legend(loc="lower right", fontsize=8)
    for axes in (build, memory):
        axes.invert_yaxis()
        axes.margins(x=0.15)
    figure.savefig(args.output / "index_curve.png", dpi=120)
