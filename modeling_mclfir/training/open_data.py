# SPDX-License-Identifier: Apache-2.0
"""From what a user names to checked tables and increments, before any training starts."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger

from ..data.images import DistinctBadRows
from ..data.increments import (
    Increment,
    check_increments,
    gallery_rows,
    load_increments,
    reverse_increments,
    select_rows,
)
from ..data.sides import search_sides
from ..data.table import ImageTable, check_images, load_tables
from ..data.triplets import load_triplets
from .prepared_folder import prepared_folder

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
    folder, tables, bad_rows = open_tables(args, output_dir, seed, accelerator)
    if not tables["train"].attributes:
        raise ValueError(
            f"--dataset {args.dataset} has no attributes, so there is nothing to learn for attribute retrieval: it "
            "serves text-image or composed retrieval (--task text-image). Choose a set with attributes; "
            "data_scripts/README.md lists them."
        )
    increments = read_increments(args, folder, tables["train"].attributes)
    domains = [increment.name for increment in increments if not increment.attributes]
    if domains:
        raise ValueError(
            f"increments {domains} name no attributes: they are domains, for text-image retrieval (--task "
            "text-image). Choose another list with --increments_key."
        )
    triplets = _triplets(folder, tables, increments, args)
    check_increments(increments, tables["train"], split="train", skip=triplets["train"])
    sides = search_sides(tables, args.evaluate_on)
    for side in sides[: 1 if sides[0] is sides[1] else 2]:
        check_increments(increments, side, split=side.split, min_values=1, skip=triplets["evaluation"])
    _check_scorable(increments, *sides, skip=triplets["evaluation"])
    return TrainingData(args.dataset, folder, tables, increments, bad_rows, triplets)


def open_tables(
    args, output_dir: Path, seed: int, accelerator: Accelerator
) -> tuple[Path, dict[str, ImageTable], DistinctBadRows]:
    """The folder of the data set, its tables (bad images left out of those that are read), and what was left out."""
    bad_rows = DistinctBadRows()
    # One process prepares, the others find it prepared.
    with accelerator.main_process_first():
        folder = prepared_folder(args, Path(output_dir), seed, bad_rows)
        # A stream's rows need no table: of theirs only the labels are read.
        tables = load_tables(folder, labels_only=("train",) if args.streaming else ())
    if not all(table.has_images for split, table in tables.items() if not (args.streaming and split == "train")):
        raise ValueError(
            f"--dataset {args.dataset} was prepared with --annotations-only and has no images; prepare it again "
            "without that flag."
        )
    splits = ("train", *(("query", "gallery") if args.evaluate_on == "query" else ("val",)))
    total = sum(len(tables[split]) for split in splits) + bad_rows.total
    for split in splits[1:] if args.streaming else splits:
        bad = check_images(tables[split], bad_rows, progress=accelerator.is_main_process)
        tables[split] = tables[split].drop(bad) if bad else tables[split]
    bad_rows.check(total, args.max_bad_fraction)
    if bad_rows.total:
        logger.warning(f"rows left out: {bad_rows.summary()}")
    return folder, tables, bad_rows


def read_increments(args, folder: Path, attributes: tuple[str, ...]) -> list[Increment]:
    """The increments that `DataArguments` name, in the order of learning."""
    source = args.increments if args.increments is not None else folder / "increments.json"
    increments = load_increments(source, attributes, key=args.increments_key)
    return reverse_increments(increments) if args.reverse_increments else increments


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
