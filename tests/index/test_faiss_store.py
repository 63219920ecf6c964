# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from store_contract import COLOURS, StoreContract, assert_holds, fill, vectors

from modeling_mclfir.index import FaissStore, exact, folder_state, rows
from modeling_mclfir.index.store import checked_filter, matches

DIM = 16


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    with FaissStore(None if request.param == "memory" else tmp_path / "store", DIM) as opened:
        yield opened


@pytest.fixture
def small_parts(monkeypatch):
    """A few rows are as many as 65,536 otherwise: several blocks, mapped files and parts of a search."""
    monkeypatch.setattr(rows, "_BLOCK_ROWS", 8)
    monkeypatch.setattr(rows, "MAPPED_ROWS", 24)
    monkeypatch.setattr(rows, "_RECENT_IDS", 10)
    monkeypatch.setattr(exact, "_GATHERED_ROWS", 16)
    monkeypatch.setattr(folder_state, "_COPIED_ROWS", 16)


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """Thousands of files are written where nobody pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class TestFaissStore(StoreContract):
    pass


def brute_force(model: dict, query: np.ndarray, k: int, filter=None, exclude=()) -> tuple[list[str], list[float]]:
    """Best first, equal scores in the order of the dictionary, from which one added again was taken out before."""
    wanted = checked_filter(filter)
    names = [name for name, entry in model.items() if matches(wanted, entry[1]) and name not in exclude]
    scores = np.array([model[name][0] @ query for name in names], dtype=np.float32)
    order = np.argsort(-scores, kind="stable")[:k]
    return [names[place] for place in order], scores[order].tolist()


def assert_exact(store, model, queries, k, filter=None, exclude=()):
    found = store.search(queries, k, filter, exclude)
    for query, ids, scores in zip(queries, found.ids, found.scores, strict=True):
        assert (ids, scores.tolist()) == brute_force(model, query, k, filter, exclude)


def put(model: dict, ids, embeds, metadata) -> None:
    for name, embed, entry in zip(ids, embeds, metadata, strict=True):
        model.pop(name, None)
        model[name] = (embed, entry)


@pytest.mark.parametrize("parts", ["usual", "small"])
def test_flat_is_brute_force_in_values_and_order(store, parts, request):
    """Vectors of three small numbers: most scores are equal to others, at the end of the best k, too."""
    if parts == "small":
        request.getfixturevalue("small_parts")
    rng, model = np.random.default_rng(0), {}
    for start in range(0, 200, 40):
        ids = [f"item-{place}" for place in range(start, start + 50)]  # ten of them come again
        embeds = rng.integers(-1, 2, (50, DIM)).astype(np.float32)
        embeds[:, 3:] = 0
        metadata = [{"colour": COLOURS[place % 3]} for place in range(50)]
        store.add(ids, embeds, metadata)
        put(model, ids, embeds, metadata)
    queries = rng.integers(-1, 2, (30, DIM)).astype(np.float32)
    queries[7] = 0
    for num_queries in (1, 3, 30):
        for k in (1, 4, 130, 300):
            assert_exact(store, model, queries[:num_queries], k)
            assert_exact(store, model, queries[:num_queries], k, {"colour": "red"})
            assert_exact(store, model, queries[:num_queries], k, {"colour": ["red", "blue"]}, exclude=["item-3"])
            assert_exact(store, model, queries[:num_queries], k, exclude=["item-3", "item-200", "item-77"])
    gone = list(model)[5:120:2]
    store.remove(gone)
    model = {name: entry for name, entry in model.items() if name not in gone}
    for num_queries in (1, 30):
        for k in (1, 4, 130):
            assert_exact(store, model, queries[:num_queries], k)
    store.optimize()
    assert_exact(store, model, queries, 7)
    assert_holds(store, model)


def test_scores_are_those_of_faiss(store):
    rng = np.random.default_rng(0)
    embeds, queries = (rng.standard_normal((count, DIM)).astype(np.float32) for count in (300, 40))
    store.add([str(place) for place in range(300)], embeds)
    index = faiss.IndexFlatIP(DIM)
    index.add(embeds)
    scores, places = index.search(queries, 10)
    found = store.search(queries, 10)
    assert found.ids == [[str(place) for place in row] for row in places]
    np.testing.assert_allclose(np.stack(found.scores), scores, rtol=1e-6)


# Of each operation one number, from which all of it follows: Hypothesis is slow at drawing larger things.
OPERATIONS = ["add"] * 4 + ["remove"] * 2 + ["search"] * 3 + ["get", "scroll", "count", "optimize", "open", "other"]


@pytest.mark.parametrize("kind", ["memory", "folder"])
@settings(
    max_examples=50, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(seeds=st.lists(st.integers(0, 2**32), min_size=100, max_size=100))
def test_ten_thousand_operations_against_a_dictionary(kind, seeds, small_parts):
    """Two kinds, 50 times 100 of them each; "other" is a second handle on the folder, which writes from then on."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of small files
    with tempfile.TemporaryDirectory(dir=memory) as parent:
        folder = Path(parent) / "store" if kind == "folder" else None
        handles, model = [FaissStore(folder, DIM)], {}
        for seed in seeds:
            rng = np.random.default_rng(seed)
            ids = [f"item-{number}" for number in rng.choice(25, rng.integers(1, 7), replace=False)]
            handles = run_step(handles, model, str(rng.choice(OPERATIONS)), ids, int(rng.integers(1000)), folder)
        for handle in handles:
            assert_holds(handle, model)
            handle.close()


def run_step(handles, model, name, ids, seed, folder):
    store, rng = handles[-1], np.random.default_rng(seed)
    if name == "add":
        embeds = rng.integers(-1, 2, (len(ids), DIM)).astype(np.float32)
        metadata = [{"colour": str(rng.choice(COLOURS)), "size": int(rng.integers(3))} for _ in ids]
        store.add(ids, embeds, metadata)
        put(model, ids, embeds, metadata)
    elif name == "remove":
        assert store.remove(ids) == sum(model.pop(key, None) is not None for key in ids)
    elif name == "search":
        queries = rng.integers(-1, 2, (rng.choice([1, 6]), DIM)).astype(np.float32)
        filter = [None, {"colour": "red"}, {"colour": ["red", "blue"], "size": [0, 1.0]}][seed % 3]
        assert_exact(handles[0], model, queries, 1 + seed % 9, filter, ids if seed % 2 else ())
    elif name == "get":
        there = [key for key in ids if key in model]
        found = store.get(there)
        assert found.ids == there and found.metadata == [model[key][1] for key in there]
        np.testing.assert_array_equal(found.embeds, [model[key][0] for key in there] or np.zeros((0, DIM)))
    elif name == "scroll":
        assert [key for batch in store.scroll(1 + seed % 9) for key in batch.ids] == list(model)
    elif name == "count":
        wanted = {"size": (seed % 3,)}
        assert store.count() == len(model)
        assert store.count(wanted) == sum(matches(wanted, entry[1]) for entry in model.values())
    elif name == "optimize":
        store.optimize()
    elif folder is not None:
        if name == "open":
            handles.pop().close()
        handles = [*handles[-1:], FaissStore(folder)]
    return handles


KINDS = ["HNSW16", "IVF8,Flat", "HNSW16,SQ8", "PCA12,IVF4,SQ8", "IVF8,SQ4,RFlat", "SQ8"]


def clusters(count: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((20, DIM))
    rng = np.random.default_rng(seed)
    embeds = centres[rng.integers(0, 20, count)] + 0.3 * rng.standard_normal((count, DIM))
    return (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32)


def recall(store, flat, queries, k=10, **arguments) -> float:
    pairs = zip(store.search(queries, k, **arguments).ids, flat.search(queries, k, **arguments).ids, strict=True)
    return float(np.mean([len(set(mine) & set(best)) / len(best) for mine, best in pairs]))


@pytest.mark.parametrize(
    "factory, place",
    [(factory, place) for factory in KINDS for place in ("memory", "folder")] + [("IVF8,PQ4x4", "folder")],
)
def test_approximate_kinds(factory, place, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mclfir.index.approximate._FEW_ROWS", 50)
    folder = tmp_path / "store" if place == "folder" else None
    store = FaissStore(folder, DIM, factory, nprobe=4, ef_search=64, rescore=8)
    flat, embeds, queries = FaissStore(None, DIM), clusters(800, seed=1), clusters(20, seed=2)
    ids, metadata = [f"item-{place}" for place in range(800)], [{"half": n % 2, "few": n % 40} for n in range(800)]
    for each in (store, flat):
        each.add(ids[:600], embeds[:600], metadata[:600])
    assert recall(store, flat, queries) == 1, "without an index the search is exact"
    store.optimize()
    assert store._shared.state.index.num_rows == 600
    assert recall(store, flat, queries) > 0.7
    for each in (store, flat):  # beside the index: rows added, replaced, removed
        each.add(ids[600:], embeds[600:], metadata[600:])
        each.add(ids[:5], -embeds[:5], metadata[:5])
        assert each.remove(ids[10:60]) == 50
    for handle in [store] if folder is None else [store, FaissStore(folder, nprobe=4, mmap=False)]:
        found = handle.search(queries, 800)
        assert [len(row) for row in found.ids] == [750] * 20
        assert not set(ids[10:60]) & {name for row in found.ids for name in row}
        assert recall(handle, flat, queries) > 0.7
        assert recall(handle, flat, queries, filter={"half": 1}, exclude=ids[100:103]) > 0.7
        assert recall(handle, flat, queries, filter={"few": [3]}) == 1, "a few rows are searched exactly"
        newest = handle.search(embeds[790:], 1)
        assert [row[0] for row in newest.ids] == ids[790:]
        found = handle.search(queries, 10)
        for query, row, scores in zip(queries, found.ids, found.scores, strict=True):
            np.testing.assert_allclose(scores, handle.get(row).embeds @ query, rtol=1e-4, atol=1e-5)
            assert (np.diff(scores) <= 0).all()
    store.save(tmp_path / "copy")
    with FaissStore.load(tmp_path / "copy", nprobe=4) as copy:
        assert copy._shared.state.index.num_rows == 750 and copy.factory == factory
        assert recall(copy, flat, queries) > 0.7
    store.optimize()
    assert store._shared.state.index.num_rows == 750
    assert recall(store, flat, queries, filter={"half": 0}) > 0.7


def test_settings_of_a_search_count(tmp_path):
    embeds, queries = clusters(2000, seed=1), clusters(50, seed=2)
    flat = FaissStore(None, DIM)
    flat.add([str(place) for place in range(2000)], embeds)
    with FaissStore(tmp_path / "store", DIM, "IVF32,Flat") as store:
        store.add([str(place) for place in range(2000)], embeds)
        store.optimize()
        store.save(tmp_path / "copy")
    recalls = [
        recall(FaissStore(tmp_path / name, nprobe=n), flat, queries) for name in ("store", "copy") for n in (1, 32)
    ]
    assert recalls[0] < recalls[1] == 1 and recalls[:2] == recalls[2:]


def test_scores_of_compressed_vectors_are_guesses_without_rescore():
    embeds, stores = clusters(300, seed=1), []
    for rescore in (0, 4):
        stores.append(FaissStore(None, DIM, "SQ4", rescore=rescore))
        stores[-1].add([str(place) for place in range(300)], embeds)
        stores[-1].optimize()
    guessed, exact_ = (store.search(embeds[:5], 1).scores for store in stores)
    assert not np.allclose(guessed, 1, atol=1e-4) and np.allclose(exact_, 1, atol=1e-5)


def test_handles_of_one_folder_see_each_other(tmp_path, small_parts):
    writer, reader = FaissStore(tmp_path, DIM), FaissStore(tmp_path, DIM)
    model = {}
    for step in range(30):  # segments are put together in between
        ids, embeds = [f"{step}-{place}" for place in range(5)], vectors(5, DIM, seed=step)
        writer.add(ids, embeds)
        put(model, ids, embeds, [{}] * 5)
        if step % 3 == 0:
            assert reader.remove([ids[2], "nobody"]) == 1
            del model[ids[2]]
        if step % 4 == 1:
            assert_exact(reader, model, vectors(2, DIM, seed=99), 4)
    assert_holds(reader, model)
    batches = reader.scroll(batch_size=10)
    first = next(batches)
    writer.optimize()
    writer.remove(first.ids)
    rest = [name for batch in batches for name in batch.ids]
    assert {*first.ids, *rest} == model.keys(), "a scroll goes on with what there was when it began"
    assert_holds(reader, {name: entry for name, entry in model.items() if name not in first.ids})
    # One segment of `optimize` and one of the removal.
    assert len(list(tmp_path.glob("*.arrow"))) == 2 and len(list(tmp_path.glob("*.npy"))) == 1
    with FaissStore(tmp_path) as late:
        assert_holds(late, {name: entry for name, entry in model.items() if name not in first.ids})


def test_there_are_few_files(tmp_path):
    with FaissStore(tmp_path, DIM) as store:
        for step in range(200):
            store.add([str(step)], vectors(1, DIM, seed=step))
            assert len(list(tmp_path.glob("*.npy"))) <= 3 * 8
        assert store.count() == 200


def test_entries_replaced_often_take_no_room(monkeypatch):
    monkeypatch.setattr("modeling_mclfir.index.shared_state._ENDED_ROWS", 20)
    with FaissStore(None, DIM) as store:
        for _ in range(30):
            model = fill(store, 10)
        assert store._shared.state.rows.num_rows <= 10 + 20 + 10 + 10
        assert_holds(store, model)


def test_threads_search_while_one_writes(tmp_path):
    """Each batch replaces all entries by those of one vector: a search must find one of the batches, never a mix."""
    store, failures, done = FaissStore(tmp_path, DIM), [], threading.Event()
    ids = [str(place) for place in range(20)]
    store.add(ids, np.full((20, DIM), 1.0))

    def search() -> None:
        while not done.is_set():
            scores = store.search(np.ones((1, DIM)), 30).scores[0]
            if len(scores) != 20 or len(set(scores.tolist())) != 1:
                failures.append(scores)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(60):
        store.add(ids, np.full((20, DIM), float(step)))
        if step % 10 == 9:
            store.optimize()
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_two_writers_and_ten_readers(tmp_path):
    program = Path(__file__).with_name("concurrent_worker.py")
    command = [sys.executable, str(program), str(tmp_path / "store"), "HNSW8", "12"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
