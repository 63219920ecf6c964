# SPDX-License-Identifier: Apache-2.0
"""`mclfir index build|add|reindex` killed while they work, and what must be true afterwards.

Run as a program of its own, which forks its victims before torch has started any thread:
    python crash_worker.py FOLDER VERB KILLS [SEED [SECONDS [FACTORY [READERS]]]]
kill -9 at random moments, as long as there is time, with readers of the catalogue beside it; then once to the end.
It ends with a line of JSON; an assertion ends it otherwise.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a child of several threads could hang
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TQDM_DISABLE"] = "1"

import torch
from small_catalogue import INCREMENTS, contents, write_checkpoint, write_photos

import modeling_mclfir.catalogue.filling  # noqa: F401  imported before the forks
import modeling_mclfir.index.faiss_store  # noqa: F401
from modeling_mclfir.catalogue import Catalogue
from modeling_mclfir.cli.main import main as mclfir
from modeling_mclfir.index.versioned import VersionedIndex

NUM_PHOTOS = 36
SMALL = ("--batch_size", "4", "--commit_size", "8")


def command(verb: str, home: Path, index: Path, factory: str) -> list[str]:
    flags = {
        "build": ("--checkpoint", home / "first", "--images", home / "photos", "--factory", factory),
        "add": ("--images", home / "more"),
        "reindex": ("--checkpoint", home / "moved", "--policy", "full"),
    }[verb]
    return [str(word) for word in ("index", verb, "--index", index, *flags, *SMALL)]


def prepare(home: Path) -> None:
    write_checkpoint(home / "first", INCREMENTS)
    write_checkpoint(home / "moved", INCREMENTS, nudge=0.05)
    write_photos(home / "photos", range(NUM_PHOTOS))
    # Twelve that replace old ones, and twelve new ones.
    write_photos(home / "more", range(NUM_PHOTOS - 12, NUM_PHOTOS + 12), first=1000)


def forked(arguments: list[str], log: Path | None = None) -> int:
    """Run the command in a child, which writes what was acknowledged to a file → its process id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        if log is not None:
            acknowledge(log)
        mclfir(arguments)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def acknowledge(log: Path) -> None:
    """Note every batch when its `add` has returned: [space, fingerprint, ids] a line."""
    add = VersionedIndex.add

    def noted(self, space, ids, embeds, metadata=None, *, fingerprint, **options):
        add(self, space, ids, embeds, metadata, fingerprint=fingerprint, **options)
        with log.open("ab", buffering=0) as file:
            file.write(json.dumps([space, fingerprint, list(ids)]).encode() + b"\n")

    VersionedIndex.add = noted


def in_a_child(work, *arguments) -> None:
    """Torch and FAISS may start threads in there; this process forks on."""
    assert os.waitpid(beside(work, *arguments), 0)[1] == 0, f"{work.__name__} failed"


def beside(work, *arguments) -> int:
    """Start work in a child → its process id."""
    child = os.fork()
    if not child:
        try:
            work(*arguments)
        except BaseException as error:
            os.write(2, f"{work.__name__}: {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    return child


def read_on(index: Path, stop: Path, before: dict, reference: dict) -> None:
    """Look at everything over and over while others write: each entry is as it was before, or as it will be."""
    while not (index / "index.json").exists():
        if stop.exists():
            return
        time.sleep(0.01)
    with Catalogue.open(index) as catalogue:
        seen: dict = {}
        while True:
            last = stop.exists()
            catalogue.refresh()
            found = everything(catalogue)
            check_entries(found, before, reference)
            gone = [name for key, names in seen.items() for name in names if name not in found[key]]
            assert not gone, f"{gone} were there and are no more"
            seen = found
            for space in catalogue.index.spaces:
                store = catalogue.index.store(space)
                name = next((name for names in store.scroll_ids(1) for name in names), None)
                least = min(5, store.count())  # others go on adding
                if name is not None:
                    assert len(store.search(store.get([name]).embeds, 5).ids[0]) >= least
            if last:
                return
            time.sleep(0.05)


def finish(arguments: list[str]) -> float:
    started = time.monotonic()
    assert os.waitpid(forked(arguments), 0)[1] == 0, "the command failed"
    return time.monotonic() - started


def killed_after(child: int, seconds: float) -> tuple[int, float]:
    """Kill a child after some time, unless it ends before → its status, and how long it lived."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status, time.monotonic() - started
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], seconds


def everything(catalogue: Catalogue) -> dict:
    """Revision's fingerprint → space's contents, of all revisions."""
    index, found = catalogue.index, {}
    for space, described in index.info()["spaces"].items():
        for revision in described["revisions"]:
            batches = index.export(space, revision=revision["fingerprint"])
            entries = {}
            for batch in batches:
                for name, embed, columns in zip(batch.ids, batch.embeds, batch.metadata, strict=True):
                    assert name not in entries, f"{name} is there twice"
                    entries[name] = (embed.tobytes(), repr(sorted(columns.items())))
            found[space, revision["fingerprint"]] = entries
    return found


def check(index: Path, log: Path, before: dict, reference: dict) -> None:
    """What was acknowledged is there, of what was not each entry is whole: as it was before, or as it will be."""
    if not (index / "index.json").exists():
        assert not log.exists(), "entries were acknowledged without an index"
        return
    with Catalogue.open(index) as catalogue:
        found = everything(catalogue)
    check_entries(found, before, reference)
    for key, entries in found.items():
        lost = before.get(key, {}).keys() - entries.keys() if key in reference else set()
        assert not lost, f"{lost} are gone"
    for line in log.read_text().splitlines() if log.exists() else ():
        space, fingerprint, ids = json.loads(line)
        for name in ids:
            assert found[space, fingerprint][name] == reference[space, fingerprint][name], f"{name} was acknowledged"


def check_entries(found: dict, before: dict, reference: dict) -> None:
    for key, entries in found.items():
        for name, entry in entries.items():
            assert entry in (before.get(key, {}).get(name), reference[key].get(name)), f"{name} is neither old nor new"


def kept(index: Path, path: Path) -> None:
    """Write the contents of a catalogue as JSON."""
    with Catalogue.open(index) as catalogue:
        found = everything(catalogue)
        live = contents(catalogue.index)
    values = {
        json.dumps(key): {name: [e[0].hex(), e[1]] for name, e in entries.items()} for key, entries in found.items()
    }
    path.write_text(json.dumps({"all": values, "live": {space: sorted(items) for space, items in live.items()}}))


def read(path: Path) -> dict:
    values = json.loads(path.read_text())["all"]
    return {
        tuple(json.loads(key)): {name: (bytes.fromhex(e[0]), e[1]) for name, e in entries.items()}
        for key, entries in values.items()
    }


def run(
    home: Path,
    verb: str,
    kills: int,
    seed: int = 0,
    seconds: float = float("inf"),
    factory: str = "Flat",
    readers: int = 2,
) -> dict:
    end = time.monotonic() + seconds
    home.mkdir(parents=True, exist_ok=True)
    in_a_child(prepare, home)
    base, whole, index = home / "base", home / "whole", home / "index"
    before = {}
    if verb != "build":
        finish(command("build", home, base, factory))
        in_a_child(kept, base, home / "before.json")
        before = read(home / "before.json")
        shutil.copytree(base, whole)
        shutil.copytree(base, index)
    words, log, stop = command(verb, home, index, factory), home / "acknowledged.jsonl", home / "stop"
    seconds = finish(command(verb, home, whole, factory))
    in_a_child(kept, whole, home / "whole.json")
    reference, delays = read(home / "whole.json"), random.Random(seed)
    done = cut = 0
    while cut < kills and (not cut or time.monotonic() < end):
        stop.unlink(missing_ok=True)
        children = [beside(read_on, index, stop, before, reference) for _ in range(readers)]
        status, took = killed_after(forked(words, log), delays.uniform(0.0, 1.0) * seconds)
        stop.touch()
        failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
        assert not failed, f"{failed} of {readers} readers failed"
        in_a_child(check, index, log, before, reference)
        if os.WIFSIGNALED(status):
            cut += 1
            continue
        # It was quicker than the kill: from the start again, and with the pace of this moment.
        done, seconds = done + 1, took
        assert status == 0, "the command failed"
        in_a_child(equal, index, reference, home, factory)
        log.unlink(missing_ok=True)
        shutil.rmtree(index)
        if verb != "build":
            shutil.copytree(base, index)
    finish(words)
    in_a_child(equal, index, reference, home, factory)
    entries = sum(map(len, reference.values()))
    return {"verb": verb, "kills": cut, "completed": done + 1, "entries": entries, "readers": readers}


def equal(index: Path, reference: dict, home: Path, factory: str) -> None:
    """Bit for bit: a batch that is embedded again has the same photos in it. And every index is built."""
    kept(index, home / "index.json")
    found = read(home / "index.json")
    assert found.keys() == reference.keys()
    for key, entries in reference.items():
        assert found[key].keys() == entries.keys(), key
        unequal = [name for name, entry in entries.items() if found[key][name] != entry]
        assert not unequal, f"{key}: {unequal} differ"
    if factory != "Flat":
        stores = [path.parent for path in index.glob("stores/*/store.json")]
        assert len(stores) == len(reference) and all(list(store.glob("*.faiss")) for store in stores)


if __name__ == "__main__":
    folder, verb, kills, *rest = sys.argv[1:]
    kinds = (int, float, str, int)
    print(
        json.dumps(run(Path(folder), verb, int(kills), *(kind(word) for kind, word in zip(kinds, rest, strict=False))))
    )
