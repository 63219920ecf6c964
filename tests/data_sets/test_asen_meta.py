# SPDX-License-Identifier: Apache-2.0
"""ASEN's lists: ids joined with paths, what is wrong in them counted, published counts found in the real ones."""

import gzip
import json
from pathlib import Path

import pytest
from raw_sets.asen_meta import make

from data_scripts.formats.asen_meta import Listed, find_lists, meta_checks, read_meta
from data_scripts.formats.asen_rows import labelled_rows, listed_splits, second_values_note
from data_scripts.formats.increment_lists import attribute_increments
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.increments import load_increments

REAL = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "asen_meta"


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path)


def read(folder, dataset="DARN"):
    bad_rows = BadRows()
    return read_meta(folder, dataset, bad_rows), bad_rows


def append(path, text):
    path.write_bytes(path.read_bytes() + text.encode())


def test_ids_of_each_part_name_the_images_of_that_part(folder):
    meta, bad_rows = read(folder)
    assert meta.attributes == ("sleeve length", "colour") and meta.num_values == (3, 2)
    assert {name: len(items) for name, items in meta.lists.items()} == {
        "train": 20,
        "query_valid": 2,
        "candidate_valid": 8,
        "query_test": 2,
        "candidate_test": 8,
    }
    assert meta.lists["candidate_valid"][2] == Listed("pic/valid/a 2.jpg", 0, 1)
    assert meta.lists["query_test"] == [Listed("pic/test/a 9.jpg", 1, 0), Listed("pic/test/a 8.jpg", 0, 0)]
    assert meta.num_images == {"valid": 10, "test": 10, "train": 10}
    assert not bad_rows.total and not meta.notes


def test_several_pairs_of_a_training_line_are_labels_of_one_image(folder):
    meta, bad_rows = read(folder)
    assert meta.lists["train"][2:4] == [Listed("pic/train/1.jpg", 0, 1), Listed("pic/train/1.jpg", 1, 1)]
    assert meta.train_pairs == (10, 10)
    splits = listed_splits(meta)
    assert {split: len(items) for split, items in splits.items()} == {"train": 10, "val": 10, "query": 2, "gallery": 8}
    assert splits["train"][1].labels == ((0, 1), (1, 1))
    assert [item.galleries for item in splits["val"]] == [()] * 2 + [("val",)] * 8
    assert {item.galleries for item in splits["gallery"]} == {("test",)}


def test_a_row_with_a_second_value_of_one_attribute_is_kept_and_not_counted_as_bad(folder):
    assert second_values_note(read(folder)[0], "") == []
    append(folder / "DARN" / "label_train.txt", "3 1 0\r\n")
    meta, bad_rows = read(folder)
    train = listed_splits(meta)["train"]
    assert len(train) == 10 and train[3].labels == ((0, 0), (1, 1), (1, 0))
    (row,) = labelled_rows(folder, meta.attributes, ["abc", "de"], train[3:4])
    assert row["attributes"] == {"sleeve length": "a", "colour": "e"}  # the first of the line
    assert not bad_rows.total and not meta.bad_lines["train label"].counter.total
    counted = {check.what: check.counted for check in meta_checks(meta, {})}
    assert counted["train labels beside another one of image and attribute"] == 1
    assert second_values_note(meta, "So.") == [
        "Train labels beside another one of the same image and attribute: 1. So."
    ]


@pytest.mark.parametrize(
    "absent", [["filenames_train.txt"], ["label_train.txt"], ["filenames_train.txt", "label_train.txt"]]
)
def test_train_needs_both_of_its_files_and_a_note_says_which_is_absent(folder, absent):
    for name in absent:
        (folder / "DARN" / name).unlink()
    meta, bad_rows = read(folder)
    assert "train" not in meta.lists and "train" not in meta.num_images
    assert all(name in meta.notes[0] for name in absent)
    # The labels can be counted without the names.
    assert meta.train_pairs == (() if "label_train.txt" in absent else (10, 10))
    assert not bad_rows.total and not listed_splits(meta)["train"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("10 0 0", "unknown_image"),
        ("-1 0 0", "unknown_image"),
        ("0 2 0", "unknown_attribute"),
        ("0 -1 0", "unknown_attribute"),
        ("0 0 3", "unknown_value"),
        ("0 1 -1", "unknown_value"),
        ("0 0", "malformed"),
        ("0 0 0 1 1", "malformed"),
        ("0 0 one", "malformed"),
        ("0 0 0", "duplicate"),
    ],
)
def test_a_wrong_line_is_counted_by_cause_with_its_place_and_left_out(folder, line, cause):
    append(folder / "DARN" / "candidate_test.txt", f"\r\n{line}")
    meta, bad_rows = read(folder)
    assert bad_rows.counts == {cause: 1}
    assert bad_rows.examples[cause][0].startswith("candidate_test.txt line 10")
    assert len(meta.lists["candidate_test"]) == 8


def test_one_wrong_pair_of_a_training_line_leaves_the_others(folder):
    append(folder / "DARN" / "label_train.txt", "9\t0\t1\t1\t5\t\t\r\n9 0 2 1\r\n")
    meta, bad_rows = read(folder)
    labels = meta.bad_lines["train label"]
    assert labels.counter.counts == {"unknown_value": 1, "malformed": 1} and labels.total == 20 + 3
    assert not bad_rows.total
    assert meta.lists["train"][-1] == Listed("pic/train/9.jpg", 0, 1)


def test_a_blank_line_among_the_names_does_not_shift_the_ids(folder):
    path = folder / "DARN" / "filenames_valid.txt"
    names = path.read_text().split("\n")
    path.write_text("\n".join([*names[:3], "", *names[4:]]))
    meta, bad_rows = read(folder)
    assert bad_rows.counts == {"unknown_image": 1}
    assert meta.lists["candidate_valid"][3] == Listed("pic/valid/a 4.jpg", 0, 0)


@pytest.mark.parametrize("below", ["", "data", "data/DARN"])
def test_the_lists_are_found_in_the_folder_in_data_and_in_their_own(tmp_path, below):
    given = tmp_path / "data" / "DARN" if below == "data/DARN" else tmp_path
    make(tmp_path / "data" if below else tmp_path)
    meta, _ = read(given)
    assert len(meta.lists["candidate_test"]) == 8
    assert meta.folder == find_lists(given, "DARN")


def test_meta_json_may_stand_beside_the_lists(folder):
    (folder / "meta.json").rename(folder / "DARN" / "meta.json")
    assert read(folder)[0].num_values == (3, 2)


def test_a_wrong_folder_is_told_with_all_that_is_missing(tmp_path, folder):
    (folder / "meta.json").unlink()
    (folder / "DARN" / "query_test.txt").unlink()
    (folder / "DARN" / "filenames_test.txt.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta.json, DARN/query_test.txt, DARN/filenames_test.txt\. "):
        read(folder)
    with pytest.raises(FileNotFoundError, match="meta.json, FashionAI/query_valid.txt.*FashionAI/filenames_test.txt"):
        read(tmp_path / "nowhere", "FashionAI")


@pytest.mark.parametrize("path", ["../../etc/passwd.jpg", "/etc/passwd.jpg", "pic\\..\\..\\x.jpg", "C:\\x.jpg"])
@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_path_that_leaves_the_folder_is_refused(folder, path, part):
    append(folder / "DARN" / f"filenames_{part}.txt", f"\n{path}")
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(folder)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"DARN": []}', '{"DARN": {"ATTRIBUTES": ["a"]}}', "not json"]
    + [json.dumps({"DARN": {"ATTRIBUTES": names, "ATTRIBUTES_NUM": {"a": size}}}) for names, size in
       ((["a", "b"], 3), (["a"], 0), (["a"], "3"), ([["a"]], 3), ("a", 3))],
)  # fmt: skip
def test_a_meta_json_of_another_form_is_told(folder, content):
    (folder / "meta.json").write_text(content)
    with pytest.raises(ValueError, match="meta.json"):
        read(folder)


def test_a_broken_gzip_file_is_told_by_name(folder):
    (folder / "DARN" / "filenames_test.txt.gz").write_bytes(gzip.compress(b"pic/a.jpg\n" * 99)[:-9])
    with pytest.raises(ValueError, match="filenames_test.txt.gz"):
        read(folder)


def test_checks_count_queries_that_no_candidate_can_answer(folder):
    append(folder / "DARN" / "query_test.txt", "0 0 2\n")
    checks = {check.what: check for check in meta_checks(read(folder)[0], {"lonely_test": 1, "test_queries": (2, 1)})}
    lonely = checks["test queries whose value no candidate has"]
    assert (lonely.counted, lonely.published) == (1, 1)
    assert checks["val queries whose value no candidate has"].counted == 0
    assert [(checks[f"test queries {n}"].counted, checks[f"test queries {n}"].published) for n in ("sleeve length", "colour")] == [(2, 2), (1, 1)]  # fmt: skip # noqa: E501


def test_increments_are_one_attribute_each_or_all_at_once_under_safe_names():
    attributes = ("clothes category", "sleeve/shape")
    content = attribute_increments(attributes)
    single = load_increments(content, attributes, key="attributes")
    assert [(i.name, i.attributes) for i in single] == [
        ("clothes_category", ("clothes category",)),
        ("sleeve_shape", ("sleeve/shape",)),
    ]
    assert [i.attributes for i in load_increments(content, attributes, key="all")] == [attributes]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real lists are not on this machine")
@pytest.mark.parametrize(
    ("dataset", "queries", "candidates", "lonely", "test_queries"),
    [
        ("FashionAI", 3_600, 14_400, (0, 0), [422, 623, 535, 422, 341, 289, 703, 265]),
        ("DARN", 4_293, 17_168, (4, 3), [476, 448, 491, 448, 463, 533, 509, 483, 442]),
        ("DeepFashion", 5_525, 22_100, (29, 23), [1008, 1483, 1097, 1022, 915]),
    ],
)
def test_the_real_lists_have_the_published_counts(dataset, queries, candidates, lonely, test_queries):
    meta, bad_rows = read(REAL, dataset)
    assert not bad_rows.total
    counted = {check.what: check.counted for check in meta_checks(meta, {})}
    for split, alone in zip(("val", "test"), lonely, strict=True):
        assert counted[f"{split} queries"] == queries and counted[f"{split} candidates"] == candidates
        assert counted[f"{split} images listed"] == queries + candidates
        assert counted[f"{split} queries whose value no candidate has"] == alone
    assert [counted[f"test queries {name}"] for name in meta.attributes] == test_queries
