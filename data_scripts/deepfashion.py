# SPDX-License-Identifier: Apache-2.0
"""DeepFashion, Category and Attribute Prediction (Liu et al., CVPR 2016): 289,222 photos, 1,000 tags of 5 types.

Expected in --source:
  img/<Folder>/img_<number>.jpg           (or Img/img/...)
  meta.json, DeepFashion/                 ASEN's lists (or --meta): query_, candidate_ and filenames_{valid,test}.txt;
                                          label_{valid,test}.txt (all tags); filenames_train.txt and label_train.txt
  Anno/ (or Anno_coarse/): list_attr_cloth.txt, list_attr_img.txt, list_category_cloth.txt, list_category_img.txt,
                           list_bbox.txt (for --crop)
  Eval/list_eval_partition.txt

--split asen needs ASEN's lists; with list_attr_cloth.txt and list_attr_img.txt beside them the values have names, and
the split train is made of all other images where label_train.txt is absent. --split official needs Anno/ and Eval/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_scripts.command import parser, run, write_annotations
from data_scripts.formats.asen_meta import find_lists, read_meta
from data_scripts.formats.deepfashion_asen import read_asen, several_tags_note
from data_scripts.formats.deepfashion_files import (
    BOXES,
    CATEGORY_NAMES,
    IMAGE_CATEGORIES,
    IMAGE_TAGS,
    PARTITION,
    TAG_NAMES,
    Box,
    OfficialFiles,
)
from data_scripts.formats.deepfashion_rows import Item, Rows, image_root, tag_checks
from data_scripts.formats.line_counts import bad_lines
from data_scripts.formats.stable_hash import draw, split_by_shares
from modeling_mclfir.data.annotations import Annotations, Check
from modeling_mclfir.data.images import MIN_SIDE, BadRows
from modeling_mclfir.data.schema import SPLITS
from modeling_mclfir.data.shards import DatasetSummary

NAME = "DeepFashion Category and Attribute Prediction"
LICENCE = (
    "as far as is known: non-commercial research and education only, by an agreement with the authors; the photos "
    "belong to the shops"
)
CITATION = """@inproceedings{liu2016deepfashion,
  title = {DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations},
  author = {Liu, Ziwei and Luo, Ping and Qiu, Shi and Wang, Xiaogang and Tang, Xiaoou},
  booktitle = {Computer Vision and Pattern Recognition},
  year = {2016}
}"""
DESCRIPTION = (
    "Photos of clothes from shops and customers. Each has some of 1,000 tags, of 5 types: texture, fabric, shape, "
    "part and style. The types are the attributes; an image has one value of each at most, the column tags has all."
)
PROTOCOLS = ("one-tag", "all-tags")
# The page of the data set.
IMAGES, CATEGORIES = 289_222, 50
PARTS = {"train": 209_222, "val": 40_000, "test": 40_000}
# One image of the part test in five asks, the other four are searched, as in ASEN's lists.
TEST_SHARES = {"query": 1, "gallery": 4}

_OFFICIAL = (TAG_NAMES, IMAGE_TAGS, CATEGORY_NAMES, IMAGE_CATEGORIES, PARTITION)


def read(
    source: Path,
    *,
    meta: Path | None = None,
    split: str | None = None,
    protocol: str | None = None,
    crop: bool = False,
) -> Annotations:
    """Reads the annotations.

    Args:
        source: folder with the files above; no image needs to be there.
        meta: folder with ASEN's lists; `source` where None.
        split: "asen" or "official"; None: "asen" where the lists are there.
        protocol: "one-tag" gives an image of val and test a label for the one tag that was sampled for it, "all-tags"
            one for each type that it has a tag of, as both do in train; None: "one-tag" for asen, "all-tags" for
            official.
        crop: give images the box of list_bbox.txt.

    Raises:
        FileNotFoundError: files are missing; all of them are named.
        ValueError: a file has another form, a path leaves its folder, or all tags are asked for and not known.
    """
    if split is None:
        split = "official" if meta is None and find_lists(source, "DeepFashion") is None else "asen"
    bad_rows = BadRows()
    files = OfficialFiles(source, bad_rows)
    _require(files, split, meta or source, crop)
    boxes, notes = _read_boxes(files) if crop else ({}, [])
    if split == "official":
        return _read_official(files, protocol or "all-tags", boxes, notes)
    lists = read_meta(meta or source, "DeepFashion", bad_rows)
    return read_asen(files, lists, protocol or "one-tag", boxes, notes)


def _require(files: OfficialFiles, split: str, lists: Path, crop: bool) -> None:
    """Raises FileNotFoundError, naming all that is missing; of ASEN's lists, `read_meta` tells."""
    names = (BOXES,) if crop else ()
    if split == "official":
        names = _OFFICIAL + names
    elif files.find(IMAGE_TAGS):
        names += (TAG_NAMES,)  # without it the tags have no types
    missing = files.missing(names)
    if not missing:
        return
    lists_too = ""
    if split == "official" and find_lists(lists, "DeepFashion") is None:
        lists_too = (
            f" ASEN's lists are not there either: meta.json and, in {lists / 'DeepFashion'}, query_valid.txt, "
            "candidate_valid.txt, query_test.txt, candidate_test.txt, filenames_valid.txt, filenames_test.txt."
        )
    raise FileNotFoundError(
        f"{files.source} is not the expected folder; missing: {', '.join(missing)}.{lists_too} Mend --source; "
        "data_scripts/README.md says how to obtain the data."
    )


def _read_boxes(files: OfficialFiles) -> tuple[dict[str, Box], list[str]]:
    boxes = files.boxes()
    # Such a box says nothing; the image itself is good.
    small = [image for image, (x1, y1, x2, y2) in boxes.items() if min(x2 - x1, y2 - y1) < MIN_SIDE]
    for image in small:
        del boxes[image]
    note = f"Images are cut to the box of {BOXES}."
    if small:
        note += (
            f" {len(small)} boxes are empty or have a side below {MIN_SIDE} pixels: these images are kept whole, such "
            f"as {small[0]}."
        )
    return boxes, [note]


def _read_official(files: OfficialFiles, protocol: str, boxes: Mapping[str, Box], notes: list[str]) -> Annotations:
    vocabulary = files.tag_names()
    tags = files.image_tags(vocabulary)
    names, categories = files.categories()
    parts = files.partition()
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for image, part in parts.items():
        split = split_by_shares(f"{image}\ttest", TEST_SHARES) if part == "test" else part
        found = tags.get(image, ())
        drawn = (draw(image, found),) if found and protocol == "one-tag" and split != "train" else found
        splits[split].append((image, drawn, ()))
    rows = Rows(image_root(files.source), vocabulary, tags, protocol, boxes, categories)
    counted = Counter(parts.values())
    checks = [
        *tag_checks(vocabulary),
        Check("categories", len(names), CATEGORIES),
        Check(f"images in {IMAGE_TAGS}", len(tags), IMAGES),
        Check("images of the partition", len(parts), IMAGES),
        *(Check(f"images of the partition: {part}", counted[part], number) for part, number in PARTS.items()),
        Check("images without any tag", sum(not tags.get(image) for image in parts)),
        *files.checks,
    ]
    notes += [
        "Split: the official partition; its part test is divided by a hash of the path into query (about a fifth) and "
        "gallery.",
        (
            "Protocol one-tag: one tag of each image of val and test, drawn by a hash of its path, is its label; an "
            "image of train has a label for each type that it has a tag of."
            if protocol == "one-tag"
            else "Protocol all-tags: an image has a label for each type that it has a tag of, drawn by a hash of path "
            "and type."
        )
        + " The column tags has all its tags, and its category: an image is relevant where its tags hold the query's.",
        *several_tags_note(vocabulary, splits["train"]),
    ]
    lines_read = bad_lines(files.line_counters)
    return rows.annotations(splits, checks=checks, notes=notes, bad_rows=files.bad_rows, bad_lines=lines_read)


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("deepfashion", __doc__, source="folder with the files above")
    command.add_argument(
        "--meta", type=Path, default=None, help="folder of meta.json and DeepFashion/ (default: --source)"
    )
    command.add_argument(
        "--split", choices=("asen", "official"), default=None, help="default: asen where its lists are there"
    )
    command.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=None,
        help="labels of val and test: of one sampled tag of an image (default with asen), or of each type (official)",
    )
    command.add_argument("--crop", action="store_true", help=f"cut the images to the boxes of {BOXES}")
    options = command.parse_args(arguments)
    annotations = read(
        options.source, meta=options.meta, split=options.split, protocol=options.protocol, crop=options.crop
    )
    card = {"name": NAME, "licence": LICENCE, "citation": CITATION, "description": DESCRIPTION}
    return write_annotations(annotations, options, **card)


if __name__ == "__main__":
    run(main)
