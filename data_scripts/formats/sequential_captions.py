# SPDX-License-Identifier: Apache-2.0
"""What SeCOCO and SeViGe share: long JSON files read item by item, increments by the objects in an image."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.text_files import open_text, read_json
from modeling_mclfir.data.annotations import Again, Annotations, Check, SourceImage
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.increments import load_increments
from modeling_mclfir.data.schema import FURTHER_COLUMNS, table_features

ATTRIBUTES = ("supercategory", "group")
Groups = Mapping[str, Sequence[str]]

_CHUNK = 1 << 20  # characters read at a time
_LONGEST_ITEM = 1 << 26  # what is still no JSON value after so many characters is an error, not a long item
_SPACE = re.compile(r"[ \t\r\n]*")
_NOT_OURS = (
    "The increments follow a rule of this project, stated below. The task contents and sizes of the paper's own "
    "sequence were not known when the rule was made: this is not the paper's split, and figures cannot be set beside "
    "the paper's."
)


def list_items(path: Path, *, chunk: int = _CHUNK) -> Iterator[Any]:
    """Yields the items of a JSON file that is one list; in memory are one item and `chunk` characters.

    Raises:
        ValueError: the file is cut short or something else.
    """
    with open_text(path) as file:
        text = _JsonText(path, file, chunk)
        yield from text.items()
        text.end()


def dict_items(path: Path, keys: Collection[str], *, chunk: int = _CHUNK) -> Iterator[tuple[str, int, Any]]:
    """Yields (key, index, item) for the lists `keys` of a JSON file that is one object, in the order of the file.

    Memory as for `list_items`; lists of other keys are skipped item by item.

    Raises:
        ValueError: the file is cut short or something else, or lacks one of the lists.
    """
    missing = set(keys)
    with open_text(path) as file:
        text = _JsonText(path, file, chunk)
        for key in text.keys():
            if key in keys:
                missing.discard(key)
                for index, item in enumerate(text.items()):
                    yield key, index, item
            else:
                text.skip()
        text.end()
    if missing:
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; expected the lists {', '.join(keys)}")


class _JsonText:
    """A JSON text read in chunks: `place` is the next character of `text`, `before` were read and let go."""

    def __init__(self, path: Path, file: TextIO, chunk: int):
        self.path, self.file, self.chunk = path, file, chunk
        self.text, self.place, self.before = "", 0, 0
        self.decoder = json.JSONDecoder()

    def keys(self) -> Iterator[str]:
        """Yields the keys of the object that comes next; the caller takes each value."""
        self._take("{")
        if self._peek() == "}":
            self.place += 1
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise self._error(f"found {key!r:.40}, expected a key in quotes")
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def items(self) -> Iterator[Any]:
        """Yields the items of the list that comes next."""
        self._take("[")
        if self._peek() == "]":
            self.place += 1
            return
        while True:
            yield self._value()
            if self._take(",]") == "]":
                return

    def skip(self) -> None:
        """Passes over the value that comes next."""
        if self._peek() != "[":
            self._value()
        else:
            for _ in self.items():
                pass

    def end(self) -> None:
        """Checks that nothing comes next."""
        if self._peek():
            raise self._error("found more text, expected the end of the file")

    def _value(self) -> Any:
        self._peek()
        while True:
            problem = "the file ends inside a value"
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
                # 12 may be the half of 1234: a value is known to be whole by what stands behind it.
                if end < len(self.text) and self.text[end] in " \t\r\n,:]}":
                    self.place = end
                    return value
            except (ValueError, RecursionError) as error:
                problem = getattr(error, "msg", str(error))
            if len(self.text) - self.place > _LONGEST_ITEM or not self._more():
                raise self._error(problem)

    def _peek(self) -> str:
        """The next character that is no white space, "" at the end of the file."""
        while True:
            self.place = _SPACE.match(self.text, self.place).end()
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._more():
                return ""

    def _take(self, allowed: str) -> str:
        found = self._peek()
        if not found or found not in allowed:
            what = repr(found) if found else "the end of the file"
            raise self._error(f"found {what}, expected {' or '.join(allowed)}")
        self.place += 1
        return found

    def _more(self) -> bool:
        rest = self.text[self.place :]
        try:
            # A value longer than the chunk is decoded anew each time: doubling keeps that linear in its length.
            more = self.file.read(max(self.chunk, len(rest)))
        except (UnicodeDecodeError, EOFError, zlib.error) as error:
            raise self._error(str(error)) from error
        except OSError as error:  # gzip.BadGzipFile is one of them
            raise OSError(f"{self.path}: {error}") from error
        self.before += self.place
        self.text, self.place = rest + more, 0
        return bool(more)

    def _error(self, problem: str) -> ValueError:
        place = f"at character {self.before + self.place:,}"
        return ValueError(f"{self.path} is not the expected JSON ({problem}; {place}); obtain the file anew")


def fields(item: Any, **kinds: type) -> tuple | None:
    """The values of an item by name, or None where one is missing or of another type (float takes int too)."""
    if not isinstance(item, dict):
        return None
    values = []
    for name, kind in kinds.items():
        value = item.get(name)
        with suppress(OverflowError):  # a whole number of hundreds of digits
            value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            return None
        values.append(value)
    return tuple(values)


def read_groups(path: Path, known: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Reads groups of super-categories, {"name": [super-category, ...]}, in their order.

    Args:
        path: a JSON file.
        known: the super-categories of the data set.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other content; an unknown super-category, or one that is in two groups.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; expected groups such as {{"street": ["vehicle", "outdoor"]}}')
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(members, list) and members and all(isinstance(member, str) for member in members)
        for members in content.values()
    ):
        raise ValueError(f"{path}: expected an object, name of a group → list of super-categories")
    members = [member for group in content.values() for member in group]
    unknown = sorted(set(members) - set(known))
    if unknown:
        raise ValueError(f"{path}: unknown super-categories {', '.join(unknown)}; known: {', '.join(known)}")
    twice = sorted(member for member, count in Counter(members).items() if count > 1)
    if twice:
        raise ValueError(f"{path}: super-categories listed twice: {', '.join(twice)}; expected each once")
    load_increments(_domains(content))  # names that cannot name an increment are refused here
    return {name: tuple(group) for name, group in content.items()}


def dominant(areas: Mapping[str, float], groups: Groups) -> tuple[str, str] | None:
    """The group of the largest total area, and the super-category of the largest area in it; None without any.

    Of equals the first in the order of `groups` is taken.

    Args:
        areas: super-category → total area of an image's objects.
        groups: see `read_groups`.
    """
    present = {name: [member for member in members if member in areas] for name, members in groups.items()}
    present = {name: members for name, members in present.items() if members}
    if not present:
        return None
    group = max(present, key=lambda name: sum(areas[member] for member in present[name]))
    return group, max(present[group], key=areas.__getitem__)


class Entry(NamedTuple):
    """An image of an increment: its id, its path in the source, its captions, its place in the groups."""

    image_id: int
    listed: str
    captions: tuple[str, ...]
    group: str
    supercategory: str


class Sorter:
    """Gives images to splits and groups, and counts those that no group takes."""

    def __init__(self, groups: Groups):
        self.groups = groups
        self.entries: dict[str, list[Entry]] = {"train": [], "val": [], "gallery": []}
        self.left_out = Counter({"images without a caption": 0, "images without an object of a group": 0})

    def add(self, split: str, image_id: int, listed: str, captions: Sequence[str], areas: Mapping[str, float]) -> None:
        """Takes an image: non-empty captions in order, areas by super-category."""
        found = dominant(areas, self.groups)
        if not captions:
            self.left_out["images without a caption"] += 1
        elif found is None:
            self.left_out["images without an object of a group"] += 1
        else:
            self.entries[split].append(Entry(image_id, listed, tuple(captions), *found))

    def annotations(
        self,
        source: Path,
        checks: Sequence[Check],
        notes: Sequence[str],
        bad_rows: BadRows,
        counters: Mapping[str, LineCounter],
    ) -> Annotations:
        """The data set of all images taken; `checks` and `notes` stand before those about the groups."""
        sizes = {split: Counter(entry.group for entry in entries) for split, entries in self.entries.items()}
        counted = [Check(f"{split}, group {name}", sizes[split][name]) for split in sizes for name in self.groups]
        left_out = [Check(f"{what}, left out", count) for what, count in self.left_out.items()]
        listing = "; ".join(f"{name}: {', '.join(members)}" for name, members in self.groups.items())
        return Annotations(
            attributes=ATTRIBUTES,
            increments={
                "attributes": [{"name": "supercategory", "attributes": ["supercategory"]}],
                "domains": _domains(self.groups),
            },
            splits={split: Again(_rows, source, entries) for split, entries in self.entries.items()},
            counts={split: len(entries) for split, entries in self.entries.items()},
            columns=table_features({name: FURTHER_COLUMNS[name] for name in ("image_id", "captions")}),
            checks=(*checks, *counted, *left_out),
            notes=(_NOT_OURS, *notes, f"Groups, in the order of the increments: {listing}."),
            bad_rows=bad_rows,
            bad_lines=bad_lines(counters),
        )


def _domains(groups: Groups) -> list[dict[str, Any]]:
    return [{"name": name, "where": {"group": [name]}} for name in groups]


def _rows(source: Path, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield {
            "image": SourceImage(source, entry.listed),
            "attributes": {"supercategory": entry.supercategory, "group": entry.group},
            "caption": entry.captions[0],
            "product_id": None,
            "image_id": str(entry.image_id),
            "captions": list(entry.captions),
        }
