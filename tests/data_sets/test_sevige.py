# SPDX-License-Identifier: Apache-2.0
import gzip
import json
from collections import Counter

import pytest
from raw_sets.sevige import make

from data_scripts.formats.stable_hash import split_by_shares
from data_scripts.sevige import GROUPS, SUPERCATEGORIES, WORDS, main, read, supercategory
from modeling_mclfir.data.increments import load_increments

SHARES = {"train": 80, "val": 5, "gallery": 15}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sevige"))


def rows(annotations):
    return {row["image_id"]: row for split in annotations.splits.values() for row in split}


def change(folder, name, function):
    """Rewrites an annotation file as `function` changes its content."""
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    function(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_row_has_the_phrases_of_the_largest_regions_each_once(source):
    assert rows(read(source))["1"] == {
        "image": (source, "VG_100K_2/1.jpg", None),
        "attributes": {"supercategory": "vehicle", "group": "street"},
        "caption": "A Car beside the café, number 1",
        "product_id": None,
        "image_id": "1",
        "captions": ["A Car beside the café, number 1", "large Car", "small Car 1"],
    }


def test_captions_per_image_is_a_limit_on_phrases_that_differ(source):
    two = rows(read(source, captions_per_image=2))["1"]
    assert two["captions"] == ["A Car beside the café, number 1", "large Car"]
    with pytest.raises(ValueError, match="captions_per_image is 0"):
        read(source, captions_per_image=0)


def test_folder_of_an_image_comes_from_its_url(source):
    listed = {row["image_id"]: row["image"].listed for row in rows(read(source)).values()}
    assert listed["2"] == "VG_100K/2.jpg"
    assert listed["3"] == "VG_100K_2/3.jpg"
    assert all((source / path).is_file() for path in listed.values())


def test_an_image_is_in_the_group_of_its_largest_objects_without_person_and_sky(source):
    found = Counter(tuple(row["attributes"].values()) for row in rows(read(source)).values())
    assert found == {
        ("vehicle", "street"): 24,
        ("building", "street"): 24,
        ("animal", "field"): 24,
        ("nature", "field"): 24,
        ("furniture", "home"): 24,
    }


def test_images_are_split_by_a_hash_of_their_id_and_every_split_has_every_group(source):
    annotations = read(source)
    assert annotations.counts == {split: len(list(each)) for split, each in annotations.splits.items()}
    assert sum(annotations.counts.values()) == 120
    for split, each in annotations.splits.items():
        assert {row["attributes"]["group"] for row in each} == set(GROUPS)
        assert all(split_by_shares(row["image_id"], SHARES) == split for row in each)


def test_checks_count_images_groups_and_what_is_left_out(source):
    checks = {check.what: (check.counted, check.published) for check in read(source).checks}
    assert checks["images"] == (122, 108_077)
    assert checks["images without a caption, left out"] == (1, None)
    assert checks["images without an object of a group, left out"] == (1, None)
    assert sum(checks[f"{split}, group {name}"][0] for split in SHARES for name in GROUPS) == 120


def test_increments_are_one_attribute_or_three_domains(source):
    annotations = read(source)
    assert load_increments(annotations.increments, annotations.attributes)[0].attributes == ("supercategory",)
    domains = load_increments(annotations.increments, annotations.attributes, key="domains")
    assert [each.name for each in domains] == list(GROUPS) == ["street", "field", "home"]


def test_card_says_that_the_rule_is_ours_and_which_it_is(source):
    text = " ".join(read(source, captions_per_image=3).notes)
    assert "not the paper's split" in text
    assert "take no part (person, sky)" in text
    assert "3 largest regions" in text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("man", "person"),
        ("Dining  Table ", "furniture"),
        ("wooden tables", "furniture"),
        ("dishes", "kitchen"),
        ("hot dog", "food"),
        ("dog", "animal"),
        ("license plate", "vehicle"),
        ("baseball bat", "sports"),
        ("glasses", "person"),
        ("bus", "vehicle"),
        ("table leg of a doohickey", None),
        ("", None),
        ("s", None),
    ],
)
def test_name_of_an_object_gives_its_super_category(name, wanted):
    assert supercategory(name) == wanted


def test_a_word_is_in_the_table_once_and_the_groups_name_each_super_category_once():
    words = [word.strip() for line in WORDS.values() for word in line.split(",")]
    assert [word for word, count in Counter(words).items() if count > 1] == []
    assert all(words)
    members = [member for group in GROUPS.values() for member in group]
    assert len(members) == len(set(members))
    assert set(SUPERCATEGORIES) - set(members) == {"person", "sky"}


def test_wrong_folder_names_all_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="image_data.json, objects.json, region_descriptions.json"):
        read(tmp_path)


def test_duplicate_malformed_and_unknown_entries_are_counted_with_their_place(tmp_path):
    make(tmp_path)
    before = rows(read(tmp_path))

    def images(content):
        content += [content[0], {"image_id": 500}, 7, {"image_id": 501, "url": "https://example.org/501.jpg"}]
        content.append({"image_id": 502, "url": "https://example.org/VG_100K/../../etc/passwd"})

    def objects(content):
        content[0]["objects"] += [{"names": ["sofa"], "w": "9", "h": 9}, {"names": [3], "w": 99, "h": 99}, None]
        content[0]["objects"].append({"names": ["sofa"], "w": 10**400, "h": 1})
        content += [content[0] | {"objects": []}, {"image_id": 900, "objects": []}, {"image_id": 1, "objects": None}]

    def regions(content):
        content[0]["regions"] += [{"phrase": None, "width": 99, "height": 99}, {"phrase": "no box"}]
        content += [{"id": 1, "regions": []}, {"regions": []}]

    for name, function in (("image_data", images), ("objects", objects), ("region_descriptions", regions)):
        change(tmp_path, f"{name}.json", function)
    annotations = read(tmp_path)
    assert annotations.bad_rows.counts == {"duplicate_id": 1, "malformed": 4}
    assert annotations.bad_rows.examples["duplicate_id"] == ["image_data.json: [122]"]
    bad = {kind: lines.counter for kind, lines in annotations.bad_lines.items()}
    assert {kind: counter.counts for kind, counter in bad.items()} == {
        "objects.json": {"duplicate_id": 1, "malformed": 1, "unknown_id": 1},
        "object": {"malformed": 4},
        "region_descriptions.json": {"duplicate_id": 1, "malformed": 1},
        "region": {"malformed": 2},
    }
    assert annotations.bad_lines["objects.json"].total == 122 + 3
    assert "objects.json: [0], objects[4]" in bad["object"].examples["malformed"]
    assert rows(annotations) == before


def test_boxes_turned_inside_out_have_no_area(tmp_path):
    make(tmp_path)

    def objects(content):
        content[0]["objects"] += [{"names": ["sofa"], "w": -99, "h": -99}, {"names": ["bed"], "w": -9, "h": 99}]

    change(tmp_path, "objects.json", objects)
    annotations = read(tmp_path)
    assert rows(annotations)["1"]["attributes"]["group"] == "street"
    assert annotations.bad_rows.total == 0


def test_boxes_of_any_size_have_an_area(tmp_path):
    make(tmp_path)
    huge = {"names": ["sofa"], "w": 10**300, "h": 10**300}
    change(tmp_path, "objects.json", lambda content: content[0]["objects"].append(huge))
    assert rows(read(tmp_path))["1"]["attributes"]["group"] == "home"


def test_first_known_one_of_several_names_counts_and_areas_are_summed(tmp_path):
    make(tmp_path)

    def objects(content):
        content[0]["objects"] += [{"names": ["gizmo", "pizza"], "w": 9, "h": 9}, {"names": ["fork"], "w": 8, "h": 8}]

    change(tmp_path, "objects.json", objects)  # 81 + 64 pixels of the home, 144 of the car
    assert rows(read(tmp_path))["1"]["attributes"] == {"supercategory": "food", "group": "home"}


def test_older_releases_call_the_image_id_id(source, tmp_path):
    make(tmp_path)

    def rename(content):
        for item in content:
            item["id"] = item.pop("image_id")

    change(tmp_path, "image_data.json", rename)
    change(tmp_path, "objects.json", rename)
    assert read(tmp_path).counts == read(source).counts


def test_gzipped_files_give_the_same_rows(source, tmp_path):
    make(tmp_path)
    path = tmp_path / "objects.json"
    (tmp_path / "objects.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert [row["attributes"] for row in rows(read(tmp_path)).values()] == [
        row["attributes"] for row in rows(read(source)).values()
    ]
    packed = (tmp_path / "objects.json.gz").read_bytes()
    for damaged in (packed[:-20], b"no gzip at all"):
        (tmp_path / "objects.json.gz").write_bytes(damaged)
        with pytest.raises((ValueError, OSError), match="objects.json.gz"):
            read(tmp_path)


def test_command_writes_what_load_dataset_and_streaming_read(source, tmp_path):
    from datasets import load_dataset

    summary = main(["--source", str(source), "--output", str(tmp_path / "out"), "--captions-per-image", "2"])
    assert sum(summary.counts.values()) == 120
    loaded = load_dataset(str(tmp_path / "out"))
    assert set(loaded) == {"train", "val", "gallery"}
    first = next(iter(load_dataset(str(tmp_path / "out"), split="train", streaming=True)))
    assert first["caption"] == first["captions"][0]
    assert len(first["captions"]) == 2
    assert first["image"].size == (24, 24)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "not the paper's split" in card
    assert "108077" in card.replace(",", "")


def test_command_does_without_images_and_takes_groups(source, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in source.glob("*.json"):
        (raw / path.name).write_bytes(path.read_bytes())
    groups = tmp_path / "groups.json"
    groups.write_text('{"a": ["vehicle"], "b": ["animal"]}')
    arguments = ["--source", str(raw), "--annotations-only", "--groups", str(groups)]
    assert sum(main(arguments).counts.values()) == 48
    assert sum(main([*arguments, "--output", str(tmp_path / "out")]).counts.values()) == 48
