# SPDX-License-Identifier: Apache-2.0
"""Photos in Parquet files: a shop's own tables, and the data sets of data_scripts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .metadata import metadata_of
from .sources import Item, Source

ID_COLUMNS = ("id", "item_id", "image_id")
IMAGE_COLUMNS = ("image", "image_path", "path", "file")
_ROWS = 1000  # of metadata that are Python's objects at a time
_IMAGES = 32  # read at a time
_BUFFER = 2**20  # bytes


class ParquetSource(Source):
    """
    Rows of a Parquet file, of all Parquet files of a folder, or of a split of a data set of data_scripts.

    An image is bytes, a path (a relative one from the file's folder on), or a struct of `bytes` and `path`. All other
    columns are metadata, see `metadata_of`. Images are read a few at a time, and of rows that are asked for only.

    Args:
        path: file or folder.
        id_column: of the item ids, `STRUCT.FIELD` inside a struct; default: id, item_id or image_id, and of a data
            set of data_scripts without them `image.path`.
        image_column: default: image, image_path, path or file.
        split: of a data set of data_scripts: train, val, query or gallery.

    Raises:
        FileNotFoundError: no such file, no Parquet file in the folder.
        ValueError: no such split, no such column, an image column of another type.
    """

    def __init__(
        self,
        path: str | Path,
        id_column: str | None = None,
        image_column: str | None = None,
        split: str | None = None,
    ):
        self.path, self.split = Path(path).resolve(), split
        self.files = _files(self.path, split)
        schema = pq.read_schema(self.files[0])
        self.image_column = _column(schema, image_column, IMAGE_COLUMNS, "images", "--image_column", self.files[0])
        kind = schema.field(self.image_column).type
        self._is_struct = pa.types.is_struct(kind)
        if not (self._is_struct or _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(
                f"Column {self.image_column!r} of {self.files[0]} is of type {kind}; expected bytes, a path, or a "
                "struct of bytes and path. Name another one with --image_column."
            )
        fallback = ("image.path",) if split and self.image_column == "image" and self._is_struct else ()
        self.id_column = _column(schema, id_column, (*ID_COLUMNS, *fallback), "ids", "--id_column", self.files[0])

    def describe(self) -> dict[str, Any]:
        """Path, columns and split."""
        return {
            "kind": "parquet",
            "path": str(self.path),
            "id_column": self.id_column,
            "image_column": self.image_column,
            "split": self.split,
        }

    def count(self) -> int:
        """Rows of all files."""
        return sum(pq.read_metadata(file).num_rows for file in self.files)

    def items(self) -> Iterator[Item]:
        """In the order of files and rows."""
        for path in self.files:
            with pq.ParquetFile(path) as file:
                columns = self._metadata_columns(file.schema_arrow)
                for group in range(file.num_row_groups):
                    images = _Images(path, group, self.image_column)
                    yield from self._rows(file.read_row_group(group, columns=columns), path, group, images)

    def _rows(self, table: pa.Table, path: Path, group: int, images: "_Images") -> Iterator[Item]:
        number = 0
        for batch in table.to_batches(max_chunksize=_ROWS):
            for row in batch.to_pylist():
                name = row
                for part in self._id_parts(row):
                    name = None if name is None else name.get(part)
                # What an image's file was called is no metadata; a path in a column of its own is.
                columns = {key: cell for key, cell in row.items() if key not in (self.image_column, self.id_column)}
                where = f"{path} group {group} row {number}"
                name = None if name is None else str(name)
                yield Item(name, where, images.loader(number), metadata_of(columns))
                number += 1

    def _id_parts(self, row: dict) -> list[str]:
        return [self.id_column] if self.id_column in row else self.id_column.split(".")

    def _metadata_columns(self, schema: pa.Schema) -> list[str]:
        kept = [field.name for field in schema if field.name != self.image_column and _is_kept(field.type)]
        if self.id_column.split(".")[0] == self.image_column:
            kept.append(self.id_column)
        return kept


class _Images:
    """The image column of a row group, read on as far as it is asked for."""

    def __init__(self, path: Path, group: int, column: str):
        self._path, self._group, self._column = path, group, column
        self._rows: Iterator[pa.RecordBatch] | None = None
        self._file: pq.ParquetFile | None = None
        self._start, self._batch = 0, None

    def loader(self, number: int):
        """Gives the image of a row; those of rising rows cost one pass."""
        return lambda: self._row(number)

    def _row(self, number: int) -> Any:
        if self._rows is None or number < self._start:
            # Through a buffer: otherwise the images of the whole row group are read at once.
            self._file = pq.ParquetFile(self._path, buffer_size=_BUFFER, pre_buffer=False)
            self._rows = self._file.iter_batches(_IMAGES, row_groups=[self._group], columns=[self._column])
            self._start, self._batch = 0, None
        while self._batch is None or number >= self._start + len(self._batch):
            self._start += 0 if self._batch is None else len(self._batch)
            self._batch = next(self._rows)
        cell = self._batch.column(0)[number - self._start].as_py()
        if isinstance(cell, str):
            return self._path.parent / cell
        if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path") is not None:
            return self._path.parent / cell["path"]
        return cell


def _files(path: Path, split: str | None) -> list[Path]:
    if split is not None:
        files = sorted(path.glob(f"data/{split}-*.parquet"))
        there = sorted({file.name.split("-")[0] for file in path.glob("data/*.parquet")})
        if not there:
            raise FileNotFoundError(
                f"{path}: no prepared data set; expected data/*.parquet, as data_scripts write it."
            )
        if not files:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(there)}.")
        return files
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{path}: no such Parquet file, and no folder of them.")
    return files


def _column(schema: pa.Schema, given: str | None, defaults: Sequence[str], what: str, flag: str, file: Path) -> str:
    for name in defaults if given is None else (given,):
        first, *rest = name.split(".")
        inside = first in schema.names and pa.types.is_struct(schema.field(first).type)
        if name in schema.names or (rest and inside and schema.field(first).type.get_field_index(rest[0]) >= 0):
            return name
    missing = f"column {given!r}" if given is not None else f"column of {what} ({', '.join(defaults)})"
    raise ValueError(f"{file} has no {missing}; it has {', '.join(schema.names)}. Name one with {flag}.")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_kept(kind: pa.DataType) -> bool:
    """Whether there may be something in it that becomes metadata."""
    many = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_map)
    raw = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not any(check(kind) for check in (*many, *raw))
