# SPDX-License-Identifier: Apache-2.0
"""CIRR (Liu et al., ICCV 2021): pairs of photos of everyday things, a sentence of the change, groups of six alike.

Expected in --source (or in cirr/ or cirr_dataset/ inside it):
  captions/cap.rc2.val.json, cap.rc2.test1.json   and cap.rc2.train.json, without which there are no train pairs
  image_splits/split.rc2.{train,val,test1}.json
  train/NUMBER/*.png, dev/*.png, test1/*.png      the images of NLVR2, asked for from its authors; these folders may
                                                  also be in img_raw/ or images/

Rows: the images of train are the split train; those of val and test1 the split gallery, with the galleries "val" and
"test1". There are no attributes. The pairs are in the table "composed": train, query (the val pairs) and test (test1,
whose targets are not published; data_scripts.cirr_submission writes the files for the authors' server). `subset` holds
the five other images of the group. The extended captions (captions_ext) are left out: no published protocol uses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.composed_pairs import Pair, composed_table, count_blank, read_json_of
from data_scripts.formats.line_counts import LineCounter, bad_lines
from data_scripts.formats.text_files import exists, find
from modeling_mclfir.data.annotations import Again, Annotations, Check, SourceImage, image_path
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.schema import FURTHER_COLUMNS
from modeling_mclfir.data.shards import DatasetSummary

NAME = "CIRR"
LICENCE = (
    "annotations: MIT; the images are those of NLVR2, under its terms of use as far as is known, not to be passed on"
)
CITATION = """@inproceedings{liu2021cirr,
  title = {Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models},
  author = {Liu, Zheyuan and Rodriguez-Opazo, Cristian and Teney, Damien and Gould, Stephen},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year = {2021}
}"""
DESCRIPTION = (
    "Photos of everyday things and animals, one row an image, and pairs of them with a sentence that says how the "
    "target differs from the reference (table `composed`)."
)
# Of the source → split of the images, gallery, split of the pairs.
PARTS = {"train": ("train", None, "train"), "val": ("gallery", "val", "query"), "test1": ("gallery", "test1", "test")}
TRAIN_CAPTIONS = "captions/cap.rc2.train.json"
FILES = (
    "captions/cap.rc2.val.json",
    "captions/cap.rc2.test1.json",
    *(f"image_splits/split.rc2.{part}.json" for part in PARTS),
)
PUBLISHED_IMAGES = {"train": 16939, "val": 2297, "test1": 2315}
PUBLISHED_PAIRS = {"train": 28225, "val": 4181, "test1": 4148}
PUBLISHED_SEVERAL_SOFT = 645
GROUP_SIZE = 6


def read(source: Path) -> Annotations:
    """Reads captions and image lists; no image is opened.

    Args:
        source: folder with captions/, image_splits/ and the folders of images, or with cirr/ or cirr_dataset/.

    Raises:
        FileNotFoundError: the message names all annotation files that are missing.
        ValueError: a file is not what it should be, or an image path leads out of the folder.
    """
    places = (source, source / "cirr", source / "cirr_dataset")
    base = next((place for place in places if (place / "captions").is_dir()), source)
    require_files(base, FILES)
    bad_rows, counter = BadRows(), LineCounter()
    images = {part: _read_images(find(base, f"image_splits/split.rc2.{part}.json"), bad_rows) for part in PARTS}
    notes = []
    pairs: dict[str, list[Pair]] = {}
    for part in PARTS:
        if part == "train" and not exists(base, TRAIN_CAPTIONS):
            pairs[part] = []
            notes.append(f"{TRAIN_CAPTIONS} was not in the source: the split train of the table `composed` is empty.")
        else:
            pairs[part] = _read_pairs(find(base, f"captions/cap.rc2.{part}.json"), part, set(images[part]), counter)
    rows = _split_images(images)
    roots = {folder: _image_root(source, base, folder) for folder in _top_folders(images)}
    return Annotations(
        attributes=(),
        increments=[],
        splits={split: Again(_rows, roots, items) for split, items in rows.items()},
        counts={split: len(items) for split, items in rows.items()},
        columns={name: FURTHER_COLUMNS[name] for name in ("image_id", "galleries")},
        tables={"composed": composed_table({PARTS[part][2]: rows for part, rows in pairs.items()})},
        checks=_checks(images, pairs),
        notes=[*notes, _note(pairs)],
        bad_rows=bad_rows,
        bad_lines=bad_lines({"pair": counter}),
    )


def _read_images(path: Path, bad_rows: BadRows) -> dict[str, str]:
    """Name → listed path."""
    images = {}
    for name, listed in read_json_of(path, dict).items():
        if not isinstance(listed, str) or not name.strip() or not image_path(listed).name:
            bad_rows.add("malformed", f"{path.name} entry {name!r}")
            continue
        images[name.strip()] = listed
    return images


def _read_pairs(path: Path, part: str, known: set[str], counter: LineCounter) -> list[Pair]:
    pairs: dict[str, Pair] = {}
    for index, item in enumerate(read_json_of(path, list)):
        counter.read += 1
        where = f"{path.name} pair {index}"
        pair = _pair(item, part)
        if pair is None:
            counter.add("malformed", where)
        elif not {pair.reference, pair.target, *pair.subset} - {None} <= known:
            counter.add("unknown_image", where)
        elif pair.query_id in pairs:
            counter.add("duplicate", f"{where}: pairid {pair.query_id}")
        else:
            pairs[pair.query_id] = pair
    return list(pairs.values())


def _pair(item: Any, part: str) -> Pair | None:
    """A pair as the file has it; None where something is missing or of another kind."""
    has_target = part != "test1"
    try:
        group, caption = item["img_set"]["members"], item["caption"].strip()
        reference, target = item["reference"], item["target_hard"] if has_target else None
        soft = dict(item.get("target_soft") or {}) if has_target else {}
        subset = [name for name in group if name != reference]
        scores = [float(score) for score in soft.values()]
        query_id = str(int(item["pairid"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    if not all(map(isfinite, scores)):
        return None
    if not all(isinstance(name, str) for name in (reference, *group, *soft, *([target] if has_target else []))):
        return None
    # Of a train pair the group is of no consequence; the others are ranked within it.
    if part != "train" and not _is_group(group, reference, target):
        return None
    gallery = "train" if part == "train" else PARTS[part][1]
    return Pair(query_id, reference, target, [caption], gallery, subset, list(soft), scores)


def _is_group(group: Sequence[str], reference: str, target: str | None) -> bool:
    members = set(group)
    return len(group) == len(members) == GROUP_SIZE and reference in members and (target is None or target in members)


def _split_images(images: Mapping[str, Mapping[str, str]]) -> dict[str, list[tuple[str, str, list[str]]]]:
    """Split → (name, listed path, galleries), each name once a split."""
    splits: dict[str, dict[str, tuple[str, str, list[str]]]] = {}
    for part, listed in images.items():
        split, gallery, _ = PARTS[part]
        for name, path in listed.items():
            galleries = splits.setdefault(split, {}).setdefault(name, (name, path, []))[2]
            galleries += [gallery] if gallery else []
    return {split: list(items.values()) for split, items in splits.items()}


def _top_folders(images: Mapping[str, Mapping[str, str]]) -> set[str]:
    return {image_path(path).parts[0] for listed in images.values() for path in listed.values()}


def _image_root(source: Path, base: Path, folder: str) -> Path:
    """Where the folder of images named `folder` is; `source` where it is nowhere."""
    places = [place / name for place in (source, base) for name in ("", "img_raw", "images")]
    return next((place for place in places if (place / folder).is_dir()), source)


def _rows(roots: Mapping[str, Path], items: Sequence[tuple[str, str, list[str]]]) -> Iterator[dict[str, Any]]:
    for name, listed, galleries in items:
        root = roots[image_path(listed).parts[0]]
        yield {"image": SourceImage(root, listed), "image_id": name, "galleries": galleries}


def _checks(images: Mapping[str, Mapping[str, str]], pairs: Mapping[str, Sequence[Pair]]) -> list[Check]:
    checks = [Check(f"{part} images", len(listed), PUBLISHED_IMAGES[part]) for part, listed in images.items()]
    checks += [
        Check(f"{part} pairs", len(rows), PUBLISHED_PAIRS[part])
        for part, rows in pairs.items()
        if rows or part != "train"
    ]
    several = sum(len(pair.soft_targets) > 1 for pair in pairs["val"])
    return [*checks, Check("val pairs with more than one soft target", several, PUBLISHED_SEVERAL_SOFT)]


def _note(pairs: Mapping[str, Sequence[Pair]]) -> str:
    apart = sum(pair.target not in pair.soft_targets for pair in pairs["val"])
    return (
        "Recall ranks the whole gallery, recall in the subset only `subset`, both without the reference; a hit is "
        f"`target`. The soft targets are for information: in {apart} val pairs the target is not among them. "
        f"{sum(map(count_blank, pairs.values()))} captions are blank. The extended captions are left out."
    )


def main(arguments: Sequence[str] | None = None) -> DatasetSummary | None:
    """Reads the annotations and writes the data set."""
    options = parser("cirr", __doc__, source="folder with the files above").parse_args(arguments)
    return write_annotations(
        read(options.source), options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
