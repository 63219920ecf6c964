# SPDX-License-Identifier: Apache-2.0
"""Metadata as Arrow columns: one for each name and kind of value, so that nothing is ever converted."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .store import Value

_TYPES = {"text": pa.large_string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
_KINDS = {str: "text", int: "int", float: "float", bool: "bool"}


def to_table(metadata: Sequence[Mapping[str, Value]]) -> pa.Table:
    """Checked metadata of n entries → n rows; a column KIND:NAME for every kind of value that a name occurs with."""
    names = dict.fromkeys((_kind(value), name) for entry in metadata for name, value in entry.items())
    columns = {}
    for kind, name in names:
        values = [entry.get(name) for entry in metadata]
        values = [value if value is not None and _kind(value) == kind else None for value in values]
        columns[f"{kind}:{name}"] = pa.array(values, type=_TYPES[kind])
    if not columns:
        # A table without columns has no rows either, and its length must not be lost.
        columns["none:"] = pa.nulls(len(metadata))
    return pa.table(columns)


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of all, with the columns of any, each in one piece."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


class Columns:
    """Metadata of all rows: tables one behind the other, read from disk only where they are asked for."""

    def __init__(self):
        self._starts: list[int] = []
        self._tables: list[pa.Table] = []
        self._mapped: list[bool] = []
        self.num_rows = 0

    def append(self, table: pa.Table, mapped: bool) -> None:
        """Rows of `to_table`; mapped ones stay as they are, others are put together with their like."""
        if not len(table):
            return
        self._starts.append(self.num_rows)
        self._tables.append(table)
        self.num_rows += len(table)
        self._mapped.append(mapped)
        # Sizes fall at least by half from one to the next: few tables, and each row is copied few times.
        while len(self._tables) > 1 and not any(self._mapped[-2:]):
            if len(self._tables[-2]) > 2 * len(self._tables[-1]):
                break
            self._tables[-2:] = [concat(self._tables[-2:])]
            del self._starts[-1], self._mapped[-1]

    def take_table(self, rows: np.ndarray) -> pa.Table:
        """Rows, rising, as a table."""
        bounds = np.searchsorted(rows, [*self._starts, self.num_rows])
        parts = [
            table.take(pa.array(rows[low:high] - start))
            for start, table, low, high in zip(self._starts, self._tables, bounds, bounds[1:], strict=False)
            if high > low
        ]
        return concat(parts) if parts else to_table([])

    def take(self, rows: np.ndarray) -> list[dict[str, Value]]:
        """Metadata of rows, in their order."""
        found: list[dict[str, Value]] = [{} for _ in rows]
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            part = self._tables[owner].take(pa.array(rows[places] - self._starts[owner]))
            for column in part.column_names:
                name = column.split(":", 1)[1]
                for place, value in zip(places.tolist(), part[column].to_pylist(), strict=True):
                    if value is not None:
                        found[place][name] = value
        return found

    def mask(self, wanted: Mapping[str, tuple[Value, ...]]) -> np.ndarray:
        """Which rows pass a filter of `checked_filter`: bool (num_rows,)."""
        parts = [_table_mask(table, wanted) for table in self._tables]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def _kind(value: Value) -> str:
    return _KINDS[next(kind for kind in (bool, int, float, str) if isinstance(value, kind))]


def _table_mask(table: pa.Table, wanted: Mapping[str, tuple[Value, ...]]) -> np.ndarray:
    mask = np.ones(len(table), dtype=bool)
    for name, values in wanted.items():
        found = np.zeros(len(table), dtype=bool)
        for kind in _TYPES:
            choices = _of_kind(values, kind)
            if choices and f"{kind}:{name}" in table.column_names:
                column = table[f"{kind}:{name}"]
                hits = pc.is_in(column, value_set=pa.array(choices, type=_TYPES[kind]))
                found |= hits.to_numpy()
        mask &= found
    return mask


def _of_kind(values: Sequence[Value], kind: str) -> list[Value]:
    """The values that a column of the kind can hold; numbers in both kinds of numbers, where they fit without loss."""
    if kind in ("text", "bool"):
        return [value for value in values if _kind(value) == kind]
    numbers = [value for value in values if _kind(value) in ("int", "float")]
    if kind == "float":
        return [float(value) for value in numbers if float(value) == value]
    return [int(value) for value in numbers if value == int(value) and -(2**63) <= value < 2**63]
