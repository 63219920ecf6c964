# SPDX-License-Identifier: Apache-2.0
"""The same catalogue in FAISS, in an embedded Milvus file and on a Milvus server: the verbs must not know which."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogue import contents, photo_name, picture, vectors_of, write_photos

from modeling_mclfir.catalogue import Catalogue, FolderSource, ParquetSource
from modeling_mclfir.catalogue.backends import faiss_backend, milvus_backend
from modeling_mclfir.catalogue.filling import FillSettings
from modeling_mclfir.cli.main import main as mclfir

sys.path.append(str(Path(__file__).resolve().parents[1] / "index"))

from milvus_server import running_server  # noqa: E402

FILL = FillSettings(batch_size=4, commit_size=8, progress=False)
NAMES = [photo_name(number) for number in range(20)]


def open_settings(folder: Path, uri: str | None) -> dict:
    return faiss_backend() if uri is None else milvus_backend(uri, folder)


class CatalogueContract:
    """A test class inherits it and gives a `uri`: of Milvus, or None."""

    @pytest.fixture
    def folder(self, tmp_path):
        return tmp_path / "index"

    @pytest.fixture
    def catalogue(self, folder, uri):
        with Catalogue.create(folder, open_settings(folder, uri), token="root:secret") as found:
            yield found

    def test_build_remove_and_build_again(self, catalogue, checkpoints, photos):
        first, source = str(checkpoints["first"]), FolderSource(photos)
        assert catalogue.build(first, source, ["colour", "sleeve"], fill=FILL).embedded == 20
        before = contents(catalogue.index)
        assert {space: sorted(items) for space, items in before.items()} == {
            "sleeve@cut": sorted(NAMES), "colour@look": sorted(NAMES),
        }  # fmt: skip
        expected = vectors_of(checkpoints["first"], [picture(number) for number in range(20)])
        found = catalogue.index.get("colour@look", NAMES).embeds
        np.testing.assert_allclose(found, expected["colour@look"], atol=1e-5)
        assert catalogue.build(first, source, fill=FILL).embedded == 0
        assert catalogue.remove([NAMES[5], "nobody"]) == 1
        assert catalogue.build(first, source, fill=FILL).embedded == 1
        after = contents(catalogue.index)
        assert all(after[space][name] == before[space][name] for space in before for name in set(NAMES) - {NAMES[5]})
        assert catalogue.info()["items"] == 20

    def test_search_by_photo_item_and_metadata(self, catalogue, checkpoints, photos, tmp_path):
        table = {"id": NAMES, "image": [str(photos / name) for name in NAMES], "price": list(range(20))}
        pq.write_table(pa.table(table), tmp_path / "items.parquet")
        source = ParquetSource(tmp_path / "items.parquet")
        catalogue.build(str(checkpoints["first"]), source, ["colour"], fill=FILL)
        vectors = vectors_of(checkpoints["first"], [picture(number) for number in range(20)])["colour@look"]
        order = [NAMES[place] for place in np.argsort(-(vectors @ vectors[6]), kind="stable")]
        hits = catalogue.search(images=[picture(6)], k=5)[0]
        assert [hit.id for hit in hits] == order[:5] and hits[0].metadata == {"price": 6}
        assert [hit.id for hit in catalogue.search(items=[NAMES[6]], k=4, exclude=[order[1]])[0]] == order[2:6]
        found = catalogue.search(images=[picture(6)], k=20, where={"price": [2, 6.0, 8, "9"]})[0]
        assert [hit.id for hit in found] == [name for name in order if name in (NAMES[2], NAMES[6], NAMES[8])]

    def test_a_build_that_is_cut_off_goes_on(self, catalogue, folder, checkpoints, photos, uri, monkeypatch):
        first, source = str(checkpoints["first"]), FolderSource(photos)
        add, calls = type(catalogue.index).add, []

        def failing(self, *arguments, **options):
            calls.append(1)
            if len(calls) > 3:
                raise OSError("the plug was pulled")
            add(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(catalogue.index), "add", failing)
            with pytest.raises(OSError, match="plug"):
                catalogue.build(first, source, ["colour", "sleeve"], fill=FILL)
        catalogue.close()
        with Catalogue.create(folder, open_settings(folder, uri)) as again:
            some = contents(again.index)
            assert 0 < sum(map(len, some.values())) < 40
            again.build(first, source, fill=FILL)
            whole = contents(again.index)
            assert all(sorted(items) == sorted(NAMES) for items in whole.values())
            assert all(whole[space][name] == entry for space, items in some.items() for name, entry in items.items())

    def test_add_reindex_switch_roll_back_and_drop(self, catalogue, folder, checkpoints, photos, tmp_path):
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["colour"], fill=FILL)
        catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
        catalogue.add(FolderSource(write_photos(tmp_path / "new", [4, 30], first=700)), fill=FILL)
        catalogue.switch()  # they were embedded for both
        expected = vectors_of(checkpoints["moved"], [picture(704), picture(730)])["colour@look"]
        found = catalogue.index.get("colour@look", [photo_name(4), photo_name(30)]).embeds
        np.testing.assert_allclose(found, expected, atol=1e-5)
        catalogue.roll_back()
        assert catalogue.search(images=[picture(3)], k=1)[0][0].id == photo_name(3)
        moved = next(e["model_revision"] for e in catalogue.info()["checkpoints"] if "moved" in e["path"])
        assert catalogue.drop(moved) == ["colour@look"]
        assert catalogue.info()["items"] == 21
        assert len(catalogue.info()["spaces"]["colour@look"]["revisions"]) == 1
        assert "secret" not in (folder / "catalogue.json").read_text()

    def test_backfill_gives_old_items_a_new_space(self, catalogue, checkpoints, photos):
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["neckline"], fill=FILL)
        before = contents(catalogue.index)
        assert catalogue.backfill(str(checkpoints["later"]), fill=FILL).embedded == 20
        after = contents(catalogue.index)
        assert after["neckline@cut"] == before["neckline@cut"]
        assert sorted(after["neckline@spring"]) == sorted(NAMES)
        assert catalogue.search(images=[picture(9)], k=1)[0][0].id == photo_name(9)


class TestFaiss(CatalogueContract):
    @pytest.fixture
    def uri(self):
        return None


class TestEmbedded(CatalogueContract):
    @pytest.fixture
    def uri(self, tmp_path):
        pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install mclfir[milvus]")
        pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install mclfir[milvus]")
        return str(tmp_path / "index" / "entries.db")

    def test_the_file_is_named_as_it_lies_in_the_folder(self, catalogue, folder):
        assert json.loads((folder / "catalogue.json").read_text())["backend"]["uri"] == "entries.db"


class TestServer(CatalogueContract):
    @pytest.fixture(scope="class")
    def server(self, tmp_path_factory):
        pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install mclfir[milvus]")
        try:
            with running_server(tmp_path_factory.mktemp("milvus")) as running:
                yield running
        except RuntimeError as error:
            pytest.skip(f"no Milvus server: {error}")

    @pytest.fixture
    def uri(self, server):
        return server.uri

    def test_the_commands(self, folder, uri, checkpoints, photos, capsys):
        """`--uri` once: the folder remembers it."""
        index = ["--index", str(folder)]
        source = ["--checkpoint", str(checkpoints["first"]), "--images", str(photos)]
        mclfir(["index", "build", *index, "--uri", uri, *source, "--attributes", "colour", "--batch_size", "4"])
        mclfir(["index", "remove", *index, "--ids", NAMES[1]])
        capsys.readouterr()
        mclfir(["index", "search", *index, "--item", NAMES[2], "--k", "3", "--json"])
        found = [hit["id"] for hit in json.loads(capsys.readouterr().out)]
        assert len(found) == 3 and not {NAMES[1], NAMES[2]} & set(found)
        mclfir(["index", "info", *index, "--json"])
        info = json.loads(capsys.readouterr().out)
        assert info["items"] == 19 and info["backend"]["uri"] == uri


def test_a_server_that_is_not_there(checkpoints, photos, tmp_path):
    pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install mclfir[milvus]")
    backend = milvus_backend("http://127.0.0.1:1", tmp_path / "index", num_tries=2, timeout=2)
    with Catalogue.create(tmp_path / "index", backend) as catalogue:
        with pytest.raises(ConnectionError, match="2 tries.*Start the server"):
            catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["colour"], fill=FILL)


def test_a_package_that_is_not_installed_is_named(checkpoints, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    source = ["--checkpoint", str(checkpoints["first"]), "--images", str(photos), "--uri", "http://127.0.0.1:1"]
    with pytest.raises(SystemExit, match=r"^error: A Milvus store needs pymilvus: pip install mclfir\[milvus\]$"):
        mclfir(["index", "build", "--index", str(tmp_path / "index"), *source])
