# SPDX-License-Identifier: Apache-2.0
"""A tiny FashionIQ, made up, in the form of the real files: 6 to 8 images a list, images in three folders."""

import gzip
import json
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"dress": "crimson", "shirt": "navy", "toptee": "olive"}
# Where the images of a category lie, and what their names end in.
PLACES = {"dress": ("images", ".jpg"), "shirt": ("images", ".PNG"), "toptee": ("image_data/toptee", ".jpeg")}
SIZES = {"train": 8, "val": 6, "test": 5}
# Pairs of places in the list: reference, target. The first two of train share an image.
PAIRS = {"train": [(0, 1), (1, 2), (3, 4), (5, 6)], "val": [(0, 1), (2, 1)], "test": [(0, None), (0, None), (3, None)]}
# As in the real set, tops share images with shirts, also across the lists.
SHARED = {
    "B00BOTHTRN": (("shirt", "train"), ("toptee", "train")),
    "B00SHIRT04": (("shirt", "train"), ("toptee", "val")),
    "B00VALTEST": (("shirt", "val"), ("toptee", "test")),
}


def asin(category: str, part: str, i: int) -> str:
    """The name of image `i` of a list."""
    return f"B00{category.upper()}{i:02d}" if part == "train" else f"{part} é {category}{i}"


def names(category: str, part: str) -> list[str]:
    """The list of a category and part."""
    result = [asin(category, part, i) for i in range(SIZES[part])]
    return result + [name for name, lists in SHARED.items() if (category, part) in lists and name not in result]


def pairs(category: str, part: str) -> list[dict]:
    """The content of a caption file."""
    listed = names(category, part)
    result = []
    for number, (reference, target) in enumerate(PAIRS[part]):
        item = {} if target is None else {"target": listed[target]}
        result.append({**item, "candidate": listed[reference], "captions": [f" is brighter {number}", "has a é bow"]})
    if (category, part) == ("toptee", "train"):
        result[2]["captions"][1] = " "
    if (category, part) == ("toptee", "val"):  # a shirt of train, among the tops of val
        result.append({"target": "B00SHIRT04", "candidate": listed[5], "captions": ["is the same", "is the same"]})
    return result


def make(folder: Path, *, images: bool = True, faults: bool = False) -> Path:
    """Writes the set.

    The files of dresses have a byte order mark and Windows line ends, those of shirts no last newline; one of the tops
    is gzipped. With `faults`, there are also entries that a reader has to count, and the image of "val é dress3" is
    missing.
    """
    for part in SIZES:
        for category in COLOURS:
            listed, found = names(category, part), pairs(category, part)
            if images:
                _draw_all(folder, category, listed)
            if faults and (category, part) == ("dress", "train"):
                listed += ["B00DRESS01", 7, " "]
                target = {"target": "B00DRESS01"}
                found[1:1] = [
                    {"candidate": "B00DRESS00", "captions": ["no target", "at all"]},
                    {"candidate": "B00DRESS00", **target, "captions": "one text"},
                    {"candidate": "B00DRESS00", **target, "captions": ["a", None]},
                    ["no", "object"],
                    {"candidate": "B00NOWHERE", **target, "captions": ["of another", "list"]},
                ]
            _write(folder / f"image_splits/split.{category}.{part}.json", listed, category)
            _write(folder / f"captions/cap.{category}.{part}.json", found, category)
    if faults:
        (folder / "images/val é dress3.jpg").unlink(missing_ok=True)
    packed = folder / "captions/cap.toptee.train.json"
    packed.with_name(f"{packed.name}.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    return folder


def draw(path: Path, colour: str, number: int) -> None:
    """Writes a picture of 24×24 pixels: a square of the colour, its place and the ground chosen by the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (24, 24), (255 - number % 64, 255, 255))
    x, y = number % 7, number // 7 % 7
    ImageDraw.Draw(picture).rectangle((x, y, x + 16, y + 16), fill=colour)
    picture.save(path)


def _draw_all(folder: Path, category: str, listed: list[str]) -> None:
    place, ending = PLACES[category]
    for name in listed:
        if not any((folder / where / f"{name}{end}").exists() for where, end in PLACES.values()):
            draw(folder / place / f"{name}{ending}", COLOURS[category], sum(name.encode()))


def _write(path: Path, content: list, category: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=4, ensure_ascii=False)
    if category == "dress":
        text = "\ufeff" + text.replace("\n", "\r\n") + "\r\n"
    path.write_bytes(text.encode())
