# SPDX-License-Identifier: Apache-2.0
import gzip
import json
from collections import Counter

import pytest
from raw_sets.secoco import make

from data_scripts.formats.sequential_captions import read_groups
from data_scripts.formats.stable_hash import split_by_shares
from data_scripts.secoco import GROUPS, SUPERCATEGORIES, main, read
from modeling_mclfir.data.increments import load_increments


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("secoco"))


def rows(annotations, split):
    return list(annotations.splits[split])


def checks(annotations):
    return {check.what: check.counted for check in annotations.checks}


def change(folder, name, function):
    """Rewrites an annotation file as `function` changes its content."""
    path = folder / "annotations" / name
    content = json.loads(path.read_text(encoding="utf-8"))
    function(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_an_image_is_in_the_group_of_the_largest_object_that_is_neither_person_nor_crowd(source):
    groups = Counter(tuple(row["attributes"].values()) for row in rows(read(source), "train"))
    assert groups == {
        ("vehicle", "street"): 4,
        ("animal", "field"): 4,
        ("sports", "field"): 4,
        ("food", "home"): 4,
        ("furniture", "home"): 4,
    }


def test_a_row_has_every_caption_stripped_and_the_path_in_its_year(source):
    assert rows(read(source), "train")[1] == {
        "image": (source, "train2017/000000000010.jpg", None),
        "attributes": {"supercategory": "animal", "group": "field"},
        "caption": "A cat in a café, photo 1.",
        "product_id": None,
        "image_id": "10",
        "captions": ["A cat in a café, photo 1.", "Picture 1 of a cat"],
    }


def test_images_without_caption_or_object_of_a_group_are_left_out_and_counted(source):
    annotations = read(source)
    found = checks(annotations)
    assert found["images without a caption, left out"] == 1
    assert found["images without an object of a group, left out"] == 2
    assert not {"101", "102", "103"} & {row["image_id"] for row in rows(annotations, "train")}
    assert annotations.bad_rows.total == 0


def test_counts_stand_beside_the_published_ones_and_by_group_and_split(source):
    annotations = read(source)
    assert {check.what: (check.counted, check.published) for check in annotations.checks if check.published} == {
        "images of train2017": (23, 118_287),
        "images of val2017": (40, 5_000),
    }
    by_group = Counter(
        (split, row["attributes"]["group"]) for split in annotations.splits for row in rows(annotations, split)
    )
    assert {key: checks(annotations)[f"{key[0]}, group {key[1]}"] for key in by_group} == by_group
    assert len(by_group) == 9
    assert checks(annotations)["captions of val2017"] == 80


def test_counts_are_the_rows_and_validation_images_are_split_by_their_id(source):
    annotations = read(source)
    assert annotations.counts == {split: len(rows(annotations, split)) for split in ("train", "val", "gallery")}
    assert annotations.counts["val"] + annotations.counts["gallery"] == 40
    for split in ("val", "gallery"):
        for row in rows(annotations, split):
            assert split_by_shares(row["image_id"], {"val": 1, "gallery": 2}) == split


def test_increments_are_one_attribute_or_three_domains(source):
    annotations = read(source)
    (only,) = load_increments(annotations.increments, annotations.attributes)
    assert only.attributes == ("supercategory",)
    domains = load_increments(annotations.increments, annotations.attributes, key="domains")
    assert [(each.name, each.where["group"]) for each in domains] == [(name, (name,)) for name in GROUPS]


def test_card_says_that_the_rule_is_ours_and_which_it_is(source):
    text = " ".join(read(source).notes)
    assert "not the paper's split" in text
    assert "largest total object area" in text
    assert "take no part (person)" in text
    assert "field: animal, sports" in text


def test_groups_name_each_super_category_of_coco_but_person_once():
    members = [member for group in GROUPS.values() for member in group]
    assert len(members) == len(set(members)) == 11
    assert set(SUPERCATEGORIES) - set(members) == {"person"}


def test_other_groups_may_take_person_in(source, tmp_path):
    path = tmp_path / "groups.json"
    path.write_text('{"people": ["person"], "rest": ["vehicle", "animal"]}')
    annotations = read(source, groups=read_groups(path, SUPERCATEGORIES))
    groups = Counter(row["attributes"]["group"] for row in rows(annotations, "train"))
    assert groups == {"people": 21}  # the person is larger than any other object, and alone in one image
    assert [entry["name"] for entry in annotations.increments["domains"]] == ["people", "rest"]


def test_wrong_folder_names_all_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path)
    for kind in ("captions", "instances"):
        for part in ("train", "val"):
            assert f"annotations/{kind}_{part}2017.json" in str(error.value)
    make(tmp_path, 2014)
    (tmp_path / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: annotations/instances_val2014.json\. Mend"):
        read(tmp_path)


def test_year_is_the_one_that_is_there_2017_first(tmp_path):
    make(tmp_path, 2014)
    assert rows(read(tmp_path), "train")[0]["image"].listed == "train2014/COCO_train2014_000000000009.jpg"
    assert {check.what: check.published for check in read(tmp_path).checks}["images of val2014"] == 40_504
    make(tmp_path, 2017)
    assert rows(read(tmp_path), "train")[0]["image"].listed == "train2017/000000000009.jpg"
    assert rows(read(tmp_path, 2014), "val")[0]["image"].listed.startswith("val2014/COCO_val2014_")


def test_gzipped_and_marked_files_and_another_order_of_keys_give_the_same_rows(source, tmp_path):
    make(tmp_path)
    for part in ("train", "val"):
        path = tmp_path / "annotations" / f"captions_{part}2017.json"
        (path.parent / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        path = tmp_path / "annotations" / f"instances_{part}2017.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(dict(reversed(content.items())), indent="\t").replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n \t")
    here, there = read(source), read(tmp_path)
    for split in ("train", "val", "gallery"):
        strip = [{**row, "image": row["image"].listed} for row in rows(here, split)]
        assert [{**row, "image": row["image"].listed} for row in rows(there, split)] == strip


def test_duplicate_malformed_and_unknown_entries_are_counted_with_their_place(tmp_path):
    make(tmp_path)

    def captions(content):
        first = content["images"][0]
        content["images"] += [first | {"file_name": "other.jpg"}, {"id": "9", "file_name": "x.jpg"}, None]
        content["annotations"] += [
            content["annotations"][0],
            {"id": 900, "image_id": 9, "caption": " \n"},
            {"id": 901, "image_id": 9, "caption": None},
            {"id": 902, "image_id": 77, "caption": "of no image"},
        ]

    def instances(content):
        first = content["annotations"][0]  # a car in image 9
        content["annotations"] += [
            first | {"area": 1e9},
            first | {"id": 1, "area": "large"},
            first | {"id": 2, "area": float("nan")},
            first | {"id": 3, "area": -1},
            first | {"id": 7, "area": 10**400},
            first | {"id": 4, "iscrowd": "no"},
            first | {"id": 5, "image_id": 77},
            first | {"id": 6, "category_id": 99},
        ]
        content["categories"] += [{"id": 200, "name": "dragon", "supercategory": "myth"}, {"id": 201}]

    before = read(tmp_path)
    change(tmp_path, "captions_train2017.json", captions)
    change(tmp_path, "instances_train2017.json", instances)
    annotations = read(tmp_path)
    assert annotations.bad_rows.counts == {"duplicate_id": 1, "malformed": 2}
    assert annotations.bad_rows.examples["duplicate_id"] == ["captions_train2017.json: images[23]"]
    bad = {kind: lines.counter for kind, lines in annotations.bad_lines.items()}
    assert {kind: counter.counts for kind, counter in bad.items()} == {
        "caption": {"duplicate_id": 1, "malformed": 2, "unknown_id": 1},
        "object": {"duplicate_id": 1, "malformed": 5, "unknown_id": 2},
        "category": {"unknown_value": 1, "malformed": 1},
    }
    added = {"caption": 4, "object": 8, "category": 2}
    assert {kind: lines.total for kind, lines in annotations.bad_lines.items()} == {
        kind: lines.total + added[kind] for kind, lines in before.bad_lines.items()
    }
    assert bad["caption"].examples["duplicate_id"] == ["captions_train2017.json: annotations[42]"]
    assert bad["object"].examples["duplicate_id"] == ["instances_train2017.json: annotations[62]"]
    assert "instances_train2017.json: category 99 of image 9" in bad["object"].examples["unknown_id"]
    assert rows(annotations, "train") == rows(before, "train")


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "C:\\secret.jpg", "..\\secret.jpg"])
def test_image_path_that_leaves_the_folder_is_refused(tmp_path, name):
    make(tmp_path)
    change(tmp_path, "captions_val2017.json", lambda content: content["images"][3].update(file_name=name))
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(tmp_path)


def test_file_cut_short_or_without_a_list_is_named(tmp_path):
    make(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="instances_val2017.json is not the expected JSON"):
        read(tmp_path)
    path.write_bytes(whole)
    change(tmp_path, "instances_val2017.json", lambda content: content.pop("categories"))
    with pytest.raises(ValueError, match="instances_val2017.json has no categories"):
        read(tmp_path)


def test_command_writes_what_load_dataset_and_streaming_read(source, tmp_path):
    from datasets import load_dataset

    summary = main(["--source", str(source), "--output", str(tmp_path / "out")])
    assert summary.counts == {"train": 20, "val": 16, "query": 0, "gallery": 24}
    loaded = load_dataset(str(tmp_path / "out"))
    assert loaded["train"][0]["caption"] == "A car in a café, photo 0."
    assert loaded["train"][0]["image"].size == (24, 24)
    streamed = load_dataset(str(tmp_path / "out"), split="gallery", streaming=True)
    first = next(iter(streamed))
    assert len(first["captions"]) == 2
    assert first["captions"][0] == first["caption"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "not the paper's split" in card
    assert "gallery, group home" in card
    assert json.loads((tmp_path / "out" / "increments.json").read_text())["domains"][0]["name"] == "street"


def test_command_does_without_images_and_takes_groups(source, tmp_path):
    raw = tmp_path / "raw"
    (raw / "annotations").mkdir(parents=True)
    for path in (source / "annotations").iterdir():
        (raw / "annotations" / path.name).write_bytes(path.read_bytes())
    groups = tmp_path / "groups.json"
    groups.write_text('{"a": ["vehicle"], "b": ["animal"]}')
    arguments = ["--source", str(raw), "--annotations-only", "--year", "2017", "--groups", str(groups)]
    summary = main([*arguments, "--output", str(tmp_path / "out")])
    assert summary.counts["train"] == 8
    assert main(arguments).counts["train"] == 8
