# SPDX-License-Identifier: Apache-2.0
import gzip

import pytest
from raw_sets.deepfashion import (
    ATTRIBUTES,
    EMPTY_BOX,
    LABELS,
    TAGS,
    WIDE_BOX,
    labels,
    make,
    number,
    path_of,
    rows_of,
    tags_of,
)

from data_scripts.deepfashion import read


def found(annotations, what):
    return next(check.counted for check in annotations.checks if check.what == what)


@pytest.fixture
def bare(tmp_path):
    """No images: a reader needs none."""
    return make(tmp_path / "raw", images=False)


def test_official_split(bare):
    annotations = read(bare, split="official")
    rows = rows_of(annotations)
    assert annotations.attributes == (*ATTRIBUTES, "category") and annotations.bad_rows.total == 0
    assert [number(row) for row in rows["train"]] == list(range(60))
    assert [number(row) for row in rows["val"]] == list(range(60, 80))
    assert sorted(number(row) for row in rows["query"] + rows["gallery"]) == list(range(80, 120))
    assert 0 < len(rows["query"]) < 20 < len(rows["gallery"])
    for row in rows["train"] + rows["val"] + rows["query"] + rows["gallery"]:
        category = ("Tee", "Button Down", "Culottes")[number(row) % 3]
        assert row["tags"] == [*(LABELS[tag] for tag in tags_of(number(row))), f"category={category}"]
        assert {"=".join(label) for label in labels(row).items()} <= set(row["tags"])
        assert set(labels(row)) == {tag.split("=")[0] for tag in row["tags"]}
    assert set(annotations.columns) == {"tags"}


def test_official_split_with_one_tag(bare):
    rows = rows_of(read(bare, split="official", protocol="one-tag"))
    for row in rows["val"] + rows["query"] + rows["gallery"]:
        assert "category" in labels(row) and len(labels(row)) == 2
    assert rows["train"] == rows_of(read(bare, split="official"))["train"]  # to learn from, every type counts


def test_the_official_split_is_taken_where_there_are_no_lists(tmp_path):
    annotations = read(make(tmp_path, images=False, lists=False))
    assert annotations.counts["train"] == 60 and "category" in annotations.attributes
    assert [check.counted for check in annotations.checks if "first line" in check.what] == [10, 120, 3, 120, 120]
    assert found(annotations, "images without any tag") == 1


@pytest.mark.parametrize("place", ["", "Anno_coarse"])
def test_places_of_the_official_files_and_gzip(bare, place):
    for path in list((bare / "Anno").iterdir()):
        target = bare / place / f"{path.name}.gz"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read(bare, split="official", crop=True).counts["train"] == 60


def test_crop_gives_boxes_and_keeps_the_image_of_an_empty_one_whole(bare):
    annotations = read(bare, split="official", crop=True)
    boxes = {number(row): row["image"].box for row in rows_of(annotations)["train"]}
    assert boxes[0] == (2, 4, 20, 24) and boxes[WIDE_BOX] == (-5, 4, 40, 40) and boxes[EMPTY_BOX] is None
    assert any("1 boxes are empty" in note and path_of(EMPTY_BOX) in note for note in annotations.notes)
    assert annotations.bad_rows.total == 0
    assert all(row["image"].box is None for row in rows_of(read(bare, split="official"))["train"])


def test_bad_lines_are_counted_and_the_others_stay(bare):
    def append(name, *rows):
        with open(bare / name, "a", encoding="utf-8") as file:
            file.write("\n" + "\n\n".join(rows) + "\n")

    flags = " ".join(["1"] * 10)
    append("Anno/list_attr_img.txt", "img/a.jpg 1 1", f"img/b.jpg {flags} 1", f"img/c.jpg {flags[:-1]}y", "img/d.jpg")
    append("Anno/list_attr_img.txt", f"{path_of(0)} {flags}")
    append("Anno/list_category_img.txt", f"{path_of(0)} 2", "img/a.jpg 4", "img/a.jpg Tee")
    append("Eval/list_eval_partition.txt", "img/a.jpg other", f"{path_of(0)} val", "train")
    append("Anno/list_bbox.txt", "img/a.jpg 1 2 3", "img/a.jpg 1 2 x 4")
    annotations = read(bare, split="official", crop=True)
    # Of the partition alone, a line is a row.
    assert annotations.bad_rows.counts == {"malformed": 1, "duplicate": 1, "unknown_value": 1}
    bad = {kind: (lines.counter.counts, lines.total) for kind, lines in annotations.bad_lines.items()}
    assert bad == {
        "list_attr_cloth.txt": ({}, 10),
        "list_attr_img.txt": ({"malformed": 4, "duplicate": 1}, 125),
        "list_category_cloth.txt": ({}, 3),
        "list_category_img.txt": ({"unknown_value": 2, "duplicate": 1}, 123),
        "list_bbox.txt": ({"malformed": 2}, 122),
    }
    examples = annotations.bad_lines["list_attr_img.txt"].counter.examples
    assert "list_attr_img.txt line 123" in examples["malformed"]
    rows = rows_of(annotations)
    assert annotations.counts["train"] == 60 and annotations.counts["val"] == 20
    assert rows["train"][0]["tags"] == [*(LABELS[tag] for tag in tags_of(0)), "category=Tee"]


def test_tags_without_a_type_keep_their_number(bare):
    path = bare / "Anno" / "list_attr_cloth.txt"
    path.write_text(path.read_text(encoding="utf-8-sig").replace("crinkled                       2", "crinkled 9"))
    annotations = read(bare, split="official")
    assert annotations.bad_lines["list_attr_cloth.txt"].counter.counts == {"malformed": 1}
    assert not annotations.bad_rows.total
    wanted = [LABELS[tag] for tag in tags_of(1) if TAGS[tag][0] != "crinkled"]
    assert rows_of(annotations)["train"][1]["tags"] == [*wanted, "category=Button Down"]


def test_two_tags_of_one_name_and_type_stay_apart(bare):
    path = bare / "Anno" / "list_attr_cloth.txt"
    path.write_text(path.read_text(encoding="utf-8-sig").replace("felted  ", "crinkled"))
    tags = {tag for row in rows_of(read(bare))["train"] for tag in row["tags"]}
    assert {"fabric-related=crinkled", "fabric-related=crinkled (3)"} < tags and len(tags) == 10


def test_bad_lines_of_the_label_files_are_counted(bare):
    path = bare / "DeepFashion" / "label_test.txt"
    before = read(bare)
    path.write_text(path.read_text() + "3\t1\nx\t1\t0\n99\t1\t0\n0\t6\t0\t1\t10\t5\t0\n\n")
    annotations = read(bare)
    kind = "image tag"
    label_tags = annotations.bad_lines[kind]
    assert label_tags.counter.counts == {"malformed": 2, "unknown_image": 1, "unknown_value": 3}
    assert label_tags.total == before.bad_lines[kind].total + 6
    assert not annotations.bad_rows.total


# ---- mistakes of the user


def test_a_wrong_folder_names_all_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path, crop=True)
    names = [
        "Anno/list_attr_cloth.txt",
        "Anno/list_attr_img.txt",
        "Anno/list_category_cloth.txt",
        "Anno/list_bbox.txt",
    ]
    names += ["Anno/list_category_img.txt", "Eval/list_eval_partition.txt", "meta.json", "query_test.txt"]
    assert all(name in str(error.value) for name in names)
    with pytest.raises(FileNotFoundError, match="meta.json, DeepFashion/query_valid.txt"):
        read(tmp_path, split="asen")


def test_flags_without_the_names_of_the_tags_are_not_passed_over(bare):
    (bare / "Anno" / "list_attr_cloth.txt").unlink()
    with pytest.raises(FileNotFoundError, match="Anno/list_attr_cloth.txt"):
        read(bare)


def test_a_file_without_its_header_is_told(bare):
    (bare / "Eval" / "list_eval_partition.txt").write_text(f"{path_of(0)} train\n")
    with pytest.raises(ValueError, match="list_eval_partition.txt begins with 'img/(.|\n)*expected the number"):
        read(bare, split="official")


@pytest.mark.parametrize("split", ["official", "asen"])
def test_a_path_that_leaves_the_folder_is_refused(bare, split):
    name = "Eval/list_eval_partition.txt" if split == "official" else "Anno/list_attr_img.txt"
    path = bare / name
    path.write_text(path.read_text(encoding="utf-8-sig").replace(path_of(1), "../img_00000001.jpg"))
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(bare, split=split)
