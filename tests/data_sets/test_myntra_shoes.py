# SPDX-License-Identifier: Apache-2.0
"""Shoes of Myntra: which rows they are, the rule of their triplets, and the way to training."""

import csv
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from raw_sets.myntra_shoes import ARTICLES, NO_USAGE, ONE_RED, SHIRTS_EACH, SIZES, image_id, labels, make
from tiny_runs import train

from data_scripts import myntra_shoes
from data_scripts.myntra_shoes import ATTRIBUTES, read
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.data.triplets import load_triplets

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "myntra"
# Split of the triplets → splits of their images.
SIDES = {"train": ("train",), "val": ("val",), "query": ("query", "gallery")}
MANY = (10**6,) * 3


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("myntra"))


@pytest.fixture(scope="module")
def annotations(raw):
    return read(raw)


def triplets_of(annotations, split: str) -> list[dict[str, str]]:
    return list(annotations.tables["triplets"].splits[split])


def checked(annotations) -> dict[str, int]:
    return {check.what: check.counted for check in annotations.checks}


def tiny_labels(split: str) -> dict[str, dict[str, str]]:
    """image_id → labels of the photos that triplets of this split may name."""
    return {image_id(part, i): labels(part, i) for part in SIDES[split] for i in range(SIZES[part])}


def possible(known: dict[str, dict[str, str]], condition: str) -> set[tuple[str, str, str]]:
    """Every triplet that the rule allows, by trying all."""
    values = {name: shown[condition] for name, shown in known.items() if shown[condition]}
    return {
        (anchor, positive, negative)
        for anchor, positive, negative in product(values, repeat=3)
        if anchor != positive and values[anchor] == values[positive] != values[negative]
    }


def obeys(row: dict[str, str], known: dict[str, dict[str, str]]) -> bool:
    anchor, positive, negative = (known[row[role]][row["condition"]] for role in ("anchor", "positive", "negative"))
    return row["anchor"] != row["positive"] and "" not in (anchor, negative) and anchor == positive != negative


# ---- rows


def test_shoes_alone_are_kept_in_their_splits(annotations):
    for split, size in SIZES.items():
        assert [row["image_id"] for row in annotations.splits[split]] == [image_id(split, i) for i in range(size)]
    assert annotations.counts == SIZES and annotations.attributes == ATTRIBUTES
    products = sum(SIZES.values()) + 4 * SHIRTS_EACH
    assert any(f"Of {products} products" in note and f"are kept: {sum(SIZES.values())}." in note
               for note in annotations.notes)  # fmt: skip
    assert "1 rows are left out: the split file does not name them." in annotations.notes


def test_a_row_has_its_four_labels_title_and_id(annotations, raw):
    row = list(annotations.splits["gallery"])[7]
    assert row["image_id"] == row["image"].listed == "images/10307.jpg" and row["image"].root == raw
    assert row["attributes"] == {
        "articleType": "Sandals", "gender": "Men", "baseColour": "NA", "usage": "Sports",
    }  # fmt: skip
    assert (row["caption"], row["product_id"]) == ('Sole & Söhne, "No 10307"', "10307")
    without = list(annotations.splits[NO_USAGE[0]])[NO_USAGE[1]]
    assert without["attributes"]["usage"] is None and without["attributes"]["gender"] == "Women"


def test_increments_are_the_conditions_one_by_one_and_all_at_once(annotations):
    assert annotations.increments == {
        "attributes": [{"name": name, "attributes": [name]} for name in ATTRIBUTES],
        "all": [{"name": "all", "attributes": list(ATTRIBUTES)}],
    }


# ---- triplets


@pytest.mark.parametrize("split", SIDES)
def test_where_all_are_asked_for_the_triplets_are_those_that_the_rule_allows(raw, split):
    found = read(raw, max_triplets=MANY)
    rows = triplets_of(found, split)
    for condition in ATTRIBUTES:
        drawn = [(r["anchor"], r["positive"], r["negative"]) for r in rows if r["condition"] == condition]
        expected = possible(tiny_labels(split), condition)
        assert len(drawn) == len(expected) > 0 and set(drawn) == expected
        assert checked(found)[f"{split} triplets {condition}"] == len(expected)


@pytest.mark.parametrize("split", SIDES)
def test_drawn_triplets_obey_the_rule_are_distinct_and_as_many_as_asked_for(raw, split):
    rows = triplets_of(read(raw, max_triplets=(402, 203, 801)), split)
    shares = {"train": [101, 101, 100, 100], "val": [51, 51, 51, 50], "query": [201, 200, 200, 200]}[split]
    assert Counter(row["condition"] for row in rows) == dict(zip(ATTRIBUTES, shares, strict=True))
    known = tiny_labels(split)
    assert all(obeys(row, known) for row in rows)
    assert len({tuple(row.values()) for row in rows}) == len(rows)


def test_a_value_of_one_photo_is_no_anchor_and_counted(raw):
    found = read(raw, max_triplets=MANY)
    red = image_id(*ONE_RED)
    rows = [row for row in triplets_of(found, "train") if row["condition"] == "baseColour"]
    assert red not in {row["anchor"] for row in rows} | {row["positive"] for row in rows}
    assert red in {row["negative"] for row in rows}
    assert checked(found)["train values baseColour of one image, which is no anchor"] == 1
    assert sum(count for what, count in checked(found).items() if "no anchor" in what) == 1
    assert any("negative: 1 such values" in note for note in found.notes)


def test_a_photo_without_the_label_is_in_no_triplet_of_the_condition(raw):
    rows = triplets_of(read(raw, max_triplets=MANY), "val")
    named = [row["condition"] for row in rows if image_id(*NO_USAGE) in row.values()]
    assert set(named) == set(ATTRIBUTES) - {"usage"}


def test_no_triplet_leaves_its_split(raw):
    found = read(raw, max_triplets=MANY)
    for split in SIDES:
        named = {row[role] for row in triplets_of(found, split) for role in ("anchor", "positive", "negative")}
        assert named == set(tiny_labels(split))
        assert checked(found)[f"{split} images in the triplets"] == checked(found)[f"{split} images"] == len(named)


def test_the_draw_depends_on_the_seed_and_a_splits_on_its_own_number_alone(raw, annotations):
    numbers = (200, 100, 300)
    first, again, other = (read(raw, max_triplets=numbers, seed=seed) for seed in (1, 1, 2))
    more = read(raw, max_triplets=(200, 100, 1200), seed=1)
    for split in SIDES:
        assert triplets_of(first, split) == triplets_of(again, split) != triplets_of(other, split)
        assert (triplets_of(first, split) == triplets_of(more, split)) == (split != "query")
    assert triplets_of(annotations, "val") == triplets_of(annotations, "val")


# ---- what is refused


@pytest.mark.parametrize("numbers", [(0, 1, 1), (5, 5)])
def test_max_triplets_must_be_three_positive_numbers(raw, numbers):
    with pytest.raises(ValueError, match="three numbers from 1, such as 40000 8000 20000"):
        read(raw, max_triplets=numbers)


def test_a_wrong_folder_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"of 3 files 3 are missing: images, labels.csv, split.csv"):
        myntra_shoes.main(["--source", str(tmp_path), "--output", str(tmp_path / "out")])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        myntra_shoes.main(["--source", str(tmp_path / "nowhere"), "--annotations-only"])


def test_a_catalogue_without_shoes_is_refused(tmp_path):
    source = make(tmp_path / "raw", images=False, shoes=False)
    with pytest.raises(ValueError, match="has no shoes.*subCategory Shoes, Sandal, Flip Flops"):
        read(source)


def test_labels_of_another_form_are_refused(tmp_path):
    source = make(tmp_path / "raw", images=False)
    text = (source / "labels.csv").read_text(encoding="utf-8")
    (source / "labels.csv").write_text(text.replace(",usage,", ",occasion,", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="has no column 'usage'"):
        read(source)


# ---- the command, and what it leads to


def command(source: Path, output: Path, *flags: str):
    return myntra_shoes.main(
        ["--source", str(source), "--output", str(output), "--max-triplets", "400", "200", "600", *flags]
    )


@pytest.fixture(scope="module")
def written(raw, tmp_path_factory) -> dict[str, Path]:
    """With the labels, once more, and without."""
    folder = tmp_path_factory.mktemp("written")
    for name, flags in (("labels", ()), ("again", ()), ("triplets", ("--without-labels",))):
        summary = command(raw, folder / name, *flags)
        assert summary.tables == {"triplets": {"train": 400, "val": 200, "query": 600}}
        assert summary.counts == SIZES and not summary.bad_rows.total and not summary.dangling["triplets"]
    return {name: folder / name for name in ("labels", "again", "triplets")}


def test_the_same_command_writes_the_same_bytes(written):
    files = sorted(path.relative_to(written["labels"]) for path in written["labels"].rglob("*") if path.is_file())
    assert len(files) == 4 + 3 + 2
    assert all((written["labels"] / name).read_bytes() == (written["again"] / name).read_bytes() for name in files)


def test_it_loads_with_labels_and_triplets_by_rows(written, one_thread):
    loaded = load_dataset(str(written["labels"]))
    row = loaded["query"][1]
    assert row["attributes"] == labels("query", 1) and row["image"].size == (24, 32)
    rows = load_dataset(str(written["labels"]), "triplets", split="query")
    assert set(rows["condition"]) == set(ATTRIBUTES)
    tables = load_tables(written["labels"])
    for split, parts in SIDES.items():
        shown = [labels(part, i) for part in parts for i in range(SIZES[part])]
        found = load_triplets(written["labels"], split, [tables[part] for part in parts])
        assert list(found) == list(ATTRIBUTES)
        for condition, places in found.items():
            values = np.array([each[condition] for each in shown])[places]
            assert len(places) == {"train": 100, "val": 50, "query": 150}[split]
            assert (values[:, 0] == values[:, 1]).all() and (values[:, 0] != values[:, 2]).all()


def test_without_labels_the_triplets_are_the_same_and_the_rows_bare(written):
    bare, full = load_tables(written["triplets"]), load_tables(written["labels"])
    for split in SIZES:
        assert bare[split].attributes == full[split].attributes == ATTRIBUTES
        assert all((bare[split].labels(name) == -1).all() for name in ATTRIBUTES)
        assert list(bare[split].image_names) == list(full[split].image_names)
    for split in SIDES:
        name = f"triplets/{split}-00000-of-00001.parquet"
        assert (written["triplets"] / name).read_bytes() == (written["labels"] / name).read_bytes()
    card = (written["triplets"] / "README.md").read_text(encoding="utf-8")
    assert "known by their triplets alone" in card


@pytest.mark.parametrize("name", ["labels", "triplets"])
def test_it_is_learned_and_scored_either_way(written, tmp_path, one_thread, name):
    settings = {"increments_key": "all", "batch_size": 24, "epochs": 1, "num_views": 1}
    report = train(written[name], tmp_path / "run", **settings)
    assert [row["attribute"] for row in report["attributes"]] == list(ATTRIBUTES)
    assert [row["num_triplets"] for row in report["attributes"]] == [150] * 4
    assert 0 < report["average"]["triplet_accuracy"] < 1
    assert ("mean_average_precision" in report["average"]) == (name == "labels")


def test_annotations_alone_give_the_counts(tmp_path):
    source = make(tmp_path / "raw", images=False)
    counted = myntra_shoes.main(["--source", str(source), "--annotations-only", "--max-triplets", "8", "4", "12"])
    assert counted.path is None and counted.counts == SIZES
    assert counted.tables == {"triplets": {"train": 8, "val": 4, "query": 12}}


# ---- the real catalogue


def real_labels() -> dict[str, tuple[str, dict[str, str]]]:
    """image → split and row of the shoes, read without our code."""
    with open(REAL / "split.csv", newline="", encoding="utf-8") as file:
        splits = {row["image"]: row["split"] for row in csv.DictReader(file)}
    with open(REAL / "labels.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["masterCategory"] == "Footwear" and row["image"] in splits]
    return {row["image"]: (splits[row["image"]], row) for row in rows}


@pytest.mark.skipif(not (REAL / "labels.csv").is_file(), reason=f"{REAL} is not there")
def test_the_real_shoes():
    found, known = read(REAL), real_labels()
    assert {row["subCategory"] for _, row in known.values()} == {kind for kind, _ in ARTICLES}
    assert found.counts == Counter(split for split, _ in known.values())
    assert found.counts == {"train": 1471, "val": 239, "query": 80, "gallery": 332}
    rows = {split: triplets_of(found, split) for split in SIDES}
    assert {split: Counter(row["condition"] for row in drawn) for split, drawn in rows.items()} == {
        "train": dict.fromkeys(ATTRIBUTES, 10_000),
        "val": dict.fromkeys(ATTRIBUTES, 2_000),
        "query": dict.fromkeys(ATTRIBUTES, 5_000),
    }
    for split, parts in SIDES.items():
        inside = {image: row for image, (part, row) in known.items() if part in parts}
        assert all(obeys(row, inside) for row in rows[split])
        assert len({tuple(row.values()) for row in rows[split]}) == len(rows[split])
    assert sum(count for what, count in checked(found).items() if "no anchor" in what) == 13
