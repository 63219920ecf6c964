# SPDX-License-Identifier: Apache-2.0
"""The triplets of UT-Zap50K: their explicit negative, bad lines, draws, and the increments learned from them."""

from pathlib import Path

import pytest
from raw_sets.zappos50k import NUM_IMAGES, PARTS, image_id, make, triplets

from data_scripts.zappos50k import main, read

CONDITIONS = ("class", "closure", "gender", "heel")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("zappos"))


@pytest.fixture(scope="module")
def annotations(raw):
    return read(raw)


@pytest.fixture
def lists_only(tmp_path) -> Path:
    return make(tmp_path / "raw", images=False)


def ids(annotations, split: str) -> list[str]:
    return [row["image_id"] for row in annotations.splits[split]]


def checked(annotations) -> dict[str, int]:
    return {check.what: check.counted for check in annotations.checks}


def test_triplets_keep_their_negative_and_close_is_the_positive(annotations):
    table = annotations.tables["triplets"]
    assert list(table.splits) == ["train", "val", "query"]
    for split, part in (("train", "train"), ("val", "val"), ("query", "test")):
        expected = [
            {"condition": c, "anchor": image_id(a), "positive": image_id(close), "negative": image_id(far)}
            for c in CONDITIONS
            for a, far, close in triplets(c, part)
        ]
        assert list(table.splits[split]) == expected
        assert list(table.splits[split]) == expected
    assert set(table.features) == {"condition", "anchor", "positive", "negative"}


def test_counts_are_there_to_check(annotations):
    counts = checked(annotations)
    assert counts["images"] == NUM_IMAGES
    assert counts["conditions with triplets"] == 4
    assert [counts[f"{part} triplets heel"] for part in PARTS] == [24, 24, 48]
    assert counts["images in the triplets"] == counts["images in the triplets of one split only"] == 96
    published = {check.what: check.published for check in annotations.checks}
    assert published["images"] == 50_025
    assert published["train triplets heel"] is None


def test_the_order_of_a_line_shows_in_the_triplets_that_the_labels_agree_with(lists_only):
    assert checked(read(lists_only))["train triplets class that the label class agrees with"] == 24
    path = lists_only / "tripletlists/class_tripletlist_train.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("\n".join(f"{anchor} {close} {far}" for anchor, far, close in lines))
    assert checked(read(lists_only))["train triplets class that the label class agrees with"] == 0


def test_a_condition_made_from_the_subcategories_would_show(annotations):
    counts = checked(annotations)
    by_subcategory = [tuple(i % 3 for i in t) for t in triplets("class", "train")]
    expected = sum(anchor == close != far for anchor, far, close in by_subcategory)
    assert counts["train triplets class that the label subcategory agrees with"] == expected < 24


def test_increments_are_the_conditions_in_order(annotations):
    assert annotations.increments == {
        "attributes": [{"name": name, "attributes": [name]} for name in CONDITIONS],
        "all": [{"name": "all", "attributes": list(CONDITIONS)}],
    }


def test_without_meta_data_the_conditions_are_learned_from_triplets(lists_only):
    (lists_only / "ut-zap50k-data/meta-data.csv").unlink()
    found = read(lists_only)
    assert [entry["name"] for entry in found.increments["attributes"]] == list(CONDITIONS)
    labels = [row["attributes"] for row in found.splits["train"]]
    assert {label["gender"] for label in labels} == {None}
    assert {label["class"] for label in labels} == {"Shoes", "Boots"}
    assert any("no meta-data.csv" in note for note in found.notes)


def test_bad_lines_are_counted_by_cause(tmp_path, annotations):
    found = read(make(tmp_path / "raw", images=False, bad_lines=True))
    assert not found.bad_rows.total
    lists, meta = found.bad_lines["triplet"], found.bad_lines["meta-data.csv"]
    assert lists.counter.counts == {"malformed": 2, "degenerate": 1, "unknown_id": 2}
    assert lists.total == sum(len(triplets(c, part)) for c in CONDITIONS for part in PARTS) + 5
    assert lists.counter.examples["degenerate"] == ["class_tripletlist_train.txt line 6"]
    assert meta.counter.counts == {"malformed": 1, "duplicate_id": 1} and meta.total == NUM_IMAGES - 1 + 2
    assert list(found.tables["triplets"].splits["train"]) == list(annotations.tables["triplets"].splits["train"])
    assert next(iter(found.splits["train"]))["attributes"]["closure"] == "Lace up"  # the first of two lines


def test_bad_triplets_are_weighed_against_triplets_and_not_against_images(lists_only, tmp_path):
    path = lists_only / "tripletlists/class_tripletlist_train.txt"
    whole = path.read_text()
    arguments = ["--source", str(lists_only), "--annotations-only", "--output", str(tmp_path / "out")]
    path.write_text(whole + "\n3 3 4" * 2)  # 2 of 386, beside 96 images
    summary = main(arguments)
    assert sum(summary.counts.values()) == 96 and not summary.bad_rows.total
    assert summary.bad_lines["triplet"].total == 386
    path.write_text(whole + "\n3 3 4" * 6)
    with pytest.raises(ValueError, match="6 of 390 triplet"):
        main([*arguments, "--overwrite"])


@pytest.mark.parametrize(("third", "cause"), [("10", "unknown_id"), ("21", "degenerate")])
def test_a_triplet_may_not_name_a_blank_line_or_one_image_by_two_lines(lists_only, third, cause):
    # Line 10 of the list is blank, line 21 is image 3 once more, as is line 3.
    path = lists_only / "tripletlists/heel_tripletlist_val.txt"
    path.write_text(f"3 1 {third}\n")
    assert read(lists_only).bad_lines["triplet"].counter.counts == {cause: 1}


def test_an_image_in_two_lists_is_in_the_first_and_counted(lists_only):
    (lists_only / "tripletlists/gender_tripletlist_val.txt").write_text("0 1 2\n")
    found = read(lists_only)
    assert ids(found, "train")[:3] == [image_id(i) for i in range(3)]
    assert image_id(0) not in ids(found, "val")
    counts = checked(found)
    assert counts["images in the triplets"] - counts["images in the triplets of one split only"] == 3
    assert any("several splits: 3." in note for note in found.notes)


def test_max_triplets_draws_by_the_seed_and_leaves_the_images(raw, annotations):
    found, again, other = (read(raw, max_triplets=(10, 96, 50), seed=seed) for seed in (1, 1, 2))
    rows = {split: list(rows) for split, rows in found.tables["triplets"].splits.items()}
    assert [len(rows[split]) for split in ("train", "val", "query")] == [10, 96, 50]
    assert rows["train"] == list(again.tables["triplets"].splits["train"])
    assert rows["train"] != list(other.tables["triplets"].splits["train"])
    every = list(annotations.tables["triplets"].splits["train"])
    places = [every.index(row) for row in rows["train"]]
    assert places == sorted(set(places))
    assert len({row["condition"] for row in rows["train"]}) > 1
    assert found.counts == annotations.counts
    assert checked(found) == checked(annotations)  # of the lists, not of the draw
    assert "Triplets of train: 10 drawn of 96." in found.notes


@pytest.mark.parametrize("numbers", [(0, 1, 1), (5, 5)])
def test_max_triplets_must_be_three_positive_numbers(raw, numbers):
    with pytest.raises(ValueError, match="three numbers"):
        read(raw, max_triplets=numbers)
