# SPDX-License-Identifier: Apache-2.0
"""One entry of an increments.json: its shape, and what may be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_KEYS = ("name", "attributes", "attribute", "values", "where", "description")


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


def parse_entry(entry: Any, where: str, known: tuple[str, ...] | None) -> Increment:
    """Reads one entry; `where` names it in errors, `known` are the attributes of the data set (None: not checked).

    Raises:
        ValueError: what is wrong, and how to mend it.
    """
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
        raise ValueError(
            f"{where} has both 'attribute' and 'attributes'; expected 'attributes' for new attributes, "
            "or 'attribute' for new values of a known one"
        )
    new_values = "attribute" in entry
    if new_values and not isinstance(entry["attribute"], str):
        raise ValueError(f"{where}: 'attribute' is {entry['attribute']!r:.80}; expected the name of one attribute")
    attributes = _strings(entry.get("attribute", entry.get("attributes", [])), f"{where}: attributes")
    values = _strings(entry["values"], f"{where}: values") if "values" in entry else None
    if values is not None and not new_values:
        raise ValueError(f"{where} has 'values' without 'attribute'; expected the attribute they are values of")
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


def check_sequence(increments: Sequence[Increment], where: str) -> None:
    """Raises ValueError where two increments have one name, or an attribute is learned twice."""
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
