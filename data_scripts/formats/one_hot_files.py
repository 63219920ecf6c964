# SPDX-License-Identifier: Apache-2.0
"""Text files of one-hot rows, as the ADDE splits have them: one number for each value of each attribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from data_scripts.formats.text_files import find, lines, read_json, whole_number

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
        columns: attribute and value of each column.
    """

    def __init__(self, values: Mapping[str, Sequence[str]]):
        self.values = values
        self.columns = tuple((attribute, value) for attribute, names in values.items() for value in names)

    def row(self, line: str) -> tuple[int, ...] | None:
        """Numbers of the columns that have a 1; None for a line that is no row of 0 and 1."""
        cells = self._cells(line, _ONE_HOT)
        return cells and tuple(i for i, cell in enumerate(cells) if cell == "1")

    def tags(self, row: Iterable[int]) -> tuple[str, ...]:
        """All labels of a row, "attribute=value" each."""
        return tuple("=".join(self.columns[i]) for i in row)

    def labels(self, row: Sequence[int]) -> dict[str, str | None]:
        """Attribute → its value, None where the row has none of it, or several."""
        count = self.count(row)
        found = (self.columns[i] for i in row)
        return dict.fromkeys(self.values) | {attribute: value for attribute, value in found if count[attribute] == 1}

    def count(self, row: Iterable[int]) -> Counter[str]:
        """Attribute → number of its values in a row."""
        return Counter(self.columns[i][0] for i in row)

    def changes(self, line: str) -> tuple[Change, ...] | None:
        """What a row of -1 (goes), 0 (stays) and 1 (comes) changes; None for another line, or one without a change."""
        changed: dict[str, dict[str, list[str]]] = {}
        cells = self._cells(line, _INDICATOR) or ["0"] * len(self.columns)
        for (attribute, value), cell in zip(self.columns, cells, strict=True):
            if cell != "0":
                changed.setdefault(attribute, {"-1": [], "1": []})[cell].append(value)
        changes = (Change(name, tuple(parts["-1"]), tuple(parts["1"])) for name, parts in changed.items())
        return tuple(changes) or None

    def _cells(self, line: str, allowed: frozenset[str]) -> list[str] | None:
        """The numbers as they are written; None where there are too few, too many, or others."""
        cells = line.split()
        return cells if len(cells) == len(self.columns) and allowed.issuperset(cells) else None


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
    sizes = [whole_number(cell) for cell in cells]
    if not sizes or not all(sizes):
        raise ValueError(
            f"{path} holds {' '.join(cells)!r:.80}; expected the number of values of each attribute. "
            "(A pointer of git-lfs? Run `git lfs pull` where the files come from.)"
        )
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
