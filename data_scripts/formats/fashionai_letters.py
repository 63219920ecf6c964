# SPDX-License-Identifier: Apache-2.0
"""FashionAI's label.csv: path, <attribute>_labels, and one letter for each value; no header."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_scripts.formats.text_files import lines
from modeling_mclfir.data.annotations import image_path

# In the order of ASEN's meta.json, the values in the order of the letters.
VALUES = {
    "skirt_length": ("invisible", "short", "knee", "midi", "ankle", "floor"),
    "sleeve_length": ("invisible", "sleeveless", "cup", "short", "elbow", "3/4", "wrist", "long", "extra long"),
    "coat_length": ("invisible", "high waist", "regular", "long", "micro", "knee", "midi", "ankle&floor"),
    "pant_length": ("invisible", "short", "mid", "3/4", "cropped", "full"),
    "collar_design": ("invisible", "shirt", "Peter Pan", "puritan", "rib"),
    "lapel_design": ("invisible", "notched", "collarless", "shawl", "plus-size shawl"),
    "neckline_design": (
        *("invisible", "strapless", "deep V", "straight", "V", "square", "off shoulder", "round"),
        *("sweetheart", "one shoulder"),
    ),
    "neck_design": ("invisible", "turtle", "ruffle semi-high", "low turtle", "draped"),
}
ATTRIBUTES = tuple(VALUES)
NUM_VALUES = tuple(map(len, VALUES.values()))
_IDS = {f"{name}_labels": i for i, name in enumerate(ATTRIBUTES)}


class Letters(NamedTuple):
    """One line.

    Attributes:
        where: file and line.
        image: path of the image, from the folder of the set on; "" in a malformed line.
        attribute: index into `ATTRIBUTES`.
        value: index of the value marked y.
        maybe: indices of those marked m.
        cause: what is wrong with the line, None where nothing is. `attribute`, `value` and `maybe` are then without
            meaning.
    """

    where: str
    image: str
    attribute: int = -1
    value: int = -1
    maybe: tuple[int, ...] = ()
    cause: str | None = None


def read_letters(path: Path, folder: str = "") -> Iterator[Letters]:
    """Yields every line; a fourth column, as the labels of a test round have, is passed over.

    What may be wrong: "malformed" (not three or four columns, no path), "unknown_attribute", "unknown_letter" (other
    than y, n, m), "wrong_length" (not one letter for each value), "no_value" (no y), "several_values" (more than one
    y), "duplicate" (the image was named before).

    Args:
        path: the file.
        folder: what to put before the paths.

    Raises:
        ValueError: a path leaves its folder, or the file is no text.
    """
    seen: set[str] = set()
    for number, line in lines(path):
        where = f"{folder or path.name} line {number}"
        columns = [column.strip() for column in line.split(",")]
        if len(columns) not in (3, 4) or not columns[0]:
            yield Letters(where, "", cause="malformed")
            continue
        image_path(columns[0])  # before the folder's name makes any path look like one inside
        image = f"{folder}/{columns[0]}" if folder else columns[0]
        attribute, letters = _IDS.get(columns[1]), columns[2]
        cause = "unknown_attribute" if attribute is None else _cause(letters, NUM_VALUES[attribute])
        if cause is None and image in seen:
            cause = "duplicate"
        if cause:
            yield Letters(where, image, cause=cause)
            continue
        seen.add(image)
        maybe = tuple(i for i, letter in enumerate(letters) if letter == "m")
        yield Letters(where, image, attribute, letters.index("y"), maybe)


def _cause(letters: str, num_values: int) -> str | None:
    if set(letters) - set("ynm"):
        return "unknown_letter"
    if len(letters) != num_values:
        return "wrong_length"
    count = letters.count("y")
    return None if count == 1 else "several_values" if count else "no_value"
