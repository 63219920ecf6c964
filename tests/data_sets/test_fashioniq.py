# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter
from pathlib import Path

import pytest
from raw_sets.fashioniq import make

from data_scripts.fashioniq import main, read
from modeling_mclfir.data.increments import load_increments

REAL = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "fashioniq"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("fashioniq"))


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip("the annotation files of FashionIQ are not on this machine")
    return read(REAL)


def rows(annotations, split):
    return {row["image_id"]: row for row in annotations.splits[split]}


def composed(annotations, split):
    return {row["query_id"]: row for row in annotations.tables["composed"].splits[split]}


def ids_of(annotations, split, category):
    return [row["query_id"] for row in composed(annotations, split).values() if row["gallery"].startswith(category)]


def test_each_image_is_one_row_of_its_split(source):
    annotations = read(source)
    # 8 a category, and one that shirts and tops share; 6 and 5 a category, two shared ones and one of train.
    assert annotations.counts == {"train": 25, "gallery": 35}
    for split, count in annotations.counts.items():
        assert len(list(annotations.splits[split])) == len(rows(annotations, split)) == count
    assert rows(annotations, "train")["B00DRESS03"] == {
        "image": (source, "images/B00DRESS03.jpg", None),
        "attributes": {"category": "dress"},
        "product_id": "B00DRESS03",
        "image_id": "B00DRESS03",
        "galleries": [],
    }
    assert not annotations.bad_rows.total


def test_an_image_has_the_names_of_all_its_galleries(source):
    gallery = rows(read(source), "gallery")
    assert gallery["val é dress0"]["galleries"] == ["dress/original", "dress/val"]
    assert gallery["val é dress3"]["galleries"] == ["dress/original"]
    assert gallery["test é dress3"]["galleries"] == ["test/dress"]
    assert gallery["B00VALTEST"]["galleries"] == ["shirt/original", "test/toptee"]
    assert gallery["B00SHIRT04"]["galleries"] == ["toptee/original", "toptee/val"]
    counted = Counter(name for row in gallery.values() for name in row["galleries"])
    assert counted == {
        "dress/original": 6, "dress/val": 3, "test/dress": 5,
        "shirt/original": 7, "shirt/val": 3, "test/shirt": 5,
        "toptee/original": 7, "toptee/val": 5, "test/toptee": 6,
    }  # fmt: skip


def test_an_image_of_several_categories_has_none(source):
    annotations = read(source)
    train, gallery = rows(annotations, "train"), rows(annotations, "gallery")
    assert train["B00BOTHTRN"]["attributes"] == gallery["B00VALTEST"]["attributes"] == {"category": None}
    # A shirt in train and a top in val: neither split may teach or test either.
    assert train["B00SHIRT04"]["attributes"] == gallery["B00SHIRT04"]["attributes"] == {"category": None}
    categories = Counter(row["attributes"]["category"] for row in train.values())
    assert categories == {"dress": 8, "toptee": 8, "shirt": 7, None: 2}


def test_images_are_found_in_any_of_the_folders_and_with_any_ending(source):
    annotations = read(source)
    listed = {
        name: row["image"].listed for split in annotations.splits for name, row in rows(annotations, split).items()
    }
    assert listed["B00SHIRT00"] == "images/B00SHIRT00.PNG"
    assert listed["test é toptee4"] == "image_data/toptee/test é toptee4.jpeg"
    assert all((source / path).is_file() for path in listed.values())


def test_an_image_that_is_not_there_is_listed_where_it_is_expected(tmp_path):
    annotations = read(make(tmp_path, images=False))
    assert {row["image"].listed for row in annotations.splits["train"]} >= {"images/B00DRESS00.jpg"}
    assert any("train 0 of 25" in note and "dress/original 0 of 6" in note for note in annotations.notes)


def test_the_notes_say_how_much_of_each_gallery_is_there(tmp_path):
    note = next(note for note in read(make(tmp_path, faults=True)).notes if "Images found" in note)
    assert "dress/original 5 of 6, dress/val 3 of 3" in note and "toptee/original 7 of 7" in note
    assert "query 7 of 7" in note
    (tmp_path / "images/val é dress1.jpg").unlink()  # the target of both val pairs of dresses
    note = next(note for note in read(tmp_path).notes if "Images found" in note)
    assert "dress/val 2 of 3" in note and "query 5 of 7" in note


def test_pairs_keep_both_captions(source):
    annotations = read(source)
    table = {split: composed(annotations, split) for split in annotations.tables["composed"].splits}
    assert {split: len(pairs) for split, pairs in table.items()} == {"train": 12, "query": 7, "test": 9}
    pair = {name: value for name, value in table["query"]["dress-val-1"].items() if value is not None}
    assert pair == {
        "query_id": "dress-val-1",
        "reference": "val é dress2",
        "target": "val é dress1",
        "modification_texts": ["is brighter 1", "has a é bow"],
        "gallery": "dress",
        "hit": "target",
    }
    assert table["train"]["toptee-train-2"]["modification_texts"] == ["is brighter 2", ""]
    assert {pair["target"] for pair in table["test"].values()} == {None}
    assert table["test"]["shirt-test-2"]["gallery"] == "test/shirt"


def test_faulty_entries_are_counted_and_the_others_keep_their_numbers(tmp_path):
    annotations = read(make(tmp_path, faults=True))
    assert annotations.bad_rows.counts == {"malformed": 2, "duplicate": 1}
    assert annotations.bad_rows.examples["duplicate"] == ["split.dress.train.json entry 8"]
    pairs = annotations.bad_lines["pair"]
    assert pairs.counter.counts == {"malformed": 4, "unknown_image": 1} and pairs.total == 28 + 5
    assert pairs.counter.examples["unknown_image"] == ["cap.dress.train.json pair 5"]
    assert annotations.counts == {"train": 25, "gallery": 35}
    assert ids_of(annotations, "train", "dress") == [f"dress-train-{i}" for i in (0, 6, 7, 8)]
    outside = next(check for check in annotations.checks if "not in their list" in check.what)
    assert (outside.counted, outside.published) == (1, 0)


@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_held_out_pairs_share_no_image_with_train(source, fraction):
    annotations, whole = read(source, val_fraction=fraction), read(source)
    train, val = composed(annotations, "train"), composed(annotations, "val")
    assert val and train and sorted([*train, *val]) == sorted(composed(whole, "train"))
    images = rows(annotations, "val")
    assert images.keys() == {pair[role] for pair in val.values() for role in ("reference", "target")}
    assert images.keys().isdisjoint(rows(annotations, "train"))
    assert images.keys() | rows(annotations, "train").keys() == rows(whole, "train").keys()
    assert {pair[role] for pair in train.values() for role in ("reference", "target")} <= rows(
        annotations, "train"
    ).keys()
    for pair in val.values():
        assert pair["gallery"] in images[pair["target"]]["galleries"]
        assert pair["gallery"] == f"{pair['query_id'].split('-')[0]}/held-out"
    assert annotations.counts["val"] == len(images)
    assert composed(annotations, "query") == composed(whole, "query")


def test_a_larger_fraction_holds_out_the_same_pairs_and_more(source):
    few, many = (set(composed(read(source, val_fraction=share), "val")) for share in (0.3, 0.7))
    assert few < many


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_is_no_share_is_refused(source, fraction):
    with pytest.raises(ValueError, match="val_fraction is .*; expected a share from 0 to below 1"):
        read(source, val_fraction=fraction)


def test_the_wrong_folder_is_told_by_all_that_is_missing(tmp_path):
    make(tmp_path, images=False)
    (tmp_path / "captions/cap.dress.val.json").unlink()
    (tmp_path / "captions/cap.toptee.train.json.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"missing: captions/cap.dress.val.json, captions/cap.toptee.train.json. Mend"
    ):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="captions/cap.dress.train.json, .*split.toptee.test.json"):
        read(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["../../secret", "..\\..\\secret", "a/../../../secret"])
def test_an_asin_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    make(tmp_path, images=False)
    (tmp_path / "image_splits/split.shirt.val.json").write_text(json.dumps(["B0", name]))
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    make(tmp_path, images=False)
    (tmp_path / "captions/cap.shirt.val.json").write_text("{}")
    with pytest.raises(ValueError, match="cap.shirt.val.json holds dict; expected a list"):
        read(tmp_path)
    (tmp_path / "captions/cap.shirt.val.json").write_text("[")
    with pytest.raises(ValueError, match="cap.shirt.val.json is not JSON"):
        read(tmp_path)


def test_from_the_command_to_a_loaded_and_a_streamed_data_set(source, tmp_path):
    from datasets import load_dataset

    out = tmp_path / "out"
    summary = main(["--source", str(source), "--output", str(out), "--val-fraction", "0.3"])
    assert not summary.bad_rows.total and sum(summary.counts.values()) == 60
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {k: n for k, n in summary.counts.items() if n}
    assert loaded["train"][0]["image"].size == (24, 24) and loaded["val"][0]["galleries"]
    streamed = list(load_dataset(str(out), split="gallery", streaming=True))
    assert [row["image_id"] for row in streamed] == loaded["gallery"]["image_id"]
    assert all(row["image_id"] == row["product_id"] for row in streamed)
    pairs = load_dataset("parquet", data_files=f"{out}/composed/query-*.parquet", cache_dir=str(tmp_path / "cache"))
    assert {row["target"] for row in pairs["train"]} <= set(loaded["gallery"]["image_id"])
    increments = load_increments(out / "increments.json", ("category",), key="domains")
    assert [increment.name for increment in increments] == ["dress", "shirt", "toptee"]


def test_a_missing_image_is_counted_and_left_out(tmp_path):
    source = make(tmp_path / "raw", faults=True)
    arguments = ["--source", str(source), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="5 of 33 pair lines are bad"):
        main(arguments)
    captions = source / "captions/cap.dress.train.json"
    pairs = json.loads(captions.read_text(encoding="utf-8-sig"))
    captions.write_text(json.dumps([pairs[0], *pairs[6:]]))
    with pytest.raises(ValueError, match="rows are bad(.|\n)*missing: 1"):
        main(arguments)
    summary = main([*arguments, "--max-bad-fraction", "0.2"])
    assert summary.counts["gallery"] == 34 and summary.bad_rows.counts["missing"] == 1
    assert "dress/original 5 of 6" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_without_images_there_are_still_counts(tmp_path):
    source = make(tmp_path / "raw", images=False)
    summary = main(["--source", str(source), "--annotations-only"])
    assert summary.counts == {"train": 25, "gallery": 35}
    assert summary.tables == {"composed": {"train": 12, "query": 7, "test": 9}}


def test_the_real_annotations_have_the_published_counts(real):
    published = {check.what: check.published for check in real.checks}
    assert len(published) == 31 and None not in published.values()
    assert {check.what: check.counted for check in real.checks} == published
    assert published["val queries shirt"] == 2038 and published["gallery val toptee"] == 2902
    assert real.counts == {"train": 45429, "gallery": 30566} and not real.bad_rows.total
    assert real.bad_lines["pair"].total == 30_134 and not real.bad_lines["pair"].counter.total


def test_every_real_val_reference_and_target_is_in_both_galleries_of_its_category(real):
    galleries = {row["image_id"]: row["galleries"] for row in real.splits["gallery"]}
    for pair in real.tables["composed"].splits["query"]:
        for name in (pair["reference"], pair["target"]):
            assert {f"{pair['gallery']}/original", f"{pair['gallery']}/val"} <= set(galleries[name])
    sizes = Counter(name for names in galleries.values() for name in names)
    assert [sizes[f"{category}/original"] for category in ("dress", "shirt", "toptee")] == [3817, 6346, 5373]
    assert [sizes[f"{category}/val"] for category in ("dress", "shirt", "toptee")] == [2628, 3089, 2902]


def test_a_tenth_of_the_real_pairs_is_held_out(real):
    annotations = read(REAL, val_fraction=0.1)
    splits = annotations.tables["composed"].splits
    val, train = list(splits["val"]), list(splits["train"])
    assert len(val) + len(train) == 18000 and 0.08 < len(val) / 18000 < 0.12
    used = {pair[role] for pair in train for role in ("reference", "target")}
    assert used.isdisjoint(row["image_id"] for row in annotations.splits["val"])
    assert annotations.counts["train"] + annotations.counts["val"] == 45429
