# SPDX-License-Identifier: Apache-2.0
"""The detection boxes of Fashion200K, which the released images are cut to already and whole photos are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from data_scripts.formats.image_files import image_file
from data_scripts.formats.line_counts import LineCounter
from data_scripts.formats.text_files import lines
from modeling_mclfir.data.annotations import image_path

# x1, y1, x2, y2 as shares of the image's width and height.
Box = tuple[float, float, float, float]

_EXIF_ORIENTATION = 0x0112
_OVERHANG = 0.01  # a detector's box may stand out of the photo by a little


def read_boxes(source: Path, scores: Mapping[str, float], counter: LineCounter) -> dict[str, Box]:
    """Reads detection/*.txt: a path, then "kind_score_x1_x2_y1_y2" for each box, separated by tabs.

    Args:
        source: the folder of the data set.
        scores: image id → score in the label file; of an image's boxes, the one with (almost) that score is its own.
        counter: counts the lines, and those that cannot be read or have a box outside of the image.

    Returns:
        Image id → box, of the images in `scores` only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a path leaves the folder.
    """
    paths = sorted([*source.glob("detection/*.txt"), *source.glob("detection/*.txt.gz")])
    if not paths:
        raise FileNotFoundError(f"{source} has no detection/*.txt; expected the boxes there, or no --crop")
    boxes = {}
    for path in paths:
        for number, line in lines(path):
            counter.read += 1
            listed, *cells = (cell.strip() for cell in line.split("\t"))
            image_id = str(image_path(listed))
            found = [_parse(cell) for cell in cells if cell]
            if not found or None in found:
                counter.add("malformed", f"{path.name} line {number}")
            elif image_id in scores:
                boxes[image_id] = min(found, key=lambda scored: abs(scored[0] - scores[image_id]))[1]
    return boxes


def pixel_box(source: Path, listed: str, box: Box) -> tuple[int, int, int, int] | None:
    """The box in pixels of the image as it is shown; None where the image cannot be opened (the writer says why)."""
    path = image_file(source, listed)
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:  # lies on its side
                width, height = height, width
    except Exception:  # Pillow's plugins raise whatever they like on a damaged file
        return None
    return tuple(round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))


def to_number(text: str) -> float | None:
    """The finite number that a cell holds, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parse(cell: str) -> tuple[float, Box] | None:
    numbers = [to_number(part) for part in cell.split("_")[-5:]]
    if len(numbers) < 5 or None in numbers:
        return None
    score, left, right, top, bottom = numbers
    if min(numbers[1:]) < -_OVERHANG or max(numbers[1:]) > 1 + _OVERHANG:
        return None
    return score, (left, top, right, bottom)
