# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows_for_tests import picture, write_csv

from modeling_mclfir.data.annotations import image_path
from modeling_mclfir.data.folder import read_folder, split_by_hash
from modeling_mclfir.data.prepare import write_annotations
from modeling_mclfir.data.schema import SPLITS

OPTIONS = {"caption_column": "title", "product_id_column": "product"}


def rows_of(dataset):
    return {split: list(dataset.splits[split]) for split in SPLITS}


def named(splits, name):
    (row,) = [row for rows in splits.values() for row in rows if row["image"].listed == name]
    return row


def labels_of(folder):
    lines = (folder / "labels.csv").read_text().splitlines()
    return lines[0], lines[1:]


def write_labels(folder, header, lines):
    (folder / "labels.csv").write_text("\n".join([header, *lines]) + "\n")


def test_rows_of_a_plain_folder(photos):
    dataset = read_folder(photos, **OPTIONS)
    assert dataset.attributes == ("colour", "size")
    assert dataset.increments == [{"name": "all", "attributes": ["colour", "size"]}]
    splits = rows_of(dataset)
    assert {split: len(rows) for split, rows in splits.items()} == dataset.counts
    assert sum(dataset.counts.values()) == 40 and dataset.bad_rows.total == 0
    row = named(splits, "images/3.jpg")
    assert row["image"].root == photos
    assert row["attributes"] == {"colour": "red", "size": None}  # an empty cell is no label
    assert row["caption"] == "number 3" and row["product_id"] == "1"


def test_the_split_by_hash_is_stable_and_keeps_products_together(photos):
    splits = rows_of(read_folder(photos, **OPTIONS))
    place = {row["image"].listed: split for split, rows in splits.items() for row in rows}
    assert all(place[f"images/{2 * i}.jpg"] == place[f"images/{2 * i + 1}.jpg"] for i in range(20))
    header, lines = labels_of(photos)
    write_labels(photos, header, lines[::-1])
    again = rows_of(read_folder(photos, **OPTIONS))
    assert {row["image"].listed: split for split, rows in again.items() for row in rows} == place


def test_shares_of_the_split_by_hash():
    counts = Counter(split_by_hash(str(i)) for i in range(20_000))
    assert [round(counts[split] / 200) for split in SPLITS] == pytest.approx([60, 10, 8, 22], abs=1)


def test_split_file(photos):
    write_csv(photos / "split.csv", [{"image": f"images\\{i}.jpg", "split": SPLITS[i % 4]} for i in range(30)])
    dataset = read_folder(photos, **OPTIONS)
    assert dataset.counts == {"train": 8, "val": 8, "query": 7, "gallery": 7}
    assert "10 rows are left out" in dataset.notes[0]
    assert {split: len(rows) for split, rows in rows_of(dataset).items()} == dataset.counts


def test_split_column(photos):
    header, lines = labels_of(photos)
    write_labels(photos, header + ",split", [f"{line},{SPLITS[i % 4]}" for i, line in enumerate(lines)])
    dataset = read_folder(photos, **OPTIONS)
    assert dataset.attributes == ("colour", "size") and set(dataset.counts.values()) == {10}


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"image": "images/0.jpg", "split": "test"}], "split 'test'; expected one of train, val, query, gallery"),
        ([{"image": "images/0.jpg", "split": ""}], "split None"),
        ([{"image": "images/0.jpg", "split": split} for split in SPLITS], "expected one split"),
        ([{"image": "0.jpg", "split": "val"}], "named in the split file exactly as"),
        ([{"file": "0.jpg", "split": "val"}], "no column 'image'; its columns are: file, split"),
    ],
)
def test_wrong_split_files(photos, rows, words):
    write_csv(photos / "split.csv", rows)
    with pytest.raises(ValueError) as caught:
        read_folder(photos)
    assert words in str(caught.value)


def test_a_named_split_file_must_be_there(photos):
    with pytest.raises(FileNotFoundError, match="columns image and split"):
        read_folder(photos, split="folds.csv")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"image_column": "file"}, "has no column 'file'; its columns are: image, colour, size, title, product"),
        ({"caption_column": "text"}, "has no column 'text'"),
        ({"product_id_column": "id"}, "has no column 'id'"),
        ({"attributes": ["colour", "fit"]}, "has no column 'fit'"),
        ({"increments": [{"name": "a", "attributes": ["fit"]}]}, "unknown attribute 'fit'; known: colour, size"),
        ({"known_values": {"fit": ["slim"]}}, "unknown attributes fit; known: colour, size"),
    ],
)
def test_what_is_named_must_be_there(photos, options, words):
    with pytest.raises(ValueError) as caught:
        read_folder(photos, **{**OPTIONS, **options})
    assert words in str(caught.value)


def test_no_folder_and_no_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="expected .*labels.csv or .*labels.parquet.*--labels"):
        read_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="mine.csv"):
        read_folder(tmp_path, "mine.csv")


def test_parquet_labels(photos):
    import pandas as pd

    frame = pd.read_csv(photos / "labels.csv")  # product becomes a number, a missing size NaN
    (photos / "labels.csv").unlink()
    frame.to_parquet(photos / "labels.parquet")
    splits = rows_of(read_folder(photos, **OPTIONS))
    row = named(splits, "images/3.jpg")
    assert row["attributes"] == {"colour": "red", "size": None} and row["product_id"] == "1"


def test_a_column_called_caption_has_captions(photos):
    header, lines = labels_of(photos)
    write_labels(photos, header.replace("title", "caption"), lines)
    dataset = read_folder(photos)
    assert "caption" not in dataset.attributes and not dataset.columns
    assert named(rows_of(dataset), "images/3.jpg")["caption"] == "number 3"
    # Unless it is said to be an attribute.
    assert read_folder(photos, attributes=["caption"]).attributes == ("caption",)


def test_several_captions_of_an_image(photos):
    header, lines = labels_of(photos)
    more = ["more", ""] * len(lines)
    write_labels(photos, f"{header},other", [f"{line},{text}" for line, text in zip(lines, more, strict=False)])
    dataset = read_folder(photos, caption_column=["title", "other"])
    assert {len(row["captions"]) for rows in rows_of(dataset).values() for row in rows} == {1, 2}
    row = named(rows_of(dataset), "images/4.jpg")
    assert row["caption"] == row["captions"][0] == "number 4" and row["captions"][1] == "more"
    (photos / "labels.csv").unlink()
    texts = [["a", "b", "a"], [], ["c", " "], None]
    table = pa.table({"image": [f"images/{n}.jpg" for n in range(4)], "captions": texts, "colour": ["red"] * 4})
    pq.write_table(table, photos / "labels.parquet")
    dataset = read_folder(photos)
    found = {row["image"].listed: row["captions"] for rows in rows_of(dataset).values() for row in rows}
    assert [found[f"images/{n}.jpg"] for n in range(4)] == [["a", "b"], [], ["c"], []]
    with pytest.raises(ValueError, match="captions are lists.*--caption-column"):
        read_folder(photos, caption_column=[])


def test_oddities_of_csv_files(tmp_path):
    names = ["with space.jpg", "ünï.jpg", "comma, quote.jpg", "deep/er/a.jpg", "back\\slash.jpg"]
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i))
    lines = [
        "\ufeffimage , colour,a label",
        "with space.jpg, red ,  x",
        "ünï.jpg,NA,nan",
        '"comma, quote.jpg","said ""blue""","two\nlines"',
        "",
        "deep\\er\\a.jpg,null,",
        "back\\slash.jpg,red,x,,",
    ]
    (tmp_path / "labels.csv").write_bytes("\r\n".join(lines).encode())  # and no newline at the end
    dataset = read_folder(tmp_path)
    assert dataset.attributes == ("colour", "a label")
    options = {"name": "n", "licence": "l", "progress": False}
    write_annotations(tmp_path / "out", dataset, **options)  # finds the files, whatever their names are
    rows = {}
    for path in (tmp_path / "out" / "data").glob("*.parquet"):
        rows |= {row["image"]["path"]: row["attributes"] for row in pq.read_table(path).to_pylist()}
    assert rows == {
        "with space.jpg": {"colour": "red", "a label": "x"},
        "ünï.jpg": {"colour": "NA", "a label": "nan"},  # words, not nulls
        "comma, quote.jpg": {"colour": 'said "blue"', "a label": "two\nlines"},
        "deep/er/a.jpg": {"colour": "null", "a label": None},
        "back/slash.jpg": {"colour": "red", "a label": "x"},
    }
    assert dataset.bad_rows.total == 0


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators(tmp_path, mark):
    (tmp_path / "a.jpg").write_bytes(picture(0))
    (tmp_path / "labels.csv").write_text(f"image{mark}colour\na.jpg{mark}red, dark\n")
    rows = [row for rows in rows_of(read_folder(tmp_path)).values() for row in rows]
    assert rows[0]["attributes"] == {"colour": "red, dark"}


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is empty"),
        (b"image,a,a\n", "columns of the same name: 'a'"),
        (b"image,,a\n", "column 2 has no name"),
        (b"image,a\nx.jpg,\xff\xfe\n", "is not UTF-8"),
        (b'image,a\nx.jpg,"' + b"y" * 200_000 + b'"\n', "is not a CSV file"),
    ],
)
def test_broken_csv_files(tmp_path, data, words):
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_folder(tmp_path)


def test_broken_parquet_file(tmp_path):
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["../a.jpg", "images/../../a.jpg", "/etc/passwd", "C:\\a.jpg", "..\\a.jpg", "c:a"])
def test_a_path_that_leaves_the_folder_is_refused(photos, name):
    header, lines = labels_of(photos)
    write_labels(photos, header, [*lines, f"{name},red,S,,"])
    with pytest.raises(ValueError, match="leaves the source folder"):
        read_folder(photos)


def test_image_path():
    assert str(image_path("a\\b c/d.jpg")) == "a/b c/d.jpg" and str(image_path("./a..b.jpg")) == "a..b.jpg"


def test_bad_rows_are_counted_by_cause(photos):
    (photos / "values.json").write_text(json.dumps({"colour": ["red", "blue", "green"]}))
    (photos / "images" / "5.jpg").unlink()
    header, lines = labels_of(photos)
    lines[6] = lines[6].replace("red", "reed")
    write_labels(photos, header, [*lines, "images/7.jpg,red", "images/7.jpg,red,S,t,1,more", ",red,S,t,1"])
    dataset = read_folder(photos, **OPTIONS)
    rows = rows_of(dataset)
    assert dataset.bad_rows.counts == {"missing": 1, "unknown_value": 1, "malformed": 2}
    assert dataset.bad_rows.examples["unknown_value"] == ["labels.csv row 8: colour is 'reed'"]
    assert sum(map(len, rows.values())) == sum(dataset.counts.values()) == 39
    rows_of(dataset)
    assert dataset.bad_rows.total == 4  # reading the rows counts nothing twice
    options = {"name": "n", "licence": "l", "progress": False, "max_bad_fraction": 0.2}
    summary = write_annotations(photos.parent / "out", dataset, **options)
    assert summary.bad_rows.counts["missing"] == 2 and sum(summary.counts.values()) == 38  # and the file that is gone


def test_a_label_that_is_null_is_not_unknown(photos):
    dataset = read_folder(photos, **OPTIONS, known_values={"size": ["S", "M"]})
    assert sum(map(len, rows_of(dataset).values())) == 40 and dataset.bad_rows.total == 0


def test_copies_are_left_out_and_the_first_is_kept(photos, tmp_path):
    data = (photos / "images" / "4.jpg").read_bytes()
    for i in (9, 30):
        (photos / "images" / f"{i}.jpg").write_bytes(data)
    write_csv(photos / "split.csv", [{"image": f"images/{i}.jpg", "split": "train"} for i in range(40)])
    dataset = read_folder(photos, **OPTIONS)
    options = {"name": "n", "licence": "l", "progress": False}
    summary = write_annotations(tmp_path / "out", dataset, **options)
    (path,) = (tmp_path / "out" / "data").glob("*.parquet")
    names = [row["image"]["path"] for row in pq.read_table(path).to_pylist()]
    assert len(names) == 38 and "images/4.jpg" in names and summary.duplicates == {"train": 2}
    assert "copies, the first of which is kept: 2" in (tmp_path / "out" / "README.md").read_text()
    kept = read_folder(photos, keep_duplicates=True)
    assert write_annotations(tmp_path / "all", kept, **options).counts["train"] == 40


def test_lists_in_a_column_that_is_not_asked_for(tmp_path):
    table = pa.table({"image": ["a.jpg"], "colour": ["red"], "tags": [["x", "y"]]})
    pq.write_table(table, tmp_path / "labels.parquet")
    assert read_folder(tmp_path, attributes=["colour"]).attributes == ("colour",)
    with pytest.raises(ValueError, match="the cells of tags are lists"):
        read_folder(tmp_path)


def test_lists_of_lists_are_no_captions(photos):
    (photos / "labels.csv").unlink()
    nested = pa.table({"image": ["images/0.jpg"], "captions": [[["a"], ["b"]]]})
    pq.write_table(nested, photos / "labels.parquet")
    with pytest.raises(ValueError, match="list of lists"):
        read_folder(photos)
