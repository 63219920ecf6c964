# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the index share: generated vectors, two works timed in turn, memory of a process."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

BLOCK = 10_000
# A comparison takes so many rounds at least, and further ones up to so many seconds, of so many queries each.
_ROUNDS, _MOST, _SECONDS, _TOGETHER = 7, 100, 1.0, 64
# Unit vectors around so many centres, within so few dimensions, as embeddings of photos are.
_CENTRES, _LATENT, _WIDTH, _NOISE = 1000, 32, 0.85, 0.1


def blocks(count: int, dim: int, seed: int = 1) -> Iterator[np.ndarray]:
    """So many vectors, 10,000 at a time, the same in every run: float32, unit length, in overlapping clusters."""
    common = np.random.default_rng(0)
    centres = common.standard_normal((_CENTRES, _LATENT), dtype=np.float32)
    turn = common.standard_normal((_LATENT, dim), dtype=np.float32) / np.sqrt(np.float32(_LATENT))
    for start in range(0, count, BLOCK):
        rng, size = np.random.default_rng((seed, start)), min(BLOCK, count - start)
        near = centres[rng.integers(0, _CENTRES, size)]
        latent = near + _WIDTH * rng.standard_normal((size, _LATENT), dtype=np.float32)
        rows = latent @ turn + _NOISE * rng.standard_normal((size, dim), dtype=np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(count: int, dim: int, seed: int = 1) -> np.ndarray:
    """All of them: (count, dim)."""
    found = np.empty((count, dim), dtype=np.float32)
    for place, block in enumerate(blocks(count, dim, seed)):
        found[place * BLOCK : place * BLOCK + len(block)] = block
    return found


def names(start: int, count: int) -> list[str]:
    """Ids of rows."""
    return [f"item-{place:08d}" for place in range(start, start + count)]


def fill(store, rows: np.ndarray) -> None:
    """Add rows to a store, a block a call."""
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        store.add(names(start, len(part)), part)


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Of one call; by default those that processors spent on this process, whatever else runs there."""
    start = clock()
    work()
    return clock() - start


def in_turn(
    works: dict[str, Callable[[np.ndarray], object]], pool: np.ndarray, size: int, clock=time.process_time
) -> dict[str, float]:
    """
    Median seconds of a search of `size` queries, in turn, the first now one work and now the other.

    Several searches, of queries that differ, are one measurement: those that were looked for a moment ago still lie
    in the processor's cache, and what else runs on the machine empties it.
    """
    times, number, spent = {name: [] for name in works}, 0, 0.0
    together = max(size, _TOGETHER)
    while len(next(iter(times.values()))) < _ROUNDS or (spent < _SECONDS and number < _MOST * len(works)):
        order = list(works.items()) if number // len(works) % 2 else list(works.items())[::-1]
        for name, work in order:
            start = number * together % (len(pool) - together + 1)
            parts = [np.ascontiguousarray(pool[start + at : start + at + size]) for at in range(0, together, size)]
            number += 1
            elapsed = seconds(lambda work=work, parts=parts: [work(part) for part in parts], clock)
            spent += elapsed
            if number > len(works):  # the first round warms up
                times[name].append(elapsed / len(parts))
    return {name: statistics.median(values) for name, values in times.items()}


def recall(found: Sequence[Sequence[str]], best: Sequence[Sequence[str]]) -> float:
    """Share of the best that were found."""
    return float(np.mean([len(set(mine) & set(right)) / len(right) for mine, right in zip(found, best, strict=True)]))


def resident() -> dict[str, int]:
    """Bytes of this process's memory that lie in RAM: all, its own, and those of files it has mapped. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "RssAnon", "RssFile")))
    kinds = {"all": "VmRSS", "own": "RssAnon", "files": "RssFile"}
    return {kind: int(found[name].split()[0]) * 1024 for kind, name in kinds.items()}
