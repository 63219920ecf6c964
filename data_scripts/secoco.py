# SPDX-License-Identifier: Apache-2.0
"""Sequential MS-COCO (after Wang, Herranz, van de Weijer, "Continual learning in cross-modal retrieval", 2021).

Expected in --source, of 2014 or of 2017 (the files of cocodataset.org, unpacked):
  annotations/captions_train2017.json    annotations/captions_val2017.json
  annotations/instances_train2017.json   annotations/instances_val2017.json
  train2017/000000000009.jpg …           val2017/000000000139.jpg …
and likewise train2014/COCO_train2014_000000000009.jpg … with 2014.

Three increments by object super-category. The rule is ours (the paper's own split is not known to us): an image
belongs to the group of super-categories whose objects have the largest total area in it. Super-categories in no group
(person, unless --groups says otherwise: it is in more than half of the images) take no part; an image without an
object of a group is left out and counted.

COCO's training images are the split train; its validation images are split by a hash of their id, 1/3 val and 2/3
gallery. There is no split query: a text query is a caption of a gallery image, and for the attribute each gallery
image is searched among the others. A row has all captions in `captions`, the first one in `caption`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.line_counts import LineCounter
from data_scripts.formats.sequential_captions import Groups, Sorter, dict_items, fields, read_groups
from data_scripts.formats.stable_hash import split_by_shares
from data_scripts.formats.text_files import exists, find
from modeling_mclfir.data.annotations import Annotations, Check, image_path
from modeling_mclfir.data.images import BadRows

if TYPE_CHECKING:
    from modeling_mclfir.data.shards import DatasetSummary

NAME = "SeCOCO (Sequential MS-COCO)"
LICENCE = "as far as is known: annotations CC BY 4.0 (COCO Consortium); photos from Flickr, under their owners' terms"
CITATION = """@article{wang2021continual,
  title = {Continual learning in cross-modal retrieval},
  author = {Wang, Kai and Herranz, Luis and van de Weijer, Joost},
  journal = {arXiv preprint arXiv:2104.06806},
  year = {2021}
}
@inproceedings{lin2014microsoft,
  title = {Microsoft {COCO}: Common Objects in Context},
  author = {Lin, Tsung-Yi and others},
  booktitle = {European Conference on Computer Vision},
  year = {2014}
}"""
DESCRIPTION = "MS-COCO photos with five captions each, in three increments by the super-category of their objects."
# Ours: places that are semantically apart. Person is in no group, as it is found in all of them.
GROUPS = {
    "street": ("vehicle", "outdoor", "accessory"),
    "field": ("animal", "sports"),
    "home": ("kitchen", "food", "furniture", "electronic", "appliance", "indoor"),
}
SUPERCATEGORIES = ("person", *(member for members in GROUPS.values() for member in members))
YEARS = (2017, 2014)
VAL_SHARES = {"val": 1, "gallery": 2}
PUBLISHED_IMAGES = {(2017, "train"): 118_287, (2017, "val"): 5_000, (2014, "train"): 82_783, (2014, "val"): 40_504}
RULE = (
    "Rule: an image belongs to the group whose super-categories have the largest total object area in it (`area` of"
    " the instance annotations, iscrowd = 0; of equals the first group); its super-category is the one of the "
    "largest area in that group. Super-categories in no group take no part ({ignored}). Images without a caption or"
    " without an object of a group are left out."
)
SPLITS = (
    "Splits: COCO {year} train is train; COCO {year} val is split by a hash of the image id, 1/3 val and 2/3 "
    "gallery. There is no query split: text queries are the captions of the gallery's images."
)


def read(source: Path, year: int | None = None, groups: Groups | None = None) -> Annotations:
    """Reads the captions and instances of one year.

    Args:
        source: folder with the files above.
        year: 2014 or 2017; None: the one that is there, 2017 first.
        groups: name → super-categories (default: `GROUPS`).

    Raises:
        FileNotFoundError: files are missing; all are named.
        ValueError: a file is no COCO file or is cut short, or a listed image path leaves its folder.
    """
    groups = GROUPS if groups is None else groups
    year = _find_year(source) if year is None else year
    require_files(source, _files(year))
    bad_rows, sorter, checks = BadRows(), Sorter(groups), []
    counters = defaultdict(LineCounter)
    for part in ("train", "val"):
        images, captions = _read_captions(source, part, year, bad_rows, counters["caption"])
        areas = _read_areas(find(source, f"annotations/instances_{part}{year}.json"), images, counters)
        checks += [
            Check(f"images of {part}{year}", len(images), PUBLISHED_IMAGES.get((year, part))),
            Check(f"captions of {part}{year}", sum(map(len, captions.values()))),
        ]
        for image_id, listed in images.items():
            split = "train" if part == "train" else split_by_shares(str(image_id), VAL_SHARES)
            sorter.add(split, image_id, listed, captions.get(image_id, ()), areas.get(image_id, {}))
    used = {member for members in groups.values() for member in members}
    ignored = ", ".join(name for name in SUPERCATEGORIES if name not in used) or "none"
    notes = (RULE.format(ignored=ignored), SPLITS.format(year=year))
    return sorter.annotations(source, checks, notes, bad_rows, counters)


def _files(year: int) -> list[str]:
    return [f"annotations/{kind}_{part}{year}.json" for kind in ("captions", "instances") for part in ("train", "val")]


def _find_year(source: Path) -> int:
    """The year with the most files, 2017 where they are equal."""

    def present(year: int) -> int:
        return sum(exists(source, name) for name in _files(year))

    return max(YEARS, key=present)


def _read_captions(
    source: Path, part: str, year: int, bad_rows: BadRows, counter: LineCounter
) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Image id → path, and image id → captions in the order of the file."""
    path = find(source, f"annotations/captions_{part}{year}.json")
    images: dict[int, str] = {}
    captions: dict[int, list[str]] = {}
    seen: set[int] = set()
    for key, index, item in dict_items(path, ("images", "annotations")):
        where = f"{path.name}: {key}[{index}]"
        if key == "images":
            values = fields(item, id=int, file_name=str)
            if values is None:
                bad_rows.add("malformed", where)
            elif values[0] in images:
                bad_rows.add("duplicate_id", where)
            else:
                images[values[0]] = f"{part}{year}/{image_path(values[1])}"
            continue
        counter.read += 1
        values = fields(item, id=int, image_id=int, caption=str)
        if values is None or not values[2].strip():
            counter.add("malformed", where)
        elif values[0] in seen:
            counter.add("duplicate_id", where)
        else:
            seen.add(values[0])
            captions.setdefault(values[1], []).append(values[2].strip())
    for image_id in sorted(captions.keys() - images.keys()):
        for _ in captions.pop(image_id):
            counter.add("unknown_id", f"{path.name}: captions of image {image_id}")
    return images, captions


def _read_areas(
    path: Path, images: Mapping[int, str], counters: Mapping[str, LineCounter]
) -> dict[int, dict[str, float]]:
    """Image id → super-category → total area in pixels of the objects that are no crowd."""
    objects, categories = counters["object"], counters["category"]
    supercategories: dict[int, str] = {}
    totals: Counter[tuple[int, int]] = Counter()
    seen: set[int] = set()
    for key, index, item in dict_items(path, ("annotations", "categories")):
        where = f"{path.name}: {key}[{index}]"
        if key == "categories":
            categories.read += 1
            values = fields(item, id=int, supercategory=str)
            if values is None:
                categories.add("malformed", where)
            else:
                supercategories[values[0]] = values[1].strip()
                if values[1].strip() not in SUPERCATEGORIES:
                    categories.add("unknown_value", where)
            continue
        objects.read += 1
        values = fields(item, id=int, image_id=int, category_id=int, area=float)
        if values is None or values[3] < 0 or item.get("iscrowd", 0) not in (0, 1):
            objects.add("malformed", where)
        elif values[0] in seen:
            objects.add("duplicate_id", where)
        elif values[1] not in images:
            objects.add("unknown_id", where)
        else:
            seen.add(values[0])
            if not item.get("iscrowd", 0):
                totals[values[1:3]] += values[3]
    areas: dict[int, dict[str, float]] = {}
    for (image_id, category), area in totals.items():
        if category not in supercategories:
            objects.add("unknown_id", f"{path.name}: category {category} of image {image_id}")
            continue
        of_image = areas.setdefault(image_id, {})
        name = supercategories[category]
        of_image[name] = of_image.get(name, 0.0) + area
    return areas


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("secoco", __doc__, source="folder with the files above")
    command.add_argument("--year", type=int, choices=YEARS, default=None, help="default: what is there, 2017 first")
    command.add_argument(
        "--groups", type=Path, default=None, help='other groups: JSON, {"name": [super-category, ...], ...}'
    )
    options = command.parse_args(arguments)
    groups = read_groups(options.groups, SUPERCATEGORIES) if options.groups else None
    annotations = read(options.source, options.year, groups)
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
