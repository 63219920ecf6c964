# SPDX-License-Identifier: Apache-2.0
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from raw_sets.deepfashion import (
    ATTRIBUTES,
    LABELS,
    TAGS,
    UNTAGGED,
    labels,
    make,
    number,
    path_of,
    rows_of,
    sampled_of,
    tags_of,
)

from data_scripts import deepfashion
from data_scripts.deepfashion import read
from modeling_mclfir.data.increments import check_increments, load_increments
from modeling_mclfir.data.table import load_tables

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "asen_meta"


def sampled(i, named=True):
    attribute, value = sampled_of(i)
    names = [name for name, kind in TAGS if kind == attribute + 1]
    return {ATTRIBUTES[attribute]: names[value] if named else str(value)}


def found(annotations, what):
    return next(check.counted for check in annotations.checks if check.what == what)


@pytest.fixture
def bare(tmp_path):
    """No images: a reader needs none."""
    return make(tmp_path / "raw", images=False)


# ---- ASEN's lists


def test_one_tag_is_the_sampled_one_and_tags_has_all(bare):
    annotations = read(bare)
    rows = rows_of(annotations)
    assert annotations.attributes == ATTRIBUTES and annotations.bad_rows.total == 0
    assert dict(annotations.counts) == {"train": 59, "val": 30, "query": 10, "gallery": 20}
    for row in rows["val"] + rows["query"] + rows["gallery"]:
        assert labels(row) == sampled(number(row))
        assert row["tags"] == [LABELS[tag] for tag in tags_of(number(row))]
    assert [number(row) for row in rows["query"]] == list(range(90, 100))
    assert [number(row) for row in rows["val"] if not row["galleries"]] == list(range(60, 70))
    assert [row["galleries"] for row in rows["val"] if number(row) >= 70] == [["val"]] * 20
    assert [row["galleries"] for row in rows["query"] + rows["gallery"]] == [[]] * 10 + [["test"]] * 20


def test_without_train_lists_train_is_made_of_all_other_images_with_a_tag(bare):
    annotations = read(bare)
    train = rows_of(annotations)["train"]
    assert [number(row) for row in train] == [i for i in range(60) if i != UNTAGGED]
    check_train(train)
    assert [labels(row) for row in rows_of(read(bare))["train"]] == [labels(row) for row in train]
    assert any("1 images without any tag are left out" in note for note in annotations.notes)


def test_train_lists_are_used_where_they_are_there(tmp_path):
    raw = make(tmp_path, images=False, official=False, train=True)
    annotations = read(raw)
    train = rows_of(annotations)["train"]
    assert [number(row) for row in train] == [i for i in range(60) if i != UNTAGGED]
    check_train(train, named=False)
    # Of a type that an image has two tags of (where 4 divides its number), one is the label.
    assert any("15 images have several tags of one type" in note for note in annotations.notes)
    assert found(annotations, "train labels beside another one of image and attribute") == 15


def test_every_pair_of_a_training_line_is_learned_from_also_with_one_tag(tmp_path):
    raw = make(tmp_path, images=False, official=False, train=True)
    (raw / "DeepFashion" / "label_train.txt").write_text("0 0 1 1 1 3 0 3 1\n")
    (row,) = rows_of(read(raw, protocol="one-tag"))["train"]
    texture, fabric, _, part, _ = ATTRIBUTES
    assert labels(row).keys() == {texture, fabric, part}
    assert (labels(row)[texture], labels(row)[fabric]) == ("1", "1")
    assert sorted(row["tags"]) == sorted([f"{texture}=1", f"{fabric}=1", f"{part}=0", f"{part}=1"])


def check_train(train, named=True):
    """An image of train has a label of each type that it has a tag of, in either protocol."""
    kinds = [kind for _, kind in TAGS]
    for row in train:
        tags = tags_of(number(row))
        words = [
            LABELS[tag] if named else f"{ATTRIBUTES[kinds[tag] - 1]}={kinds[:tag].count(kinds[tag])}" for tag in tags
        ]
        assert row["tags"] == words
        assert labels(row).keys() == {ATTRIBUTES[kinds[tag] - 1] for tag in tags}
        assert {"=".join(label) for label in labels(row).items()} <= set(words)
    assert any(len(labels(row)) > 1 for row in train)


def test_without_official_files_values_are_ranks_and_train_is_empty(tmp_path):
    rows = rows_of(read(make(tmp_path, images=False, official=False)))
    assert rows["train"] == []
    for row in rows["val"] + rows["query"] + rows["gallery"]:
        assert labels(row) == sampled(number(row), named=False)
    kinds = [kind for _, kind in TAGS]
    ranks = [f"{ATTRIBUTES[kind - 1]}={kinds[:tag].count(kind)}" for tag, kind in enumerate(kinds)]
    assert [row["tags"] for row in rows["query"]] == [[ranks[tag] for tag in tags_of(i)] for i in range(90, 100)]


def test_all_tags_labels_each_type_and_keeps_the_sampled_tag(bare):
    one, all_tags = rows_of(read(bare)), rows_of(read(bare, protocol="all-tags"))
    for split, rows in all_tags.items():
        for row, single in zip(rows, one[split], strict=True):
            types = {LABELS[tag].split("=")[0] for tag in tags_of(number(row))}
            assert set(labels(row)) == types and labels(single).items() <= labels(row).items()
            assert {"=".join(label) for label in labels(row).items()} <= set(row["tags"]) == set(single["tags"])


def test_all_tags_are_refused_where_they_are_not_known(tmp_path):
    raw = make(tmp_path, images=False, official=False)
    (raw / "DeepFashion" / "label_valid.txt").unlink()
    with pytest.raises(ValueError, match="list_attr_img.txt(.|\n)*label_valid.txt"):
        read(raw, protocol="all-tags")
    annotations = read(raw)
    query = rows_of(annotations)["query"]
    assert [row["tags"] for row in query] == [["=".join(*labels(row).items())] for row in query]
    assert any("listed ones only" in note for note in annotations.notes)


def test_candidates_that_carry_the_tag_but_count_as_negatives(bare):
    positives = hidden = 0
    for query in range(90, 100):
        attribute, value = sampled_of(query)
        tag = TAGS.index((sampled(query)[ATTRIBUTES[attribute]], attribute + 1))
        for candidate in range(100, 120):
            if sampled_of(candidate)[0] == attribute and tag in tags_of(candidate):
                positives += sampled_of(candidate) == (attribute, value)
                hidden += sampled_of(candidate) != (attribute, value)
    annotations = read(bare)
    assert hidden > 0
    assert found(annotations, "test candidates with the query's tag: counted as relevant") == positives
    assert found(annotations, "test candidates with the query's tag: counted as not relevant") == hidden
    assert found(annotations, "test images whose sampled tag is among their tags") == 30


def test_the_lists_may_lie_elsewhere(tmp_path):
    make(tmp_path / "raw", images=False, lists=False)
    make(tmp_path / "lists", images=False, official=False)
    annotations = read(tmp_path / "raw", meta=tmp_path / "lists")
    assert dict(annotations.counts) == {"train": 59, "val": 30, "query": 10, "gallery": 20}
    assert labels(next(iter(annotations.splits["query"]))) == sampled(90)


def test_names_of_another_set_of_tags_are_refused(bare):
    path = bare / "Anno" / "list_attr_cloth.txt"
    path.write_text(path.read_text(encoding="utf-8-sig").replace("wrap                           3", "wrap 5"))
    with pytest.raises(ValueError, match="has 2, 2, 1, 2, 3 tags of the types 1 to 5, meta.json says 2, 2, 2, 2, 2"):
        read(bare)


# ---- end to end


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return make(tmp_path_factory.mktemp("deepfashion") / "raw")


@pytest.mark.parametrize(
    "flags", [[], ["--protocol", "all-tags"], ["--split", "official", "--crop"], ["--split", "official"]]
)
def test_prepared_data_can_be_trained_on(raw, tmp_path, flags):
    from datasets import load_dataset

    output = tmp_path / "out"
    summary = deepfashion.main(["--source", str(raw), "--output", str(output), *flags])
    assert summary.bad_rows.total == 0
    tables = load_tables(output)
    names = ATTRIBUTES + (("category",) if "official" in flags else ())
    increments = load_increments(output / "increments.json", names)
    assert [increment.attributes for increment in increments] == [(name,) for name in names]
    assert load_increments(output / "increments.json", names, key="all")[0].attributes == names
    for split, least in (("train", 2), ("val", 2), ("query", 1), ("gallery", 2)):
        check_increments(increments, tables[split], split=split, min_values=least)
    for name in names:
        codes = tables["train"].labels(name)
        assert min(Counter(codes[codes >= 0].tolist()).values()) >= 3
    first = next(iter(load_dataset(str(output), split="train", streaming=True)))
    width, height = first["image"].size
    assert (width, height) == ((18, 20) if "--crop" in flags else (24, 24)) and first["tags"]
    loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == dict(summary.counts)
    assert ("galleries" in loaded["query"].column_names) == ("official" not in flags)


def test_image_bytes_stay_as_they_are_and_images_may_lie_one_folder_deeper(tmp_path):
    raw = make(tmp_path / "raw", lists=False)
    (raw / "Img").mkdir()
    (raw / "img").rename(raw / "Img" / "img")
    deepfashion.main(["--source", str(raw), "--output", str(tmp_path / "out")])
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    rows = load_dataset(str(tmp_path / "out"), split="val", cache_dir=str(tmp_path / "cache"))
    row = rows.cast_column("image", ImageFeature(decode=False))[0]
    original = (raw / "Img" / path_of(60)).read_bytes()
    assert row["image"]["bytes"] == original and Image.open(io.BytesIO(original)).size == (24, 24)


def test_annotations_only_needs_no_image(bare, tmp_path):
    summary = deepfashion.main(["--source", str(bare), "--annotations-only"])
    assert dict(summary.counts) == {"train": 59, "val": 30, "query": 10, "gallery": 20}
    deepfashion.main(["--source", str(bare), "--annotations-only", "--output", str(tmp_path / "out")])
    assert "ASEN's lists" in (tmp_path / "out" / "README.md").read_text()
    assert list(json.loads((tmp_path / "out" / "increments.json").read_text())) == ["attributes", "all"]


# ---- the true lists


@pytest.fixture(scope="module")
def true_set():
    if not (FIXTURE / "DeepFashion").is_dir():
        pytest.skip("ASEN's lists of DeepFashion are not on this machine (shared/fixtures/asen_meta)")
    return read(FIXTURE)


def test_counts_of_the_true_lists_are_the_published_ones(true_set):
    assert dict(true_set.counts) == {"train": 0, "val": 27_625, "query": 5_525, "gallery": 22_100}
    assert true_set.bad_rows.total == 0
    compared = [check for check in true_set.checks if check.published is not None]
    assert len(compared) >= 20
    assert [(check.what, check.counted) for check in compared if check.counted != check.published] == []


def test_share_of_hidden_positives_in_the_true_lists(true_set):
    positives = found(true_set, "test candidates with the query's tag: counted as relevant")
    hidden = found(true_set, "test candidates with the query's tag: counted as not relevant")
    assert (positives, hidden) == (805_021, 603_851)
    assert round(100 * hidden / (positives + hidden), 1) == 42.9


def test_every_sampled_tag_of_the_true_lists_is_among_the_tags(true_set):
    rows = [row for split in ("val", "query", "gallery") for row in true_set.splits[split]]
    assert len(rows) == 55_250
    assert all("=".join(*labels(row).items()) in row["tags"] for row in rows)
    # 3.47 tags an image; one path of valid is listed twice, with the tags of both lines.
    assert 3.4 < sum(len(row["tags"]) for row in rows) / len(rows) < 3.5
