# SPDX-License-Identifier: Apache-2.0
"""Sequential Visual Genome (after Wang, Herranz, van de Weijer, "Continual learning in cross-modal retrieval", 2021).

Expected in --source (the files of the Visual Genome site, unpacked):
  image_data.json   objects.json   region_descriptions.json
  VG_100K/2.jpg …   VG_100K_2/1.jpg …   (which of the two folders is read off the url in image_data.json)

Three increments by object super-category. The rule is ours (the paper's own split is not known to us): the name of an
object is looked up in a small table of words, made by us after the super-categories of MS-COCO; an image belongs to
the group of super-categories whose objects have the largest total box area in it. Super-categories in no group
(person and sky, unless --groups says otherwise: they are found everywhere) take no part; an image without an object
of a group is left out and counted.

Captions of an image are the phrases of its largest regions (--captions-per-image), each once, the largest first.
Visual Genome has no official split: images are split by a hash of their id, 80 % train, 5 % val, 15 % gallery. There
is no split query: a text query is a caption of a gallery image, and for the attribute each gallery image is searched
among the others. About half of the images are MS-COCO's too: do not train on one set and test on the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.line_counts import LineCounter
from data_scripts.formats.sequential_captions import Groups, Sorter, fields, list_items, read_groups
from data_scripts.formats.stable_hash import split_by_shares
from data_scripts.formats.text_files import find
from modeling_mclfir.data.annotations import Annotations, Check
from modeling_mclfir.data.images import BadRows

if TYPE_CHECKING:
    from modeling_mclfir.data.shards import DatasetSummary

NAME = "SeViGe (Sequential Visual Genome)"
LICENCE = "as far as is known: CC BY 4.0 (Visual Genome); photos from Flickr, each under the terms of its owner"
CITATION = """@article{wang2021continual,
  title = {Continual learning in cross-modal retrieval},
  author = {Wang, Kai and Herranz, Luis and van de Weijer, Joost},
  journal = {arXiv preprint arXiv:2104.06806},
  year = {2021}
}
@article{krishna2017visual,
  title = {Visual Genome: Connecting Language and Vision Using Crowdsourced Dense Image Annotations},
  author = {Krishna, Ranjay and others},
  journal = {International Journal of Computer Vision},
  year = {2017}
}"""
DESCRIPTION = "Visual Genome photos with phrases about their regions, in three increments by their objects."
FILES = ("image_data.json", "objects.json", "region_descriptions.json")
# Ours: places that are semantically apart. Person and sky are in no group, as they are found in all of them.
GROUPS = {
    "street": ("vehicle", "outdoor", "accessory", "building"),
    "field": ("animal", "sports", "nature"),
    "home": ("kitchen", "food", "furniture", "electronic", "appliance", "indoor", "room"),
}
# Ours: the 80 categories of MS-COCO under its 12 super-categories, what Visual Genome calls them, and four more
# super-categories (sky, building, nature, room) for what fills a photo and is no object in MS-COCO.
WORDS = {
    "person": "person, people, man, men, woman, women, boy, girl, child, children, kid, baby, lady, guy, player, "
    "batter, catcher, pitcher, umpire, skier, snowboarder, surfer, skateboarder, rider, crowd, "
    "spectator, head, face, hair, hand, arm, leg, foot, feet, shirt, pants, jeans, shorts, jacket, "
    "coat, dress, shoe, hat, cap, helmet, glasses",
    "sky": "sky, cloud, sun",
    "vehicle": "bicycle, bike, car, motorcycle, motorbike, airplane, plane, aeroplane, jet, helicopter, bus, "
    "train, truck, van, boat, ship, taxi, license plate, vehicle, trailer, scooter",
    "outdoor": "traffic light, fire hydrant, hydrant, stop sign, street sign, sign, parking meter, bench, pole, "
    "lamp post, street light, streetlight",
    "accessory": "backpack, umbrella, handbag, purse, bag, tie, suitcase, luggage",
    "building": "building, house, tower, skyscraper, church, bridge, roof, street, road, sidewalk, pavement, "
    "crosswalk, parking lot, station, platform, track, railroad",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, animal, duck, goose, seagull, "
    "goat, lamb, calf, bull, pony, puppy, kitten, monkey, herd",
    "sports": "frisbee, skis, ski, snowboard, sports ball, ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, racket, racquet, goal, net, court",
    "nature": "tree, grass, bush, plant, leaf, leaves, field, hill, mountain, rock, sand, beach, snow, water, "
    "ocean, sea, wave, river, lake, forest, dirt",
    "kitchen": "bottle, wine glass, glass, cup, mug, fork, knife, spoon, bowl, plate, dish, tray, napkin, pan, pot",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, hotdog, pizza, donut, doughnut, cake, food, "
    "bread, meat, cheese, vegetable, fruit, salad, tomato, lettuce, onion, potato, rice, fries, soup, "
    "egg, sauce",
    "furniture": "chair, couch, sofa, potted plant, bed, dining table, table, toilet, desk, cabinet, shelf, "
    "shelves, drawer, dresser, stool, bookshelf, counter, pillow, blanket",
    "electronic": "tv, television, laptop, mouse, remote, remote control, keyboard, cell phone, phone, "
    "monitor, computer, screen, speaker",
    "appliance": "microwave, oven, stove, toaster, sink, refrigerator, fridge, dishwasher",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush, lamp, candle, basket, picture, "
    "mirror, towel, toy, stuffed animal",
    "room": "room, kitchen, bathroom, wall, floor, ceiling, curtain, carpet, rug, tile, bathtub, shower",
}
SUPERCATEGORIES = tuple(WORDS)
PUBLISHED_IMAGES = 108_077
SHARES = {"train": 80, "val": 5, "gallery": 15}
RULE = (
    "Rule: the name of an object (its first known one, or the last word of it, a plural s or es taken off) is "
    "looked up in a table of words for {count} super-categories (`WORDS` in data_scripts/sevige.py). An image "
    "belongs to the group whose super-categories have the largest total box area in it, overlaps counted twice (of "
    "equals the first group); its super-category is the one of the largest area in that group. Super-categories in "
    "no group take no part ({ignored}). Images without a caption or without an object of a group are left out."
)
CAPTIONS = (
    "Captions are the phrases of the {count} largest regions of an image, each once (letter case apart), the "
    "largest first; of equal regions the one listed first."
)
SPLITS = (
    "Splits: by a hash of the image id, 80 % train, 5 % val, 15 % gallery. There is no query split: text queries "
    "are the captions of the gallery's images."
)

_LOOKUP = {word.strip(): name for name, words in WORDS.items() for word in words.split(",")}
_FOLDER = re.compile(r"/(VG_100K(?:_2)?)/[^/]+$")


def supercategory(name: str) -> str | None:
    """The super-category of an object by its name, None where no word of the table fits."""
    name = " ".join(name.lower().split())
    for words in (name, name.rpartition(" ")[2]):
        for word in (words, words.removesuffix("s"), words.removesuffix("es")):
            if word in _LOOKUP:
                return _LOOKUP[word]
    return None


def read(source: Path, captions_per_image: int = 5, groups: Groups | None = None) -> Annotations:
    """Reads images, objects and regions, the two long files image by image.

    Args:
        source: folder with the files above.
        captions_per_image: phrases to keep of an image, at most.
        groups: name → super-categories (default: `GROUPS`).

    Raises:
        FileNotFoundError: files are missing; all are named.
        ValueError: a file is no Visual Genome file or is cut short, or `captions_per_image` is below 1.
    """
    if captions_per_image < 1:
        raise ValueError(f"captions_per_image is {captions_per_image}; expected 1 or more")
    require_files(source, FILES)
    groups = GROUPS if groups is None else groups
    bad_rows, sorter, counters = BadRows(), Sorter(groups), defaultdict(LineCounter)
    images, objects, regions = (find(source, name) for name in FILES)
    listed = _read_images(images, bad_rows)
    areas = _read_areas(objects, listed, counters)
    captions = _read_captions(regions, listed, captions_per_image, counters)
    for image_id, path in listed.items():
        split = split_by_shares(str(image_id), SHARES)
        sorter.add(split, image_id, path, captions.get(image_id, ()), areas.get(image_id, {}))
    used = {member for members in groups.values() for member in members}
    ignored = ", ".join(name for name in SUPERCATEGORIES if name not in used) or "none"
    notes = (RULE.format(count=len(WORDS), ignored=ignored), CAPTIONS.format(count=captions_per_image), SPLITS)
    checks = [Check("images", len(listed), PUBLISHED_IMAGES)]
    return sorter.annotations(source, checks, notes, bad_rows, counters)


def _image_id(item: Any) -> int | None:
    """Releases differ in how they call it; "id" of an image where there is no "image_id"."""
    found = fields(item, image_id=int) or fields(item, id=int)
    return found[0] if found else None


def _read_images(path: Path, bad_rows: BadRows) -> dict[int, str]:
    """Image id → path. The url gives the folder only, the file is named by the id: nothing can lead elsewhere."""
    listed: dict[int, str] = {}
    for index, item in enumerate(list_items(path)):
        image_id, url = _image_id(item), fields(item, url=str)
        folder = _FOLDER.search(url[0].strip()) if url else None
        if image_id is None or folder is None:
            bad_rows.add("malformed", f"{path.name}: [{index}]")
        elif image_id in listed:
            bad_rows.add("duplicate_id", f"{path.name}: [{index}]")
        else:
            listed[image_id] = f"{folder[1]}/{image_id}.jpg"
    return listed


def _per_image(
    path: Path, key: str, listed: Mapping[int, str], counter: LineCounter
) -> Iterator[tuple[int, list, str]]:
    """Yields (image id, its list `key`, place in the file) for every known image, once each."""
    seen: set[int] = set()
    for index, item in enumerate(list_items(path)):
        counter.read += 1
        place = f"{path.name}: [{index}]"
        image_id, content = _image_id(item), fields(item, **{key: list})
        if image_id is None or content is None:
            counter.add("malformed", place)
        elif image_id in seen:
            counter.add("duplicate_id", place)
        elif image_id not in listed:
            counter.add("unknown_id", place)
        else:
            seen.add(image_id)
            yield image_id, content[0], place


def _read_areas(
    path: Path, listed: Mapping[int, str], counters: Mapping[str, LineCounter]
) -> dict[int, dict[str, float]]:
    """Image id → super-category → total area of the boxes in pixels. Objects without a known name are passed over."""
    areas: dict[int, dict[str, float]] = {}
    for image_id, objects, place in _per_image(path, "objects", listed, counters["objects.json"]):
        of_image: dict[str, float] = {}
        for index, item in enumerate(objects):
            counters["object"].read += 1
            values = fields(item, names=list, w=float, h=float)
            if values is None or not all(isinstance(name, str) for name in values[0]):
                counters["object"].add("malformed", f"{place}, objects[{index}]")
                continue
            name = next(filter(None, map(supercategory, values[0])), None)
            if name is not None:
                of_image[name] = of_image.get(name, 0.0) + max(values[1], 0) * max(values[2], 0)
        areas[image_id] = of_image
    return areas


def _read_captions(
    path: Path, listed: Mapping[int, str], count: int, counters: Mapping[str, LineCounter]
) -> dict[int, tuple[str, ...]]:
    """Image id → phrases of the largest regions. Blank phrases are passed over."""
    captions: dict[int, tuple[str, ...]] = {}
    lists = counters["region_descriptions.json"]
    for image_id, regions, place in _per_image(path, "regions", listed, lists):
        phrases: list[tuple[float, str]] = []
        for index, item in enumerate(regions):
            counters["region"].read += 1
            values = fields(item, phrase=str, width=float, height=float)
            if values is None:
                counters["region"].add("malformed", f"{place}, regions[{index}]")
            elif values[0].strip():
                phrases.append((max(values[1], 0) * max(values[2], 0), values[0].strip()))
        phrases.sort(key=lambda phrase: -phrase[0])
        distinct: dict[str, str] = {}
        for _, phrase in phrases:
            distinct.setdefault(phrase.casefold(), phrase)
        captions[image_id] = tuple(distinct.values())[:count]
    return captions


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("sevige", __doc__, source="folder with the files above")
    command.add_argument("--captions-per-image", type=int, default=5, help="phrases of an image (default: 5)")
    command.add_argument(
        "--groups", type=Path, default=None, help='other groups: JSON, {"name": [super-category, ...], ...}'
    )
    options = command.parse_args(arguments)
    groups = read_groups(options.groups, SUPERCATEGORIES) if options.groups else None
    annotations = read(options.source, options.captions_per_image, groups)
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
