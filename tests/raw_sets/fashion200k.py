# SPDX-License-Identifier: Apache-2.0
"""A tiny Fashion200K in the form of the real files, with content made up for tests."""

import gzip
from pathlib import Path

from PIL import Image, ImageDraw

# Category → folder of its photos; one has spaces, one letters beyond ASCII.
FOLDERS = {
    "dress": "dresses/casual and day",
    "jacket": "jackets/blazers",
    "pants": "pants/été",
    "skirt": "skirts/mini",
    "top": "tops/vests",
}
COLOURS = {"train": ("red", "blue", "green", "black"), "test": ("red", "blue", "green")}
PHOTOS = 2


def make(folder: Path, *, bad_lines: bool = False) -> Path:
    """Writes 8 training and 6 test photos a category, in labels, detections and queries.

    Captions are "COLOUR CATEGORY", one word of them apart from each other; a photo of the training tops has none.
    The files have Windows line ends, a byte order mark, trailing tabs, blank lines and no last newline, and one is
    gzipped. `bad_lines` adds lines that cannot be used, of each kind.
    """
    for name in ("labels", "detection"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for category in FOLDERS:
        detections = []
        for part in COLOURS:
            labels = []
            for image_id, colour, number in photos(category, part):
                score = -1 - number / 10
                caption = "" if (category, part, number) == ("top", "train", 7) else f"{colour} {category}"
                labels.append(f"{image_id}\t{score:.6f}\t{caption}")
                detections.append(
                    f"{image_id}\tshoes_-0.5_0.00_0.25_0.75_1.00\t{category}_{score}_0.25_0.75_0.5_1.0\t"
                )
                draw(folder / image_id, colour, number)
            if bad_lines and (category, part) == ("dress", "train"):
                labels += ["no tab", "women/a_0.jpeg\tnan\tno score", "\t-1.0\tno path", labels[0] + " again"]
            write(folder / "labels" / f"{category}_{part}_detect_all.txt", labels, category)
        write(folder / "detection" / f"women_{category}_detection.txt", detections, category)
    queries = []
    for category in FOLDERS:
        red, blue = (photos(category, "test")[i * PHOTOS][0] for i in range(2))
        queries.append(f"{red} {blue}")
    if bad_lines:
        queries += ["alone", f"{red} women/nowhere.jpeg"]
    write(folder / "test_queries.txt", queries, "jacket")
    return folder


def photos(category: str, part: str) -> list[tuple[str, str, int]]:
    """(path, colour, number) of the photos of a category in train or test."""
    found = []
    for number in range(len(COLOURS[part]) * PHOTOS):
        product = f"{category}{part}{number // PHOTOS}"
        path = f"women/{FOLDERS[category]}/{product}/{product}_{number % PHOTOS}.jpeg"
        found.append((path, COLOURS[part][number // PHOTOS], number))
    return found


def draw(path: Path, colour: str, number: int) -> None:
    """Writes a picture of 24×32 pixels: a square of the colour, placed by the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (24, 32), "white")
    ImageDraw.Draw(picture).rectangle((number, number, number + 14, number + 14), fill=colour)
    picture.save(path, "JPEG")


def write(path: Path, lines: list[str], oddity: str) -> None:
    """Writes a text file with the oddity that goes with a category."""
    text = "\n".join(lines) + "\n"
    if oddity == "dress":
        text = text.replace("\n", "\t\n\n", 1)
    elif oddity == "jacket":
        text = text.replace("\n", "\r\n")
    elif oddity == "pants":
        text = "\ufeff" + text
    elif oddity == "skirt":
        text = text.removesuffix("\n")
    else:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        return
    path.write_bytes(text.encode())
