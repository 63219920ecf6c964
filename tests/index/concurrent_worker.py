# SPDX-License-Identifier: Apache-2.0
"""Two writers and ten readers of one folder at once, as processes.

Run as a program of its own, which forks before FAISS has started any thread:
    python concurrent_worker.py FOLDER FACTORY BATCHES
It ends with a line of JSON; an assertion in any of the processes ends it otherwise.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from crash_worker import forked

from modeling_mclfir.index.faiss_store import FaissStore

DIM, SIZE, KEPT = 4, 5, 3
WRITERS, READERS = ("left", "right"), 10


def vector(writer: str, batch: int) -> np.ndarray:
    """Another one for each batch of each writer."""
    return np.array([WRITERS.index(writer) + 1, batch, batch**2, 1], dtype=np.float32)


def ids_of(writer: str, batch: int) -> list[str]:
    return [f"{writer}-{batch}-{place}" for place in range(SIZE)]


def write(folder: Path, factory: str, writer: str, batches: int) -> None:
    """
    In each batch five entries and both halves of a pair, of which there is one a writer; the batch three before goes.
    """
    # The lock is nobody's by turns: on a busy machine one writer may wait long for the other.
    with FaissStore(folder, DIM, factory, lock_timeout=600) as store:
        for batch in range(batches):
            ids = [f"{writer}-head", *ids_of(writer, batch), f"{writer}-tail"]
            store.add(
                ids, np.tile(vector(writer, batch), (len(ids), 1)), [{"writer": writer, "batch": batch}] * len(ids)
            )
            assert store.get(ids[:1]).metadata[0]["batch"] == batch, "a writer does not see what it wrote"
            if batch >= KEPT:
                assert store.remove(ids_of(writer, batch - KEPT)) == SIZE
            if batch % 7 == 6 and writer == WRITERS[0]:
                store.optimize()


def read(folder: Path, factory: str, batches: int) -> int:
    """Look at everything over and over until both writers have done their last batch → how many states were seen."""
    newest, states = dict.fromkeys(WRITERS, -1), set()
    with FaissStore(folder, DIM, factory) as store:
        while min(newest.values()) < batches - 1 or store.count() != 2 * (KEPT * SIZE + 2):
            parts = list(store.scroll(batch_size=11))
            names = [name for part in parts for name in part.ids]
            embeds = dict(zip(names, (row for part in parts for row in part.embeds), strict=True))
            columns = dict(zip(names, (row for part in parts for row in part.metadata), strict=True))
            assert len(embeds) == len(names), "an entry came twice"
            for writer in WRITERS:
                newest[writer] = check_state(writer, newest[writer], embeds, columns)
            states.add(tuple(newest.values()))
            check_search(store, newest)
            time.sleep(0.02)  # let the writers on, where there are fewer cores than readers
    return len(states)


def check_state(writer: str, newest: int, embeds: dict, columns: dict) -> int:
    """What is there of a writer is what its last batch left, whole, and no older than what was seen before."""
    own = {name for name in embeds if name.startswith(writer)}
    if not own:
        assert newest == -1, "entries were lost"
        return newest
    head, tail = (columns[f"{writer}-{half}"]["batch"] for half in ("head", "tail"))
    assert head == tail >= newest, f"torn or old: {head}, {tail} after {newest}"
    kept = range(max(0, head - KEPT + 1), head + 1)
    expected = {f"{writer}-head", f"{writer}-tail"} | {name for batch in kept for name in ids_of(writer, batch)}
    older = set(ids_of(writer, head - KEPT)) if head >= KEPT else set()  # between `add` and `remove`
    assert own in (expected, expected | older), f"{own ^ expected} at {head}"
    for name in own:
        batch = columns[name]["batch"]
        assert columns[name]["writer"] == writer and (embeds[name] == vector(writer, batch)).all()
    return head


def check_search(store: FaissStore, newest: dict) -> None:
    query = np.array([[0, 0, 1, 0]], dtype=np.float32)
    for writer, batch in newest.items():
        found = store.search(query, SIZE + 2, {"writer": writer})
        if batch >= 0:
            assert (found.scores[0] >= batch**2).all() and len(set(found.scores[0].tolist())) == 1
            assert {name.rsplit("-", 1)[0] for name in found.ids[0]} >= {writer}


def main(folder: str, factory: str, batches: str) -> None:
    with FaissStore(None, DIM) as store:  # what is imported only when it is needed is imported before the forks
        store.add(["a"], np.ones((1, DIM)), [{"writer": "left"}])
        store.search(np.ones((1, DIM)), 1, {"writer": "left"})
    path, count = Path(folder), int(batches)
    works = [lambda pipe, name=name: write(path, factory, name, count) for name in WRITERS]
    works += [lambda pipe: os.write(pipe, str(read(path, factory, count)).encode())] * READERS
    children = [forked(work) for work in works]
    failed = sum(os.waitpid(child, 0)[1] != 0 for child, _ in children)
    states = [int(os.read(reading, 20) or b"0") for _, reading in children[len(WRITERS) :]]
    assert not failed, f"{failed} of {len(children)} processes failed"
    print(json.dumps({"writers": len(WRITERS), "readers": READERS, "states_seen": states}))


if __name__ == "__main__":
    main(*sys.argv[1:])
