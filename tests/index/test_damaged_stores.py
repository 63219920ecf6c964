# SPDX-License-Identifier: Apache-2.0
"""What a FAISS store refuses, and what becomes of one whose files are damaged, gone or held by others."""

import os
import shutil
import threading
import time

import faiss
import numpy as np
import pytest
from filelock import FileLock
from store_contract import assert_best, assert_holds, fill, vectors

from modeling_mclfir.index import FaissStore, approximate, durable, segments

DIM = 16


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    with FaissStore(None if request.param == "memory" else tmp_path / "store", DIM) as opened:
        yield opened


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, None), "needs a dim"),
        ((None, 0), "dim must be"),
        ((None, DIM, "Flatt"), "knows no index 'Flatt'"),
        ((None, DIM, "IVF8,PQ5"), "IVF8,PQ5"),
    ],
)
def test_a_store_that_can_not_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        FaissStore(*arguments)


@pytest.mark.parametrize("setting", ["nprobe", "ef_search"])
def test_settings_below_1(setting):
    with pytest.raises(ValueError, match=setting):
        FaissStore(None, DIM, **{setting: 0})
    with pytest.raises(ValueError, match="rescore"):
        FaissStore(None, DIM, rescore=-1)


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="'cuda'"):
        FaissStore(None, DIM, device="cuda")
    if not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()):
        with pytest.raises(RuntimeError, match="faiss-gpu-cu12"):
            FaissStore(None, DIM, device="gpu")


def test_too_few_entries_for_an_index_change_nothing(store, tmp_path):
    with FaissStore(tmp_path / "lists", DIM, "IVF64,Flat") as lists:
        lists.optimize()
        model = fill(lists)
        with pytest.raises(ValueError, match="40 entries"):
            lists.optimize()
        assert_holds(lists, model)
        assert_best(lists, model, vectors(2, DIM), 5)
        assert not list((tmp_path / "lists").glob("000001*"))


def test_folders_of_something_else(tmp_path):
    FaissStore(tmp_path / "store", DIM).close()
    with pytest.raises(ValueError, match="dim 16; got 8"):
        FaissStore(tmp_path / "store", 8)
    with pytest.raises(ValueError, match="factory 'Flat'; got 'HNSW32'"):
        FaissStore(tmp_path / "store", DIM, "HNSW32")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.npy").write_bytes(b"...")
    with pytest.raises(ValueError, match="something else"):
        FaissStore(tmp_path / "thesis", DIM)
    assert (tmp_path / "thesis" / "a.npy").read_bytes() == b"..."
    (tmp_path / "store" / segments.MANIFEST).write_text('{"format": 9}')
    with pytest.raises(ValueError, match="another release"):
        FaissStore(tmp_path / "store")


def test_files_that_are_damaged_or_gone(tmp_path):
    store = FaissStore(tmp_path / "store", DIM)
    fill(store)
    vectors_file = next((tmp_path / "store").glob("*.npy"))
    np.save(vectors_file, vectors(39, DIM))
    with pytest.raises(ValueError, match="40 vectors of 16"):
        FaissStore(tmp_path / "store")
    vectors_file.unlink()
    with pytest.raises(FileNotFoundError):
        FaissStore(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="gone"):
        store.count()


@pytest.mark.parametrize("size", [0, 10, 200, -1])
@pytest.mark.parametrize("suffix", ["npy", "arrow"])
def test_files_that_are_cut_short_are_named(tmp_path, suffix, size):
    with FaissStore(tmp_path, DIM) as store:
        fill(store)
    (path,) = tmp_path.glob(f"*.{suffix}")
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        FaissStore(tmp_path)


@pytest.mark.parametrize("size", [0, 60, -1])
def test_without_its_index_a_store_is_searched_exactly_and_builds_it_anew(tmp_path, caplog, size):
    with FaissStore(tmp_path, DIM, "HNSW8") as store:
        model = fill(store)
        store.optimize()
    (path,) = tmp_path.glob("*.faiss")
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with FaissStore(tmp_path) as store:
        assert f"{path.name} is damaged" in caplog.text
        assert_holds(store, model)
        store.optimize()
    caplog.clear()
    with FaissStore(tmp_path) as store:
        assert_holds(store, model)
    assert not caplog.text


def test_a_writer_does_not_wait_for_ever(tmp_path):
    store = FaissStore(tmp_path, DIM, lock_timeout=0.1)
    model = fill(store)
    with FileLock(tmp_path / durable.LOCK):
        with pytest.raises(TimeoutError, match=r"0\.1 s"):
            store.add(["new"], np.ones((1, DIM)))
        assert_holds(store, model)
    store.add(["new"], np.ones((1, DIM)))
    assert store.count() == 41


@pytest.mark.parametrize("work", ["add", "optimize"])
def test_threads_search_while_one_waits_or_builds(tmp_path, monkeypatch, work):
    """For another process to finish its writing, or for an index; here until the search is done."""
    store = FaissStore(tmp_path, DIM, "HNSW8")
    fill(store)
    busy, searched, build = threading.Event(), threading.Event(), approximate.build

    def held(*arguments):
        busy.set()
        assert searched.wait(60)
        return build(*arguments)

    monkeypatch.setattr(approximate, "build", held)
    lock = FileLock(tmp_path / durable.LOCK)
    if work == "add":
        lock.acquire()
        busy.set()
        writer = threading.Thread(target=store.add, args=(["new"], np.ones((1, DIM))))
    else:
        writer = threading.Thread(target=store.optimize)
    writer.start()
    assert busy.wait(60)
    time.sleep(0.2)  # so that the writer is inside
    reader = threading.Thread(target=lambda: (store.search(np.ones((1, DIM)), 3), store.count(), searched.set()))
    reader.start()
    was_searched = searched.wait(10)
    searched.set()
    lock.release()
    writer.join()
    reader.join()
    assert was_searched and store.count() == (41 if work == "add" else 40)


@pytest.mark.parametrize(
    "call",
    [lambda store: store.count(), lambda store: store.add(["a"], np.ones((1, DIM))), lambda store: store.scroll()],
)
def test_a_closed_store_says_so(store, call):
    store.close()
    with pytest.raises(ValueError, match="closed"):
        call(store)
