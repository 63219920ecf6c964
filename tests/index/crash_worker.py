# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed while they write to a store, and what must be true afterwards.

Run as a program of its own, which forks its victims before FAISS has started any thread:
    python crash_worker.py FOLDER FACTORY KILLS [SEED [SECONDS]] kill -9 at random moments, as long as there is time
    python crash_worker.py FOLDER FACTORY points [FIRST LAST]    kill -9 around every fsync, rename and deletion
It ends with a line of JSON; an assertion ends it otherwise.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a child of several threads could hang

import numpy as np

from modeling_mclfir.index.faiss_store import FaissStore

DIM = 8
NAMES = [f"item-{place}" for place in range(60)]


def operation(step: int) -> tuple:
    """What step number `step` does, on every machine and in every run."""
    rng = np.random.default_rng(step)
    if step % 9 == 8:
        return ("optimize",)
    some = [NAMES[place] for place in rng.choice(len(NAMES), rng.integers(1, 20), replace=False)]
    if step % 4 == 3:
        return "remove", some
    return "add", some, rng.standard_normal((len(some), DIM)).astype(np.float32), [{"step": step} for _ in some]


def do(store: FaissStore, step: int) -> None:
    name, *arguments = operation(step)
    getattr(store, name)(*arguments)


def model_after(steps: int) -> dict[str, tuple[bytes, dict]]:
    """What a dictionary holds after the first `steps` operations."""
    model = {}
    for step in range(steps):
        name, *arguments = operation(step)
        if name == "remove":
            model = {key: entry for key, entry in model.items() if key not in arguments[0]}
        elif name == "add":
            for key, embed, metadata in zip(*arguments, strict=True):
                model[key] = (embed.tobytes(), metadata)
    return model


def contents(store: FaissStore) -> dict[str, tuple[bytes, dict]]:
    found = {}
    for batch in store.scroll():
        for key, embed, metadata in zip(batch.ids, batch.embeds, batch.metadata, strict=True):
            assert key not in found, f"{key} is there twice"
            found[key] = (embed.tobytes(), metadata)
    return found


def check(folder: Path, factory: str, acknowledged: int) -> int:
    """The store opens and holds the acknowledged steps, the one that was cut off wholly or not at all → steps done."""
    with FaissStore(folder, DIM, factory) as store:
        found = contents(store)
        assert store.count() == len(found)
        done = next((steps for steps in (acknowledged, acknowledged + 1) if found == model_after(steps)), None)
        assert done is not None, f"after {acknowledged} acknowledged steps the store holds something else"
        for key, (embed, _) in list(found.items())[:3]:
            query = np.frombuffer(embed, dtype=np.float32)[None]
            ids = store.search(query, len(found)).ids[0]
            assert sorted(ids) == sorted(found), "a search finds other entries than there are"
            assert store.get([key]).ids == [key]
    return done


def forked(work) -> tuple[int, int]:
    """Run work(pipe) in a child → its process id and the end of the pipe to read from."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            work(writing)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    return child, reading


def acknowledged(reading: int) -> int:
    """How many bytes a dead child wrote: one an acknowledged step."""
    with os.fdopen(reading, "rb") as pipe:
        return len(pipe.read())


def steps_seen(reading: int, wanted: int) -> int:
    """Wait until a living child has acknowledged so many steps → how many were read; fewer if it is dead."""
    seen = 0
    while seen < wanted and (news := os.read(reading, wanted - seen)):
        seen += len(news)
    return seen


def work(folder: Path, factory: str, first: int, last: int, pipe: int) -> None:
    with FaissStore(folder, DIM, factory) as store:
        for step in range(first, last):
            do(store, step)
            os.write(pipe, b".")


def kill_at_random(folder: Path, factory: str, kills: int, seed: int = 0, seconds: float = float("inf")) -> dict:
    delays, done, halves, cut, end = random.Random(seed), 0, 0, 0, time.monotonic() + seconds
    while cut < kills and time.monotonic() < end:
        child, reading = forked(lambda pipe, first=done: work(folder, factory, first, 1_000_000, pipe))
        # After none to three steps and a part of the next one: on a busy machine, time alone would end it before any.
        started = time.monotonic()
        seen = steps_seen(reading, delays.randrange(4))
        step = (time.monotonic() - started) / seen if seen else 0.05
        time.sleep(delays.uniform(0.0, min(step, 0.3)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended before it was killed"
        known = done + seen + acknowledged(reading)
        done = check(folder, factory, known)
        halves, cut = halves + (done > known), cut + 1
    child, reading = forked(lambda pipe: work(folder, factory, done, done + 20, pipe))
    assert os.waitpid(child, 0)[1] == 0, "going on after the kills failed"
    assert acknowledged(reading) == 20 and check(folder, factory, done + 20) == done + 20
    return {"kills": cut, "steps": done + 20, "durable_but_unacknowledged": halves, "files": len(list_files(folder))}


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill_at_points(folder: Path, factory: str, first: int, last: int) -> dict:
    """Kill before and after the first, second, … fsync, rename and deletion of some steps, each in a new child."""
    with FaissStore(folder, DIM, factory) as store:
        for step in range(first):
            do(store, step)
    kills, done, before = 0, first, folder.with_name(folder.name + "-before")
    while done < last:
        shutil.copytree(folder, before)
        for point in itertools.count():
            child, reading = forked(lambda pipe, first=done, at=point: dying(folder, factory, first, at, pipe))
            _, status = os.waitpid(child, 0)
            known = done + acknowledged(reading)
            assert check(folder, factory, known) <= done + 1
            if status == 0:  # it has no further points
                break
            assert os.WIFSIGNALED(status), "the child failed"
            kills += 1
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
        shutil.rmtree(before)
        done += 1
    return {"kills": kills, "steps": done, "files": len(list_files(folder))}


def dying(folder: Path, factory: str, first: int, at: int, pipe: int) -> None:
    """Do one step, and die at point number `at` of it."""
    points = iter(range(1_000_000))

    def deadly(function):
        def call(*arguments, **settings):
            if next(points) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **settings)
            if next(points) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync, Path.replace, Path.unlink = deadly(os.fsync), deadly(Path.replace), deadly(Path.unlink)
    work(folder, factory, first, first + 1, pipe)


def main(folder: str, factory: str, kills: str, *numbers: str) -> None:
    with FaissStore(None, DIM) as store:  # what is imported only when it is needed is imported before the forks
        do(store, 0)
        store.search(np.ones((1, DIM)), 1, {"step": 0})
    numbers = [int(float(number)) for number in numbers]
    if kills == "points":
        print(json.dumps(kill_at_points(Path(folder), factory, *(numbers or (0, 27)))))
    else:
        print(json.dumps(kill_at_random(Path(folder), factory, int(kills), *numbers)))


if __name__ == "__main__":
    main(*sys.argv[1:])
