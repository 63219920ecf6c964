# SPDX-License-Identifier: Apache-2.0
"""The files of FashionIQ: lists of images, pairs with captions, image folders; and what of them was published."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_scripts.command import require_files
from data_scripts.formats.composed_pairs import Pair, count_blank, read_json_of
from data_scripts.formats.line_counts import LineCounter
from data_scripts.formats.text_files import find
from modeling_mclfir.data.annotations import Check, image_path
from modeling_mclfir.data.images import BadRows

CATEGORIES = ("dress", "shirt", "toptee")
PARTS = ("train", "val", "test")
FOLDERS = ("images", "resized_images", *(f"image_data/{category}" for category in CATEGORIES))
EXTENSIONS = (".jpg", ".jpeg", ".png")
# Each by category, in their order; the last by part.
PUBLISHED = {
    "train pairs": (5985, 5988, 6027),
    "val queries": (2017, 2038, 1961),
    "test queries": (2024, 2038, 2056),
    "train images": (11452, 19036, 16121),
    "gallery original": (3817, 6346, 5373),
    "gallery val": (2628, 3089, 2902),
    "gallery test": (3818, 6346, 5374),
    "blank captions of train": (0, 0, 12),
    "blank captions of val": (0, 1, 2),
    "unique images": (45429, 15415, 15417),
}


@dataclass(frozen=True)
class Files:
    """What the files say.

    Attributes:
        lists: (category, part) → ASINs in the order of the list, each once.
        pairs: (category, part) → pairs in the order of the file; those of test have no target.
        bad_rows: "malformed" and "duplicate" entries of lists.
        pair_counter: "malformed" pairs, and those with an "unknown_image".
    """

    lists: Mapping[tuple[str, str], list[str]]
    pairs: Mapping[tuple[str, str], list[Pair]]
    bad_rows: BadRows
    pair_counter: LineCounter

    def all_pairs(self, part: str) -> list[Pair]:
        """The pairs of all categories."""
        return [pair for category in CATEGORIES for pair in self.pairs[category, part]]

    def all_images(self, part: str) -> set[str]:
        """The ASINs of all categories."""
        return set().union(*(self.lists[category, part] for category in CATEGORIES))

    def used(self, category: str) -> set[str]:
        """References and targets of the val pairs."""
        return {name for pair in self.pairs[category, "val"] for name in (pair.reference, pair.target)}

    def categories(self) -> dict[str, str | None]:
        """ASIN → its category; None for one that is in the lists of several."""
        result: dict[str, str | None] = {}
        for (category, _), names in self.lists.items():
            for name in names:
                if result.setdefault(name, category) != category:
                    result[name] = None
        return result


def read_files(source: Path) -> Files:
    """Reads all lists and captions.

    Raises:
        FileNotFoundError: the message names all files that are missing.
        ValueError: a file is not what it should be, or an ASIN leads out of the folder.
    """
    keys = [(category, part) for category in CATEGORIES for part in PARTS]
    captions = {key: f"captions/cap.{key[0]}.{key[1]}.json" for key in keys}
    image_splits = {key: f"image_splits/split.{key[0]}.{key[1]}.json" for key in keys}
    require_files(source, (*captions.values(), *image_splits.values()))
    bad_rows, counter = BadRows(), LineCounter()
    lists = {key: _read_list(find(source, image_splits[key]), bad_rows) for key in keys}
    pairs = {key: _read_pairs(find(source, captions[key]), *key, set(lists[key]), counter) for key in keys}
    return Files(lists, pairs, bad_rows, counter)


def _read_list(path: Path, bad_rows: BadRows) -> list[str]:
    names: dict[str, None] = {}
    for index, item in enumerate(read_json_of(path, list)):
        name = item.strip() if isinstance(item, str) else ""
        if not name or name in names:
            bad_rows.add("duplicate" if name else "malformed", f"{path.name} entry {index}")
            continue
        if not name.isalnum():
            image_path(f"images/{name}")  # refuses a name that leads out of the folder
        names[name] = None
    return list(names)


def _read_pairs(path: Path, category: str, part: str, known: set[str], counter: LineCounter) -> list[Pair]:
    # "dress" stands for the original and the val gallery; of test there is one only.
    gallery = f"test/{category}" if part == "test" else category
    pairs = []
    for index, item in enumerate(read_json_of(path, list)):
        counter.read += 1
        item = item if isinstance(item, dict) else {}
        names = [item.get("candidate"), *([] if part == "test" else [item.get("target")])]
        texts = item.get("captions")
        is_text = isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
        if not is_text or not all(isinstance(name, str) for name in names):
            counter.add("malformed", f"{path.name} pair {index}")
            continue
        reference, target = ([name.strip() for name in names] + [None])[:2]
        if not {reference, target} - {None} <= known:
            counter.add("unknown_image", f"{path.name} pair {index}")
            continue
        texts = [text.strip() for text in texts]
        pairs.append(Pair(f"{category}-{part}-{index}", reference, target, texts, gallery))
    return pairs


def find_images(source: Path, names: Collection[str]) -> dict[str, str]:
    """ASIN → path inside `source`, of those that are there; each folder is listed once."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        if (source / folder).is_dir():
            for path in sorted((source / folder).iterdir()):
                if path.stem in names and path.suffix.lower() in EXTENSIONS:
                    found.setdefault(path.stem, f"{folder}/{path.name}")
    return found


def count_files(files: Files) -> list[Check]:
    """What the files hold beside what was published."""
    pairs, lists = files.pairs, files.lists
    rules = {
        "train pairs": lambda category: len(pairs[category, "train"]),
        "val queries": lambda category: len(pairs[category, "val"]),
        "test queries": lambda category: len(pairs[category, "test"]),
        "train images": lambda category: len(lists[category, "train"]),
        "gallery original": lambda category: len(lists[category, "val"]),
        "gallery val": lambda category: len(files.used(category)),
        "gallery test": lambda category: len(lists[category, "test"]),
        "blank captions of train": lambda category: count_blank(pairs[category, "train"]),
        "blank captions of val": lambda category: count_blank(pairs[category, "val"]),
    }
    checks = [
        Check(f"{what} {category}", rule(category), published)
        for what, rule in rules.items()
        for category, published in zip(CATEGORIES, PUBLISHED[what], strict=True)
    ]
    for part, published in zip(PARTS, PUBLISHED["unique images"], strict=True):
        checks.append(Check(f"unique images of {part}", len(files.all_images(part)), published))
    outside = files.pair_counter.counts["unknown_image"]
    return [*checks, Check("pairs with an image that is not in their list", outside, 0)]


def connected_images(pairs: Iterable[Pair]) -> dict[str, str]:
    """ASIN → name of its group: pairs that share an image, directly or through other pairs, are one group."""
    above: dict[str, str] = {}

    def first_of(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for pair in pairs:
        # The smallest ASIN is the name of a group, whatever the order of the pairs.
        small, large = sorted((first_of(pair.reference), first_of(pair.target)))
        above[large] = small
    return {name: first_of(name) for name in list(above)}
