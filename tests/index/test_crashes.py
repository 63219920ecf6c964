# SPDX-License-Identifier: Apache-2.0
"""Kills at random moments and at every step of a write; `python tests/benchmarks/index_crashes.py` does many more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_mclfir.index import FaissStore, durable, segments

DIM = 8


def run_worker(*arguments) -> dict:
    command = [sys.executable, str(Path(__file__).with_name("crash_worker.py")), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_kills_at_random_moments(tmp_path):
    """Add, remove, put segments together, build an index: 10 kills, then 20 operations without one."""
    report = run_worker(tmp_path / "store", "HNSW8", 10, 0)
    assert report["kills"] == 10 and report["steps"] > 20


def test_kills_at_every_point_of_a_write(tmp_path):
    """Steps 7 and 8: a removal, the eighth batch, after which segments are put together, and a build."""
    report = run_worker(tmp_path / "store", "HNSW8", "points", 7, 9)
    assert report["kills"] > 30 and report["steps"] == 9


def test_what_is_left_behind_goes_and_what_is_others_stays(tmp_path):
    with FaissStore(tmp_path, DIM) as store:
        store.add(["a"], np.ones((1, DIM)))
    left = ["000000-00000001-00000001.npy", "000000-00000001-00000001.arrow.partial", "000001-00000000-00000000.faiss"]
    others = ["notes.npy", "my-data.arrow", "x.partial"]
    for name in left + others:
        (tmp_path / name).write_bytes(b"...")
    with FaissStore(tmp_path, DIM) as store:
        assert store.count() == 1
        store.add(["b"], np.ones((1, DIM)))
    with FaissStore(tmp_path, DIM) as store:
        assert store.count() == 2
    assert not (tmp_path / left[1]).exists() and not (tmp_path / left[2]).exists()
    assert all((tmp_path / name).read_bytes() == b"..." for name in others)


def test_what_a_manifest_names_is_flushed_before_it(tmp_path, monkeypatch):
    """A power cut, as far as a test can go: the order of writes, flushes and renames."""
    events, fsync, replace = [], os.fsync, Path.replace

    def noted_fsync(descriptor):
        events.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def noted_replace(path, target):
        events.append(("rename", Path(target)))
        return replace(path, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files can't be asked for on this system")
    store = FaissStore(tmp_path, DIM, "HNSW8")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    works = [lambda: store.add(["a", "b"], np.eye(2, DIM)), lambda: store.remove(["b"]), store.optimize]
    for work, number in zip(works, (2, 1, 3), strict=True):
        events.clear()
        work()
        renamed = [path for kind, path in events if kind == "rename"]
        assert len(renamed) == number + 1 and renamed[-1].name == segments.MANIFEST
        for path in renamed:
            flushed = events.index(("flush", path.with_name(path.name + ".partial")))
            assert flushed < events.index(("rename", path)), f"{path.name} was renamed before it was flushed"
        manifest = events.index(("rename", renamed[-1]))
        named = max(events.index(("rename", path)) for path in renamed[:-1])
        folder = [place for place, event in enumerate(events) if event == ("flush", tmp_path)]
        assert any(named < place < manifest for place in folder), "names of files come before the manifest"
        assert folder[-1] > manifest, "the manifest's name is durable when the call returns"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_build_that_ends_behind_its_manifest_keeps_what_that_names(tmp_path, monkeypatch, error):
    """The manifest is in place when its name can't be flushed, or Ctrl-C comes: the disk says what counts."""
    store = FaissStore(tmp_path, DIM, "HNSW8")
    embeds = np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float32)
    store.add([str(place) for place in range(40)], embeds)
    store.remove(["7"])
    flush = segments.flush_folder

    def failing(folder):
        flush(folder)
        if b'"generation": 1' in (folder / segments.MANIFEST).read_bytes():
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(segments, "flush_folder", failing)
        with pytest.raises(error):
            store.optimize()
    for handle in (store, FaissStore(tmp_path)):
        assert handle.count() == 39 and len(handle.search(embeds[:1], 50).ids[0]) == 39
    assert len(list(tmp_path.glob("*.faiss"))) == 1
    store.add(["new"], embeds[:1])
    assert FaissStore(tmp_path).count() == 40


def test_a_new_folder_is_durable(tmp_path, monkeypatch):
    """Its name and those of the folders above it, in the folders that were there."""
    flushed = []
    monkeypatch.setattr(durable, "flush_folder", flushed.append)
    durable.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and set(flushed) == {tmp_path, tmp_path / "a"}
    durable.make_folder(tmp_path / "a" / "b")
    assert len(flushed) == 2


@pytest.mark.parametrize("call", ["add", "remove"])
def test_a_full_disk_changes_nothing(tmp_path, monkeypatch, call):
    store = FaissStore(tmp_path, DIM)
    store.add(["a", "b"], np.eye(2, DIM))
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.add(["c"], np.ones((1, DIM))) if call == "add" else store.remove(["a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    for handle in (store, FaissStore(tmp_path)):
        assert handle.count() == 2 and handle.get(["b", "a"]).ids == ["b", "a"]
    store.add(["c"], np.ones((1, DIM)))
    assert store.count() == 3
