# SPDX-License-Identifier: Apache-2.0
"""Bring your own data: a folder of images with a CSV or Parquet of attributes, read row by row."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotations import Again, Annotations, SourceImage, image_path
from .images import BadRows
from .increments import increments_keys, load_increments, read_increments_json
from .labels import LabelFile, find_labels, open_labels
from .schema import FURTHER_COLUMNS, SPLITS

# A column of such a name has captions where nothing else is said of it.
CAPTION_COLUMNS = ("caption", "captions")
# Shares of the split that is made where none is given, in percent, in the order of SPLITS.
SPLIT_PERCENT = (60, 10, 8, 22)
SplitRule = Callable[[Mapping[str, "str | None"]], "str | None"]


@dataclass(frozen=True)
class _Layout:
    """How the label file is read."""

    source: Path
    table: LabelFile
    split_of: SplitRule
    attributes: tuple[str, ...]
    image_column: str
    caption_columns: tuple[str, ...]
    product_id_column: str | None
    known_values: dict[str, set[str]]

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """The rows of a split, in the order of the label file."""
        for _, cells in self.table.rows():
            if self.cause(cells) is None and self.split_of(cells) == split:
                captions = self.captions(cells)
                row = {
                    "image": SourceImage(self.source, cells[self.image_column]),
                    "attributes": {name: cells[name] for name in self.attributes},
                    "caption": captions[0] if captions else None,
                    "product_id": cells[self.product_id_column] if self.product_id_column else None,
                }
                yield row | ({"captions": captions} if self.has_several_captions else {})

    @property
    def has_several_captions(self) -> bool:
        """Whether an image may have more than one."""
        return len(self.caption_columns) > 1 or not self.table.lists.isdisjoint(self.caption_columns)

    def captions(self, cells: Mapping[str, str | list[str] | None]) -> list[str]:
        """All captions of an image, in the order of their columns, each once."""
        found: dict[str, None] = {}
        for name in self.caption_columns:
            cell = cells[name]
            found |= dict.fromkeys(cell if isinstance(cell, list) else [] if cell is None else [cell])
        return list(found)

    def cause(self, cells: Mapping[str, str | None] | None) -> str | None:
        """Why a row cannot be used, as far as the label file tells."""
        if cells is None:
            return "malformed"
        if cells[self.image_column] is None:
            return "missing"
        return "unknown_value" if self.unknown(cells) else None

    def unknown(self, cells: Mapping[str, str | None]) -> list[str]:
        """The attributes whose value is none of the known ones."""
        known = self.known_values.items()
        return [name for name, values in known if cells[name] is not None and cells[name] not in values]


def read_folder(
    source: str | os.PathLike,
    labels: str | os.PathLike | None = None,
    *,
    split: str | os.PathLike | None = None,
    image_column: str = "image",
    caption_column: str | Sequence[str] | None = None,
    product_id_column: str | None = None,
    attributes: Sequence[str] | None = None,
    increments: str | os.PathLike | Sequence | Mapping | None = None,
    known_values: Mapping[str, Sequence[str]] | None = None,
    keep_duplicates: bool = False,
    bad_rows: BadRows | None = None,
) -> Annotations:
    """Looks through a folder of images and its labels; reads no image yet.

    Rows that the label file alone shows to be bad are counted here. A split file is held in memory, about 0.2 GB for a
    million rows; a column "split" of the labels is not.

    Args:
        source: the folder.
        labels: CSV or Parquet with one row an image (default: labels.csv or labels.parquet in the folder).
        split: CSV with the columns image and split (default: split.csv in the folder, else a column "split" of the
            labels, else a split by hash of the product id or image name: 60/10/8/22 percent).
        image_column: column with the image's path inside the folder.
        caption_column: column or columns with texts about the image; a Parquet column may hold a list of them
            (default: "caption" and "captions", those that are there).
        product_id_column: column with the product's id; rows of a product stay in one split.
        attributes: columns that are attributes (default: all others).
        increments: path or content of an increments.json (default: the one in the folder, else one increment of all).
        known_values: attribute → its values; a row with another value is bad (default: values.json in the folder).
        keep_duplicates: keep byte-identical copies.
        bad_rows: counter to use.

    Raises:
        FileNotFoundError: the folder or a named file is not there.
        ValueError: a column is missing, a path leaves the folder, a split or an increment is wrong.
    """
    source = Path(source)
    table = find_labels(source, labels)
    captions = _caption_columns(table, caption_column, attributes)
    table.require([image_column, *captions, product_id_column, *(attributes or ())])
    rule, split_column = _split_rule(source, table, split, image_column, product_id_column)
    if attributes is None:
        others = {image_column, *captions, product_id_column, split_column}
        attributes = [name for name in table.columns if name not in others]
    if lists := sorted(table.lists & {image_column, product_id_column, split_column, *attributes}):
        raise ValueError(
            f"{table.path}: the cells of {', '.join(lists)} are lists, but only captions can be several. "
            "Columns of captions are named by --caption-column."
        )
    content = _find_increments(source, increments, attributes)
    known = _find_values(source, known_values, attributes)
    layout = _Layout(source, table, rule, tuple(attributes), image_column, captions, product_id_column, known)
    bad_rows = BadRows() if bad_rows is None else bad_rows
    counts = _count(layout, bad_rows)
    left_out = counts.pop(None, 0)
    if not counts:
        raise ValueError(
            f"{table.path}: no image has a split; expected images named in the split file exactly as in the "
            f"column {image_column!r} of the labels"
        )
    return Annotations(
        attributes=layout.attributes,
        increments=content,
        splits={split: Again(layout.rows, split) for split in SPLITS},
        counts={split: counts[split] for split in SPLITS},
        columns={"captions": FURTHER_COLUMNS["captions"]} if layout.has_several_captions else {},
        notes=[f"{left_out} rows are left out: the split file does not name them."] if left_out else [],
        bad_rows=bad_rows,
        keep_duplicates=keep_duplicates,
    )


def _caption_columns(
    table: LabelFile, given: str | Sequence[str] | None, attributes: Sequence[str] | None
) -> tuple[str, ...]:
    if given is None:
        return tuple(name for name in CAPTION_COLUMNS if name in table.columns and name not in (attributes or ()))
    return (given,) if isinstance(given, str) else tuple(given)


def _count(layout: _Layout, bad_rows: BadRows) -> Counter[str | None]:
    """Rows a split (None: not named); refuses a path that leaves the folder before anything is written."""
    counts: Counter[str | None] = Counter()
    for place, cells in layout.table.rows():
        cause = layout.cause(cells)
        if cause is not None:
            names = layout.unknown(cells) if cause == "unknown_value" else []
            detail = "".join(f": {name} is {cells[name]!r}" for name in names[:1])
            bad_rows.add(cause, place + detail)
            continue
        image_path(cells[layout.image_column])
        counts[layout.split_of(cells)] += 1
    return counts


def split_by_hash(key: str) -> str:
    """A split for a product or an image, from its name alone: the same on every machine and for every order."""
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % 100
    for name, percent in zip(SPLITS, SPLIT_PERCENT, strict=True):
        if place < percent:
            return name
        place -= percent
    raise RuntimeError(f"SPLIT_PERCENT {SPLIT_PERCENT} does not add up to 100")


def _split_rule(
    source: Path, table: LabelFile, split: str | os.PathLike | None, image_column: str, product_id_column: str | None
) -> tuple[SplitRule, str | None]:
    """How a row gets its split, and the label column that says it, if one does."""
    path = source / ("split.csv" if split is None else split)
    if split is not None and not path.is_file():
        path = Path(split)
    if path.is_file():
        assigned = _read_split(path)
        return lambda cells: assigned.get(str(image_path(cells[image_column]))), None
    if split is not None:
        raise FileNotFoundError(f"{path}: no such file; expected a CSV with the columns image and split")
    if "split" in table.columns:
        return lambda cells: _known_split(cells["split"], str(table.path)) if cells["split"] else None, "split"

    def by_hash(cells: Mapping[str, str | None]) -> str:
        product = cells[product_id_column] if product_id_column else None
        return split_by_hash(product or str(image_path(cells[image_column])))

    return by_hash, None


def _read_split(path: Path) -> dict[str, str]:
    table = open_labels(path)
    table.require(["image", "split"])
    assigned: dict[str, str] = {}
    for place, cells in table.rows():
        if cells is None or cells["image"] is None:
            raise ValueError(f"{path}: {place} is malformed; expected an image and a split")
        name, image = _known_split(cells["split"], place), str(image_path(cells["image"]))
        if assigned.setdefault(image, name) != name:
            raise ValueError(f"{path}: image {image!r} is in {assigned[image]!r} and in {name!r}; expected one split")
    return assigned


def _known_split(name: str | None, where: str) -> str:
    if name not in SPLITS:
        raise ValueError(f"{where}: split {name!r}; expected one of {', '.join(SPLITS)}")
    return name


def _find_increments(source: Path, given: Any, attributes: Sequence[str]) -> list | dict:
    path = source / "increments.json"
    if given is None and not path.is_file():
        return [{"name": "all", "attributes": list(attributes)}] if attributes else []
    content = read_increments_json(path if given is None else given)
    for key in increments_keys(content):
        load_increments(content, attributes, key=key)
    return content


def _find_values(source: Path, given: Mapping[str, Sequence[str]] | None, attributes: Sequence[str]) -> dict:
    path = source / "values.json"
    if given is None:
        if not path.is_file():
            return {}
        try:
            given = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); expected attribute → list of values") from error
    if not isinstance(given, Mapping) or not all(isinstance(values, list | tuple) for values in given.values()):
        raise ValueError(f"known values {given!r:.80}; expected an object, attribute → list of values")
    unknown = [name for name in given if name not in attributes]
    if unknown:
        raise ValueError(f"values given for unknown attributes {', '.join(unknown)}; known: {', '.join(attributes)}")
    return {name: set(values) for name, values in given.items()}
