# SPDX-License-Identifier: Apache-2.0
"""Any number of rows with real JPEG files, written and streamed back in processes of their own, with their peaks."""

import io
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "orange", "yellow", "green", "blue", "violet", "pink", "brown", "black", "grey", "white")
SIZES = ("xs", "s", "m", "l", "xl")
ATTRIBUTES = ("colour", "size")
INCREMENTS = [{"name": name, "attributes": [name]} for name in ATTRIBUTES]


@cache
def pictures(count: int = 1000) -> list[bytes]:
    """Small JPEG files, each another picture."""
    files = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 6, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((48, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


def rows(count: int, distinct: int | None = None, padding: int = 0) -> Iterator[dict]:
    """Rows whose caption is their number.

    Args:
        distinct: number of images that differ as files; further rows repeat them in order (default: all differ).
        padding: bytes that each file is longer; decoders look at nothing behind the end of a JPEG.
    """
    pool, tail = pictures(), bytes(padding)
    for place in range(count):
        number = place % (distinct or count)
        data = pool[number % len(pool)] + number.to_bytes(8, "big") + tail
        yield {
            "image": {"bytes": data, "path": f"{place}.jpg"},
            "attributes": {
                "colour": COLOURS[place % len(COLOURS)],
                "size": None if place % 13 == 0 else SIZES[place % len(SIZES)],
            },
            "caption": str(place),
            "product_id": str(place // 3),
        }


@dataclass
class Written:
    """Rows written, copies left out, seconds, and the peak of memory in bytes."""

    rows: int
    duplicates: int
    seconds: float
    peak: int


@dataclass
class Read:
    """One rank: the numbers of its rows epoch by epoch, in order; seconds; the peak of memory in bytes."""

    epochs: list[np.ndarray]
    seconds: float
    peak: int


def write_rows(folder: Path, count: int, distinct: int | None = None, padding: int = 0, **settings: object) -> Written:
    """Writes that many rows as a data set; for a process of its own, because of the peak."""
    from modeling_mclfir.data.prepare import write_dataset

    pictures()
    started = time.perf_counter()
    summary = write_dataset(
        folder, {"train": rows(count, distinct, padding)}, ATTRIBUTES, INCREMENTS, name="Generated", licence="cc0-1.0",
        progress=False, num_rows={"train": count}, **settings,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return Written(summary.counts["train"], sum(summary.duplicates.values()), seconds, peak_memory())


def read_rows(folder: Path, rank: int, world_size: int, epochs: int = 1) -> Read:
    """Streams a rank's share of the rows, shuffled; for a process of its own."""
    from modeling_mclfir.data.streams import open_stream

    stream = open_stream(folder, "train", rank=rank, world_size=world_size)
    started = time.perf_counter()
    orders = [np.fromiter((int(row["caption"]) for row in stream), dtype=np.int64) for _ in range(epochs)]
    return Read(orders, time.perf_counter() - started, peak_memory())


def in_processes(function: Callable, *calls: tuple, **settings: object) -> list:
    """The results of `function(*call, **settings)` for all calls, at once, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, context) for _ in calls]
    try:
        futures = [pool.submit(function, *call, **settings) for pool, call in zip(pools, calls, strict=True)]
        return [future.result() for future in futures]
    finally:
        for pool in pools:
            pool.shutdown()


def peak_memory() -> int:
    """The peak of this process's resident memory in bytes, without that of processes it started."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # Linux lets ru_maxrss begin with the peak of the process that started this one.
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
