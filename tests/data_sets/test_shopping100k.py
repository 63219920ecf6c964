# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from datasets import load_dataset
from raw_sets.shopping100k import SIZES, SPORT, TEST, TRAIN, image_name, indicator, make, row, values

from data_scripts.command import run
from data_scripts.shopping100k import main, read

NAMES = (
    "category", "collar", "color", "fabric", "fastening", "fit", "gender", "neckline", "pattern", "pocket", "sleeve",
    "sport",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shopping100k"))


def labels(number):
    return {name: None if value is None else str(value) for name, value in zip(NAMES, values(number), strict=True)}


def tags(number):
    return [f"{name}={value}" for name, value in labels(number).items() if value is not None]


def hits(annotations, query):
    """By the rule of `hit`: the images whose labels are just what is wanted."""
    return [item["image_id"] for item in annotations.splits["gallery"] if set(item["tags"]) == set(query["wanted"])]


def queries_of(annotations, split="query"):
    return list(annotations.tables["composed"].splits[split])


def test_rows_have_a_value_of_each_attribute_or_none(source):
    annotations = read(source)
    assert annotations.attributes == NAMES
    assert annotations.counts == {"train": TRAIN, "gallery": TEST}
    assert annotations.bad_rows.total == 0
    for split, part, galleries in (("train", "train", []), ("gallery", "test", ["test"])):
        rows = list(annotations.splits[split])
        assert [row["image_id"] for row in rows] == [image_name(part, i) for i in range(annotations.counts[split])]
        for number, found in enumerate(rows):
            assert found["attributes"] == labels(number)
            assert list(found["tags"]) == tags(number)
            assert found["galleries"] == galleries
            assert (found["image"].root / found["image"].listed).is_file()


def test_published_counts_stand_beside_those_found(source):
    checks = {check.what: (check.counted, check.published) for check in read(source).checks}
    assert checks["attributes"] == (12, 12)
    assert checks["values of all attributes"] == (151, 151)
    assert checks["lines of labels_train.txt"] == (TRAIN, 80_586)
    assert checks["lines of labels_test.txt"] == (TEST, 20_000)
    assert checks["queries"] == (4, 14_361)
    assert checks["queries that remove a value"] == (3, 11_334)
    assert checks["queries whose wanted row no test image has"] == (0, None)
    assert checks["queries whose change leads from the reference to another row than the wanted one"] == (0, None)
    assert checks["images with several values of an attribute"] == (0, None)


def test_queries_say_what_changes_and_what_is_wanted(source):
    queries = queries_of(read(source))
    assert [(q["reference"], q["modification_texts"], q["wanted"]) for q in queries] == [
        (image_name("test", 0), ["category: replace 0 with 1"], tuple(tags(1))),
        (image_name("test", 0), ["collar: replace 0 with 1"], tuple(tags(2))),
        (image_name("test", 16), ["sport: remove 3"], tuple(tags(0))),
        (image_name("test", 0), ["sport: add 3"], tuple(tags(16))),
    ]
    assert all((q["target"], q["gallery"], q["hit"]) == (None, "test", "wanted") for q in queries)
    # Image 16 is image 0 with a sport: its row is more than what is wanted without one.
    found = [hits(read(source), query) for query in queries]
    assert found[2:] == [[image_name("test", 0)], [image_name("test", 16)]]
    assert len({q["query_id"] for q in queries}) == 4


def test_several_changes_are_joined(tmp_path):
    path = make(tmp_path) / "splits/Shopping100k/indfull_test.txt"
    lines = path.read_text().splitlines()
    both = [max(a, b, key=abs) for a, b in zip(*(map(int, indicator(i, 0, 1).split()) for i in (0, 2)), strict=True)]
    both[SIZES[0] - 1] = 1
    path.write_text("\n".join([" ".join(map(str, both)), *lines[1:]]))
    first = queries_of(read(tmp_path))[0]
    assert first["modification_texts"] == ["category: remove 0, add 1, add 15; color: replace 0 with 1"]


def test_triplets_are_training_pairs_that_keep_their_negative(source, tmp_path):
    train = queries_of(read(source), "train")
    assert {(q["hit"], q.get("wanted")) for q in train} == {("target", None)}
    assert [(q["reference"], q["target"], q["negative"], *q["modification_texts"]) for q in train] == [
        (image_name("train", 0), image_name("train", 1), image_name("train", 2), "category: replace 0 with 1"),
        (image_name("train", 1), image_name("train", 3), image_name("train", 0), "collar: replace 0 with 1"),
    ]
    (make(tmp_path) / "splits/Shopping100k/triplet_train_ind.txt").unlink()
    table = read(tmp_path).tables["composed"]
    assert list(table.splits) == ["query"] and "negative" not in table.features


def test_increments_are_one_an_attribute_or_all_at_once(source):
    increments = read(source).increments
    assert increments["attributes"][SPORT] == {"name": "sport", "attributes": ["sport"]}
    assert increments["all"] == [{"name": "all", "attributes": list(NAMES)}]


@pytest.mark.parametrize("place", ["splits/Shopping100k", "Shopping100k", "."])
def test_the_splits_are_found_in_their_places(tmp_path, place):
    assert read(make(tmp_path, place=place)).counts == {"train": TRAIN, "gallery": TEST}


def test_names_are_taken_from_a_file_where_there_is_one(tmp_path):
    make(tmp_path)
    names = {f"kind {i}": [f"value {j} of {i}" for j in range(size)] for i, size in enumerate(SIZES)}
    path = tmp_path / "attributes.json"
    path.write_text(json.dumps(names))
    annotations = read(tmp_path)
    assert annotations.attributes == tuple(names)
    assert annotations.increments["attributes"][1] == {"name": "kind_1", "attributes": ["kind 1"]}
    assert queries_of(annotations)[0]["modification_texts"] == ["kind 0: replace value 0 of 0 with value 1 of 0"]
    for wrong in ({"kind 0": ["a"]}, ["a"], {**names, "kind 0": ["same"] * SIZES[0]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="does not fit attr_num.txt"):
            read(tmp_path)


def test_attributes_of_other_numbers_are_numbered(tmp_path):
    (make(tmp_path) / "splits/Shopping100k/attr_num.txt").write_text("33 118")
    assert read(tmp_path).attributes == ("attribute_01", "attribute_02")


def test_bad_lines_are_counted_and_line_numbers_still_fit(tmp_path):
    annotations = read(make(tmp_path, bad_lines=True))
    assert annotations.counts == {"train": TRAIN + 1, "gallery": TEST + 1}
    assert annotations.bad_rows.counts == {"malformed": 4, "duplicate": 2}
    queries, triplets = annotations.bad_lines["query"], annotations.bad_lines["triplet"]
    assert queries.counter.counts == {"malformed": 2, "unknown_image": 3} and queries.total == 9
    assert triplets.counter.counts == {"malformed": 1, "unknown_image": 1} and triplets.total == 4
    assert "ref_test.txt line 5" in queries.counter.examples["unknown_image"]
    assert len(queries_of(annotations)) == 4 and len(queries_of(annotations, "train")) == 2


def test_an_image_with_several_values_is_kept_with_all_of_them_and_can_be_found(tmp_path):
    path = make(tmp_path, bad_lines=True) / "splits/Shopping100k/gt_test.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([row(values(1)).replace("1 0", "1 1", 1), *rows[1:]]))
    annotations = read(tmp_path)
    for split in ("train", "gallery"):
        several = list(annotations.splits[split])[-1]
        assert several["attributes"] == {**labels(1), "category": None}
        assert list(several["tags"]) == ["category=1", "category=2", *tags(1)[1:]]
    assert "several_values" not in annotations.bad_rows.counts
    counted = {check.what: check.counted for check in annotations.checks}
    assert counted["images with several values of an attribute"] == 2
    assert counted["queries whose wanted row no test image has"] == 0
    assert hits(annotations, queries_of(annotations)[0]) == ["test several.jpg"]
    assert counted["queries whose change leads from the reference to another row than the wanted one"] == 1


def test_the_command_goes_on_where_images_have_several_values(tmp_path):
    path = make(tmp_path / "raw") / "splits/Shopping100k/labels_test.txt"
    path.write_text("\n".join(line.replace("1 0", "1 1", 1) for line in path.read_text().splitlines()))
    summary = main([f"--source={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}"])
    assert summary.counts["gallery"] == TEST and not summary.bad_rows.total


@pytest.mark.parametrize("cell", ["9" * 5000, "9" * 30])
def test_a_line_number_of_thousands_of_digits_is_an_unknown_image(tmp_path, cell):
    path = make(tmp_path) / "splits/Shopping100k/ref_test.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([cell, *lines[1:]]))
    queries = read(tmp_path).bad_lines["query"].counter
    assert queries.counts == {"unknown_image": 1} and queries.examples["unknown_image"] == ["ref_test.txt line 1"]


def test_a_number_of_values_of_thousands_of_digits_is_told_by_file(tmp_path):
    (make(tmp_path) / "splits/Shopping100k/attr_num.txt").write_text("9" * 5000)
    with pytest.raises(ValueError, match="attr_num.txt"):
        read(tmp_path)


def test_a_wrong_folder_is_told_with_all_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path)
    for name in ("attr_num", "imgs_train", "imgs_test", "labels_train", "labels_test", "ref_test", "indfull_test"):
        assert f"{name}.txt" in str(error.value)


def test_files_of_different_lengths_are_refused(tmp_path):
    path = make(tmp_path) / "splits/Shopping100k/gt_test.txt"
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="different numbers of lines"):
        read(tmp_path)


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    path = make(tmp_path) / "splits/Shopping100k/attr_num.txt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:96b92952\nsize 33\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a\\..\\..\\secret.jpg"])
def test_a_path_out_of_the_folder_is_refused(tmp_path, name):
    path = make(tmp_path) / "splits/Shopping100k/imgs_test.txt"
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    path.write_text("\n".join([*lines[:-1], name]), encoding="utf-8")
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(tmp_path)


def test_the_images_may_lie_elsewhere(source, tmp_path):
    (tmp_path / "splits").symlink_to(source / "splits")
    assert main([f"--source={tmp_path}", "--annotations-only"]).counts == {"train": TRAIN, "gallery": TEST}
    images = source / "Images"
    summary = main([f"--source={tmp_path}", f"--images={images}", f"--output={tmp_path / 'out'}"])
    assert summary.counts["train"] == TRAIN and not summary.bad_rows.total


def test_the_command_writes_a_data_set_that_loads_and_streams(source, tmp_path):
    output = tmp_path / "out"
    main([f"--source={source}", f"--output={output}"])
    loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": TRAIN, "gallery": TEST}
    found = list(load_dataset(str(output), split="gallery", streaming=True))[16]
    assert found["image"].size == (24, 24) and found["attributes"] == labels(16) and found["tags"] == tags(16)
    files = str(output / "composed" / "query-*.parquet")
    queries = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert queries["wanted"][3] == tags(16) and set(queries["hit"]) == {"wanted"}


def test_the_command_tells_the_counts(source, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", f"--source={source}", "--annotations-only"])
    run(main)
    told = capsys.readouterr().err
    assert "values of all attributes: 151  (published: 151)" in told
    assert "queries: 4  (published: 14,361 – DIFFERENT)" in told
