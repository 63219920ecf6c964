# SPDX-License-Identifier: Apache-2.0
"""A tiny FashionAI: two folders of photos with label.csv, and ASEN's lists, with content made up for tests."""

import hashlib
from pathlib import Path

from raw_sets.asen_meta import draw, write

SIZES = {
    "skirt_length": 6,
    "sleeve_length": 9,
    "coat_length": 8,
    "pant_length": 6,
    "collar_design": 5,
    "lapel_design": 5,
    "neckline_design": 10,
    "neck_design": 5,
}
VALUES = (1, 2)
# Each stands for 16 images, one for each attribute and value.
PARTS = ("train", "train", "train", "query_valid", "valid", "valid", "query_test", "test", "test")
BAD_LINES = (
    "Images/skirt_length_labels/bad1.jpg,skirt_length_labels,nyxnnn",
    "Images/skirt_length_labels/bad2.jpg,skirt_length_labels,NYNNNN",
    "Images/skirt_length_labels/bad3.jpg,skirt_length_labels,nynn",
    "Images/skirt_length_labels/bad4.jpg,skirt_length_labels,nmnnnn",
    "Images/skirt_length_labels/bad5.jpg,skirt_length_labels,nyynnn",
    "Images/hat_labels/bad6.jpg,hat_labels,nyn",
    "Images/skirt_length_labels/bad7.jpg,skirt_length_labels",
    ",skirt_length_labels,nynnnn",
)


def make(folder: Path, *, lists: bool = True, train: bool = False, images: bool = True, bad: bool = False) -> Path:
    """Writes 48 images of train, and for each of valid and test 16 queries and 32 candidates, in two folders.

    The first image of train may also have the last value of its attribute (m).

    Args:
        lists: write ASEN's lists,
        train: with those of train, which the public copy lacks.
        images: False writes the annotations only.
        bad: add the lines above to the first label.csv, and its first line once more.
    """
    rows = [
        (part, _path(copy, attribute, value), attribute, value)
        for copy, part in enumerate(PARTS)
        for attribute in range(len(SIZES))
        for value in VALUES
    ]
    for number in (1, 2):
        top = f"fashionAI_attributes_train{number}/"
        own = [
            (path.removeprefix(top), attribute, value) for _, path, attribute, value in rows if path.startswith(top)
        ]
        lines = [_line(*row, maybe=number == 1 and i == 0) for i, row in enumerate(own)]
        lines += [*BAD_LINES, lines[0]] if bad and number == 1 else []
        path = folder / top / "Annotations" / "label.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        # One with Windows line ends and a blank line, one with a byte order mark and no last newline.
        text = "\r\n".join(lines) + "\r\n\r\n" if number == 1 else "\ufeff" + "\n".join(lines)
        path.write_bytes(text.encode())
    if lists:
        by_part = {part: [row[1:] for row in rows if row[0] == part] for part in PARTS}
        evaluation = {part: (by_part[f"query_{part}"], by_part[part]) for part in ("valid", "test")}
        training = [(path, [(attribute, value)]) for path, attribute, value in by_part["train"]]
        write(folder, "FashionAI", SIZES, evaluation, training if train else None)
    if images:
        for i, (_, path, _, value) in enumerate(rows):
            draw(folder / path, value, i)
    return folder


def label_file(path: Path) -> Path:
    """Writes a label file of a test round, which has a fourth column, with three rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"Images/neck_design_labels/{i}.jpg", 7, 1 + i) for i in range(3)]
    path.write_text("".join(f"{_line(*row, maybe=row[2] == 2)},0\n" for row in rows))
    return path


def _path(copy: int, attribute: int, value: int) -> str:
    name = hashlib.md5(f"{copy} {attribute} {value}".encode()).hexdigest()
    return f"fashionAI_attributes_train{1 + copy % 2}/Images/{list(SIZES)[attribute]}_labels/{name}.jpg"


def _line(path: str, attribute: int, value: int, maybe: bool = False) -> str:
    name, size = list(SIZES.items())[attribute]
    letters = ["n"] * size
    letters[value] = "y"
    if maybe:
        letters[-1] = "m"
    return f"{path},{name}_labels,{''.join(letters)}"
