# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row, picture

from modeling_mclfir.data.images import BadImage, BadRows
from modeling_mclfir.data.increments import check_increments, load_increments, select_rows
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.table import check_images, load_tables


def write(folder, splits, **options):
    options = {"name": "n", "licence": "l", "progress": False, "check_images": False, **options}
    return write_dataset(folder, splits, ATTRIBUTES, INCREMENTS, **options).path


def test_labels_values_and_rows(prepared):
    tables = load_tables(prepared)
    assert {split: len(tables[split]) for split in tables} == {"train": 250, "val": 10, "query": 6, "gallery": 0}
    train = tables["train"]
    assert train.attributes == ATTRIBUTES and train.split == "train"
    assert train.values("colour") == ("blue", "green", "red") and train.values("size") == ("M", "S")
    assert train.labels("size").dtype == np.int64 and train.labels("size")[:4].tolist() == [1, 0, 1, -1]
    for table, start in ((train, 0), (tables["val"], 250)):
        expected = [dataset_row(start + i) for i in range(len(table))]
        for name in ATTRIBUTES:
            values = [None if code < 0 else table.values(name)[code] for code in table.labels(name)]
            assert values == [row["attributes"][name] for row in expected]
        assert table.captions == [row["caption"] for row in expected]
        assert table.product_ids == [row["product_id"] for row in expected]
    assert tables["gallery"].labels("colour").shape == (0,) and tables["gallery"].captions == []
    assert tables["gallery"].image_ids.shape == (0,)


def test_images(prepared):
    table = load_tables(prepared)["train"]
    assert table.image_bytes(7) == dataset_row(7)["image"]
    assert table.image(7).mode == "RGB" and table.image(7).size == (24, 32)


def test_the_vocabulary_is_the_same_for_all_splits(tmp_path):
    splits = {"train": [dataset_row(0, size="M")], "query": [dataset_row(1, size="A")], "gallery": [dataset_row(2)]}
    tables = load_tables(write(tmp_path / "set", splits))
    assert {table.values("size") for table in tables.values()} == {("A", "M", "S")}
    assert [int(tables[split].labels("size")[0]) for split in splits] == [1, 0, 2]
    assert tables["val"].labels("size").shape == (0,)


def test_image_ids_tell_copies_in_all_splits(tmp_path):
    a, b = picture(1), picture(2)
    train = [{"image": image} for image in (a, b, a)]
    tables = load_tables(write(tmp_path / "set", {"train": train, "query": [{"image": b}]}))
    ids = tables["train"].image_ids
    assert ids.dtype == np.int64 and ids[0] == ids[2] != ids[1] and tables["query"].image_ids[0] == ids[1]
    assert tables["train"].select([2, 1]).image_ids.tolist() == [ids[2], ids[1]]


def test_select_and_drop(prepared):
    table = load_tables(prepared)["train"]
    part = table.select([30, 10, 20])
    assert part.captions == ["number 30", "number 10", "number 20"] and len(part) == 3 and len(table) == 250
    assert part.labels("colour").tolist() == table.labels("colour")[[30, 10, 20]].tolist()
    assert part.image_bytes(1)["path"] == "10.jpg" and part.image_ids[1] == table.image_ids[10]
    rest = part.drop([1])
    assert rest.captions == ["number 30", "number 20"] and rest.image_bytes(1)["path"] == "20.jpg"
    assert part.drop([]).captions == part.captions and len(part.select([])) == 0
    assert table.select(np.flatnonzero(table.labels("size") >= 0)).labels("size").min() == 0


def test_unknown_attribute(prepared):
    table = load_tables(prepared)["train"]
    for read in (table.labels, table.values):
        with pytest.raises(ValueError, match="no attribute 'fit'; it has: colour, size"):
            read("fit")


def test_increments_on_a_table(prepared):
    table = load_tables(prepared)["train"]
    increments = load_increments(prepared / "increments.json", table.attributes)
    check_increments(increments, table)
    (reds,) = load_increments([{"name": "red", "attribute": "colour", "values": ["red"]}], table.attributes)
    assert (table.select(select_rows(reds, table)).labels("colour") == 2).all()
    with pytest.raises(ValueError, match="the single value 'red'"):
        check_increments([reds], table)


def test_check_images(tmp_path):
    rows = [dataset_row(i) for i in range(12)]
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:400]
    rows[5]["image"] = None
    rows[7]["image"] = picture(7, size=(1, 1), kind="PNG")
    table = load_tables(write(tmp_path / "set", {"train": rows}))["train"]
    bad_rows = BadRows()
    bad = check_images(table, bad_rows, progress=False)
    assert bad == [3, 5, 7] and bad_rows.counts == {"truncated": 1, "missing": 1, "too_small": 1}
    assert bad_rows.examples["truncated"] == ["train row 3: 3.jpg"]
    with pytest.raises(BadImage):
        table.image(3)
    assert len(table.image_ids) == 12
    good = table.drop(bad)
    assert len(good) == 9 and check_images(good, BadRows(), progress=False) == []


def test_a_data_set_written_anew_is_read_anew(tmp_path):
    write(tmp_path / "set", {"train": map(dataset_row, range(5))})
    assert len(load_tables(tmp_path / "set")["train"]) == 5
    write(tmp_path / "set", {"train": map(dataset_row, range(5, 10))}, overwrite=True)
    assert load_tables(tmp_path / "set")["train"].captions[0] == "number 5"


def test_a_folder_named_like_a_format(tmp_path, monkeypatch):
    write(tmp_path / "parquet", {"train": [dataset_row(0)]})
    monkeypatch.chdir(tmp_path)
    assert len(load_tables("parquet")["train"]) == 1


def test_two_folders_of_one_name_are_two_data_sets(tmp_path):
    for start in (0, 5):
        write(tmp_path / str(start) / "set", {"train": map(dataset_row, range(start, start + 5))})
    for start in (0, 5):
        assert load_tables(tmp_path / str(start) / "set")["train"].captions[0] == f"number {start}"


def test_odd_attribute_names(tmp_path):
    names = ["sleeve length", "a.b", "Größe", "image"]
    rows = [{"image": picture(0), "attributes": dict.fromkeys(names, "x")}]
    write_dataset(tmp_path / "set", {"train": rows}, names, [], name="n", licence="l", progress=False)
    table = load_tables(tmp_path / "set")["train"]
    assert table.attributes == tuple(names) and [table.labels(name).tolist() for name in names] == [[0]] * 4


def test_no_data_set(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no prepared data set; expected a folder with data/"):
            load_tables(folder)


def test_another_schema(tmp_path):
    import pandas as pd

    (tmp_path / "data").mkdir()
    for split in ("train", "val", "query", "gallery"):
        pd.DataFrame({"image": ["a"], "label": [1]}).to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: data/{s}-*.parquet\n" for s in ("train", "val", "query", "gallery"))
        + "---\n"
    )
    with pytest.raises(ValueError, match="has the columns image, label; expected image"):
        load_tables(tmp_path)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: dev\n    path: data/val-*.parquet\n---\n"
    )
    with pytest.raises(ValueError, match="has the splits dev; expected train, val, query, gallery"):
        load_tables(tmp_path)
