# SPDX-License-Identifier: Apache-2.0
"""The contract on a real server; files of entries; the server killed in the middle of a build."""

import threading
import time

import pytest
from milvus_server import running_server
from store_contract import StoreContract, assert_best, assert_holds, fill, vectors

pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install mclfir[milvus]")

from milvus_contract import DIM, BeyondTheContract, entries_of, written  # noqa: E402

from modeling_mclfir.index.milvus_store import MilvusStore  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    try:
        with running_server(tmp_path_factory.mktemp("milvus")) as running:
            yield running
    except RuntimeError as error:
        pytest.skip(f"no Milvus server: {error}")


class TestServer(StoreContract, BeyondTheContract):
    @pytest.fixture
    def store(self, server):
        with MilvusStore(server.uri, "items", DIM) as opened:
            for batch in opened.scroll():
                opened.remove(batch.ids)
            yield opened

    @pytest.fixture
    def uri(self, server):
        return server.uri

    def test_written_segments(self, store, server):
        """Entries in files with an index, others still in memory, and changes across both."""
        from pymilvus import MilvusClient

        model = fill(store, 3000)
        client = MilvusClient(server.uri)
        client.flush("items")
        names = [f"item-{place}" for place in range(0, 3000, 7)]
        embeds, metadata = vectors(len(names), DIM, seed=9), [{"colour": "black"} for _ in names]
        store.add(names, embeds, metadata)
        model |= dict(zip(names, zip(embeds, metadata, strict=True), strict=True))
        gone = [f"item-{place}" for place in range(0, 3000, 11)]
        assert store.remove(gone) == len(gone)
        model = {name: entry for name, entry in model.items() if name not in gone}
        for step in ("in memory", "in files", "loaded again"):
            assert store.count() == len(model), step
            assert store.count({"colour": "black"}) == sum(entry[1]["colour"] == "black" for entry in model.values())
            seen = [name for batch in store.scroll(500, {"colour": ["black", "red"]}) for name in batch.ids]
            wanted = {name for name, entry in model.items() if entry[1]["colour"] in ("black", "red")}
            assert len(seen) == len(wanted) and set(seen) == wanted, step
            assert_best(store, model, vectors(5, DIM, seed=3), 20, {"colour": "black"})
            assert_best(store, model, vectors(5, DIM, seed=4), 20, exclude=gone)
            if step == "in memory":
                client.flush("items")
            else:
                client.release_collection("items")
                client.load_collection("items")
        client.close()

    def test_a_server_killed_in_the_middle_of_a_build(self, server):
        """What it acknowledged is there when it is back, once; the build waits for it and goes on."""
        killed = threading.Thread(target=lambda: (time.sleep(0.3), server.kill(), server.start()))
        with MilvusStore(server.uri, "build", DIM, batch_size=10, num_tries=12) as store:
            for batch in range(60):
                names, embeds, metadata = entries_of(batch)
                store.add(names, embeds, metadata)
                if batch == 5:
                    killed.start()
                time.sleep(0.02)
            killed.join()
            assert_holds(store, written(60))
            assert_best(store, written(60), vectors(3, DIM, seed=1), 50)
        with MilvusStore(server.uri, "build", DIM, num_tries=12) as store:
            assert_holds(store, written(60))
