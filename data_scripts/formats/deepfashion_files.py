# SPDX-License-Identifier: Apache-2.0
"""The annotation files of DeepFashion's Category and Attribute Prediction Benchmark, as they are downloaded.

Each begins with the number of its lines and the names of its columns. A tag is known by its number from 0, which is
its place in list_attr_cloth.txt (1,000 of them).
"""

from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_scripts.formats.line_counts import LineCounter
from data_scripts.formats.text_files import exists, find, lines, whole_number
from modeling_mclfir.data.annotations import Check, image_path
from modeling_mclfir.data.images import BadRows

TYPES = ("texture-related", "fabric-related", "shape-related", "part-related", "style-related")
TAG_NAMES, IMAGE_TAGS, BOXES = "list_attr_cloth.txt", "list_attr_img.txt", "list_bbox.txt"
CATEGORY_NAMES, IMAGE_CATEGORIES = "list_category_cloth.txt", "list_category_img.txt"
PARTITION = "list_eval_partition.txt"

_FOLDERS = ("Anno", "Anno_coarse", "Eval", "")
_FLAGS = {"1", "-1", "0"}
_SPLITS = {"train", "val", "test"}

ImageTags = dict[str, Sequence[int]]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Vocabulary:
    """The tags by number.

    Attributes:
        attributes: names of the types, in order.
        types: tag → index of its type, -1 where that is not known.
        names: tag → name of the value, unique within its type.
    """

    attributes: tuple[str, ...]
    types: tuple[int, ...]
    names: tuple[str, ...]

    @cached_property
    def by_type(self) -> tuple[tuple[int, ...], ...]:
        """Index of a type → its tags in order."""
        return tuple(tuple(t for t, kind in enumerate(self.types) if kind == i) for i in range(len(self.attributes)))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Tag → "attribute=value"."""
        return tuple(f"{self.attributes[i]}={name}" for i, name in zip(self.types, self.names, strict=True))


class OfficialFiles:
    """Reads the files in `source` or its folders Anno, Anno_coarse and Eval; gzipped copies are taken.

    Args:
        source: the folder.
        bad_rows: counts the lines of the partition that cannot be used, each of which is a row.

    Attributes:
        checks: for each file that was read, its lines beside the number that it begins with.
        line_counters: what was read of the other files.
    """

    def __init__(self, source: Path, bad_rows: BadRows):
        self.source, self.bad_rows = source, bad_rows
        self.checks: list[Check] = []
        self.line_counters: defaultdict[str, LineCounter] = defaultdict(LineCounter)

    def find(self, name: str) -> Path | None:
        """Where the file is; None: nowhere."""
        folders = (self.source / folder for folder in _FOLDERS)
        return next((find(folder, name) for folder in folders if exists(folder, name)), None)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are not there, with the folder in which they are expected."""
        folder = {PARTITION: "Eval"}
        return [f"{folder.get(name, 'Anno')}/{name}" for name in names if self.find(name) is None]

    def tag_names(self) -> Vocabulary:
        """Names and types of the tags. A line without a known type keeps its number and is counted as "malformed"."""
        types, names, seen = [], [], set()
        for where, line in self._body(TAG_NAMES):
            # Names may hold spaces: the type is the last word.
            words = line.rsplit(None, 1)
            known = len(words) == 2 and words[1] in {str(i + 1) for i in range(len(TYPES))}
            if not known:
                self._counter(TAG_NAMES).add("malformed", where)
            name, kind = (words[0].strip(), int(words[1]) - 1) if known else ("", -1)
            if (name, kind) in seen:  # two tags of one name must not become one value
                name = f"{name} ({len(names)})"
            seen.add((name, kind))
            types.append(kind)
            names.append(name)
        return Vocabulary(TYPES, tuple(types), tuple(names))

    def image_tags(self, vocabulary: Vocabulary) -> ImageTags:
        """Image → its tags, for every line that can be read; read line by line, only what holds is kept."""
        known = [kind >= 0 for kind in vocabulary.types]
        result: ImageTags = {}

        def parse(words: list[str]) -> array | None:
            if words[0].rsplit(None, 1)[-1] in _FLAGS or not _FLAGS.issuperset(words[1:]):
                return None
            return array("I", [tag for tag, flag in enumerate(words[1:]) if flag == "1" and known[tag]])

        self._read(IMAGE_TAGS, len(known), parse, result)
        return result

    def categories(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Names of the categories, and image → name of its category."""
        names = []
        for where, line in self._body(CATEGORY_NAMES):
            words = line.rsplit(None, 1)
            if len(words) < 2:
                self._counter(CATEGORY_NAMES).add("malformed", where)
            names.append(words[0].strip() if len(words) == 2 else "")
        by_number = {str(i): name for i, name in enumerate(names, start=1) if name}
        images: dict[str, str] = {}
        self._read(IMAGE_CATEGORIES, 1, lambda words: by_number.get(words[1]), images, "unknown_value")
        return tuple(names), images

    def boxes(self) -> dict[str, Box]:
        """Image → x1, y1, x2, y2 in pixels, as listed: the box may be empty or lie outside of the image."""
        result: dict[str, Box] = {}

        def parse(words: list[str]) -> Box | None:
            try:
                return tuple(int(word) for word in words[1:])
            except ValueError:
                return None

        self._read(BOXES, 4, parse, result)
        return result

    def partition(self) -> dict[str, str]:
        """Image → "train", "val" or "test".

        Raises:
            ValueError: an image path leaves the folder.
        """
        result: dict[str, str] = {}
        parts = {name: name for name in _SPLITS}  # one string each, not one a line
        self._read(PARTITION, 1, lambda words: parts.get(words[1]), result, "unknown_value")
        for listed in result:
            image_path(listed)
        return result

    def _read(
        self, name: str, values: int, parse: Callable[[list[str]], object], result: dict, cause: str = "malformed"
    ) -> None:
        """Fills `result` from lines of a path and `values` words; `cause` is counted where `parse` gives None."""
        counter = self._counter(name)
        for where, line in self._body(name):
            words = line.rsplit(None, values)
            if len(words) != values + 1:
                counter.add("malformed", where)
                continue
            image = sys.intern(words[0].strip())  # five files name the same images
            value = parse(words)
            if value is None:
                counter.add(cause, where)
            elif image in result:
                counter.add("duplicate", where)
            else:
                result[image] = value

    def _counter(self, name: str) -> BadRows:
        return self.bad_rows if name == PARTITION else self.line_counters[name]

    def _body(self, name: str) -> Iterator[tuple[str, str]]:
        """Yields (place, text) of the lines behind the header."""
        path = self.find(name)
        rest = lines(path)
        _, first = next(rest, (0, ""))
        expected = whole_number(first.strip())
        if expected is None:
            raise ValueError(f"{path} begins with {first!r:.60}; expected the number of its lines, then its columns")
        next(rest, None)
        count = 0
        for number, line in rest:
            count += 1
            if name != PARTITION:
                self.line_counters[name].read += 1
            yield f"{path.name} line {number}", line
        self.checks.append(Check(f"lines of {name}, beside its first line", count, expected))
