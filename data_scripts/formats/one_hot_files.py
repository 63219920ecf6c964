# SPDX-License-Identifier: Apache-2.0
"""Text files of one-hot rows, as the ADDE splits have them: one number for each value of each attribute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from data_scripts.formats.text_files import find, lines, read_json

# Names of the 12 attributes of Shopping100K by the number of their values, in the order of attr_num.txt.
SHOPPING100K = {
    "category": 16,
    "collar": 17,
    "color": 19,
    "fabric": 14,
    "fastening": 10,
    "fit": 15,
    "gender": 2,
    "neckline": 11,
    "pattern": 16,
    "pocket": 7,
    "sleeve": 9,
    "sport": 15,
}
_ONE_HOT = frozenset(("0", "1"))
_INDICATOR = frozenset(("-1", "0", "1"))


class Change(NamedTuple):
    """What an indicator row does to one attribute: values of it that go, and values that come."""

    attribute: str
    removed: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def text(self) -> str:
        """In words."""
        if len(self.removed) == len(self.added) == 1:
            return f"{self.attribute}: replace {self.removed[0]} with {self.added[0]}"
        parts = [*(f"remove {value}" for value in self.removed), *(f"add {value}" for value in self.added)]
        return f"{self.attribute}: {', '.join(parts)}"


class Vocabulary:
    """The attributes and their values, in the order of the columns.

    Args:
        values: attribute → names of its values.

    Attributes:
        values: the same.
        width: numbers a row.
    """

    def __init__(self, values: dict[str, tuple[str, ...]]):
        self.values = values
        self.width = sum(map(len, values.values()))

    def labels(self, line: str) -> tuple[tuple[str | None, ...], list[str]] | None:
        """The value of each attribute (None: it has none), and the attributes with several, which get None too.

        None for a line that is no row of 0 and 1.
        """
        groups = self._groups(line, _ONE_HOT)
        if groups is None:
            return None
        labels, several = [], []
        for attribute, cells in groups:
            count = cells.count("1")
            labels.append(self.values[attribute][cells.index("1")] if count == 1 else None)
            if count > 1:
                several.append(attribute)
        return tuple(labels), several

    def tags(self, line: str) -> tuple[str, ...]:
        """All labels of a row, "attribute=value" each; none for a line that is no row of 0 and 1."""
        return tuple(
            f"{attribute}={value}"
            for attribute, cells in self._groups(line, _ONE_HOT) or ()
            for value in self._where(attribute, cells, "1")
        )

    def changes(self, line: str) -> tuple[Change, ...] | None:
        """What a row of -1 (goes), 0 (stays) and 1 (comes) changes; None for another line, or one without a change."""
        changes = [
            Change(attribute, self._where(attribute, cells, "-1"), self._where(attribute, cells, "1"))
            for attribute, cells in self._groups(line, _INDICATOR) or ()
        ]
        return tuple(change for change in changes if change.removed or change.added) or None

    def _groups(self, line: str, allowed: frozenset[str]) -> list[tuple[str, list[str]]] | None:
        """The numbers of each attribute as they are written; None where there are too few, too many, or others."""
        cells = line.split()
        if len(cells) != self.width or not allowed.issuperset(cells):
            return None
        groups, start = [], 0
        for attribute, names in self.values.items():
            groups.append((attribute, cells[start : start + len(names)]))
            start += len(names)
        return groups

    def _where(self, attribute: str, cells: list[str], wanted: str) -> tuple[str, ...]:
        return tuple(name for name, cell in zip(self.values[attribute], cells, strict=True) if cell == wanted)


def read_vocabulary(folder: Path, names: Path | None) -> Vocabulary:
    """Reads attr_num.txt, and the names of attributes and values where there is a file of them.

    Args:
        folder: with attr_num.txt, the number of values of each attribute.
        names: JSON, attribute → list of values, in the order of the columns; None: attributes are named where they are
            those of Shopping100K, else numbered, and values are numbered from 0.

    Raises:
        ValueError: the numbers are none, or the names do not fit them.
    """
    path = find(folder, "attr_num.txt")
    cells = [cell for _, line in lines(path) for cell in line.split()]
    if not cells or not all(cell.isdecimal() and int(cell) for cell in cells):
        raise ValueError(
            f"{path} holds {' '.join(cells)!r:.80}; expected the number of values of each attribute. "
            "(A pointer of git-lfs? Run `git lfs pull` where the files come from.)"
        )
    sizes = [int(cell) for cell in cells]
    if names is not None:
        return Vocabulary(_read_names(names, sizes))
    known = sizes == list(SHOPPING100K.values())
    attributes = list(SHOPPING100K) if known else [f"attribute_{i + 1:02d}" for i in range(len(sizes))]
    return Vocabulary({name: tuple(map(str, range(size))) for name, size in zip(attributes, sizes, strict=True)})


def read_rows(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yields (place, line) for every line of a file that is not blank."""
    path = find(folder, name)
    for number, line in lines(path):
        yield f"{path.name} line {number}", line.strip()


def read_together(folder: Path, names: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yields the rows of several files that go together line by line, as `read_rows` does for one.

    Raises:
        ValueError: one of the files is shorter than another.
    """
    for rows in zip_longest(*(read_rows(folder, name) for name in names)):
        if None in rows:
            raise ValueError(
                f"{', '.join(names)} in {folder} have different numbers of lines; they go together line by line. "
                "Obtain them anew"
            )
        yield rows


def _read_names(path: Path, sizes: Sequence[int]) -> dict[str, tuple[str, ...]]:
    content = read_json(path)
    fits = isinstance(content, dict) and all(
        isinstance(values, list) and all(isinstance(value, str) and value for value in values)
        for values in content.values()
    )
    if not fits or [len(set(values)) for values in content.values()] != list(sizes):
        raise ValueError(
            f"{path} does not fit attr_num.txt; expected an object, attribute → list of names, in the order of the "
            f"columns, with {', '.join(map(str, sizes))} different values"
        )
    return {name: tuple(values) for name, values in content.items()}
