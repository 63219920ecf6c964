# SPDX-License-Identifier: Apache-2.0
"""From what a user names to checked tables and increments, before any training starts."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger

from ..data.atelier import ATTRIBUTES, INCREMENTS, SPLIT_SIZES, generate_split
from ..data.folder import read_folder
from ..data.images import DistinctBadRows
from ..data.increments import (
    Increment,
    check_increments,
    gallery_rows,
    load_increments,
    reverse_increments,
    select_rows,
)
from ..data.prepare import write_annotations, write_dataset
from ..data.schema import SPLITS
from ..data.sides import search_sides
from ..data.table import ImageTable, check_images, load_tables
from ..data.triplets import load_triplets

logger = get_logger(__name__)


@dataclass
class TrainingData:
    """
    Tables of all splits and the increments to learn.

    Args:
        name: what the user named.
        folder: the prepared data set.
        tables: split → table, bad images left out.
        increments: in the order of learning.
        bad_rows: what was left out, by cause.
        triplets: "train" → attribute → (T, 3) rows of the table train, of attributes that have no labels;
            "evaluation" → the same of the two sides, see `Evaluator`.
    """

    name: str
    folder: Path
    tables: dict[str, ImageTable]
    increments: list[Increment]
    bad_rows: DistinctBadRows = field(default_factory=DistinctBadRows)
    triplets: dict[str, dict[str, np.ndarray]] = field(default_factory=lambda: {"train": {}, "evaluation": {}})

    def describe(self, evaluate_on: str) -> dict:
        """For the report."""
        return {
            "name": self.name,
            "splits": {split: len(table) for split, table in self.tables.items()},
            "bad_rows": dict(self.bad_rows.counts),
            "evaluate_on": evaluate_on,
        }


def open_data(args, output_dir: Path, seed: int, accelerator: Accelerator) -> TrainingData:
    """
    Open (or draw, or prepare) the data set that `DataArguments` name and check that every increment can be learned.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: too many bad images; no attributes; an increment without rows; an attribute that is unknown, has
            one value, or cannot be scored.
    """
    bad_rows = DistinctBadRows()
    # One process prepares, the others find it prepared.
    with accelerator.main_process_first():
        folder = _prepared_folder(args, Path(output_dir), seed, bad_rows)
        # A stream's rows need no table: of theirs only the labels are read.
        tables = load_tables(folder, labels_only=("train",) if args.streaming else ())
    if not all(table.has_images for split, table in tables.items() if not (args.streaming and split == "train")):
        raise ValueError(
            f"--dataset {args.dataset} was prepared with --annotations-only and has no images; prepare it again "
            "without that flag."
        )
    if not tables["train"].attributes:
        raise ValueError(
            f"--dataset {args.dataset} has no attributes, so there is nothing to learn for attribute retrieval: it "
            "serves text-image or composed retrieval. Choose a set with attributes; data_scripts/README.md lists them."
        )
    splits = ("train", *(("query", "gallery") if args.evaluate_on == "query" else ("val",)))
    total = sum(len(tables[split]) for split in splits) + bad_rows.total
    for split in splits[1:] if args.streaming else splits:
        bad = check_images(tables[split], bad_rows, progress=accelerator.is_main_process)
        tables[split] = tables[split].drop(bad) if bad else tables[split]
    bad_rows.check(total, args.max_bad_fraction)
    if bad_rows.total:
        logger.warning(f"rows left out: {bad_rows.summary()}")
    source = args.increments if args.increments is not None else folder / "increments.json"
    increments = load_increments(source, tables["train"].attributes, key=args.increments_key)
    increments = reverse_increments(increments) if args.reverse_increments else increments
    domains = [increment.name for increment in increments if not increment.attributes]
    if domains:
        raise ValueError(
            f"increments {domains} name no attributes: they are domains, for text-image retrieval. Choose another "
            "list with --increments_key."
        )
    triplets = _triplets(folder, tables, increments, args)
    check_increments(increments, tables["train"], split="train", skip=triplets["train"])
    sides = search_sides(tables, args.evaluate_on)
    for side in sides[: 1 if sides[0] is sides[1] else 2]:
        check_increments(increments, side, split=side.split, min_values=1, skip=triplets["evaluation"])
    _check_scorable(increments, *sides, skip=triplets["evaluation"])
    return TrainingData(args.dataset, folder, tables, increments, bad_rows, triplets)


def _triplets(
    folder: Path, tables: dict[str, ImageTable], increments: list[Increment], args
) -> dict[str, dict[str, np.ndarray]]:
    """Those to learn from, of attributes without labels, and those to be scored by."""
    table = tables["train"]
    wanted = {name for increment in increments for name in increment.attributes if name in table.attributes}
    unlabelled = [name for name in table.attributes if name in wanted and (table.labels(name) < 0).all()]
    learned: dict[str, np.ndarray] = {}
    if unlabelled and args.streaming and any(folder.glob("triplets/train-*.parquet")):
        raise ValueError(
            f"attributes {', '.join(unlabelled)} are known by triplets alone, whose images a stream cannot look up. "
            "Do without --streaming."
        )
    if unlabelled:
        found = load_triplets(folder, "train", [table])
        learned = {name: found[name] for name in unlabelled if len(found.get(name, ()))}
    queries, gallery = search_sides(tables, args.evaluate_on)
    sides = [queries] if queries is gallery else [queries, gallery]
    asked = load_triplets(folder, args.evaluate_on, sides)
    return {"train": learned, "evaluation": {name: rows for name, rows in asked.items() if len(rows)}}


def _check_scorable(
    increments: list[Increment], queries: ImageTable, gallery: ImageTable, skip: Collection[str]
) -> None:
    """Raises ValueError where no query of an attribute has an image of the same value to be found."""
    least = 2 if gallery is queries else 1  # an image is not looked for among its own results
    for increment in increments:
        rows = select_rows(increment, queries), gallery_rows(increment, gallery)
        for attribute in increment.attributes:
            if attribute in skip:
                continue
            asked = queries.labels(attribute)[rows[0]]
            values, counts = np.unique(gallery.labels(attribute)[rows[1]], return_counts=True)
            if not np.isin(values[(values >= 0) & (counts >= least)], asked).any():
                raise ValueError(
                    f"attribute {attribute!r} of increment {increment.name!r} cannot be scored: no image of split "
                    f"{queries.split!r} has {'another' if least == 2 else 'one'} of the same value in split "
                    f"{gallery.split!r}. Leave it out of increments.json, or share the images out anew."
                )


def _prepared_folder(args, output_dir: Path, seed: int, bad_rows: DistinctBadRows) -> Path:
    if args.dataset == "atelier":
        return _draw_atelier(output_dir / "data", seed)
    source = Path(args.dataset)
    if not source.is_dir():
        raise FileNotFoundError(
            f"--dataset {args.dataset}: no such folder. Name 'atelier', a folder written by data_scripts, or a folder "
            "of images with a labels.csv or labels.parquet."
        )
    if (source / "data").is_dir() or any(source.glob("*.parquet")) and not (source / "labels.parquet").exists():
        return source
    return _prepare_folder(source, output_dir / "data", args.max_bad_fraction, bad_rows)


def _draw_atelier(target: Path, seed: int) -> Path:
    made_from = {"data set": "atelier", "seed": seed}
    if not _is_made_from(target, made_from):
        logger.info(f"drawing the atelier data set, seed {seed}, into {target}")
        write_dataset(
            target,
            {split: generate_split(split, seed=seed) for split in SPLITS},
            tuple(ATTRIBUTES),
            INCREMENTS,
            name="Atelier",
            licence="apache-2.0",
            description=f"Garments drawn by mclfir, seed {seed}.",
            num_rows=SPLIT_SIZES,
            check_images=False,  # drawn a moment ago
            overwrite=True,
        )
        _mark(target, made_from)
    return target


def _prepare_folder(source: Path, target: Path, max_bad_fraction: float, bad_rows: DistinctBadRows) -> Path:
    # The images may be many: that their files are the same is taken on trust.
    names = ("labels.csv", "labels.parquet", "split.csv", "increments.json", "values.json")
    files = {name: (source / name).stat() for name in names if (source / name).is_file()}
    made_from = {
        "folder": str(source.resolve()),
        "files": {name: [found.st_size, found.st_mtime_ns] for name, found in files.items()},
    }
    if not _is_made_from(target, made_from):
        write_annotations(
            target,
            read_folder(source, bad_rows=bad_rows),
            name=source.name,
            licence="unknown",
            max_bad_fraction=max_bad_fraction,
            overwrite=True,
        )
        _mark(target, made_from)
    return target


def _is_made_from(target: Path, made_from: dict) -> bool:
    """Whether an earlier run has prepared the same data set there."""
    mark = _mark_of(target)
    return (target / "README.md").exists() and mark.is_file() and json.loads(mark.read_text()) == made_from


def _mark(target: Path, made_from: dict) -> None:
    _mark_of(target).write_text(json.dumps(made_from), encoding="utf-8")


def _mark_of(target: Path) -> Path:
    return target.with_name(f"{target.name}-made-from.json")
