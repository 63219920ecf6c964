# SPDX-License-Identifier: Apache-2.0
import pytest
from datasets import load_dataset
from PIL import Image
from raw_sets.fashion200k import FOLDERS, make, photos

from data_scripts.command import run
from data_scripts.fashion200k import main, read


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("fashion200k"))


def rows_of(annotations, split):
    return {row["image_id"]: row for row in annotations.splits[split]}


def pairs_of(annotations, split):
    return list(annotations.tables["composed"].splits[split])


def checks_of(annotations):
    return {check.what: check.counted for check in annotations.checks}


def test_rows_have_category_caption_product_and_gallery(source):
    annotations = read(source)
    assert annotations.counts == {"train": 40, "gallery": 30}
    assert annotations.bad_rows.total == 0
    for split, part, galleries in (("train", "train", []), ("gallery", "test", ["test"])):
        rows = rows_of(annotations, split)
        expected = {path: (name, colour) for name in FOLDERS for path, colour, _ in photos(name, part)}
        assert rows.keys() == expected.keys()
        for image_id, (category, colour) in expected.items():
            row = rows[image_id]
            assert row["attributes"] == {"category": category}
            assert row["galleries"] == galleries
            assert row["product_id"] == image_id.split("/")[-2]
            if row["caption"] is not None:
                assert row["caption"] == f"{colour} {category}"
            assert (row["image"].root / row["image"].listed).is_file() and row["image"].box is None
    assert [row["caption"] for row in rows_of(annotations, "train").values()].count(None) == 1
    assert checks_of(annotations)["images without a caption"] == 1


def test_published_counts_stand_beside_those_found(source):
    published = {check.what: (check.counted, check.published) for check in read(source).checks}
    assert published["lines of the train label files"] == (40, 172_049)
    assert published["lines of the test label files"] == (30, 29_789)
    assert published["queries"] == (5, 33_480)


def test_increments_are_the_category_or_a_domain_for_each(source):
    increments = read(source).increments
    assert increments["attributes"] == [{"name": "category", "attributes": ["category"]}]
    assert increments["domains"][0] == {"name": "dress", "where": {"category": ["dress"]}}
    assert [entry["name"] for entry in increments["domains"]] == list(FOLDERS)


def test_given_queries_are_kept_in_order_with_the_text_of_their_captions(source):
    queries = pairs_of(read(source), "query")
    assert [(q["reference"], q["target"]) for q in queries] == [
        (photos(name, "test")[0][0], photos(name, "test")[2][0]) for name in FOLDERS
    ]
    assert {(*q["modification_texts"], q["gallery"]) for q in queries} == {("replace red with blue", "test")}
    # TIRG counts any image with the caption of the target.
    assert {q["hit"] for split in ("train", "query") for q in pairs_of(read(source), split)} == {"caption"}
    assert not any(q.get("wanted") for q in queries)
    assert len({q["query_id"] for q in queries}) == 5


def test_without_a_query_file_queries_are_drawn_from_the_test_images(tmp_path):
    (make(tmp_path) / "test_queries.txt").unlink()
    annotations = read(tmp_path)
    queries, rows = pairs_of(annotations, "query"), rows_of(annotations, "gallery")
    assert [query["reference"] for query in queries] == list(rows)
    assert checks_of(annotations)["queries, drawn for want of test_queries.txt"] == 30
    assert_one_word_differs(queries, rows)


def test_training_pairs_differ_in_one_word_and_the_text_says_which(source):
    annotations = read(source, pairs_per_image=3)
    pairs, rows = pairs_of(annotations, "train"), rows_of(annotations, "train")
    assert_one_word_differs(pairs, rows)
    references = [pair["reference"] for pair in pairs]
    assert set(references) == {image_id for image_id, row in rows.items() if row["caption"]}
    assert max(references.count(name) for name in references) == 3
    assert len({(pair["reference"], pair["target"]) for pair in pairs}) == len(pairs)


def assert_one_word_differs(pairs, rows):
    assert pairs
    for pair in pairs:
        reference, target = (rows[pair[name]]["caption"].split() for name in ("reference", "target"))
        _, old, _, new = pair["modification_texts"][0].split()
        assert reference != target
        assert target == [new if word == old else word for word in reference]


def test_pairs_are_the_same_each_time_and_others_for_another_seed(source):
    first, again, other = (pairs_of(read(source, seed=seed), "train") for seed in (0, 0, 1))
    assert first == again != other
    assert pairs_of(read(source, pairs_per_image=0), "train") == []


def test_val_takes_whole_products_and_has_its_own_gallery_and_pairs(source):
    annotations = read(source, val_fraction=0.4)
    train, val = rows_of(annotations, "train"), rows_of(annotations, "val")
    assert annotations.counts == {"train": len(train), "val": len(val), "gallery": 30}
    assert len(train) + len(val) == 40 and 4 <= len(val) <= 30
    assert not {row["product_id"] for row in train.values()} & {row["product_id"] for row in val.values()}
    assert all(row["galleries"] == ["val"] for row in val.values())
    for split, rows in (("train", train), ("val", val)):
        pairs = pairs_of(annotations, split)
        assert {pair[name] for pair in pairs for name in ("reference", "target")} <= rows.keys()
    assert {pair["gallery"] for pair in pairs_of(annotations, "val")} == {"val"}


@pytest.mark.parametrize("wrong", [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"pairs_per_image": -1}])
def test_arguments_out_of_range_are_refused(source, wrong):
    with pytest.raises(ValueError, match="expected"):
        read(source, **wrong)


def test_bad_lines_are_counted_and_cost_no_other_row(tmp_path):
    annotations = read(make(tmp_path, bad_lines=True))
    assert annotations.counts == {"train": 40, "gallery": 30}
    assert annotations.bad_rows.counts == {"malformed": 3, "duplicate": 1}
    assert "dress_train_detect_all.txt line 10" in annotations.bad_rows.examples["malformed"]
    queries = annotations.bad_lines["query"]
    assert queries.counter.counts == {"malformed": 1, "unknown_image": 1} and queries.total == 7
    assert queries.counter.examples["unknown_image"] == ["test_queries.txt line 7"]
    assert len(pairs_of(annotations, "query")) == 5


def test_a_wrong_folder_is_told_with_all_that_is_missing(tmp_path, source):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path)
    assert str(error.value).count("_detect_all.txt") == 10
    with pytest.raises(FileNotFoundError, match="detection"):
        read(_labels_only(tmp_path, source), crop=True)


def _labels_only(folder, source):
    (folder / "labels").symlink_to(source / "labels")
    return folder


@pytest.mark.parametrize("name", ["../secret.jpeg", "/etc/passwd", "women\\..\\..\\secret.jpeg", "C:\\secret.jpeg"])
def test_a_path_out_of_the_folder_is_refused(tmp_path, name):
    path = make(tmp_path) / "labels" / "jacket_test_detect_all.txt"
    path.write_text(f"{name}\t-1.0\tred jacket\n")
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(tmp_path)


def test_crop_takes_the_box_with_the_score_of_the_label_file(source, tmp_path):
    annotations = read(source, crop=True)
    # 24×32 pixels; shares 0.25 to 0.75 of the width and 0.5 to 1 of the height
    assert {row["image"].box for split in annotations.splits.values() for row in split} == {(6, 16, 18, 32)}
    assert checks_of(annotations)["images without a box, left whole"] == 0
    main([f"--source={source}", f"--output={tmp_path / 'out'}", "--crop"])
    image = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))[0]["image"]
    assert image.size == (12, 16)


def test_crop_leaves_images_without_a_box_whole_and_counts_unreadable_boxes(tmp_path):
    path = make(tmp_path) / "detection" / "women_skirt_detection.txt"
    first = photos("skirt", "train")[0][0]
    path.write_text(f"{first}\tskirt_-1.0_0.1_wide_0.3_0.4\n{first}\nwomen/other.jpeg\tskirt_-1.0_0.1_0.2_0.3_0.4\n")
    annotations = read(tmp_path, crop=True)
    assert rows_of(annotations, "train")[first]["image"].box is None
    boxes = annotations.bad_lines["detection"]
    assert boxes.counter.counts == {"malformed": 2} and boxes.counter.examples["malformed"][0].endswith("line 1")
    assert not annotations.bad_rows.total
    assert checks_of(annotations)["images without a box, left whole"] == 14


@pytest.mark.parametrize("edges", ["0.1_1e308_0.2_0.4", "-3_0.5_0.2_0.4", "0.1_0.5_0.2_40"])
def test_a_box_outside_of_the_image_is_refused_when_it_is_read(tmp_path, edges):
    path = make(tmp_path) / "detection" / "women_skirt_detection.txt"
    first = photos("skirt", "train")[0][0]
    path.write_text(f"{first}\tskirt_-1.0_{edges}\n")
    annotations = read(tmp_path, crop=True)
    assert rows_of(annotations, "train")[first]["image"].box is None
    assert annotations.bad_lines["detection"].counter.counts == {"malformed": 1}


def test_a_box_that_stands_out_by_a_hair_is_taken(tmp_path):
    path = make(tmp_path) / "detection" / "women_skirt_detection.txt"
    first = photos("skirt", "train")[0][0]
    path.write_text(f"{first}\tskirt_-1.0_-0.001_1.0000001_0.25_0.5\n")  # 24×32 pixels
    assert rows_of(read(tmp_path, crop=True), "train")[first]["image"].box == (0, 8, 24, 16)


def test_crop_follows_an_image_that_lies_on_its_side(tmp_path):
    path, _, _ = photos("dress", "train")[0]
    make(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / path, exif=exif)  # shown as 20×40
    assert rows_of(read(tmp_path, crop=True), "train")[path]["image"].box == (5, 20, 15, 40)


def test_the_command_writes_a_data_set_that_loads_and_streams(source, tmp_path):
    output = tmp_path / "out"
    summary = main([f"--source={source}", f"--output={output}", "--val-fraction=0.3"])
    counts = read(source, val_fraction=0.3).counts
    assert counts.keys() == {"train", "val", "gallery"} and summary.counts == {"query": 0, **counts}
    loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == counts
    row = next(iter(load_dataset(str(output), split="gallery", streaming=True)))
    assert row["image"].size == (24, 32)
    assert (row["image_id"], row["galleries"]) == (photos("dress", "test")[0][0], ["test"])
    files = str(output / "composed" / "query-*.parquet")
    queries = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert queries["modification_texts"][0] == ["replace red with blue"]


def test_the_counts_need_no_images(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", f"--source={_labels_only(tmp_path, source)}", "--annotations-only"])
    run(main)
    told = capsys.readouterr().err
    assert "lines of the train label files: 40  (published: 172,049 – DIFFERENT)" in told
    assert "train 40, gallery 30" in told


def test_queries_without_a_word_to_replace_are_counted_and_those_without_a_caption_left_out(tmp_path):
    first, second, _, _, _, last = (path for path, _, _ in photos("jacket", "test"))
    make(tmp_path)
    labels = tmp_path / "labels" / "jacket_test_detect_all.txt"
    labels.write_bytes(labels.read_bytes().replace(b"green jacket", b""))
    (tmp_path / "test_queries.txt").write_text(f"{first} {second}\n{first}\t{last}\n")
    annotations = read(tmp_path)
    (query,) = pairs_of(annotations, "query")
    assert query["modification_texts"] == ["replace jacket with jacket"]
    assert checks_of(annotations)["queries where a caption has no word of its own"] == 1
    assert annotations.bad_lines["query"].counter.counts == {"no_caption": 1}
    assert not annotations.bad_rows.total
