# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of a data set that have no images: pairs of composed retrieval, triplets."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotations import Table
from .journal import flush, sha256, storable

if TYPE_CHECKING:
    from .shards import DatasetSummary

ROWS_PER_GROUP = 10_000


def write_tables(
    folder: Path, tables: Mapping[str, Table], summary: DatasetSummary, image_ids: Iterable[str] | None
) -> None:
    """Writes `folder/NAME/SPLIT-00000-of-00001.parquet` of each further table, and counts its rows.

    Args:
        image_ids: of all rows of the data set; rows of a table that name others are counted, and stay. None where
            the data set has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = None if image_ids is None else set(image_ids)
    for name, table in tables.items():
        shutil.rmtree(folder / name, ignore_errors=True)  # of an interrupted run
        (folder / name).mkdir()
        schema = table.features.arrow_schema
        summary.tables[name] = {}
        for split, rows in table.splits.items():
            path = folder / name / f"{split}-00000-of-00001.parquet"
            iterator, count = iter(rows), 0
            group = list(islice(iterator, ROWS_PER_GROUP))
            if group:  # as with splits of images, an empty one has no file
                with pq.ParquetWriter(path, schema) as writer:
                    while group:
                        rows_of_group = [{name: storable(value) for name, value in row.items()} for row in group]
                        writer.write_batch(pa.RecordBatch.from_pylist(rows_of_group, schema=schema))
                        count += len(group)
                        if known is not None:
                            absent = sum(1 for row in group if not known.issuperset(_images_named(row)))
                            summary.dangling[name] = summary.dangling.get(name, 0) + absent
                        group = list(islice(iterator, ROWS_PER_GROUP))
                flush(path)
                summary.shards[f"{name}/{path.name}"] = sha256(path)
            summary.tables[name][split] = count


def _images_named(row: Mapping[str, Any]) -> Iterator[str]:
    for name in ("reference", "target", "anchor", "positive", "negative"):
        if row.get(name) is not None:
            yield row[name]
