# SPDX-License-Identifier: Apache-2.0
"""The verbs of a catalogue, against the model itself."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogue import contents, photo_name, picture, vectors_of, write_checkpoint, write_photos

from modeling_mclfir.catalogue import Catalogue, FolderSource, ParquetSource
from modeling_mclfir.catalogue.backends import faiss_backend, milvus_backend
from modeling_mclfir.catalogue.filling import FillSettings
from modeling_mclfir.data.images import TooManyBadRowsError
from modeling_mclfir.index import IncompatibleRevisionError

FILL = FillSettings(batch_size=4, commit_size=8, progress=False)
FIRST = ["neckline@cut", "sleeve@cut", "colour@look"]


@pytest.fixture
def catalogue(checkpoints, photos, tmp_path):
    """Twenty photos, by the first checkpoint."""
    with Catalogue.create(tmp_path / "index") as found:
        found.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        yield found


def ids(count: int = 20) -> list[str]:
    return [photo_name(number) for number in range(count)]


def stored(catalogue: Catalogue, space: str, names) -> np.ndarray:
    return catalogue.index.get(space, names).embeds


def test_build_keeps_what_the_model_gives(catalogue, checkpoints):
    expected = vectors_of(checkpoints["first"], [picture(number) for number in range(20)])
    assert list(catalogue.index.spaces) == FIRST == list(expected)
    for space in FIRST:
        np.testing.assert_allclose(stored(catalogue, space, ids()), expected[space], atol=1e-5)
        assert catalogue.index.spaces[space].spread > 0
    info = catalogue.info()
    assert info["items"] == 20 and info["checkpoints"][-1]["path"] == str(checkpoints["first"])
    assert [event["event"] for event in info["events"]] == ["build"] and info["events"][0]["embedded"] == 20


def test_build_again_embeds_what_is_missing(catalogue, checkpoints, photos):
    before = contents(catalogue.index)
    assert catalogue.remove([photo_name(5), photo_name(6), "nobody"]) == 2
    report = catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
    assert report.seen == 20 and report.embedded == 2
    after = contents(catalogue.index)
    assert {space: sorted(items) for space, items in after.items()} == {space: sorted(ids()) for space in FIRST}
    assert all(after[s][n] == before[s][n] for s in FIRST for n in ids() if n not in (photo_name(5), photo_name(6)))


def test_one_pass_of_the_trunk_an_image(checkpoints, photos, tmp_path, monkeypatch):
    from modeling_mclfir.base_mclfir import MclfirModel

    passes, run = [], MclfirModel.shared_forward
    monkeypatch.setattr(MclfirModel, "shared_forward", lambda self, px: passes.append(len(px)) or run(self, px))
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        assert passes == [4] * 5
        catalogue.backfill(str(checkpoints["later"]), fill=FILL)
        assert passes == [4] * 10 and len(catalogue.index.spaces) == 4


def test_some_attributes_only(checkpoints, photos, tmp_path):
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["colour"], fill=FILL)
        assert list(catalogue.index.spaces) == ["colour@look"]
        catalogue.backfill(str(checkpoints["later"]), fill=FILL)
        assert list(catalogue.index.spaces) == ["colour@look"]
        with pytest.raises(ValueError, match=r"no attributes \['hat'\]; it has \['colour', 'neckline', 'sleeve'\]"):
            catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["hat"], fill=FILL)


def test_add_replaces_and_adds(catalogue, checkpoints, tmp_path):
    new = write_photos(tmp_path / "new", [18, 19, 20, 21], first=500)
    before = stored(catalogue, "colour@look", ids(18))
    report = catalogue.add(FolderSource(new), fill=FILL)
    assert report.embedded == 4 and catalogue.info()["items"] == 22
    numbers = [518, 519, 520, 521]
    expected = vectors_of(checkpoints["first"], [picture(number) for number in numbers])
    for space in FIRST:
        found = stored(catalogue, space, [photo_name(number - 500) for number in numbers])
        np.testing.assert_allclose(found, expected[space], atol=1e-5)
    np.testing.assert_array_equal(stored(catalogue, "colour@look", ids(18)), before)
    more = write_photos(tmp_path / "more", [21, 22], first=900)
    assert catalogue.add(FolderSource(more), keep_present=True, fill=FILL).embedded == 1


def test_backfill_gives_old_items_their_new_spaces_and_keeps_metadata(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", range(10))
    table = {"id": [f"item {n}" for n in range(10)], "image": [str(photos / photo_name(n)) for n in range(10)]}
    pq.write_table(pa.table(table | {"price": list(range(10))}), tmp_path / "items.parquet")
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), ParquetSource(tmp_path / "items.parquet"), fill=FILL)
        before = contents(catalogue.index)
        catalogue.remove(["item 3"])
        report = catalogue.backfill(str(checkpoints["later"]), fill=FILL)
        assert report.embedded == 9  # what was removed stays away
        after = contents(catalogue.index)
        assert all(after[space][name] == before[space][name] for space in FIRST for name in after[space])
        names = [f"item {n}" for n in range(10) if n != 3]
        expected = vectors_of(checkpoints["later"], [picture(n) for n in range(10) if n != 3])
        np.testing.assert_allclose(stored(catalogue, "neckline@spring", names), expected["neckline@spring"], atol=1e-5)
        found = catalogue.index.get("neckline@spring", ["item 7"])
        assert found.metadata == [{"price": 7}]
        assert all(space["share_filled"] == 1 for space in catalogue.info()["spaces"].values())
        assert catalogue.backfill(fill=FILL).embedded == 0


def test_a_full_reindex_is_built_beside_and_switched(catalogue, checkpoints):
    outcomes, report = catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
    assert set(outcomes.values()) == {"building"} and report.embedded == 20
    before = vectors_of(checkpoints["first"], [picture(number) for number in range(20)])
    after = vectors_of(checkpoints["moved"], [picture(number) for number in range(20)])
    np.testing.assert_allclose(stored(catalogue, FIRST[0], ids()), before[FIRST[0]], atol=1e-5)
    # It is answered by the old checkpoint until then.
    assert catalogue.search(images=[picture(3)], k=1, attributes=["neckline"])[0][0].id == photo_name(3)
    assert set(catalogue.switch().values()) == {catalogue.index.spaces[FIRST[0]].model_revision}
    for space in FIRST:
        np.testing.assert_allclose(stored(catalogue, space, ids()), after[space], atol=1e-5)
        assert catalogue.index.spaces[space].spread > 0
    best = catalogue.search(images=[picture(3)], k=1, attributes=["neckline"])[0][0]
    assert best.id == photo_name(3) and best.score == pytest.approx(1, abs=1e-4)
    catalogue.roll_back()
    best = catalogue.search(images=[picture(3)], k=1, attributes=["neckline"])[0][0]
    assert best.score == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(stored(catalogue, FIRST[0], ids()), before[FIRST[0]], atol=1e-5)
    revision = next(entry for entry in catalogue.info()["checkpoints"] if "moved" in entry["path"])["model_revision"]
    assert catalogue.drop(revision) == FIRST
    with pytest.raises(ValueError, match="no switch to undo"):
        catalogue.roll_back()


def test_items_that_change_during_a_reindex_are_embedded_for_both(catalogue, checkpoints, tmp_path):
    catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
    new = write_photos(tmp_path / "new", [4, 30], first=700)
    assert catalogue.add(FolderSource(new), fill=FILL).embedded == 2
    catalogue.switch()  # nothing is pending
    expected = vectors_of(checkpoints["moved"], [picture(704), picture(730)])["colour@look"]
    found = stored(catalogue, "colour@look", [photo_name(4), photo_name(30)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_item_that_is_new_during_a_reindex_is_pending(catalogue, checkpoints, tmp_path):
    catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
    new = write_photos(tmp_path / "new", [4, 30], first=700)
    catalogue.add(FolderSource(new), keep_present=True, fill=FILL)
    with pytest.raises(ValueError, match="1 items .* have no vector of 'moved"):
        catalogue.switch()
    assert catalogue.backfill(fill=FILL).embedded == 1  # by the checkpoint that is being built
    catalogue.switch()


def test_photos_that_are_gone_stay_pending(catalogue, checkpoints, photos, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(photos, some)
    (some / photo_name(7)).unlink()
    catalogue.reindex(str(checkpoints["moved"]), "full", FolderSource(some), fill=FILL)
    with pytest.raises(ValueError, match="1 items .*007.png"):
        catalogue.switch()
    catalogue.switch(allow_pending=True)
    assert catalogue.info()["items"] == 19


@pytest.mark.parametrize("policy", ["none", "drift_compensated"])
def test_old_vectors_stay_under_the_cheap_policies(catalogue, checkpoints, policy):
    before = contents(catalogue.index)
    with pytest.raises(IncompatibleRevisionError, match="--policy full .*drift_compensated"):
        catalogue.reindex(str(checkpoints["moved"]), "new_only", fill=FILL)
    with pytest.raises(IncompatibleRevisionError, match="mclfir index reindex"):
        catalogue.search(images=[picture(3)], checkpoint=str(checkpoints["moved"]))
    outcomes, report = catalogue.reindex(str(checkpoints["moved"]), policy, calibration=12, fill=FILL)
    assert set(outcomes.values()) == {"linked"} and report is None
    assert contents(catalogue.index) == before
    assert catalogue.search(images=[picture(3)], attributes=["colour"], k=1)[0][0].id == photo_name(3)
    catalogue.add(FolderSource(catalogue.sources()[0].path / "inner"), fill=FILL)  # through the link
    links = catalogue.info()["spaces"]["colour@look"]["links"]
    assert [link["policy"] for link in links] == [policy]
    if policy == "drift_compensated":
        assert links[0]["details"]["pairs"] == 12 and catalogue.info()["items"] == 27


def test_drift_maps_bring_queries_nearer(catalogue, checkpoints):
    outcomes, _ = catalogue.reindex(str(checkpoints["first"]), "drift_compensated", fill=FILL)
    assert set(outcomes.values()) == {"unchanged"}
    catalogue.reindex(str(checkpoints["moved"]), "drift_compensated", calibration=20, fill=FILL)
    for link in (space["links"][0] for space in catalogue.info()["spaces"].values()):
        assert link["details"]["cosine_after"] > link["details"]["cosine_before"]


def test_after_a_roll_back_each_space_is_asked_by_the_checkpoint_that_fits(tmp_path, checkpoints, photos):
    moved = write_checkpoint(tmp_path / "both", increments=(*MOVED, ("late", ["fit"])), nudge=0.05)
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        catalogue.reindex(str(moved), "full", fill=FILL)
        catalogue.switch()
        catalogue.roll_back()
        for attribute in ("colour", "fit"):
            best = catalogue.search(images=[picture(9)], attributes=[attribute], k=1)[0][0]
            assert best.id == photo_name(9) and best.score == pytest.approx(1, abs=1e-4)
        assert catalogue.search(images=[picture(9)], k=1)[0][0].id == photo_name(9)
        new = write_photos(tmp_path / "new", [40], first=0)
        catalogue.add(FolderSource(new), fill=FILL)
        assert catalogue.search(images=[picture(40)], k=1)[0][0].id == photo_name(40)
        with pytest.raises(IncompatibleRevisionError, match=r"does not know \['fit@late'\]"):
            catalogue.search(images=[picture(9)], attributes=["fit"], checkpoint=str(checkpoints["first"]))


MOVED = (("cut", ["neckline", "sleeve"]), ("look", ["colour"]))


def test_a_checkpoint_that_changed_in_its_place_is_noticed(tmp_path, photos):
    folder = write_checkpoint(tmp_path / "checkpoint")
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(folder), FolderSource(photos), fill=FILL)
    shutil.rmtree(folder)
    write_checkpoint(folder, nudge=0.1)
    with Catalogue.open(tmp_path / "index") as catalogue:
        with pytest.raises(IncompatibleRevisionError, match="if it is as it was"):
            catalogue.search(images=[picture(1)])
        with pytest.raises(IncompatibleRevisionError, match="reindex"):
            catalogue.build(str(folder), FolderSource(photos), fill=FILL)
        with pytest.raises(IncompatibleRevisionError):
            catalogue.add(FolderSource(photos), fill=FILL)
        # Stored vectors need no checkpoint.
        assert len(catalogue.search(items=[photo_name(1)], k=3)[0]) == 3


def test_bad_photos_are_counted_named_and_refused(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", range(9))
    (photos / "broken.png").write_bytes(b"no image")
    with Catalogue.create(tmp_path / "index") as catalogue:
        with pytest.raises(TooManyBadRowsError, match="1 of 10 images are bad.*\n.*\n.*broken.png"):
            catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        report = catalogue.build(
            str(checkpoints["first"]), FolderSource(photos), fill=FillSettings(4, 8, 0.2, progress=False)
        )
        assert report.bad.total == 1 and catalogue.info()["items"] == 9


def test_rows_without_ids_and_ids_that_come_twice(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", range(4))
    paths = [str(photos / photo_name(number)) for number in range(4)]
    pq.write_table(pa.table({"id": ["a", None, "b", "b"], "image": paths}), tmp_path / "items.parquet")
    with Catalogue.create(tmp_path / "index") as catalogue:
        fill = FillSettings(4, 8, 0.5, progress=False)
        report = catalogue.build(str(checkpoints["first"]), ParquetSource(tmp_path / "items.parquet"), fill=fill)
        assert report.bad.counts == {"no_id": 1} and report.embedded == 2
        expected = vectors_of(checkpoints["first"], [picture(2)])["colour@look"]
        np.testing.assert_allclose(stored(catalogue, "colour@look", ["b"]), expected, atol=1e-5)


def test_export(catalogue, tmp_path):
    assert catalogue.export(tmp_path / "all.parquet", progress=False) == 60
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert list(rows[0]) == ["id", "space", "attribute", "model_revision", "fingerprint", "embed"]
    for row in rows[::7]:
        live = catalogue.index.spaces[row["space"]]
        assert (row["attribute"], row["model_revision"], row["fingerprint"]) == (
            live.attribute, live.model_revision, live.fingerprint,
        )  # fmt: skip
        np.testing.assert_array_equal(np.float32(row["embed"]), stored(catalogue, row["space"], [row["id"]])[0])
    assert catalogue.export(tmp_path / "some.parquet", ["colour"], progress=False) == 20
    assert not list(tmp_path.glob("*.partial"))


def test_export_of_metadata_of_several_kinds(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", range(4))
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["colour"], fill=FILL)
        made = catalogue.index.spaces["colour@look"].fingerprint
        columns = [{"a": 1, "id": "x"}, {"a": "one"}, {"b": 1, "c": True}, {"b": 0.5}]
        catalogue.index.add("colour@look", ["p", "q", "r", "s"], np.eye(4, 8), columns, fingerprint=made)
        catalogue.export(tmp_path / "all.parquet", progress=False)
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "all.parquet").to_pylist()}
    assert (rows["p"]["a"], rows["p"]["metadata.id"], rows["q"]["a"]) == ("1", "x", "one")
    assert (rows["r"]["b"], rows["r"]["c"], rows["s"]["b"], rows["s"]["c"]) == (1.0, True, 0.5, None)


def test_an_approximate_index_is_built_at_the_end(checkpoints, photos, tmp_path):
    with Catalogue.create(tmp_path / "index", faiss_backend("HNSW8")) as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
    assert len(list((tmp_path / "index").rglob("*.faiss"))) == 3
    with Catalogue.create(tmp_path / "index") as catalogue:
        assert catalogue.search(images=[picture(2)], attributes=["colour"], k=1)[0][0].id == photo_name(2)
    with pytest.raises(ValueError, match="is kept with .*HNSW8.*got .*Flat"):
        Catalogue.create(tmp_path / "index", faiss_backend("Flat"))
    with Catalogue.create(tmp_path / "large", faiss_backend("IVF64,Flat")) as catalogue:
        report = catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["colour"], fill=FILL)
        assert "searched exactly, without an index" in report.notes[0]
        assert catalogue.search(images=[picture(2)], k=1)[0][0].id == photo_name(2)


def test_folders_that_are_no_catalogues(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no catalogue.*mclfir index build"):
        Catalogue.open(tmp_path / "nothing")
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match="something else.*thesis.tex"):
        Catalogue.create(tmp_path)


def test_a_backend_that_was_misspelt_is_named_again(checkpoints, photos, tmp_path):
    checkpoint, folder = str(checkpoints["first"]), tmp_path / "index"
    with pytest.raises(ValueError, match="no index 'HNSV8'"):
        with Catalogue.create(folder, faiss_backend("HNSV8")) as catalogue:
            catalogue.build(checkpoint, FolderSource(photos), fill=FILL)
    with Catalogue.create(folder, faiss_backend("HNSW8")) as catalogue:
        assert catalogue.build(checkpoint, FolderSource(photos), fill=FILL).embedded == 20
    with pytest.raises(ValueError, match="is kept with .*HNSW8"):
        Catalogue.create(folder, faiss_backend("HNSW16"))


def test_a_store_that_is_gone_is_not_made_anew(catalogue):
    shutil.rmtree(next((catalogue.folder / "stores").glob("space_colour*")))
    with Catalogue.open(catalogue.folder) as found:
        with pytest.raises(FileNotFoundError, match="space_colour.* is gone"):
            found.search(items=[photo_name(1)], attributes=["colour"])


def test_one_text_is_no_list_of_ids(catalogue):
    with pytest.raises(ValueError, match=r"Write \['001.png'\]"):
        catalogue.remove(photo_name(1))


def test_no_secret_is_written_down(tmp_path):
    for uri, options in (("http://me:secret@host:19530", {}), ("http://host", {"password": "secret"})):
        with pytest.raises(ValueError, match="--token.*MCLFIR_MILVUS_TOKEN"):
            milvus_backend(uri, tmp_path, **options)
    backend = milvus_backend(str(tmp_path / "index" / "entries.db"), tmp_path / "index")
    assert backend["uri"] == "entries.db"


def test_fp16_is_refused_on_a_cpu(checkpoints, photos, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with Catalogue.create(tmp_path / "index") as catalogue:
        with pytest.raises(ValueError, match="--fp16 needs a GPU"):
            catalogue.build(str(checkpoints["first"]), FolderSource(photos), fp16=True, fill=FILL)
