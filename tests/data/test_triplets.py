# SPDX-License-Identifier: Apache-2.0
"""The table of triplets, as rows of the tables of images."""

import numpy as np
import pytest
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row

from modeling_mclfir.data.annotations import Table
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.schema import TRIPLETS, table_features
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.data.triplets import load_triplets

SIZES = {"train": 8, "val": 5, "query": 4, "gallery": 6}


def triplet(condition, anchor, positive, negative):
    return {"condition": condition, "anchor": anchor, "positive": positive, "negative": negative}


LISTS = {
    "train": [
        triplet("heel", "train 0", "train 5", "train 7"),
        triplet("closing é", "train 1", "train 2", "train 3"),
        triplet("heel", "train 7", "train 0", "train 1"),
        triplet("heel", "train 0", "train 5", "train 7"),  # given twice, kept twice
        triplet("heel", "train 0", "train 99", "train 7"),
        triplet("gone", "train 0", "train 1", "val 0"),
    ],
    "query": [
        triplet("heel", "query 3", "gallery 0", "gallery 5"),
        triplet("heel", "gallery 2", "query 0", "gallery 1"),
    ],
    "val": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def rows(split):
        for i in range(SIZES[split]):
            yield {**dataset_row(i), "image_id": f"{split} {i}"}

    path = tmp_path_factory.mktemp("set") / "set"
    write_dataset(
        path,
        {split: rows(split) for split in SIZES},
        ATTRIBUTES,
        INCREMENTS,
        columns={"image_id": "string"},
        tables={"triplets": Table(table_features(TRIPLETS), LISTS)},
        name="Set",
        licence="cc0-1.0",
        progress=False,
    )
    return path


@pytest.fixture
def tables(folder):
    return load_tables(folder)


def test_triplets_are_rows_of_the_table(folder, tables):
    found = load_triplets(folder, "train", [tables["train"]])
    assert list(found) == ["heel", "closing é", "gone"], "in the order of the file"
    assert found["heel"].tolist() == [[0, 5, 7], [7, 0, 1], [0, 5, 7]]
    assert found["closing é"].tolist() == [[1, 2, 3]]
    assert all(rows.dtype == np.int64 and rows.shape[1] == 3 for rows in found.values())


def test_triplets_that_name_an_image_that_is_not_there_do_not_count(folder, tables):
    assert load_triplets(folder, "train", [tables["train"]])["gone"].shape == (0, 3)
    without = tables["train"].drop([5])
    found = load_triplets(folder, "train", [without])["heel"]
    # Rows behind the one that was left out move up by one.
    assert found.tolist() == [[6, 0, 1]]
    assert [without.image_names[row] for row in found[0]] == ["train 7", "train 0", "train 1"]


def test_rows_of_two_tables_are_counted_on(folder, tables):
    found = load_triplets(folder, "query", [tables["query"], tables["gallery"]])
    assert found["heel"].tolist() == [[3, 4, 9], [6, 0, 5]]
    turned = load_triplets(folder, "query", [tables["gallery"], tables["query"]])
    assert turned["heel"].tolist() == [[9, 0, 5], [2, 6, 1]]
    assert load_triplets(folder, "query", [tables["gallery"]])["heel"].shape == (0, 3)


def test_no_triplets_of_a_split_or_at_all(folder, tables, prepared):
    assert load_triplets(folder, "val", [tables["val"]]) == {}
    assert load_triplets(prepared, "train", [load_tables(prepared)["train"]]) == {}


def test_several_files_of_a_split_are_read_in_order(folder, tables, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = table_features(TRIPLETS).arrow_schema
    (tmp_path / "triplets").mkdir()
    for i, rows in enumerate((LISTS["train"][2:3], LISTS["train"][:1])):
        pq.write_table(
            pa.Table.from_pylist(rows, schema=schema), tmp_path / "triplets" / f"train-0000{i}-of-00002.parquet"
        )
    assert load_triplets(str(tmp_path), "train", [tables["train"]])["heel"].tolist() == [[7, 0, 1], [0, 5, 7]]


def test_images_without_names_are_told(folder, prepared):
    unnamed = load_tables(prepared)["train"]
    with pytest.raises(ValueError, match="has triplets, but its images no image_id"):
        load_triplets(folder, "train", [unnamed])
