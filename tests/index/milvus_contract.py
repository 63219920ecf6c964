# SPDX-License-Identifier: Apache-2.0
"""What Milvus might get wrong beyond the contract, embedded or served: a test class inherits it.

It needs the fixtures `store`, an empty `MilvusStore` of the collection "items" with dim DIM, and `uri`, where that is.
"""

import threading

import numpy as np
import pytest
from store_contract import assert_best, assert_holds, fill, some_metadata, vectors

from modeling_mclfir.index.milvus_store import MilvusStore

DIM = 8


def entries_of(batch: int) -> tuple[list[str], np.ndarray, list[dict]]:
    """Ten entries, the same in every process."""
    return [f"{batch}-{place}" for place in range(10)], vectors(10, DIM, seed=batch), some_metadata(10)


def written(batches: int) -> dict[str, tuple[np.ndarray, dict]]:
    model = {}
    for batch in range(batches):
        names, embeds, metadata = entries_of(batch)
        model |= dict(zip(names, zip(embeds, metadata, strict=True), strict=True))
    return model


class BeyondTheContract:
    def test_long_lists(self, store):
        model = fill(store)
        queries = vectors(2, DIM, seed=1)
        many = [f"other-{place}" for place in range(20_000)]
        assert_best(store, model, queries, 5, exclude=[*many, *list(model)[:20]])
        assert_best(store, model, queries, 5, {"place": [*range(10, 3000), *many[:1000]]}, exclude=list(model)[:20])

    def test_more_than_milvus_finds_at_once(self, store):
        model = fill(store)
        assert_best(store, model, vectors(1, DIM, seed=1), 20_000)
        assert_best(store, model, vectors(1, DIM, seed=1), 16_384, exclude=["item-1"])

    def test_many_entries_are_searched_exactly(self, store):
        rng = np.random.default_rng(0)
        embeds = rng.standard_normal((5000, DIM)).astype(np.float32)
        store.add([f"item-{place}" for place in range(5000)], embeds, some_metadata(5000))
        queries = rng.standard_normal((20, DIM)).astype(np.float32)
        best = np.argsort(-(queries @ embeds.T), axis=1)[:, :10]
        assert store.search(queries, 10).ids == [[f"item-{place}" for place in places] for places in best]
        assert store.count() == 5000 == len({name for batch in store.scroll(999) for name in batch.ids})

    def test_two_writers_and_ten_readers(self, store):
        """An entry's vector says which writing it is of, and so does its metadata: they never differ."""
        names, errors, done = [f"item-{place}" for place in range(20)], [], threading.Event()

        def write(start: int) -> None:
            for step in range(1, 11):
                value = 10 * step + start
                store.add(names, np.full((20, DIM), value), [{"value": value}] * 20)
                store.add([f"own-{start}-{step}"], np.full((1, DIM), value), [{"value": value}])

        def read() -> None:
            while not done.is_set():
                entries = store.get(names)
                for embed, metadata in zip(entries.embeds, entries.metadata, strict=True):
                    assert (embed == metadata["value"]).all()
                assert len(store.search(np.ones((1, DIM)), 20).ids[0]) == 20

        def guarded(work, *arguments) -> None:
            try:
                work(*arguments)
            except BaseException as error:
                errors.append(error)

        store.add(names, np.zeros((20, DIM)), [{"value": 0}] * 20)
        writers = [threading.Thread(target=guarded, args=(write, start)) for start in (0, 1)]
        readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(10)]
        for thread in [*writers, *readers]:
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
        assert not errors
        assert store.count() == 40
        own = store.get([f"own-{start}-{step}" for start in (0, 1) for step in range(1, 11)])
        assert [metadata["value"] for metadata in own.metadata] == [10 * s + w for w in (0, 1) for s in range(1, 11)]

    def test_a_saved_store_is_replaced_by_the_next(self, store, tmp_path):
        model = fill(store, 5)
        store.save(tmp_path / "copy")
        store.remove(["item-0"])
        del model["item-0"]
        store.save(tmp_path / "copy")
        with MilvusStore.load(tmp_path / "copy") as copy:
            copy.save(tmp_path / "copy")
            assert_holds(copy, model)
        assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy"]

    @pytest.mark.parametrize(
        "other, message",
        [
            ({"dim": DIM + 1}, f"of {DIM} dimensions; got dim={DIM + 1}.*another collection"),
            ({"index_type": "HNSW"}, "index_type FLAT, not HNSW.*its own index_type"),
        ],
    )
    def test_a_collection_of_another_kind(self, store, uri, other, message):
        fill(store, 3)
        with pytest.raises(ValueError, match=message):
            MilvusStore(uri, "items", **({"dim": DIM} | other))
        assert store.count() == 3

    def test_a_collection_of_someone_else(self, store, uri):
        from pymilvus import MilvusClient

        client = MilvusClient(uri)
        if not client.has_collection("foreign"):
            client.create_collection("foreign", dimension=DIM)
        with pytest.raises(ValueError, match=r"'foreign' is not of this store: it has the fields \['id', 'vector'\]"):
            MilvusStore(uri, "foreign", DIM)
        assert client.has_collection("foreign")
        client.close()

    def test_a_collection_that_is_gone_is_not_made_anew(self, store, uri):
        model = fill(store, 3)
        with MilvusStore(uri, "items", DIM, must_exist=True) as second:
            assert_holds(second, model)
        for _ in range(2):  # it was not made by the first attempt
            with pytest.raises(FileNotFoundError, match="'nothing' is gone from Milvus at .*another db_name"):
                MilvusStore(uri, "nothing", DIM, must_exist=True)

    def test_an_approximate_index(self, store, uri):
        rng = np.random.default_rng(0)
        embeds = rng.standard_normal((2000, DIM)).astype(np.float32)
        with MilvusStore(uri, "graph", DIM, "HNSW", {"M": 16, "efConstruction": 100}, {"ef": 32}) as graph:
            graph.add([str(place) for place in range(2000)], embeds)
            # ef must be at least k: 32 would be refused.
            found = graph.search(embeds[:50], 100)
        best = np.argsort(-(embeds[:50] @ embeds.T), axis=1)[:, :100]
        hits = [len({str(place) for place in row} & set(ids)) for row, ids in zip(best, found.ids, strict=True)]
        assert np.mean(hits) > 90

    def test_an_index_that_does_not_exist(self, store, uri):
        with pytest.raises(ValueError, match="SPIRAL"):
            MilvusStore(uri, "spiral", DIM, "SPIRAL")
        with MilvusStore(uri, "spiral", DIM) as opened:  # nothing was left behind
            assert opened.count() == 0
