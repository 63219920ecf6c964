# SPDX-License-Identifier: Apache-2.0
"""What a reader of a data set hands over: rows that name their images, tables that name rows, and counts to check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from .images import BadRows

if TYPE_CHECKING:
    from datasets import Features

Rows = Iterable[Mapping[str, Any]]


class SourceImage(NamedTuple):
    """An image file of a source, not read yet.

    Attributes:
        root: the folder that the listed path is in.
        listed: the path as the annotation file has it, either kind of separator; must stay inside `root`.
        box: (x1, y1, x2, y2) in pixels of the upright picture (EXIF orientation applied), to be cut out; the right and
            lower edges are not part of it.
    """

    root: Path
    listed: str
    box: tuple[int, int, int, int] | None = None

    @property
    def paths(self) -> tuple[Path, Path]:
        """Where the file may be. On POSIX a backslash may be part of a name: the name as it is listed comes first.

        Raises:
            ValueError: the path leaves the folder.
        """
        return self.root / self.listed, self.root / image_path(self.listed)


@dataclass(frozen=True)
class Check:
    """A number counted in the annotations beside the one that was published."""

    what: str
    counted: int
    published: int | None = None


class BadLines(NamedTuple):
    """Lines of an annotation file that make no row of their own (triplets, pairs, captions) and cannot be used.

    Attributes:
        counter: by cause.
        total: lines that were read, good or bad.
    """

    counter: BadRows
    total: int


@dataclass(frozen=True)
class Table:
    """Rows without images that name rows with one by their `image_id`: queries of composed retrieval, triplets.

    Attributes:
        features: of a row; see `COMPOSED` and `TRIPLETS` in `schema`.
        splits: split → rows, which can be iterated more than once.
    """

    features: Features
    splits: Mapping[str, Rows]


class Again:
    """Rows that are made anew each time they are iterated, for what must not be held in memory."""

    def __init__(self, function: Callable[..., Iterator], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __iter__(self) -> Iterator:
        """Calls the function once more."""
        return self.function(*self.arguments)


@dataclass
class Annotations:
    """A data set as its annotation files describe it; no image is read yet.

    Attributes:
        attributes: names, in order.
        increments: content of the increments.json to write.
        splits: split (train, val, query, gallery) → rows, which can be iterated more than once. A row has `image` (a
            `SourceImage`, the bytes of a file, or a PIL image), `attributes` (name → value or None), `caption`,
            `product_id`, and whatever `columns` names; what a row lacks is None.
        counts: split → rows.
        columns: name → `datasets` feature of the further columns; see `COLUMNS` in `schema` for the names in use.
        tables: name → further table.
        checks: counts that were published beside those found.
        notes: what the card says of how the rows were made, a paragraph each.
        bad_rows: rows left out by the reader; the writer goes on with this counter.
        bad_lines: kind of line → those that make no row and cannot be used; each kind is weighed by itself.
        keep_duplicates: keep byte-identical images of a split (the papers' lists name each row; nothing may go).
    """

    attributes: tuple[str, ...]
    increments: list | dict
    splits: Mapping[str, Rows]
    counts: Mapping[str, int]
    columns: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    notes: Sequence[str] = ()
    bad_rows: BadRows = field(default_factory=BadRows)
    bad_lines: Mapping[str, BadLines] = field(default_factory=dict)
    keep_duplicates: bool = True


def image_path(listed: str) -> PurePosixPath:
    """The path of an image inside its folder, with either kind of separator.

    Raises:
        ValueError: the path is absolute or leaves the folder.
    """
    path = PurePosixPath(PureWindowsPath(listed).as_posix())
    if path.is_absolute() or PureWindowsPath(listed).drive or ".." in path.parts or "\0" in listed:
        raise ValueError(
            f"image path {listed!r} leaves the source folder; expected a path inside it, such as 'images/1.jpg'"
        )
    return path
