# SPDX-License-Identifier: Apache-2.0
"""A tiny MS-COCO in the form of the real files, with content made up for tests and some of what goes wrong."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

# (category id, name, super-category), as in the real files but for being few.
CATEGORIES = (
    (1, "person", "person"),
    (3, "car", "vehicle"),
    (17, "cat", "animal"),
    (34, "frisbee", "sports"),
    (53, "apple", "food"),
    (62, "chair", "furniture"),
)
COLOURS = {3: "navy", 17: "olive", 34: "orange", 53: "red", 62: "brown"}
SIZES = {"train": 20, "val": 40}
FIRST_ID = {"train": 9, "val": 1009}


def make(folder: Path, year: int = 2017) -> Path:
    """Writes 20 training and 40 validation images of the year, each with one dominant object and two captions.

    Of the training images, one more has a person only, one no object, one no caption.
    The validation files have Windows line ends.
    """
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for part in SIZES:
        (folder / f"{part}{year}").mkdir(exist_ok=True)
        captions, instances = _content(part, year)
        for image in captions["images"]:
            draw(folder / f"{part}{year}" / image["file_name"], _category(image["id"], part), image["id"])
        newline = "\n" if part == "train" else "\r\n"
        for kind, content in (("captions", captions), ("instances", instances)):
            path = folder / "annotations" / f"{kind}_{part}{year}.json"
            write_json(path, content, indent=None if part == "train" else 1, newline=newline)
    return folder


def draw(path: Path, colour: str, number: int) -> None:
    """Writes a picture of 24×24 pixels: a square of the colour, placed by the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (24, 24), "white")
    x, y = number % 7, number // 7 % 7
    ImageDraw.Draw(picture).rectangle((x, y, x + 16, y + 16), fill=colour)
    picture.save(path, "JPEG")


def write_json(path: Path, content: object, indent: int | None = None, newline: str = "\n") -> None:
    """Writes a JSON file, letters beyond ASCII as they are, with these line ends."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    path.write_bytes(text.replace("\n", newline).encode())


def file_name(part: str, year: int, image_id: int) -> str:
    """The name of an image's file."""
    return f"{image_id:012}.jpg" if year == 2017 else f"COCO_{part}2014_{image_id:012}.jpg"


def _category(image_id: int, part: str) -> str:
    return list(COLOURS.values())[(image_id - FIRST_ID[part]) % len(COLOURS)]


def _content(part: str, year: int) -> tuple[dict, dict]:
    ids = [FIRST_ID[part] + number for number in range(SIZES[part])]
    images = [_image(part, year, image_id) for image_id in ids]
    captions, objects = [], []
    for number, image_id in enumerate(ids):
        category = list(COLOURS)[number % len(COLOURS)]
        name = next(name for known, name, _ in CATEGORIES if known == category)
        for text in (f"A {name} in a café, photo {number}.\n", f" Picture {number} of a {name}"):
            captions.append({"image_id": image_id, "id": len(captions) + 1, "caption": text})
        # A large person and a larger crowd change nothing.
        objects += [_object(len(objects), image_id, category, 120.5), _object(len(objects) + 1, image_id, 1, 400.0)]
        crowd = 53 if category != 53 else 3
        objects.append(_object(len(objects), image_id, crowd, 500.0, iscrowd=1))
    if part == "train":
        person, nothing, silent = 101, 102, 103
        images += [_image(part, year, image_id) for image_id in (person, nothing, silent)]
        for image_id in (person, nothing):
            captions.append({"image_id": image_id, "id": len(captions) + 1, "caption": "Somebody"})
        objects += [_object(len(objects), person, 1, 300.0), _object(len(objects) + 1, silent, 3, 300.0)]
    info = {"description": "made for tests", "year": year}
    licences = [{"id": 1, "name": "none"}]
    categories = [{"id": known, "name": name, "supercategory": above} for known, name, above in CATEGORIES]
    return (
        {"info": info, "images": images, "licenses": licences, "annotations": captions},
        {"info": info, "licenses": licences, "images": images, "annotations": objects, "categories": categories},
    )


def _image(part: str, year: int, image_id: int) -> dict:
    name = file_name(part, year, image_id)
    return {"license": 1, "file_name": name, "height": 24, "width": 24, "id": image_id}


def _object(number: int, image_id: int, category: int, area: float, iscrowd: int = 0) -> dict:
    return {
        "segmentation": {"counts": [1, 2], "size": [24, 24]} if iscrowd else [[0.5, 1.0, 7.25, 1.0, 7.25, 9.0]],
        "area": area,
        "iscrowd": iscrowd,
        "image_id": image_id,
        "bbox": [1.0, 1.0, 16.0, 16.0],
        "category_id": category,
        "id": 1000 + number,
    }
