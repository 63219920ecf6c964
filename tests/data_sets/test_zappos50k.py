# SPDX-License-Identifier: Apache-2.0
"""UT-Zap50K: images as they are listed or found, their labels and splits, and the way to a data set."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from raw_sets.zappos50k import NO_GENDER, NO_META, NUM_IMAGES, PARTS, SEVERAL, image_id, make, values

from data_scripts import zappos50k
from data_scripts.zappos50k import read

CONDITIONS = ("class", "closure", "gender", "heel")
LIST_FILES = [f"tripletlists/{c}_tripletlist_{part}.txt" for c in CONDITIONS for part in PARTS]


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


def test_the_lists_say_which_split_an_image_is_in(annotations):
    assert ids(annotations, "train") == [image_id(i) for i in range(*PARTS["train"])]
    assert ids(annotations, "val") == [image_id(i) for i in range(*PARTS["val"])]
    assert sorted(ids(annotations, "query") + ids(annotations, "gallery")) == sorted(
        image_id(i) for i in range(*PARTS["test"])
    )
    assert annotations.counts == {"train": 24, "val": 24, "query": 13, "gallery": 35}
    assert any("left out: 4." in note for note in annotations.notes)
    assert annotations.bad_rows.total == 0


def test_images_in_no_triplet_can_be_kept_for_training(raw):
    kept = read(raw, keep_unlisted=True)
    assert ids(kept, "train")[24:] == [image_id(i) for i in range(96, NUM_IMAGES)]
    assert kept.counts == {"train": 28, "val": 24, "query": 13, "gallery": 35}


def test_query_and_gallery_do_not_depend_on_the_order_of_the_list(lists_only, annotations):
    path = lists_only / "filenames.json"
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    path.write_text("\n".join(lines[::-1]), encoding="utf-8")
    for name in LIST_FILES:
        rows = (lists_only / name).read_text().split("\n")
        mirrored = [" ".join(str(len(lines) - 1 - int(token)) for token in row.split()) for row in rows]
        (lists_only / name).write_text("\n".join(mirrored))
    mirror = read(lists_only)
    for split in ("train", "val", "query", "gallery"):
        assert sorted(ids(mirror, split)) == sorted(ids(annotations, split))


def test_every_query_has_something_to_find(annotations):
    gallery = list(annotations.splits["gallery"])
    for condition in CONDITIONS:
        found = {row["attributes"][condition] for row in gallery}
        assert {row["attributes"][condition] for row in annotations.splits["query"]} <= found


def test_a_row_has_its_path_product_and_labels(annotations, raw):
    row = list(annotations.splits["train"])[4]  # listed with ./ and the name of the folder before it
    assert row["image_id"] == "Shoes/Clogs and Mules/Hide & Seam/7002.10.jpg"
    assert row["image"].root == raw / "ut-zap50k-images"
    assert row["image"].listed == row["image_id"]
    assert row["product_id"] == "7002"
    assert row["caption"] is None
    assert row["attributes"] == {**values(4), "subcategory": "Clogs and Mules", "brand": "Hide & Seam"}
    assert row["tags"] == [
        "class=Shoes", "closure=Lace up", "gender=Women", "heel=Flat", "subcategory=Clogs and Mules",
        "brand=Hide & Seam",
    ]  # fmt: skip


def test_several_values_are_tags_and_no_label(annotations):
    rows = list(annotations.splits["train"])
    assert rows[SEVERAL]["attributes"]["closure"] is None
    assert [tag for tag in rows[SEVERAL]["tags"] if tag.startswith("closure")] == ["closure=Slip-On", "closure=Zipper"]
    assert rows[NO_GENDER]["attributes"]["gender"] is None
    assert rows[NO_GENDER]["attributes"]["heel"] == "Flat"
    assert [rows[NO_META]["attributes"][name] for name in CONDITIONS] == [values(NO_META)["class"], None, None, None]
    assert checked(annotations)["images with a line in meta-data.csv"] == NUM_IMAGES - 1


def test_rows_can_be_iterated_again(annotations):
    assert list(annotations.splits["query"]) == list(annotations.splits["query"])


def test_a_json_list_gives_the_same_as_lines(lists_only, annotations):
    path = lists_only / "filenames.json"
    path.write_text(json.dumps(path.read_text(encoding="utf-8-sig").split("\n")), encoding="utf-8")
    found = read(lists_only)
    assert found.bad_rows.counts == {"malformed": 1}  # the blank one is an item now
    for split in ("train", "gallery"):
        assert ids(found, split) == ids(annotations, split)
    assert list(found.tables["triplets"].splits["val"]) == list(annotations.tables["triplets"].splits["val"])


def test_gzipped_files_are_read_in_their_place(lists_only, annotations):
    names = ["filenames.json", "ut-zap50k-data/meta-data.csv", *LIST_FILES]
    for name in names:
        path = lists_only / name
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    found = read(lists_only)
    assert checked(found) == checked(annotations)


def test_the_folder_alone_is_split_by_hash(tmp_path):
    root = make(tmp_path / "raw", lists=False)
    junk = ("._7000.10.jpg", "Thumbs.db", ".hidden/Shoes/Oxfords/1.1.jpg", "preview.jpg")
    for name in junk:
        path = root / "ut-zap50k-images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = read(root)
    every = [image for split in found.splits for image in ids(found, split)]
    assert sorted(every) == sorted(image_id(i) for i in range(NUM_IMAGES))
    assert all(ids(found, split) == sorted(ids(found, split)) for split in found.splits)
    assert found.counts == {"train": 63, "val": 10, "query": 8, "gallery": 19}
    assert found.bad_rows.examples == {"malformed": ["preview.jpg"]}
    assert not found.tables
    assert [entry["name"] for entry in found.increments["attributes"]] == list(CONDITIONS)


def test_the_folder_without_meta_data_has_the_class_only(tmp_path):
    found = read(make(tmp_path / "raw", lists=False, meta=False))
    assert found.increments["attributes"] == [{"name": "class", "attributes": ["class"]}]


def test_the_square_images_will_do(tmp_path):
    root = make(tmp_path / "raw")
    (root / "ut-zap50k-images").rename(root / "ut-zap50k-images-square")
    found = read(root)
    assert next(iter(found.splits["train"]))["image"].root == root / "ut-zap50k-images-square"
    assert found.counts["train"] == 24


@pytest.mark.parametrize("dot", [".", "%2E", ""])
def test_a_dot_at_the_end_of_a_folder_is_found_as_it_was_unpacked(tmp_path, dot):
    root = make(tmp_path / "raw")
    for folder in (root / "ut-zap50k-images").glob("*/*/A. Nonimo%2E"):
        folder.rename(folder.with_name(f"A. Nonimo{dot}"))
    image = list(read(root).splits["train"])[2]["image"]
    assert image.listed == f"Boots/Ankle/A. Nonimo{dot}/7001.10.jpg"
    assert (image.root / image.listed).is_file()


def test_a_wrong_folder_names_all_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path)
    assert all(name in str(error.value) for name in ("filenames.json", "ut-zap50k-images", *LIST_FILES))


def test_an_incomplete_copy_names_what_is_missing(raw, tmp_path, lists_only):
    for name in LIST_FILES[:2]:
        (lists_only / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(lists_only)
    missing = str(error.value).partition("(")[0]
    assert [name for name in ("filenames.json", *LIST_FILES) if name in missing] == LIST_FILES[:2]


def test_a_list_without_any_image_is_refused(lists_only):
    (lists_only / "filenames.json").write_text("\n\n")
    with pytest.raises(ValueError, match="no image"):
        read(lists_only)


@pytest.mark.parametrize("listed", ["../../secret/a/b.jpg", "/etc/a/b/c.jpg", "Shoes/.%2e/a/b.jpg", "C:\\a\\b\\c.jpg"])
def test_a_path_that_leaves_the_folder_is_refused(lists_only, listed):
    path = lists_only / "filenames.json"
    path.write_text(path.read_text(encoding="utf-8-sig") + "\n" + listed, encoding="utf-8")
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(lists_only)


def test_a_meta_data_of_another_form_is_refused(lists_only):
    (lists_only / "ut-zap50k-data/meta-data.csv").write_text("CID,Category,Gender\n1-2,Shoes,Men\n")
    with pytest.raises(ValueError, match="missing: Closure, HeelHeight"):
        read(lists_only)


def test_the_command_writes_a_data_set_that_loads(raw, tmp_path):
    summary = zappos50k.main(
        ["--source", str(raw), "--output", str(tmp_path / "out"), "--max-triplets", "50", "9", "192"]
    )
    assert summary.counts == {"train": 24, "val": 24, "query": 13, "gallery": 35}
    assert summary.tables == {"triplets": {"train": 50, "val": 9, "query": 192}}
    assert summary.dangling["triplets"] == 0
    loaded = load_dataset(str(tmp_path / "out"))
    row = loaded["train"][2]  # in the folder whose name ends with a dot
    assert row["image_id"] == "Boots/Ankle/A. Nonimo./7001.10.jpg"
    colour = np.asarray(row["image"].convert("RGB"))[14, 4]
    assert colour.argmax() == 2  # ankle boots are drawn in blue
    rows = load_dataset(str(tmp_path / "out"), "triplets", split="query")
    assert rows[0]["condition"] == "class"
    by_id = {row["image_id"]: row for split in ("query", "gallery") for row in loaded[split].remove_columns("image")}
    first = {name: by_id[rows[0][name]]["attributes"]["class"] for name in ("anchor", "positive", "negative")}
    assert first["anchor"] == first["positive"] != first["negative"]
    streamed = load_dataset(str(tmp_path / "out"), split="gallery", streaming=True)
    assert [row["image_id"] for row in streamed] == loaded["gallery"]["image_id"]
    assert "Oxfords" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_annotations_alone_give_the_counts(lists_only, tmp_path):
    command = ["--source", str(lists_only), "--annotations-only"]
    counted = zappos50k.main(command)
    assert counted.path is None
    assert counted.tables == {"triplets": {"train": 96, "val": 96, "query": 192}}
    written = zappos50k.main([*command, "--output", str(tmp_path / "out")])
    assert written.counts == counted.counts == {"train": 24, "val": 24, "query": 13, "gallery": 35}
