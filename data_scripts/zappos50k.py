# SPDX-License-Identifier: Apache-2.0
"""UT-Zap50K (Yu and Grauman, CVPR 2014): 50,025 photos of shoes; triplets of CSN (Veit et al., CVPR 2017).

Expected in --source:
  filenames.json                               one image path a line in spite of its name, or a JSON list
  tripletlists/CONDITION_tripletlist_LIST.txt  class, closure, gender and heel; train, val and test; each line
                                               "anchor far close": lines of filenames.json, counted from 0
  ut-zap50k-images/CATEGORY/SUBCATEGORY/BRAND/CID.jpg    or ut-zap50k-images-square/...
  ut-zap50k-data/meta-data.csv                 optional: labels of closure, gender and heel

Without filenames.json and tripletlists/, the images are found in their folders and split by a hash of their paths.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.increment_lists import attribute_increments
from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.stable_hash import split_by_shares
from data_scripts.formats.text_files import exists, find
from data_scripts.formats.triplet_lists import (
    Triplets,
    count_agreeing,
    count_triplets,
    draw_triplets,
    images_of,
    read_triplets,
    triplet_rows,
)
from data_scripts.formats.zappos50k_images import (
    ATTRIBUTES,
    FOLDERS,
    Images,
    Meta,
    find_root,
    image_cid,
    image_values,
    label,
    label_codes,
    list_images,
    product_id,
    read_meta,
    walk_images,
)
from modeling_mclfir.data.annotations import Again, Annotations, Check, SourceImage, Table
from modeling_mclfir.data.folder import split_by_hash
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.schema import FURTHER_COLUMNS, SPLITS, TRIPLETS, table_features
from modeling_mclfir.data.shards import DatasetSummary

NAME = "UT-Zap50K"
LICENCE = "academic, non-commercial use only, as far as is known; photos © Zappos.com; none stated for the triplets"
CITATION = """@inproceedings{yu2014fine,
  title = {Fine-Grained Visual Comparisons with Local Learning},
  author = {Yu, Aron and Grauman, Kristen},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2014}
}
@inproceedings{veit2017conditional,
  title = {Conditional Similarity Networks},
  author = {Veit, Andreas and Belongie, Serge and Karaletsos, Theofanis},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2017}
}"""
DESCRIPTION = (
    "Catalogue photos of shoes on white. Four conditions of similarity: class, closure, gender and heel (its height); "
    "class is shoes, boots, sandals or slippers. Further attributes: subcategory and brand."
)
CONDITIONS = ("class", "closure", "gender", "heel")  # in CSN's order
LISTS = {"train": "train", "val": "val", "test": "query"}  # name of a list → split of its table
# The project page of UT-Zap50K counts 50,025 photos; the loaders of others assert 35,017 + 15,008.
PUBLISHED_IMAGES = 50_025

_FILENAMES, _TRIPLETS, _META = "filenames.json", "tripletlists", "ut-zap50k-data/meta-data.csv"
_FILES = (_FILENAMES, *(f"{_TRIPLETS}/{c}_tripletlist_{name}.txt" for c in CONDITIONS for name in LISTS))


def read(
    source: Path,
    *,
    keep_unlisted: bool = False,
    max_triplets: Sequence[int] | None = None,
    seed: int = 0,
) -> Annotations:
    """Reads the list of images, the triplets and the labels.

    Args:
        source: folder with the files above; no image needs to be there, unless they are to be found in their folders.
        keep_unlisted: put images that no triplet names into train, instead of leaving them out.
        max_triplets: keep at most so many of train, val and test, all conditions together, drawn by `seed`.
        seed: of that draw.

    Raises:
        FileNotFoundError: files are missing; all of them are named.
        ValueError: a file has another form, a path leaves the folder of images, or no image is found.
    """
    if max_triplets is not None and (len(max_triplets) != len(LISTS) or min(max_triplets) < 1):
        raise ValueError(
            f"max_triplets is {list(max_triplets)}; expected three numbers from 1, such as 100000 80000 160000"
        )
    source, bad_rows, counters = Path(source), BadRows(), defaultdict(LineCounter)
    with_lists = exists(source, _TRIPLETS) or exists(source, _FILENAMES)
    if with_lists:
        require_files(source, _FILES)
    elif not any((source / name).is_dir() for name in FOLDERS):
        require_files(source, (*_FILES, FOLDERS[0]))
    root = find_root(source)
    if with_lists:
        images = list_images(find(source, _FILENAMES), root, bad_rows)
        triplets = {name: _read_lists(source, name, images, counters["triplet"]) for name in LISTS}
    else:
        images, triplets = walk_images(root, bad_rows), {}
    if not images.ids:
        where = source / _FILENAMES if with_lists else root
        raise ValueError(f"{where}: no image found; expected paths such as Shoes/Oxfords/Bostonian/100627.72.jpg")
    meta = read_meta(find(source, _META), counters["meta-data.csv"]) if exists(source, _META) else None
    limits = dict(zip(LISTS, max_triplets or (None,) * len(LISTS), strict=True))
    kept = {name: draw_triplets(lists, limits[name], seed) for name, lists in triplets.items()}
    annotations = _annotations(images, triplets, kept, meta, keep_unlisted)
    return replace(annotations, bad_rows=bad_rows, bad_lines=bad_lines(counters))


def _read_lists(source: Path, name: str, images: Images, counter: LineCounter) -> Triplets:
    paths = {condition: find(source, f"{_TRIPLETS}/{condition}_tripletlist_{name}.txt") for condition in CONDITIONS}
    return {condition: read_triplets(path, images.places, counter) for condition, path in paths.items()}


def _annotations(
    images: Images,
    triplets: Mapping[str, Triplets],
    kept: Mapping[str, Triplets],
    meta: Meta | None,
    keep_unlisted: bool,
) -> Annotations:
    """`triplets` are all of the lists, which say where an image belongs; `kept` go into the table."""
    listed = {name: images_of(lists, len(images.ids)) for name, lists in triplets.items()}
    splits = _split_images(images, listed, keep_unlisted)
    codes = label_codes(images, meta or {})
    rows = {split: Again(_rows, images, indices, meta or {}) for split, indices in splits.items()}
    table = {LISTS[name]: Again(triplet_rows, lists, images.ids) for name, lists in kept.items()}
    return Annotations(
        attributes=ATTRIBUTES,
        increments=_increments(kept, codes, splits["train"]),
        splits=rows,
        counts={split: len(indices) for split, indices in splits.items()},
        columns={name: FURTHER_COLUMNS[name] for name in ("image_id", "tags")},
        tables={"triplets": Table(table_features(TRIPLETS), table)} if kept else {},
        checks=_checks(images, triplets, listed, meta, codes),
        notes=_notes(images, triplets, kept, listed, meta, keep_unlisted),
    )


def _split_images(images: Images, listed: Mapping[str, np.ndarray], keep_unlisted: bool) -> dict[str, list[int]]:
    """Split → numbers of its images, in order."""
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for i, image_id in enumerate(images.ids):
        if not listed:
            splits[split_by_hash(image_id)].append(i)
            continue
        name = next((name for name in LISTS if listed[name][i]), None)
        if name == "test":
            splits[split_by_shares(image_id, {"query": 1, "gallery": 4})].append(i)
        elif name is not None or keep_unlisted:
            splits[name or "train"].append(i)
    return splits


def _rows(images: Images, indices: Sequence[int], meta: Meta) -> Iterator[dict[str, Any]]:
    for i in indices:
        image_id = images.ids[i]
        values = image_values(image_id, meta)
        yield {
            "image": SourceImage(images.root, images.stored[i]),
            "attributes": {name: label(values[name]) for name in ATTRIBUTES},
            "caption": None,
            "product_id": product_id(image_id),
            "image_id": image_id,
            "tags": [f"{name}={value}" for name in ATTRIBUTES for value in values[name]],
        }


def _increments(
    kept: Mapping[str, Triplets], codes: Mapping[str, np.ndarray], train: Sequence[int]
) -> dict[str, list]:
    """The conditions that can be learned: those with triplets or labels to train on."""
    with_triplets = {condition for condition, rows in kept.get("train", {}).items() if len(rows)}
    names = [name for name in CONDITIONS if name in with_triplets or (codes[name][train] >= 0).any()]
    return attribute_increments(names)


def _checks(
    images: Images,
    triplets: Mapping[str, Triplets],
    listed: Mapping[str, np.ndarray],
    meta: Meta | None,
    codes: Mapping[str, np.ndarray],
) -> list[Check]:
    checks = [Check("images", len(images.ids), PUBLISHED_IMAGES)]
    if meta is not None:
        found = sum(image_cid(image_id) in meta for image_id in images.ids)
        checks.append(Check("images with a line in meta-data.csv", found))
    if not triplets:
        return checks
    checks.append(
        Check("conditions with triplets", sum(any(len(t[c]) for t in triplets.values()) for c in CONDITIONS), 4)
    )
    checks += [Check(f"{name} triplets {c}", len(lists[c])) for name, lists in triplets.items() for c in CONDITIONS]
    times = sum(inside.astype(np.int64) for inside in listed.values())
    checks.append(Check("images in the triplets", int((times > 0).sum())))
    checks.append(Check("images in the triplets of one split only", int((times == 1).sum())))
    # Which label a condition was made from shows here, and whether the lines are in the order anchor, far, close.
    pairs = [("class", "class"), ("class", "subcategory"), *((c, c) for c in CONDITIONS[1:])]
    for condition, name in pairs:
        agreeing = count_agreeing(triplets["train"][condition], codes[name])
        checks.append(Check(f"train triplets {condition} that the label {name} agrees with", agreeing))
    return checks


def _notes(
    images: Images,
    triplets: Mapping[str, Triplets],
    kept: Mapping[str, Triplets],
    listed: Mapping[str, np.ndarray],
    meta: Meta | None,
    keep_unlisted: bool,
) -> list[str]:
    notes = [
        "The label class is the Category of the folder (shoes, boots, sandals, slippers: CSN's first condition), "
        "subcategory its SubCategory."
    ]
    if meta is None:
        notes.append("There was no meta-data.csv: closure, gender and heel have no labels.")
    else:
        notes.append(
            "closure, gender and heel are labels where meta-data.csv gives exactly one value; the column tags has all."
        )
    if images.copies:
        notes.append(f"Lines of filenames.json that name an image once more, taken for the same one: {images.copies}.")
    if not triplets:
        return [
            *notes,
            "There were no lists of triplets: the images are split by a hash of their paths, 60/10/8/22 %.",
        ]
    times = sum(inside.astype(np.int64) for inside in listed.values())
    notes.append(
        "An image belongs to the first of the lists train, val and test that names it; those of test are parted 1:4 "
        "into query and gallery by a hash of their paths. The triplets of test are those of the split query. "
        f"Images in the lists of several splits: {int((times > 1).sum())}."
    )
    unlisted = int((times == 0).sum())
    notes.append(f"Images in no triplet, {'put into train' if keep_unlisted else 'left out'}: {unlisted}.")
    for name, lists in triplets.items():
        total, drawn = count_triplets(lists), count_triplets(kept[name])
        if drawn < total:
            notes.append(f"Triplets of {name}: {drawn} drawn of {total}.")
    return notes


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("zappos50k", __doc__, source="folder with the files above")
    command.add_argument(
        "--keep-unlisted", action="store_true", help="images in no triplet go to train (default: out)"
    )
    command.add_argument(
        "--max-triplets",
        type=int,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        help="keep so many, all conditions together; CSN keeps 100000 80000 160000 (default: all)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the draw for --max-triplets (default: 0)")
    options = command.parse_args(arguments)
    annotations = read(
        options.source, keep_unlisted=options.keep_unlisted, max_triplets=options.max_triplets, seed=options.seed
    )
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
