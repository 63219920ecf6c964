# SPDX-License-Identifier: Apache-2.0
"""The contract on an embedded file; writers that die; servers that are not there."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_contract import StoreContract, assert_holds, fill

pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install mclfir[milvus]")

from milvus_contract import DIM, BeyondTheContract, written  # noqa: E402
from small_index import COLLAR, revision  # noqa: E402

from modeling_mclfir.catalogue.backends import milvus_backend, open_backend  # noqa: E402
from modeling_mclfir.index.manifest import IndexManifest, write_index  # noqa: E402
from modeling_mclfir.index.milvus_store import MilvusStore  # noqa: E402
from modeling_mclfir.index.spaces import Space, StoredRevision  # noqa: E402

PACKAGE_HOME = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path):
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install mclfir[milvus]")
    with MilvusStore(str(tmp_path / "store.db"), "items", DIM) as opened:
        yield opened


class TestEmbedded(StoreContract, BeyondTheContract):
    @pytest.fixture
    def uri(self, tmp_path):
        return str(tmp_path / "store.db")

    def test_opened_again(self, store, tmp_path):
        model = fill(store)
        second = MilvusStore(str(tmp_path / "store.db"), "items", DIM)
        store.close()
        assert_holds(second, model)
        second.close()
        with pytest.raises(ValueError, match="closed"):
            second.count()
        with MilvusStore(str(tmp_path / "store.db"), "items", DIM) as third:
            assert_holds(third, model)

    def test_a_file_that_another_process_holds(self, tmp_path):
        with writer(tmp_path / "store.db", batches=100_000) as process:
            process.stdout.readline()
            with pytest.raises(ValueError, match="another process holds it"):
                MilvusStore(str(tmp_path / "store.db"), "items", DIM)

    def test_a_catalogue_whose_file_is_gone(self, tmp_path):
        """A fresh, empty collection must not pass for the one that the manifest names."""
        folder, file = tmp_path / "index", tmp_path / "store.db"
        folder.mkdir()
        make, _ = open_backend(milvus_backend(str(file), folder), folder)
        with make("collar", DIM) as store:  # before the manifest names it
            model = fill(store, 5)
        named = StoredRevision(revision(COLLAR), "collar", "live", "new_only")
        write_index(folder, IndexManifest({COLLAR: Space(COLLAR, (named,))}))
        file.rename(tmp_path / "moved.db")
        with pytest.raises(FileNotFoundError, match=r"'collar' is gone from Milvus at .*store\.db"):
            make("collar", DIM)
        assert not file.exists()
        (tmp_path / "moved.db").rename(file)
        with make("collar", DIM) as store:
            assert_holds(store, model)

    @pytest.mark.parametrize("acknowledged", [1, 7, 30])
    def test_a_writer_that_is_killed(self, tmp_path, acknowledged):
        with writer(tmp_path / "store.db", batches=100_000) as process:
            lines = [process.stdout.readline() for _ in range(acknowledged)]
        assert lines[-1].strip() == str(acknowledged - 1)
        with MilvusStore(str(tmp_path / "store.db"), "items", DIM) as store:
            # The batch that was being written is there as a whole, or not at all; so are some behind it.
            whole, rest = divmod(store.count(), 10)
            assert rest == 0 and whole >= acknowledged
            assert_holds(store, written(whole))
            # The same command again goes on from the start, and nothing is there twice.
            for name, (embed, metadata) in written(whole + 1).items():
                store.add([name], embed[None], [metadata])
            assert_holds(store, written(whole + 1))


class TestNoServer:
    def test_a_closed_port(self, caplog):
        with socket.socket() as unused:  # bound, and not listening
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            with pytest.raises(ConnectionError) as error:
                MilvusStore(f"http://root:secret@127.0.0.1:{port}", "items", DIM, timeout=2, num_tries=3)
        for said in (f"http://127.0.0.1:{port}", "3 tries", "Start the server"):
            assert said in str(error.value)
        assert "secret" not in str(error.value) + caplog.text
        assert "try 2 in 0.5 s" in caplog.text and "try 3 in 1.0 s" in caplog.text

    def test_a_port_that_never_answers(self):
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            with pytest.raises(ConnectionError, match="2 tries"):
                MilvusStore(f"http://127.0.0.1:{mute.getsockname()[1]}", "items", DIM, timeout=0.3, num_tries=2)

    def test_a_token_that_is_not_known(self, caplog):
        import grpc

        class Refusing(grpc.GenericRpcHandler):
            def service(self, details):
                return grpc.unary_unary_rpc_method_handler(
                    lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")
                )

        with ThreadPoolExecutor(2) as pool:
            server = grpc.server(pool, handlers=[Refusing()])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            with pytest.raises(PermissionError, match="auth check failure.*MCLFIR_MILVUS_TOKEN") as error:
                MilvusStore(f"http://127.0.0.1:{port}", "items", DIM, token="root:secret", timeout=5, num_tries=3)
            server.stop(None).wait()
        assert "secret" not in str(error.value) and "try 2" not in caplog.text  # a second try is of no use

    @pytest.mark.parametrize("error_code", [0, 1])
    def test_a_token_that_is_refused_in_an_answer(self, caplog, error_code):
        """As servers of 2.4 and later do it, by the code that any unexpected failure has."""
        import grpc
        from pymilvus.grpc_gen import milvus_pb2

        said = "auth check failure, please check api key is correct"
        answer = milvus_pb2.ConnectResponse(status={"error_code": error_code, "code": 65535, "reason": said})

        class Refusing(grpc.GenericRpcHandler):
            def service(self, details):
                return grpc.unary_unary_rpc_method_handler(
                    lambda request, context: answer, response_serializer=lambda message: message.SerializeToString()
                )

        with ThreadPoolExecutor(2) as pool:
            server = grpc.server(pool, handlers=[Refusing()])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            with pytest.raises(PermissionError, match=f"{said}.*MCLFIR_MILVUS_TOKEN"):
                MilvusStore(f"http://127.0.0.1:{port}", "items", DIM, token="root:secret", timeout=5, num_tries=3)
            server.stop(None).wait()
        assert "try 2" not in caplog.text

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"uri": "store.sqlite"}, r"ends in \.db .*got 'store.sqlite'"),
            ({"ca_pem": "ca.pem"}, r"Unknown connection options \['ca_pem'\].*ca_pem_path"),
            ({"num_tries": 0}, "num_tries"),
            ({"timeout": 0}, "timeout"),
            ({"dim": 0}, "dim"),
            ({"batch_size": 0}, "batch_size"),
        ],
    )
    def test_mistakes(self, options, message):
        with pytest.raises(ValueError, match=message):
            MilvusStore(**({"uri": "http://127.0.0.1:1", "collection": "items", "dim": DIM} | options))

    def test_every_option_reaches_the_client(self, monkeypatch):
        class RecordedError(Exception):
            pass

        def client(**options):
            raise RecordedError(options)

        monkeypatch.setattr("pymilvus.MilvusClient", client)
        options = {"user": "me", "password": "p", "db_name": "shop", "secure": True, "ca_pem_path": "ca.pem"}
        with pytest.raises(RecordedError) as error:
            MilvusStore("https://there:443", "items", DIM, token="key", timeout=7, **options)
        passed = error.value.args[0]
        assert passed.items() >= ({"uri": "https://there:443", "token": "key", "timeout": 7.0} | options).items()

    def test_without_pymilvus(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pymilvus", None)
        with pytest.raises(ImportError, match=r"pip install mclfir\[milvus\]"):
            MilvusStore("http://127.0.0.1:1", "items", DIM)


class writer:  # noqa: N801
    """A process that adds `entries_of(0)`, `entries_of(1)`, ..., says each number once it is in, and is killed."""

    def __init__(self, path: Path, batches: int):
        code = (
            f"from milvus_contract import DIM, MilvusStore, entries_of\n"
            f"store = MilvusStore({json.dumps(str(path))}, 'items', DIM)\n"
            f"for batch in range({batches}):\n"
            f"    store.add(*entries_of(batch))\n"
            f"    print(batch, flush=True)\n"
        )
        paths = [str(PACKAGE_HOME), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def __enter__(self) -> subprocess.Popen:
        return self._process

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=30)
        self._process.stdout.close()


def test_a_copy_whose_file_is_gone_is_not_opened_empty(tmp_path):
    (tmp_path / "milvus_store.json").write_text('{"collection": "one", "dim": 4}')
    with pytest.raises(FileNotFoundError, match="is gone"):
        MilvusStore.load(tmp_path)
    assert not (tmp_path / "entries.db").exists()
