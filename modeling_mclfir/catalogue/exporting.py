# SPDX-License-Identifier: Apache-2.0
"""A catalogue's entries as Parquet, for other stores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..index.durable import write_file
from ..index.spaces import IndexEntries
from ..index.store import Value
from .versions import CatalogueIndex

_ROWS = 5000
_OWN = ("id", "space", "attribute", "model_revision", "fingerprint", "embed")
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def export_parquet(index: CatalogueIndex, spaces: Sequence[str], path: Path, progress: bool = True) -> int:
    """
    Write a row an item and space: id, space, attribute, model_revision, fingerprint (of what made the vector), embed
    (float32), and the metadata's columns; one that is called like these gets "metadata." before its name.

    A column whose values are of several kinds becomes text, and whole numbers beside others become floating ones.

    Returns:
        Number of rows.
    """
    types = _metadata_types(index, spaces)
    schema = pa.schema(
        [
            *[pa.field(name, pa.string()) for name in _OWN[:-1]],
            pa.field("embed", pa.list_(pa.float32())),
            *[pa.field(_column(name), kind) for name, kind in types.items()],
        ]
    )
    revisions = {entry["fingerprint"]: entry for entry in _revisions(index)}
    total, count = sum(index.num_stored(space) for space in spaces), 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        bar = tqdm(total=total, desc="exporting", unit="row", disable=not progress)
        with bar, pq.ParquetWriter(file, schema) as writer:
            for space in spaces:
                for entries in index.export(space, _ROWS):
                    writer.write_table(_table(entries, index.spaces[space].attribute, revisions, types, schema))
                    count += len(entries)
                    bar.update(len(entries))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
    return count


def _revisions(index: CatalogueIndex):
    for space in index.info()["spaces"].values():
        yield from (
            {"fingerprint": link["source"], "model_revision": link["model_revision"]} for link in space["links"]
        )
        yield from space["revisions"]


def _metadata_types(index: CatalogueIndex, spaces: Sequence[str]) -> dict[str, pa.DataType]:
    kinds: dict[str, set[type]] = {}
    for space in spaces:
        for entries in index.export(space, _ROWS):
            for columns in entries.metadata:
                for name, value in columns.items():
                    kinds.setdefault(name, set()).add(type(value))
    return {name: _type(found) for name, found in sorted(kinds.items())}


def _type(kinds: set[type]) -> pa.DataType:
    if len(kinds) == 1:
        return _TYPES[next(iter(kinds))]
    return pa.float64() if kinds == {int, float} else pa.string()


def _column(name: str) -> str:
    return f"metadata.{name}" if name in _OWN else name


def _cell(value: Value | None, kind: pa.DataType) -> Any:
    if value is None or kind != pa.string():
        return float(value) if value is not None and kind == pa.float64() else value
    return str(value)


def _table(
    entries: IndexEntries, attribute: str, revisions: dict, types: dict[str, pa.DataType], schema: pa.Schema
) -> pa.Table:
    count = len(entries)
    columns: dict[str, Any] = {
        "id": entries.ids,
        "space": [entries.space] * count,
        "attribute": [attribute] * count,
        "model_revision": [revisions.get(made_by, {}).get("model_revision") for made_by in entries.made_by],
        "fingerprint": entries.made_by,
        "embed": list(entries.embeds),
    }
    for name, kind in types.items():
        columns[_column(name)] = [_cell(metadata.get(name), kind) for metadata in entries.metadata]
    return pa.table(columns, schema=schema)
