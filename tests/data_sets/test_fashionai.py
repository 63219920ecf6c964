# SPDX-License-Identifier: Apache-2.0
"""FashionAI: letters to values, train as what the lists leave over, split by hash, the way to a loaded data set."""

from collections import Counter
from pathlib import Path

import pytest
from raw_sets.fashionai import SIZES, label_file, make

from data_scripts.fashionai import main, read
from data_scripts.formats.fashionai_letters import ATTRIBUTES, VALUES, read_letters

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
COUNTS = {"train": 48, "val": 48, "query": 16, "gallery": 32}
ASEN_LABEL = "fashionAI_attributes_train1/Annotations/label.csv"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("fashionai"))


def labels(row) -> dict:
    return {name: value for name, value in row["attributes"].items() if value is not None}


def checks(annotations) -> dict:
    return {check.what: check.counted for check in annotations.checks}


def test_train_is_what_the_lists_leave_over_of_both_label_files(source):
    annotations = read(source)
    assert annotations.attributes == tuple(SIZES) == ATTRIBUTES
    assert annotations.counts == COUNTS and not annotations.bad_rows.total
    rows = {split: list(items) for split, items in annotations.splits.items()}
    assert {split: len(items) for split, items in rows.items()} == COUNTS
    images = [row["image"].listed for items in rows.values() for row in items]
    assert len(set(images)) == 144
    assert {image.split("/")[0][-1] for image in images} == {"1", "2"}
    assert all(row["image"].root == source for row in rows["train"])
    assert all(len(labels(row)) == 1 for items in rows.values() for row in items)
    assert Counter(tuple(row["galleries"]) for row in rows["val"]) == {(): 16, ("val",): 32}
    assert any("in no list for validation or test" in note for note in annotations.notes)
    assert checks(annotations)["train images skirt_length"] == 6


def test_values_have_names_and_a_maybe_is_a_tag_only(source):
    train = list(read(source).splits["train"])
    assert labels(train[0]) == {"skirt_length": "short"}
    assert train[0]["tags"] == ["skirt_length=short", "skirt_length=floor"]
    assert labels(train[1]) == {"skirt_length": "knee"} and train[1]["tags"] == ["skirt_length=knee"]
    assert {name: len(values) for name, values in VALUES.items()} == SIZES


def test_train_comes_from_its_lists_where_they_are_there(source, tmp_path):
    listed = read(make(tmp_path, train=True, images=False))
    assert listed.counts == COUNTS and not listed.notes[1:]
    key = lambda row: (row["image"].listed, tuple(labels(row).items()), tuple(row["tags"]))  # noqa: E731
    assert sorted(map(key, listed.splits["train"])) == sorted(map(key, read(source).splits["train"]))


def test_the_lists_serve_without_any_label_file(tmp_path):
    source = make(tmp_path, images=False)
    for path in source.glob("fashionAI_*/Annotations/label.csv"):
        path.unlink()
    annotations = read(source)
    assert annotations.counts == COUNTS | {"train": 0}
    assert any("train is empty" in note for note in annotations.notes)
    query = next(iter(annotations.splits["query"]))
    assert query["tags"] == [f"{name}={value}" for name, value in labels(query).items()]


def test_a_label_file_that_disagrees_with_the_lists_is_told_and_the_lists_count(source, tmp_path):
    wrong = make(tmp_path, images=False)
    query = next(iter(read(wrong).splits["query"]))["image"].listed
    folder, path = query.split("/", 1)
    label_csv = wrong / folder / "Annotations" / "label.csv"
    lines = label_csv.read_text().splitlines()
    lines = [f"{path},skirt_length_labels,nnnnny" if line.startswith(path) else line for line in lines]
    gallery = [row["image"].listed for row in read(wrong).splits["gallery"] if row["image"].listed.startswith(folder)]
    lines = [line for line in lines if not line.startswith(gallery[0].split("/", 1)[1])]
    lines.append(f"{path},skirt_length_labels,nnnnyn")  # once more: a bad row, not a further disagreement
    label_csv.write_text("\n".join(lines))
    annotations = read(wrong)
    before = {row["image"].listed: labels(row) for row in read(source).splits["query"]}
    assert {row["image"].listed: labels(row) for row in annotations.splits["query"]} == before
    assert checks(annotations)["listed images with another value in label.csv, or none"] == 1
    assert checks(read(source))["listed images with another value in label.csv, or none"] == 0
    assert any("1 images have another value" in note and "; 1 are not there" in note for note in annotations.notes)
    assert annotations.counts == COUNTS and annotations.bad_rows.counts == {"duplicate": 1}


def test_wrong_lines_are_counted_by_cause_and_left_out(tmp_path):
    annotations = read(make(tmp_path, bad=True, images=False))
    assert annotations.counts == COUNTS
    assert annotations.bad_rows.counts == {
        "unknown_letter": 2,
        "wrong_length": 1,
        "no_value": 1,
        "several_values": 1,
        "unknown_attribute": 1,
        "malformed": 2,
        "duplicate": 1,
    }
    assert "fashionAI_attributes_train1" in annotations.bad_rows.examples["no_value"][0]
    assert read(tmp_path, split="hash").bad_rows.counts == annotations.bad_rows.counts


def test_with_lists_of_train_the_lines_of_the_label_files_are_no_rows(tmp_path):
    annotations = read(make(tmp_path, bad=True, train=True, images=False))
    assert annotations.counts == COUNTS and not annotations.bad_rows.total
    label_lines = annotations.bad_lines["label.csv"]
    assert label_lines.counter.total == 9 and label_lines.total == 144 + 9
    assert annotations.bad_lines["train label"] == (annotations.bad_lines["train label"].counter, 48)


def test_a_second_value_in_the_lists_of_train_is_a_tag(tmp_path):
    source = make(tmp_path, train=True, images=False)
    path = source / "FashionAI" / "label_train.txt"
    path.write_bytes(path.read_bytes() + b"0 0 2\r\n")
    first = next(iter(read(source).splits["train"]))
    assert labels(first) == {"skirt_length": "short"}
    assert first["tags"] == ["skirt_length=short", "skirt_length=knee", "skirt_length=floor"]  # the last is a maybe
    assert not read(source).bad_rows.total
    assert any("another one" in note and "column tags" in note for note in read(source).notes)


def test_without_lists_the_split_is_by_hash_of_the_file_name(tmp_path):
    first = read(make(tmp_path / "first", lists=False, images=False))
    assert sum(first.counts.values()) == 144 and all(first.counts.values())
    assert "galleries" not in first.columns
    # Lines in another order, one of them in the other folder: every image stays in its split.
    second = make(tmp_path / "second", lists=False, images=False)
    paths = [second / f"fashionAI_attributes_train{i}" / "Annotations" / "label.csv" for i in (1, 2)]
    texts = ["\n".join(reversed(path.read_text(encoding="utf-8-sig").splitlines())) for path in paths]
    for path, text in zip(paths, reversed(texts), strict=True):
        path.write_text(text)
    split_of = [
        {Path(row["image"].listed).name: split for split, rows in annotations.splits.items() for row in rows}
        for annotations in (first, read(second))
    ]
    assert split_of[0] == split_of[1] and len(split_of[0]) == 144
    assert "hash" in first.notes[0]


def test_lists_can_be_passed_over(source):
    assert checks(read(source, split="hash"))["labelled images"] == 144


def test_one_label_file_of_a_test_round_is_read_from_anywhere(tmp_path):
    path = label_file(tmp_path / "round1" / "Answers" / "labels.csv")
    annotations = read(tmp_path / "photos", labels=path)
    rows = [row for split in annotations.splits.values() for row in split]
    assert sorted(labels(row)["neck_design"] for row in rows) == ["low turtle", "ruffle semi-high", "turtle"]
    assert {row["image"].root for row in rows} == {tmp_path / "photos"}
    assert ["neck_design=ruffle semi-high", "neck_design=draped"] in [row["tags"] for row in rows]
    (tmp_path / "round1" / "Images").mkdir()
    rows = [row for split in read(tmp_path / "photos", labels=path).splits.values() for row in split]
    assert {row["image"].root for row in rows} == {tmp_path / "round1"}


def test_a_wrong_folder_names_every_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path)
    assert all(f"fashionAI_attributes_train{i}/Annotations/label.csv" in str(error.value) for i in (1, 2))
    with pytest.raises(FileNotFoundError, match="meta.json, FashionAI/query_valid.txt"):
        read(tmp_path, split="asen")
    with pytest.raises(FileNotFoundError, match="labels.csv"):
        read(tmp_path, labels=tmp_path / "labels.csv")
    with pytest.raises(ValueError, match="--labels"):
        read(tmp_path, split="asen", labels=tmp_path / "labels.csv")


@pytest.mark.parametrize("path", ["../x.jpg", "/etc/x.jpg", "Images\\..\\..\\..\\x.jpg"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, path):
    source = make(tmp_path, images=False)
    with open(source / ASEN_LABEL, "a") as file:
        file.write(f"{path},skirt_length_labels,nynnnn\n")
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(source)


def test_lists_of_other_attributes_are_refused(tmp_path):
    source = make(tmp_path, images=False)
    text = (source / "meta.json").read_text(encoding="utf-8-sig")
    (source / "meta.json").write_text(text.replace("skirt_length", "hat_size"))
    with pytest.raises(ValueError, match="hat_size.*expected.*skirt_length"):
        read(source)


def test_letters_are_read_with_blanks_around_them_and_paths_of_either_kind(tmp_path):
    path = tmp_path / "label.csv"
    path.write_text("Images\\a b.jpg , neck_design_labels, nnnmy\t\t\n")
    (row,) = read_letters(path, "train1")
    assert (row.image, row.attribute, row.value, row.maybe, row.cause) == ("train1/Images\\a b.jpg", 7, 4, (3,), None)


def test_the_command_writes_a_set_that_loads_and_streams(source, tmp_path):
    from datasets import load_dataset

    summary = main(["--source", str(source), "--output", str(tmp_path / "set")])
    assert summary.counts == COUNTS and not summary.bad_rows.total
    loaded = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == COUNTS
    first = loaded["train"][0]
    assert first["image"].size == (24, 24) and labels(first) == {"skirt_length": "short"}
    assert first["tags"] == ["skirt_length=short", "skirt_length=floor"]
    stream = load_dataset(str(tmp_path / "set"), split="gallery", streaming=True)
    assert [tuple(row["galleries"]) for row in stream] == [("test",)] * 32


def test_without_images_the_command_counts_and_writes_labels(tmp_path):
    source = make(tmp_path / "fashionai", images=False)
    assert main(["--source", str(source), "--annotations-only"]).counts == COUNTS
    output = ["--output", str(tmp_path / "set")]
    summary = main(["--source", str(source), "--annotations-only", "--split", "hash", *output])
    assert sum(summary.counts.values()) == 144


@pytest.fixture(scope="module")
def real():
    if not FIXTURES.is_dir():
        pytest.skip("the real annotations are not on this machine")
    return FIXTURES


def test_the_real_lists_give_the_published_counts(real):
    annotations = read(real / "asen_meta")
    assert annotations.counts == {"train": 0, "val": 18_000, "query": 3_600, "gallery": 14_400}
    assert not annotations.bad_rows.total
    assert not [c for c in annotations.checks if c.published is not None and c.counted != c.published]
    counted = checks(annotations)
    train = [counted[f"train labels {name}"] for name in ATTRIBUTES]
    assert train == [17_428, 24_546, 20_563, 17_199, 13_961, 12_782, 26_770, 11_086]
    # Every image lies in the folder of the attribute that the lists label it for: the ids are read rightly.
    for row in annotations.splits["gallery"]:
        assert f"/{next(iter(labels(row)))}_labels/" in row["image"].listed


def test_the_real_labels_of_the_test_round_are_read_whole(real):
    annotations = read(real, labels=real / "fashionai_s1ab_label.csv.gz")
    assert not annotations.bad_rows.total
    counted = checks(annotations)
    assert counted["labelled images"] == sum(annotations.counts.values()) == 19_818
    assert counted["labelled images with a value marked m"] == 449
    rows = [row for split in annotations.splits.values() for row in split]
    assert all(row["image"].listed.startswith(f"Images/{next(iter(labels(row)))}_labels/") for row in rows)
    assert sum(len(row["tags"]) > 1 for row in rows) == 449
