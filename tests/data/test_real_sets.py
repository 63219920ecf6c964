# SPDX-License-Identifier: Apache-2.0
"""The two real photo sets beside the project; skipped where they are not."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_scripts import myntra, stanford_clothing
from modeling_mclfir.data.increments import check_increments, count_outside, load_increments, select_rows
from modeling_mclfir.data.streams import open_stream
from modeling_mclfir.data.table import load_tables

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
STANFORD, MYNTRA = SHARED / "stanford_clothing_attributes", SHARED / "myntra"


def needs(folder):
    return pytest.mark.skipif(not (folder / "labels.csv").is_file(), reason=f"{folder} is not there")


def labels_by_hand(folder):
    """image → labels of the rows in the split file, read without our code."""
    with open(folder / "split.csv", newline="", encoding="utf-8") as file:
        splits = {row["image"]: row["split"] for row in csv.DictReader(file)}
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        return {row["image"]: (splits[row["image"]], row) for row in csv.DictReader(file) if row["image"] in splits}


def compare(tables, expected):
    for split, table in tables.items():
        rows = [row for name, row in expected.values() if name == split]
        assert [table.image_bytes(i)["path"] for i in (0, len(table) - 1)] == [rows[0]["image"], rows[-1]["image"]]
        for attribute in table.attributes:
            codes, names = table.labels(attribute), table.values(attribute)
            assert [names[code] if code >= 0 else "" for code in codes] == [row[attribute] for row in rows]


@needs(STANFORD)
def test_stanford(tmp_path):
    summary = stanford_clothing.main(["--source", str(STANFORD), "--output", str(tmp_path / "stanford")])
    assert summary.counts == {"train": 894, "val": 188, "query": 231, "gallery": 493}
    assert summary.bad_rows.total == 0 and len(summary.attributes) == 26
    tables = load_tables(tmp_path / "stanford")
    compare(tables, labels_by_hand(STANFORD))
    train = tables["train"]
    assert Counter(len(train.values(name)) for name in train.attributes) == {2: 23, 3: 2, 7: 1}
    assert len(np.unique(np.concatenate([table.image_ids for table in tables.values()]))) == 1806
    assert train.image(0).mode == "RGB"
    increments = load_increments(tmp_path / "stanford" / "increments.json", train.attributes)
    assert [len(increment.attributes) for increment in increments] == [5, 4, 6, 5, 6]
    check_increments(increments, train)
    for split in ("val", "query", "gallery"):
        check_increments(increments, tables[split], split=split, min_values=1)
    for split, rows in summary.counts.items():
        paths = {row["image"]["path"] for row in open_stream(tmp_path / "stanford", split, shuffle_buffer=50)}
        assert len(paths) == rows


@needs(MYNTRA)
def test_myntra(tmp_path):
    summary = myntra.main(["--source", str(MYNTRA), "--output", str(tmp_path / "myntra")])
    assert summary.counts == {"train": 6567, "val": 1012, "query": 368, "gallery": 1514}
    assert summary.bad_rows.total == 0 and sum(summary.null_counts.values()) == 0  # NA is a value
    tables = load_tables(tmp_path / "myntra")
    expected = labels_by_hand(MYNTRA)
    compare(tables, expected)
    rows = [row for split, row in expected.values() if split == "query"]
    assert tables["query"].captions == [row["productDisplayName"].strip() for row in rows]
    assert tables["query"].product_ids == [row["id"] for row in rows]
    assert "NA" in tables["train"].values("baseColour")
    train, path = tables["train"], tmp_path / "myntra" / "increments.json"
    sizes = {}
    for key in ("attributes", "values", "domains"):
        increments = load_increments(path, train.attributes, key=key)
        check_increments(increments, train)
        sizes[key] = [len(select_rows(increment, train)) for increment in increments]
        assert count_outside(increments, train) == (0 if key == "attributes" else 34)
    assert sizes == {"attributes": [6567] * 4, "values": [2962, 628, 1471, 1472], "domains": [2962, 628, 1471, 1472]}
