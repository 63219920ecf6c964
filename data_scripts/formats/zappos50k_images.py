# SPDX-License-Identifier: Apache-2.0
"""The images of UT-Zap50K as they are listed or found, and what their folders and meta-data.csv say of them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from data_scripts.formats.line_counts import LineCounter
from data_scripts.formats.text_files import lines, read_json
from modeling_mclfir.data.annotations import image_path
from modeling_mclfir.data.images import BadRows

FOLDERS = ("ut-zap50k-images", "ut-zap50k-images-square")
ATTRIBUTES = ("class", "closure", "gender", "heel", "subcategory", "brand")
META_COLUMNS = {"closure": "Closure", "gender": "Gender", "heel": "HeelHeight"}

_SUFFIXES = (".jpg", ".jpeg", ".png")

Meta = Mapping[str, Mapping[str, tuple[str, ...]]]  # CID → attribute → values


@dataclass
class Images:
    """The images of a source, each once.

    Attributes:
        root: the folder that `stored` begins at.
        ids: path of each image inside the folder of images, as it is listed: Category/SubCategory/Brand/CID.jpg.
        stored: the same path as the disk has it.
        places: line of the list, from 0 → number of its image; -1 where the line names none.
        copies: lines that name an image once more.
    """

    root: Path
    ids: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    copies: int = 0


def find_root(source: Path) -> Path:
    """The folder of images that is there, the first one of `FOLDERS` where none is."""
    return next((source / name for name in FOLDERS if (source / name).is_dir()), source / FOLDERS[0])


def list_images(path: Path, root: Path, bad_rows: BadRows) -> Images:
    """Reads filenames.json: one path a line in spite of its name, or a list in JSON.

    Raises:
        ValueError: a path leaves the folder, or the JSON is no list.
    """
    _, first = next(lines(path), (0, ""))
    if first.lstrip().startswith("["):
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected a list of paths, or one path a line")
        listed = [(i, item if isinstance(item, str) else "", f"item {i}") for i, item in enumerate(content)]
    else:
        # Triplets count the lines, blank ones too.
        listed = [(number - 1, text, f"line {number}") for number, text in lines(path)]
    images, known = Images(root), {}
    for place, text, where in listed:
        images.places += [-1] * (place + 1 - len(images.places))
        image_id = _image_id(text.strip())
        if image_id is None:
            bad_rows.add("malformed", f"{path.name} {where}")
            continue
        if image_id in known:
            images.copies += 1
        else:
            known[image_id] = len(images.ids)
            images.ids.append(image_id)
            images.stored.append(_as_stored(root, image_id))
        images.places[place] = known[image_id]
    return images


def walk_images(root: Path, bad_rows: BadRows) -> Images:
    """Finds the images in their folders, in the order of their paths; hidden files and folders are passed over."""
    images, found = Images(root), []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        found += [(inside / name).as_posix() for name in names if _is_image(name)]
    for path in sorted(found):
        image_id = _image_id(path)
        if image_id is None or not _is_text(path):
            bad_rows.add("malformed", path.encode(errors="backslashreplace").decode())
        else:
            images.ids.append(image_id)
            images.stored.append(path)
    return images


def read_meta(path: Path, counter: LineCounter) -> Meta:
    """Reads meta-data.csv: the values of closure, gender and heel for each CID, several of them parted by ";".

    Raises:
        ValueError: a column is missing.
    """
    meta: dict[str, dict[str, tuple[str, ...]]] = {}
    header: list[str] | None = None
    for number, text in lines(path):
        try:
            cells = [cell.strip() for cell in next(csv.reader([text]))]
        except csv.Error:
            cells = []
        if header is None:
            header = cells
            missing = [name for name in ("CID", *META_COLUMNS.values()) if name not in header]
            if missing:
                raise ValueError(
                    f"{path} has the columns {', '.join(header)}; missing: {', '.join(missing)}. Obtain it anew, "
                    "or take it away: without it only the folders give labels"
                )
            continue
        counter.read += 1
        row = dict(zip(header, cells, strict=False))
        if len(cells) < len(header) or not row["CID"]:
            counter.add("malformed", f"{path.name} line {number}")
        elif (key := _cid(row["CID"])) in meta:
            counter.add("duplicate_id", f"{path.name} line {number}")
        else:
            meta[key] = {name: _split(row[column]) for name, column in META_COLUMNS.items()}
    return meta


def image_cid(image_id: str) -> str:
    """The CID of an image as meta-data.csv writes it: a/b/c/100627.72.jpg → 100627-72."""
    return _cid(PurePosixPath(image_id).stem)


def product_id(image_id: str) -> str:
    """The part of the CID before the colour: a/b/c/100627.72.jpg → 100627."""
    return re.split(r"[-.]", PurePosixPath(image_id).name)[0]


def image_values(image_id: str, meta: Meta) -> dict[str, tuple[str, ...]]:
    """Attribute → all of its values, in the order of `ATTRIBUTES`."""
    category, subcategory, *brand = PurePosixPath(image_id).parts[:-1]
    known = meta.get(image_cid(image_id), {})
    values = {name: known.get(name, ()) for name in META_COLUMNS}
    brands = ("/".join(brand),) if brand else ()
    return {"class": (category,), **values, "subcategory": (subcategory,), "brand": brands}


def label(values: tuple[str, ...]) -> str | None:
    """The value where there is exactly one."""
    return values[0] if len(values) == 1 else None


def label_codes(images: Images, meta: Meta) -> dict[str, np.ndarray]:
    """Attribute → int32 (images,): number of the label of each image, -1 where it has none."""
    codes = {name: np.full(len(images.ids), -1, dtype=np.int32) for name in ATTRIBUTES}
    numbers: dict[str, dict[str, int]] = {name: {} for name in ATTRIBUTES}
    for i, image_id in enumerate(images.ids):
        for name, values in image_values(image_id, meta).items():
            value = label(values)
            if value is not None:
                codes[name][i] = numbers[name].setdefault(value, len(numbers[name]))
    return codes


def _image_id(listed: str) -> str | None:
    """The path inside the folder of images; None where Category/SubCategory/ is not before the name."""
    # Some programs unpack a dot at the end of a folder's name as %2E.
    parts = image_path(re.sub("%2e/", "./", listed, flags=re.IGNORECASE)).parts
    if parts and parts[0] in FOLDERS:
        parts = parts[1:]
    return "/".join(parts) if len(parts) >= 3 else None


def _as_stored(root: Path, image_id: str) -> str:
    """The path on the disk, where the dot at the end of a folder's name may be %2E or lost."""
    *folders, name = image_id.split("/")
    if not any(folder.endswith(".") for folder in folders):
        return image_id
    dotless = [folder.rstrip(".") or folder for folder in folders]
    endings = [folder[len(stem) :] for folder, stem in zip(folders, dotless, strict=True)]
    for dot in (".", "%2E", ""):
        changed = [stem + ending.replace(".", dot) for stem, ending in zip(dotless, endings, strict=True)]
        path = "/".join([*changed, name])
        if (root / path).is_file():
            return path
    return image_id


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _is_text(path: str) -> bool:
    """False where the name on the disk is in another encoding than UTF-8: no file of ours can keep it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cid(text: str) -> str:
    return text.replace(".", "-")


def _split(cell: str) -> tuple[str, ...]:
    values = (value.strip() for value in cell.split(";"))
    return tuple(dict.fromkeys(value for value in values if value))
