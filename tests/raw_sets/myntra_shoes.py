# SPDX-License-Identifier: Apache-2.0
"""A tiny part of Myntra's catalogue in the true format, made up: shoes, and shirts that are none."""

import csv
from pathlib import Path

from PIL import Image, ImageDraw

COLUMNS = (
    "image", "id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "year", "usage",
    "productDisplayName",
)  # fmt: skip
SIZES = {"train": 24, "val": 18, "query": 12, "gallery": 24}
ARTICLES = (("Shoes", "Casual Shoes"), ("Sandal", "Sandals"), ("Flip Flops", "Flip Flops"))
GENDERS, COLOURS, USAGES = ("Men", "Women"), ("Navy Blue", "NA"), ("Casual", "Sports")
ONE_RED = ("train", 5)  # the only photo of its colour in its split
NO_USAGE = ("val", 4)  # an empty cell
SHIRTS_EACH = 3


def labels(split: str, i: int) -> dict[str, str]:
    """What photo `i` of the shoes of a split shows."""
    return {
        "articleType": ARTICLES[i % 3][1],
        "gender": GENDERS[i // 3 % 2],
        "baseColour": "Red" if (split, i) == ONE_RED else COLOURS[i // 6 % 2],
        "usage": "" if (split, i) == NO_USAGE else USAGES[i // 2 % 2],
    }


def image_id(split: str, i: int) -> str:
    """The path of photo `i` of a split."""
    return f"images/{10000 + 100 * list(SIZES).index(split) + i}.jpg"


def make(folder: Path, *, images: bool = True, shoes: bool = True) -> Path:
    """Writes the set; between the shoes are shirts, and one shoe is in no split."""
    rows, splits = [], []
    for split, size in SIZES.items():
        for i in range(size):
            if shoes:
                rows.append(_row(image_id(split, i), ARTICLES[i % 3][0], labels(split, i)))
                splits.append((image_id(split, i), split))
            if i < SHIRTS_EACH:
                shirt = labels(split, 0) | {"articleType": "Shirts"}
                rows.append(_row(image_id(split, 90 + i), "Topwear", shirt))
                splits.append((image_id(split, 90 + i), split))
    rows.append(_row("images/19999.jpg", "Shoes", labels("gallery", 0)))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "labels.csv", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    _write(folder / "split.csv", ("image", "split"), splits)
    if images:
        (folder / "images").mkdir()
        for number, row in enumerate(rows):
            _draw(row, number).save(folder / row["image"], quality=90)
    return folder


def _row(image: str, kind: str, shown: dict[str, str]) -> dict[str, str]:
    number = image.removeprefix("images/").removesuffix(".jpg")
    return shown | {
        "image": image,
        "id": number,
        "masterCategory": "Apparel" if kind == "Topwear" else "Footwear",
        "subCategory": kind,
        "season": "Summer",
        "year": "2011",
        "productDisplayName": f'Sole & Söhne, "No {number}"',
    }


def _write(path: Path, header: tuple[str, ...], rows: list) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _draw(row: dict[str, str], number: int) -> Image.Image:
    """Labels show: articleType as a shape, gender as a bar, colour as colour, usage as a line at the foot."""
    image = Image.new("RGB", (24, 32), "white")
    draw = ImageDraw.Draw(image)
    draw.point((number % 24, 31 - number // 24), fill="black")  # no two photos are alike
    colour = {"Navy Blue": "navy", "NA": "orange"}.get(row["baseColour"], "red")
    shape = {"Casual Shoes": draw.rectangle, "Sandals": draw.ellipse}.get(row["articleType"], draw.arc)
    shape((3, 8, 20, 22), *((0, 270) if shape == draw.arc else ()), fill=colour)
    if row["gender"] == "Women":
        draw.rectangle((3, 2, 20, 5), fill="green")
    if row["usage"] == "Sports":
        draw.rectangle((3, 24, 20, 26), fill="black")
    return image
