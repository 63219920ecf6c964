# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter
from pathlib import Path

import pytest
from raw_sets.cirr import group, make

from data_scripts.cirr import main, read

REAL = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "cirr"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("cirr"))


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip("the annotation files of CIRR are not on this machine")
    return read(REAL)


def rows(annotations, split):
    return {row["image_id"]: row for row in annotations.splits[split]}


def composed(annotations, split):
    return {row["query_id"]: row for row in annotations.tables["composed"].splits[split]}


def checks(annotations):
    return {check.what: (check.counted, check.published) for check in annotations.checks}


def test_each_image_is_one_row_with_its_gallery(source):
    annotations = read(source)
    assert annotations.attributes == () and annotations.increments == []
    assert annotations.counts == {"train": 24, "gallery": 72}
    assert {split: len(rows(annotations, split)) for split in annotations.splits} == annotations.counts
    galleries = {
        split: Counter(map(tuple, (row["galleries"] for row in part))) for split, part in annotations.splits.items()
    }
    assert galleries == {"train": {(): 24}, "gallery": {("val",): 18, ("test1",): 54}}
    assert rows(annotations, "gallery")["dev-1-0-img0"] == {
        "image": (source / "img_raw", "./dev/dev-1-0-img0.png", None),
        "image_id": "dev-1-0-img0",
        "galleries": ["val"],
    }
    assert not annotations.bad_rows.total


def test_a_pair_has_its_target_its_group_and_what_else_fits(source):
    table = {split: composed(read(source), split) for split in ("train", "query", "test")}
    assert {split: len(pairs) for split, pairs in table.items()} == {"train": 8, "query": 6, "test": 18}
    members = group("val", 1)
    assert table["query"]["12063"] == {
        "query_id": "12063",
        "reference": members[4],
        "target": members[2],
        "modification_texts": ["the same café, seen from 1 metres"],
        "gallery": "val",
        "subset": [*members[:4], members[5]],
        "soft_targets": [members[2], members[1]],
        "soft_scores": [1.0, 0.5],
        "wanted": None,
        "hit": "target",
    }
    assert table["query"]["12060"]["modification_texts"] == [""]
    assert table["train"]["7"]["target"] == group("train", 3)[2]


def test_test_pairs_have_no_target_but_a_group(source):
    pairs = composed(read(source), "test").values()
    assert {(pair["target"], pair["gallery"], len(pair["subset"])) for pair in pairs} == {(None, "test1", 5)}
    assert all(pair["reference"] not in pair["subset"] and pair["soft_targets"] == [] for pair in pairs)


@pytest.mark.parametrize("images", ["", "img_raw", "images", "cirr", "cirr/img_raw"])
def test_images_are_found_where_people_put_them(tmp_path, images):
    annotations = read(make(tmp_path, place="cirr", images=images))
    for split in annotations.splits:
        for row in annotations.splits[split]:
            assert (row["image"].root / row["image"].listed).is_file()


def test_annotations_may_be_in_a_folder_of_the_source(tmp_path):
    assert read(make(tmp_path, place="cirr_dataset", images=None)).counts == {"train": 24, "gallery": 72}


def test_without_train_captions_the_split_is_empty_and_the_card_says_so(tmp_path, source):
    annotations = read(make(tmp_path, train=False, images=None))
    assert composed(annotations, "train") == {} and len(composed(annotations, "query")) == 6
    assert any("cap.rc2.train.json was not in the source" in note for note in annotations.notes)
    assert "train pairs" not in checks(annotations)
    assert not any("was not in the source" in note for note in read(source).notes)
    assert checks(read(source))["train pairs"] == (8, 28225)


def test_faulty_entries_are_counted(tmp_path):
    annotations = read(make(tmp_path, images=None, faults=True))
    assert annotations.bad_rows.examples == {"malformed": ["split.rc2.val.json entry 'dev-0-0-img7'"]}
    pairs = annotations.bad_lines["pair"]
    assert pairs.counter.counts == {"malformed": 5, "unknown_image": 1, "duplicate": 1}
    assert pairs.total == 7 + 8 + 6 + 18
    assert pairs.counter.examples["unknown_image"] == ["cap.rc2.val.json pair 6"]
    assert list(composed(annotations, "query")) == [str(12060 + i) for i in range(6)]
    assert composed(annotations, "query")["12060"]["modification_texts"] == [""]  # the first of the two is kept


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"pairid": 12061', '"pairid": 1e400'),
        ('img1": 1.0', f'img1": {10**400}'),
        ('img1": 1.0', 'img1": NaN'),
        ('img1": 1.0', 'img1": "1e999"'),
    ],
)
def test_numbers_beyond_all_measure_make_a_pair_malformed(tmp_path, before, after):
    path = make(tmp_path, images=None) / "captions/cap.rc2.val.json"
    text = path.read_text(encoding="utf-8-sig")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    assert read(tmp_path).bad_lines["pair"].counter.counts == {"malformed": 1}


def test_json_nested_without_end_is_refused_by_name(tmp_path):
    path = make(tmp_path, images=None) / "captions/cap.rc2.val.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="cap.rc2.val.json is not JSON"):
        read(tmp_path)


def test_the_wrong_folder_is_told_by_all_that_is_missing(tmp_path):
    make(tmp_path, images=None)
    (tmp_path / "captions/cap.rc2.val.json").unlink()
    (tmp_path / "image_splits/split.rc2.test1.json").unlink()
    with pytest.raises(
        FileNotFoundError, match="missing: captions/cap.rc2.val.json, image_splits/split.rc2.test1.json. Mend"
    ):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="cap.rc2.val.json, .*cap.rc2.test1.json, .*split.rc2.train.json"):
        read(tmp_path / "elsewhere")


@pytest.mark.parametrize("listed", ["../secret.png", "./dev/../../secret.png", "/etc/secret.png", "C:\\secret.png"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, listed):
    make(tmp_path, images=None)
    (tmp_path / "image_splits/split.rc2.val.json").write_text(json.dumps({"dev-0-0-img0": listed}))
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(tmp_path)


def test_from_the_command_to_a_loaded_and_a_streamed_data_set(source, tmp_path):
    from datasets import load_dataset

    out = tmp_path / "out"
    summary = main(["--source", str(source), "--output", str(out)])
    assert summary.counts["train"] == 24 and summary.counts["gallery"] == 72 and not summary.bad_rows.total
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].column_names == ["image", "caption", "product_id", "image_id", "galleries"]
    assert loaded["gallery"][0]["image"].size == (24, 24)
    streamed = list(load_dataset(str(out), split="gallery", streaming=True))
    assert [row["image_id"] for row in streamed] == loaded["gallery"]["image_id"]
    pairs = load_dataset("parquet", data_files=f"{out}/composed/test-*.parquet", cache_dir=str(tmp_path / "cache"))
    assert {name for row in pairs["train"] for name in row["subset"]} < set(loaded["gallery"]["image_id"])
    assert json.loads((out / "increments.json").read_text()) == []


def test_without_images_there_are_still_counts(tmp_path):
    summary = main(["--source", str(make(tmp_path, images=None)), "--annotations-only"])
    assert summary.tables == {"composed": {"train": 8, "query": 6, "test": 18}}


def test_the_real_annotations_have_the_published_counts(real):
    assert checks(real) == {
        "train images": (16939, 16939),
        "val images": (2297, 2297),
        "test1 images": (2315, 2315),
        "val pairs": (4181, 4181),
        "test1 pairs": (4148, 4148),
        "val pairs with more than one soft target": (645, 645),
    }
    assert real.counts == {"train": 16939, "gallery": 4612} and not real.bad_rows.total
    assert real.bad_lines["pair"].total == 8329 and not real.bad_lines["pair"].counter.total
    assert any("in 37 val pairs the target is not among them" in note for note in real.notes)


def test_every_real_pair_has_five_other_members_in_its_gallery_and_the_target_is_one(real):
    galleries = {row["image_id"]: row["galleries"] for row in real.splits["gallery"]}
    for split in ("query", "test"):
        for pair in real.tables["composed"].splits[split]:
            assert len(set(pair["subset"]) - {pair["reference"]}) == 5
            assert pair["target"] is None or pair["target"] in pair["subset"]
            assert all(galleries[name] == [pair["gallery"]] for name in (pair["reference"], *pair["subset"]))
