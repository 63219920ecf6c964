# SPDX-License-Identifier: Apache-2.0
"""What the tests of joined data sets share: a made-up shop, the command, and rows as the files have them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from raw_sets.myntra_shoes import make

from data_scripts import joined, myntra
from modeling_mclfir.data import shards

SHOP = {
    "attributes": [
        {"name": "type", "attributes": ["gender", "subCategory"]},
        {"name": "colour", "attributes": ["baseColour", "articleType"]},
    ],
    "values": [
        {"name": "shoes", "attribute": "articleType", "where": {"subCategory": ["Shoes"], "gender_not": ["Boys"]}},
        {"name": "flat", "attribute": "articleType", "values": ["Sandals", "Flip Flops"]},
    ],
    "domains": [{"name": "footwear", "where": {"masterCategory": ["Footwear"]}}],
}


def prepare_shop(folder: Path) -> Path:
    """Made-up products: 27 train, 21 val, 15 query and 27 gallery photos in groups of 10, captions, product ids."""
    source = make(folder / "raw")
    (source / "increments.json").write_text(json.dumps(SHOP))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_GROUP", 10)
        summary = myntra.main(["--source", str(source), "--output", str(folder / "set")])
    assert summary.counts == {"train": 27, "val": 21, "query": 15, "gallery": 27}
    return folder / "set"


def command(*flags, sources, output):
    return joined.main([*flags, "--sources", *map(str, sources), "--output", str(output)])


def raw_rows(folder: Path, split: str) -> list[dict]:
    paths = sorted(folder.glob(f"data/{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
