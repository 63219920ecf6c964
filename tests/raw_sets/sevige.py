# SPDX-License-Identifier: Apache-2.0
"""A tiny Visual Genome in the form of the real files, with content made up for tests and some of what goes wrong."""

from pathlib import Path

from raw_sets.secoco import draw, write_json

# Name of the dominant object → colour of the picture.
OBJECTS = {"Car": "navy", "brick building": "grey", "cats": "olive", "tree": "green", "wooden chair": "brown"}
SIZE = 120


def make(folder: Path) -> Path:
    """Writes 120 images with one dominant object each and three to six regions, two of which share a phrase.

    One more has no object of a known name, one no region at all.
    """
    ids = range(1, SIZE + 1)
    unknown, silent = SIZE + 1, SIZE + 2
    images = [_image(image_id) for image_id in (*ids, unknown, silent)]
    objects = [{"image_id": image_id, "objects": _objects(image_id), "image_url": _url(image_id)} for image_id in ids]
    objects.append({"image_id": unknown, "objects": [_object(1, "doohickey", 9, 9)]})
    objects.append({"image_id": silent, "objects": [_object(1, "car", 9, 9)]})
    regions = [{"id": image_id, "regions": _regions(image_id)} for image_id in (*ids, unknown)]
    regions.append({"id": silent, "regions": []})
    for image_id in (*ids, unknown, silent):
        draw(folder / _path(image_id), _colour(image_id), image_id)
    write_json(folder / "image_data.json", images)
    write_json(folder / "objects.json", objects, indent=2, newline="\r\n")
    write_json(folder / "region_descriptions.json", regions)
    return folder


def _path(image_id: int) -> str:
    return f"VG_100K{'_2' if image_id % 2 else ''}/{image_id}.jpg"


def _url(image_id: int) -> str:
    return f"https://example.org/people/{_path(image_id)}"


def _image(image_id: int) -> dict:
    url = _url(image_id)
    return {"width": 24, "url": url, "height": 24, "image_id": image_id, "coco_id": None, "flickr_id": None}


def _name(image_id: int) -> str:
    # Three in a row have the same: so each of the splits, which go by the id, has images of every group.
    return list(OBJECTS)[image_id // 3 % len(OBJECTS)]


def _colour(image_id: int) -> str:
    return OBJECTS[_name(image_id)]


def _objects(image_id: int) -> list[dict]:
    """The dominant one, a sky and a woman that are larger, and what the table does not know."""
    return [
        _object(10 * image_id, _name(image_id), 12, 12),
        _object(10 * image_id + 1, "blue sky", 24, 24),
        _object(10 * image_id + 2, "woman", 20, 20),
        _object(10 * image_id + 3, "gizmo", 24, 24),
    ]


def _object(number: int, name: str, width: int, height: int) -> dict:
    known = [f"{name.lower()}.n.01"]
    return {"synsets": known, "h": height, "object_id": number, "names": [name], "w": width, "y": 0, "x": -1}


def _regions(image_id: int) -> list[dict]:
    name = _name(image_id)
    phrases = [
        (f"small {name} {image_id}", 4),
        (f"A {name} beside the café, number {image_id}\n", 20),
        (f"large {name}", 16),
        (f"Large {name} ", 15),
        ("  ", 24),
        ("", 2),
    ]
    return [
        {"region_id": 10 * image_id + number, "width": side, "height": side, "image_id": image_id, "phrase": text}
        | {"y": 0, "x": 0}
        for number, (text, side) in enumerate(phrases)
    ]
