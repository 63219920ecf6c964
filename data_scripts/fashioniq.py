# SPDX-License-Identifier: Apache-2.0
"""FashionIQ (Wu et al., CVPR 2021): 30,134 pairs of dresses, shirts or tops, two captions of the change each.

Expected in --source:
  captions/cap.{dress,shirt,toptee}.{train,val,test}.json
  image_splits/split.{dress,shirt,toptee}.{train,val,test}.json
  images/ASIN.jpg      or .jpeg or .png; also in resized_images/, image_data/dress/, image_data/shirt/ or
                       image_data/toptee/

Many links to the photos are dead. An image that is not there is counted as missing: allow what is gone with
--max-bad-fraction. The card says how much of each gallery is there, for a smaller gallery gives higher figures.

Rows: the images of the train lists are the split train; those of the val and test lists the split gallery, with the
galleries "dress/original" (the whole val list), "dress/val" (references and targets of the val pairs only; figures of
the two are not comparable) and "test/dress". No rows are in query, and none in val unless --val-fraction is given.
The pairs are in the table "composed": train, query (the official val pairs, on which all papers report) and test (its
targets are not published). Both captions of a pair are kept as they are.

--val-fraction F holds out about that share of the train pairs, to choose a model without a look at the official val
pairs: they become the split val of the table, and their references and targets the split val of the images, with the
galleries "dress/held-out". Pairs that share an image, directly or through other pairs, stay together, so that no image
of val is one of train. With the default, 0, the counts are the published ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_scripts.command import parser, run, write_annotations
from data_scripts.formats.composed_pairs import Pair, composed_table, count_blank
from data_scripts.formats.fashioniq_files import (
    CATEGORIES,
    PARTS,
    Files,
    connected_images,
    count_files,
    find_images,
    read_files,
)
from data_scripts.formats.line_counts import bad_lines
from data_scripts.formats.stable_hash import share
from modeling_mclfir.data.annotations import Again, Annotations, SourceImage
from modeling_mclfir.data.schema import FURTHER_COLUMNS
from modeling_mclfir.data.shards import DatasetSummary

NAME = "FashionIQ"
LICENCE = "annotations: Community Data License Agreement (CDLA); the photos belong to Amazon and its sellers"
CITATION = """@inproceedings{wu2021fashioniq,
  title = {Fashion IQ: A New Dataset Towards Retrieving Images by Natural Language Feedback},
  author = {Wu, Hui and Gao, Yupeng and Guo, Xiaoxiao and Al-Halah, Ziad and Rennie, Steven and Grauman, Kristen and
            Feris, Rogerio},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2021}
}"""
DESCRIPTION = (
    "Product photos of dresses, shirts and tops, one row an image, and pairs of them with two captions that say how "
    "the target differs from the reference (table `composed`). The ASIN is image id and product id."
)
INCREMENTS = {
    "attributes": [{"name": "category", "attributes": ["category"]}],
    "domains": [{"name": category, "where": {"category": [category]}} for category in CATEGORIES],
}


def read(source: Path, *, val_fraction: float = 0.0) -> Annotations:
    """Reads captions and image lists; no image is opened, only the names in the image folders are listed.

    Args:
        source: folder with captions/, image_splits/ and the images.
        val_fraction: share of the train pairs to hold out, from 0 to below 1.

    Raises:
        FileNotFoundError: the message names all annotation files that are missing.
        ValueError: a file is not what it should be, an ASIN leads out of the folder, or a wrong `val_fraction`.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; expected a share from 0 to below 1, such as 0.1")
    files = read_files(source)
    groups = connected_images(files.all_pairs("train"))
    held_out = {name for name, group in groups.items() if share(group) < val_fraction}
    images, pairs = _split_images(files, held_out), _split_pairs(files, held_out)
    categories = files.categories()
    found = find_images(source, categories)
    rows = {
        split: [
            (name, found.get(name, f"images/{name}.jpg"), categories[name], galleries)
            for name, galleries in items.items()
        ]
        for split, items in images.items()
    }
    return Annotations(
        attributes=("category",),
        increments=INCREMENTS,
        splits={split: Again(_rows, source, items) for split, items in rows.items()},
        counts={split: len(items) for split, items in rows.items()},
        columns={name: FURTHER_COLUMNS[name] for name in ("image_id", "galleries")},
        tables={"composed": composed_table(pairs)},
        checks=count_files(files),
        notes=[_protocol_note(), _images_note(images, pairs, found), *_content_notes(files, pairs)],
        bad_rows=files.bad_rows,
        bad_lines=bad_lines({"pair": files.pair_counter}),
    )


def _split_images(files: Files, held_out: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Split → ASIN → names of its galleries."""
    train: dict[str, list[str]] = {}
    val: dict[str, list[str]] = defaultdict(list)
    gallery: dict[str, list[str]] = defaultdict(list)
    for category in CATEGORIES:
        train.update({name: [] for name in files.lists[category, "train"] if name not in held_out})
        pairs = [pair for pair in files.pairs[category, "train"] if pair.reference in held_out]
        for name in dict.fromkeys(name for pair in pairs for name in (pair.reference, pair.target)):
            val[name].append(f"{category}/held-out")
        used = files.used(category)
        for name in files.lists[category, "val"]:
            gallery[name] += [f"{category}/original", f"{category}/val"] if name in used else [f"{category}/original"]
        for name in files.lists[category, "test"]:
            gallery[name].append(f"test/{category}")
    return {"train": train, **({"val": dict(val)} if val else {}), "gallery": dict(gallery)}


def _split_pairs(files: Files, held_out: Collection[str]) -> dict[str, list[Pair]]:
    """Split of the table → its pairs."""
    train = files.all_pairs("train")
    val = [pair._replace(gallery=f"{pair.gallery}/held-out") for pair in train if pair.reference in held_out]
    return {
        "train": [pair for pair in train if pair.reference not in held_out],
        **({"val": val} if val else {}),
        "query": files.all_pairs("val"),
        "test": files.all_pairs("test"),
    }


def _rows(source: Path, items: Sequence[tuple[str, str, str | None, list[str]]]) -> Iterator[dict[str, Any]]:
    for name, listed, category, galleries in items:
        yield {
            "image": SourceImage(source, listed),
            "attributes": {"category": category},
            "product_id": name,
            "image_id": name,
            "galleries": galleries,
        }


def _protocol_note() -> str:
    return (
        'The split "query" of the table `composed` holds the official val pairs. Each is searched in the gallery '
        '"CATEGORY/original", the whole list, or in "CATEGORY/val", references and targets only: figures of the two '
        'are not comparable. "test/CATEGORY" belongs to the pairs of test. The reference stays in the gallery.'
    )


def _images_note(
    images: Mapping[str, Mapping[str, Sequence[str]]], pairs: Mapping[str, Sequence[Pair]], found: Collection[str]
) -> str:
    places: dict[str, list[bool]] = defaultdict(list)
    for split, items in images.items():
        for name, galleries in items.items():
            for place in galleries or [split]:
                places[place].append(name in found)
    there = {
        split: [all(name in found for name in (pair.reference, pair.target) if name) for pair in rows]
        for split, rows in pairs.items()
    }
    return (
        f"Images found in the source, of those listed: {_shares(places)}. Pairs of which all images were found: "
        f"{_shares(there)}. Where images of a gallery are missing, it is easier than the published one."
    )


def _shares(found: Mapping[str, Iterable[bool]]) -> str:
    return ", ".join(f"{place} {sum(flags):,} of {len(flags):,}" for place, flags in found.items())


def _content_notes(files: Files, pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    train, several = files.all_images("train"), sum(value is None for value in files.categories().values())
    both = {part: len(train & files.all_images(part)) for part in PARTS}
    notes = [
        f"{both['val']} images of the val lists and {both['test']} of the test lists are also in a train list. "
        f"{several} images are in the lists of several categories and have no label for `category`. "
        f"{sum(map(count_blank, pairs.values()))} captions are blank."
    ]
    if "val" in pairs:
        notes.append(
            f"{len(pairs['val'])} of the train pairs and their images are held out as the split val; pairs that share "
            "an image, directly or through others, stay together."
        )
    return notes


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    command = parser("fashioniq", __doc__, source="folder with the files above")
    command.add_argument(
        "--val-fraction", type=float, default=0.0, help="share of the train pairs to hold out (default: 0)"
    )
    options = command.parse_args(arguments)
    annotations = read(options.source, val_fraction=options.val_fraction)
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
