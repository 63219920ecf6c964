# SPDX-License-Identifier: Apache-2.0
"""Reads a file of labels (CSV or Parquet) row by row, whatever program wrote it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LABEL_FILES = ("labels.csv", "labels.parquet")


@dataclass(frozen=True)
class LabelFile:
    """A CSV or Parquet file with one row an image.

    Attributes:
        path: of the file.
        columns: names, in order.
        lists: those whose cells are lists; Parquet has them.
    """

    path: Path
    columns: tuple[str, ...]
    lists: frozenset[str] = frozenset()

    def rows(self) -> Iterator[tuple[str, dict[str, str | list[str] | None] | None]]:
        """
        Yields (place, cells) for every row; an empty cell is None, a malformed row is None as a whole. Cells of the
        columns in `lists` are lists of texts.
        """
        read = _parquet_rows if self.path.suffix == ".parquet" else _csv_rows
        return read(self.path, self.columns)

    def require(self, names: Sequence[str | None]) -> None:
        """Raises ValueError where a named column is not there; None is passed over."""
        missing = [name for name in names if name is not None and name not in self.columns]
        if missing:
            raise ValueError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; its columns are: "
                f"{', '.join(self.columns)}. Name the right column, or mend the file's first line."
            )


def find_labels(source: Path, labels: str | Path | None = None) -> LabelFile:
    """Opens the label file of a folder: the one given, else labels.csv or labels.parquet.

    Args:
        source: the folder.
        labels: a path, inside `source` or as it is.

    Raises:
        FileNotFoundError: the folder or the file is not there.
        ValueError: the file has no usable header.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; expected one with images and {' or '.join(LABEL_FILES)}")
    candidates = [source / name for name in LABEL_FILES] if labels is None else [source / labels, Path(labels)]
    for path in candidates:
        if path.is_file():
            return open_labels(path)
    raise FileNotFoundError(
        f"no file of labels: expected {' or '.join(map(str, dict.fromkeys(candidates)))}, one row an image; "
        "name another with --labels"
    )


def open_labels(path: Path) -> LabelFile:
    """Reads the header of a label file.

    Raises:
        ValueError: not a CSV or Parquet file, no header, or two columns of the same name.
    """
    if path.suffix not in (".csv", ".tsv", ".txt", ".parquet"):
        raise ValueError(f"{path}: expected a .csv, .tsv or .parquet file of labels")
    lists = frozenset()
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(path)
            columns = list(schema.names)
            kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_map)
            lists = frozenset(part.name for part in schema if any(kind(part.type) for kind in kinds))
        except pa.ArrowException as error:
            raise ValueError(f"{path} is not a Parquet file ({error})") from error
    else:
        columns = [name.strip() for name in _header(path)]
    if not any(columns):
        raise ValueError(f"{path} is empty; expected a first line with the names of the columns")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has columns of the same name: {', '.join(map(repr, twice))}; rename one of each")
    if "" in columns:
        raise ValueError(f"{path}: column {columns.index('') + 1} has no name; name it in the first line")
    return LabelFile(path, tuple(columns), lists)


def _delimiter(line: str) -> str:
    # A header of names separated by ";" or tabs comes out of spreadsheets; a comma is the rule.
    return max(",;\t", key=lambda mark: (line.count(mark), mark == ","))


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # utf-8-sig: spreadsheets put a BOM first
            delimiter = _delimiter(file.readline())
            file.seek(0)
            yield from csv.reader(file, delimiter=delimiter)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file ({error})") from error


def _header(path: Path) -> list[str]:
    names = next(_lines(path), [])
    while names and not names[-1].strip():  # a separator at the line's end makes no column
        names.pop()
    return names


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str | None] | None]]:
    width = len(columns)
    lines = enumerate(_lines(path), start=1)
    next(lines, None)
    for number, cells in lines:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        place = f"{path.name} row {number}"
        if len(cells) < width or any(cells[width:]):
            yield place, None
        else:
            yield place, {name: cell or None for name, cell in zip(columns, cells, strict=False)}


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str | None] | None]]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name} row {number}", {name: _text(row[name]) for name in columns}


def _text(value: object) -> str | list[str] | None:
    if isinstance(value, list):
        texts = [_text(part) for part in value]
        if any(isinstance(text, list) for text in texts):
            raise ValueError(
                f"A cell of labels is a list of lists, {str(value)[:80]}; expected texts, or lists of them."
            )
        return [text for text in texts if text is not None] or None
    if value is None or value != value:  # NaN is the null of pandas
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return str(value).strip() or None
