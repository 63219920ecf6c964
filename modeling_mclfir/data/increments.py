# SPDX-License-Identifier: Apache-2.0
"""Increments: what is new (attributes, values of a known attribute, a domain) and which rows it is learned from."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .increment_entries import Increment, check_sequence, parse_entry

DEFAULT_KEY = "attributes"


class LabelColumns(Protocol):
    """What an increment needs of a table of labels (`ImageTable` has it)."""

    attributes: tuple[str, ...]

    def __len__(self) -> int: ...
    def labels(self, attribute: str) -> np.ndarray: ...  # noqa: D102
    def values(self, attribute: str) -> tuple[str, ...]: ...  # noqa: D102


def read_increments_json(source: str | os.PathLike | Sequence | Mapping) -> Any:
    """The plain content of an increments.json, or what is given where it is content already.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON.
    """
    if not isinstance(source, str | os.PathLike):
        if isinstance(source, Mapping):
            return {key: read_increments_json(entries) for key, entries in source.items()}
        return [entry.to_dict() if isinstance(entry, Increment) else entry for entry in source]
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected an increments.json, such as "
            '[{"name": "shape", "attributes": ["category", "gender"]}, {"name": "colour", "attributes": ["colour"]}]'
        )
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); expected a list of increments, UTF-8") from error


def load_increments(
    source: str | os.PathLike | Sequence | Mapping,
    known_attributes: Iterable[str] | None = None,
    *,
    key: str | None = None,
) -> list[Increment]:
    """Reads and checks a sequence of increments.

    Args:
        source: path of an increments.json or its content: a list of entries, or a dict of such lists. An entry is
            `{"name", "attributes": [...]}` (new attributes), `{"name", "attribute", "where" | "values"}` (new values
            of a known attribute) or `{"name", "where"}` (a domain). `where` maps an attribute to the values a row may
            have; with "_not" behind the attribute's name, to those that it may not.
        known_attributes: names of the data set; None: not checked.
        key: which list of a dict (default: the only one, or "attributes").

    Raises:
        ValueError: the file, an entry, a name or an attribute is wrong; the message says which and how to mend it.
        FileNotFoundError: no such file.
    """
    where = str(source) if isinstance(source, str | os.PathLike) else "increments"
    entries = _choose(read_increments_json(source), key, where)
    known = None if known_attributes is None else tuple(known_attributes)
    increments = [parse_entry(entry, f"{where}, entry {i + 1}", known) for i, entry in enumerate(entries)]
    check_sequence(increments, where)
    return increments


def increments_keys(content: Any) -> tuple[str | None, ...]:
    """The keys of the lists in the content of an increments.json; (None,) for a plain list."""
    return tuple(content) if isinstance(content, Mapping) else (None,)


def reverse_increments(increments: Sequence[Increment]) -> list[Increment]:
    """The same increments, last one first: order alone can move a method by ten points."""
    return list(reversed(increments))


def select_rows(increment: Increment, table: LabelColumns) -> np.ndarray:
    """Indices of the rows of `table` that belong to the increment: int64 (n,), ascending."""
    mask = np.ones(len(table), dtype=bool)
    for name, values in increment.conditions().items():
        mask &= _has_value(table, name, values)
    for name, values in increment.where_not.items():
        mask &= ~_has_value(table, name, values)
    return np.flatnonzero(mask)


def gallery_rows(increment: Increment, table: LabelColumns) -> np.ndarray:
    """
    Indices of the rows that a query of the increment is searched among, int64 (n,): the increment's own; where it
    brings new values of an attribute all of them, for a catalogue holds the values of every increment.
    """
    return np.arange(len(table)) if increment.new_values else select_rows(increment, table)


def count_outside(increments: Sequence[Increment], table: LabelColumns) -> int:
    """Number of rows of `table` that belong to no increment."""
    inside = np.zeros(len(table), dtype=bool)
    for increment in increments:
        inside[select_rows(increment, table)] = True
    return int((~inside).sum())


def check_increments(
    increments: Sequence[Increment],
    table: LabelColumns,
    *,
    split: str = "train",
    min_values: int = 2,
    skip: Collection[str] = (),
) -> None:
    """Checks, before any training, that every increment can be learned from the rows of `table`.

    Args:
        increments: in order.
        table: labels of the split.
        split: its name, for the message.
        min_values: values an attribute must have among an increment's rows (1 for query and gallery).
        skip: attributes that are learned or scored by triplets, and need no labels.

    Raises:
        ValueError: a split or an increment without rows, an attribute without labels or with a single value, or (for
            training) without two images of the same value.
    """
    if not len(table):
        raise ValueError(
            f"split {split!r} of the data set has no rows: nothing can be learned from it or scored on it. Prepare "
            "the data set with such rows, or, where only the scores need them, choose another --evaluate_on."
        )
    for increment in increments:
        rows = select_rows(increment, table)
        if not len(rows):
            wanted = increment.to_dict().get("where", increment.to_dict().get("values", "every row"))
            raise ValueError(
                f"increment {increment.name!r} has no rows in split {split!r} ({wanted}, of {len(table)} rows). "
                "Mend its 'where' in increments.json, or leave the increment out."
            )
        for attribute in increment.attributes:
            if attribute in skip:
                continue
            _check_attribute(increment, attribute, table, rows, split, min_values)


def _check_attribute(
    increment: Increment, attribute: str, table: LabelColumns, rows: np.ndarray, split: str, min_values: int
) -> None:
    labels = table.labels(attribute)[rows]
    codes, counts = np.unique(labels[labels >= 0], return_counts=True)
    names = table.values(attribute)
    place = f"attribute {attribute!r} of increment {increment.name!r}"
    mend = "Leave it out of increments.json, or add rows."
    if len(codes) < min_values:
        found = "no label at all" if not len(codes) else f"the single value {names[codes[0]]!r}"
        raise ValueError(
            f"{place} has {found} in the {len(rows)} rows of split {split!r}; "
            f"expected at least {min_values} different value{'s' if min_values > 1 else ''}. {mend}"
        )
    if min_values > 1 and counts.max() < 2:
        raise ValueError(
            f"{place} has {len(codes)} values in split {split!r}, each on one row only: no two images can be paired. "
            f"It looks like an id rather than an attribute. {mend}"
        )
    unknown = sorted(set(increment.values or ()) - {names[code] for code in codes}) if min_values > 1 else []
    if unknown:
        raise ValueError(
            f"{place} lists values that no row of split {split!r} has: {', '.join(map(repr, unknown))}. "
            "Mend 'values' in increments.json."
        )


def _has_value(table: LabelColumns, name: str, values: tuple[str, ...]) -> np.ndarray:
    wanted = [code for code, value in enumerate(table.values(name)) if value in values]
    return np.isin(table.labels(name), wanted)


def _choose(content: Any, key: str | None, where: str) -> list:
    if isinstance(content, Mapping):
        keys = list(content)
        chosen = key or (keys[0] if len(keys) == 1 else DEFAULT_KEY)
        if chosen not in content:
            raise ValueError(f"{where} has no list {chosen!r}; choose one of: {', '.join(map(str, keys))}")
        content = content[chosen]
    elif key not in (None, DEFAULT_KEY):
        raise ValueError(f"{where} is one plain list; the key {key!r} has nothing to choose from. Leave it out.")
    if not isinstance(content, list) or not content:
        raise ValueError(f"{where}: expected a non-empty list of increments, given {content!r:.80}")
    return content
