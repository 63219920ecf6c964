"""Increments: what is new (attributes, values of a known attribute, a domain) and which rows it is learned from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_KEYS = ("name", "attributes", "attribute", "values", "where", "description")
DEFAULT_KEY = "attributes"


class LabelColumns(Protocol):
    """What an increment needs of a table of labels (`ImageTable` has it)."""

    attributes: tuple[str, ...]

    def __len__(self) -> int: ...
    def labels(self, attribute: str) -> np.ndarray: ...  # noqa: D102
    def values(self, attribute: str) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class Increment:
    """One step of the sequence.

    Attributes:
        name: letters, digits, "_" and "-".
        attributes: what is learned; empty for a domain (text-image retrieval).
        where: attribute → values: a row belongs to the increment when it has one of the values, for every entry.
        where_not: attribute → values: a row with one of the values does not belong to it (a null does).
        values: for new values of a known attribute: only these, where given.
        new_values: whether `attributes` holds one attribute of which new values are learned.
    """

    name: str
    attributes: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where_not: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: tuple[str, ...] | None = None
    new_values: bool = False

    def conditions(self) -> dict[str, tuple[str, ...]]:
        """`where`, with the listed `values` of the attribute as one more condition."""
        conditions = dict(self.where)
        if self.values is not None:
            known = conditions.get(self.attributes[0])
            conditions[self.attributes[0]] = tuple(v for v in self.values if known is None or v in known)
        return conditions

    def matches(self, row_attributes: Mapping[str, str | None]) -> bool:
        """Whether a row with these labels belongs to the increment."""
        if any(row_attributes.get(name) not in values for name, values in self.conditions().items()):
            return False
        return all(row_attributes.get(name) not in values for name, values in self.where_not.items())

    def to_dict(self) -> dict[str, Any]:
        """The entry as it stands in increments.json."""
        entry: dict[str, Any] = {"name": self.name}
        if self.new_values:
            entry["attribute"] = self.attributes[0]
        elif self.attributes:
            entry["attributes"] = list(self.attributes)
        if self.values is not None:
            entry["values"] = list(self.values)
        where = {name: list(values) for name, values in self.where.items()}
        where.update({f"{name}_not": list(values) for name, values in self.where_not.items()})
        if where:
            entry["where"] = where
        return entry


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
    increments = [_parse(entry, f"{where}, entry {i + 1}", known) for i, entry in enumerate(entries)]
    _check_sequence(increments, where)
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


def count_outside(increments: Sequence[Increment], table: LabelColumns) -> int:
    """Number of rows of `table` that belong to no increment."""
    inside = np.zeros(len(table), dtype=bool)
    for increment in increments:
        inside[select_rows(increment, table)] = True
    return int((~inside).sum())


def check_increments(
    increments: Sequence[Increment], table: LabelColumns, *, split: str = "train", min_values: int = 2
) -> None:
    """Checks, before any training, that every increment can be learned from the rows of `table`.

    Args:
        increments: in order.
        table: labels of the split.
        split: its name, for the message.
        min_values: values an attribute must have among an increment's rows (1 for query and gallery).

    Raises:
        ValueError: an increment without rows, an attribute without labels or with a single value, or (for training)
            without two images of the same value.
    """
    for increment in increments:
        rows = select_rows(increment, table)
        if not len(rows):
            wanted = increment.to_dict().get("where", increment.to_dict().get("values", "every row"))
            raise ValueError(
                f"increment {increment.name!r} has no rows in split {split!r} (of {len(table)} rows; it takes {wanted}). "
                "Mend its 'where' in increments.json, or leave the increment out."
            )
        for attribute in increment.attributes:
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


def _parse(entry: Any, where: str, known: tuple[str, ...] | None) -> Increment:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected an object with 'name' and 'attributes', given {entry!r:.80}")
    extra = sorted(set(entry) - set(_KEYS))
    if extra:
        raise ValueError(f"{where} has unknown keys {', '.join(extra)}; expected some of: {', '.join(_KEYS)}")
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name {name!r}; expected letters, digits, '_' and '-' only (it names a folder)")
    where = f"{where} ({name!r})"
    if "attribute" in entry and "attributes" in entry:
        raise ValueError(f"{where} has both 'attribute' and 'attributes'; expected 'attributes' for new attributes, "
                         "or 'attribute' for new values of a known one")  # fmt: skip
    new_values = "attribute" in entry
    attributes = _strings(entry.get("attribute", entry.get("attributes", [])), f"{where}: attributes")
    values = _strings(entry["values"], f"{where}: values") if "values" in entry else None
    if values is not None and not new_values:
        raise ValueError(f"{where} has 'values' without 'attribute'; expected the name of the attribute they belong to")
    if len(set(attributes)) < len(attributes):
        raise ValueError(f"{where} lists an attribute twice: {', '.join(attributes)}")
    conditions, negations = _parse_where(entry.get("where", {}), where, known)
    if not attributes and not conditions and not negations:
        raise ValueError(f"{where} has neither attributes nor 'where'; expected what it is to learn")
    _check_known(attributes, known, where)
    return Increment(name, attributes, conditions, negations, values, new_values)


def _parse_where(given: Any, where: str, known: tuple[str, ...] | None) -> tuple[dict, dict]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: 'where' is {given!r:.80}; expected an object, attribute → list of values")
    conditions, negations = {}, {}
    for column, values in given.items():
        # A column whose own name ends in "_not" is taken by its name.
        negated = column.endswith("_not") and not (known and column in known)
        name = column.removesuffix("_not") if negated else column
        _check_known((name,), known, f"{where}: 'where'")
        (negations if negated else conditions)[name] = _strings(values, f"{where}: where {column!r}")
    return conditions, negations


def _strings(given: Any, where: str) -> tuple[str, ...]:
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{where} is {given!r:.80}; expected a list of non-empty strings")
    return tuple(values)


def _check_known(names: Iterable[str], known: tuple[str, ...] | None, where: str) -> None:
    unknown = [name for name in names if known is not None and name not in known]
    if unknown:
        raise ValueError(f"{where}: unknown attribute {', '.join(map(repr, unknown))}; known: {', '.join(known)}")


def _check_sequence(increments: Sequence[Increment], where: str) -> None:
    names = [increment.name for increment in increments]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: increments of the same name: {', '.join(twice)}; expected each name once")
    owner: dict[str, str] = {}
    for increment in increments:
        for attribute in () if increment.new_values else increment.attributes:
            if attribute in owner:
                raise ValueError(
                    f"{where}: attribute {attribute!r} is in increments {owner[attribute]!r} and {increment.name!r}; "
                    "expected it in one only (new values of a known attribute: "
                    f'{{"name": …, "attribute": "{attribute}", "where": …}})'
                )
            owner[attribute] = increment.name
