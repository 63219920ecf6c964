# SPDX-License-Identifier: Apache-2.0
"""The triplets of a prepared data set, as rows of its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .table import ImageTable


def load_triplets(data_dir: str | os.PathLike, split: str, tables: Sequence[ImageTable]) -> dict[str, np.ndarray]:
    """Reads the triplets of a split.

    Args:
        data_dir: a folder written by one of the data_scripts.
        split: of the table `triplets`: train, val, query.
        tables: whose images they name.

    Returns:
        attribute → int64 (T, 3): anchor, positive and negative as rows of the tables one after the other. Triplets
        that name an image which is not there (a bad one was left out) do not count. Empty where there are none.

    Raises:
        ValueError: the tables' images have no `image_id`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    paths = sorted(Path(data_dir).glob(f"triplets/{split}-*.parquet"))
    if not paths:
        return {}
    if any(table.image_names is None for table in tables):
        raise ValueError(f"{data_dir} has triplets, but its images no image_id to name them by; prepare it anew")
    names = pa.array([name for table in tables for name in table.image_names], pa.string())
    content = pa.concat_tables([pq.read_table(path) for path in paths])
    columns = [pc.index_in(content[role], value_set=names) for role in ("anchor", "positive", "negative")]
    rows = np.stack([column.fill_null(-1).to_numpy().astype(np.int64) for column in columns], axis=1)
    conditions = content["condition"].to_numpy()
    whole = (rows >= 0).all(axis=1)
    return {name: rows[whole & (conditions == name)] for name in dict.fromkeys(conditions.tolist())}
