# SPDX-License-Identifier: Apache-2.0
"""A tiny Shopping100K in the form of the ADDE splits, with content made up for tests."""

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIZES = (16, 17, 19, 14, 10, 15, 2, 11, 16, 7, 9, 15)
TRAIN, TEST = 24, 17
SPORT = 11
QUERIES = (
    # reference, attribute (by number), value that goes, value that comes, wanted image
    (0, 0, 0, 1, 1),
    (0, 1, 0, 1, 2),
    (16, SPORT, 3, None, 0),
    (0, SPORT, None, 3, 16),
)


def make(folder: Path, *, bad_lines: bool = False, place: str = "splits/Shopping100k") -> Path:
    """Writes 24 training and 17 test images with rows of 151 numbers, 4 queries and 2 training triplets.

    The value of the attributes category, collar and color is a bit of the image's number, so that each change of one
    of them leads to another image; the others have the value number // 8, but there is no sport below 8. Test image 16
    is image 0 with a sport. The files have Windows line ends, a byte order mark, trailing blanks and no last newline,
    and one is gzipped. `bad_lines` adds lines that cannot be used, of each kind.
    """
    splits = folder / place
    splits.mkdir(parents=True, exist_ok=True)
    (splits / "attr_num.txt").write_text("\n".join(map(str, SIZES)) + "\n")
    for part, count in (("train", TRAIN), ("test", TEST)):
        names, rows = [], []
        for number in range(count):
            names.append(image_name(part, number))
            rows.append(row(values(number)))
            draw(folder / "Images" / names[-1], number)
        if bad_lines:
            several = row(values(1)).replace("1 0", "1 1", 1)
            names += [f"{part} short.jpg", f"{part} two.jpg", names[0], f"{part} several.jpg"]
            rows += [rows[0][:-2], "2" + rows[0][1:], rows[0], several]
            draw(folder / "Images" / names[-1], 1)
        (splits / f"imgs_{part}.txt").write_bytes(("\ufeff" + " \r\n".join(names)).encode())
        content = "\n".join(rows).encode() + b"\n\n"
        if part == "train":
            (splits / "labels_train.txt.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (splits / "labels_test.txt").write_bytes(content)
    references = [str(reference) for reference, *_ in QUERIES[:-1]] + [image_name("test", QUERIES[-1][0])]
    changes = [indicator(*query[1:4]) for query in QUERIES]
    wanted = [row(values(query[4])) for query in QUERIES]
    if bad_lines:
        references += ["99", "nowhere.jpg", "0", str(TEST), "0"]
        changes += [changes[0], changes[0], row([None] * 12), changes[0], changes[0]]
        wanted += [wanted[0]] * 4 + [wanted[0] + " 1"]
    triplets, triplet_changes = ["0 1 2", "1 3 0"], [indicator(0, 0, 1), indicator(1, 0, 1)]
    if bad_lines:
        triplets, triplet_changes = [*triplets, "0 1", "0 1 99"], [*triplet_changes, *triplet_changes]
    for name, lines in (
        ("ref_test", references),
        ("indfull_test", changes),
        ("gt_test", wanted),
        ("triplet_train", triplets),
        ("triplet_train_ind", triplet_changes),
    ):
        (splits / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def image_name(part: str, number: int) -> str:
    """The path of an image: one folder has a space and a letter beyond ASCII."""
    return f"{'Männer hemden' if number % 2 else 'women_dress'}/{part}_{number}.jpg"


def values(number: int) -> list[int | None]:
    """The value of each attribute of an image."""
    if number == 16:
        return [*values(0)[:SPORT], 3]
    group = number // 8
    bits = [number % 2, number // 2 % 2, number // 4 % 2]
    return [*bits, *(group % size for size in SIZES[3:SPORT]), group - 1 if group else None]


def row(labels: Sequence[int | None]) -> str:
    """A one-hot row of 151 numbers."""
    return " ".join(
        str(int(value == place)) for value, size in zip(labels, SIZES, strict=True) for place in range(size)
    )


def indicator(attribute: int, removed: int | None, added: int | None) -> str:
    """A row of -1, 0 and 1: what goes and what comes."""
    cells: list[Iterable[str]] = [["0"] * size for size in SIZES]
    for value, cell in ((removed, "-1"), (added, "1")):
        if value is not None:
            cells[attribute][value] = cell
    return " ".join(cell for group in cells for cell in group)


def draw(path: Path, number: int) -> None:
    """Writes a picture of 24×24 pixels: a square whose colour and place tell the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (24, 24), "white")
    colour = tuple(255 * (number >> bit & 1) // 2 for bit in range(3))
    ImageDraw.Draw(picture).rectangle((number // 8, 0, number // 8 + 14, 14), fill=colour)
    picture.save(path, "JPEG")
