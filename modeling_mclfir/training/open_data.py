# SPDX-License-Identifier: Apache-2.0
"""From what a user names to checked tables and increments, before any training starts."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger

from ..data.atelier import ATTRIBUTES, INCREMENTS, SPLIT_SIZES, generate_split
from ..data.folder import read_folder
from ..data.images import DistinctBadRows
from ..data.increments import Increment, check_increments, load_increments, reverse_increments, select_rows
from ..data.prepare import write_annotations, write_dataset
from ..data.schema import SPLITS
from ..data.table import ImageTable, check_images, load_tables

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
    """

    name: str
    folder: Path
    tables: dict[str, ImageTable]
    increments: list[Increment]
    bad_rows: DistinctBadRows = field(default_factory=DistinctBadRows)

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
        ValueError: too many bad images; an increment without rows; an attribute that is unknown, has one value, or
            cannot be scored.
    """
    bad_rows = DistinctBadRows()
    # One process prepares, the others find it prepared.
    with accelerator.main_process_first():
        folder = _prepared_folder(args, Path(output_dir), seed, bad_rows)
        # A stream's rows need no table: of theirs only the labels are read.
        tables = load_tables(folder, labels_only=("train",) if args.streaming else ())
    splits = ("train", "query", "gallery") if args.evaluate_on == "query" else ("train", "val")
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
    check_increments(increments, tables["train"], split="train")
    for split in splits[1:]:
        check_increments(increments, tables[split], split=split, min_values=1)
    _check_scorable(increments, tables[splits[1]], tables[splits[-1]])
    return TrainingData(args.dataset, folder, tables, increments, bad_rows)


def _check_scorable(increments: list[Increment], queries: ImageTable, gallery: ImageTable) -> None:
    """Raises ValueError where no query of an attribute has an image of the same value to be found."""
    least = 2 if gallery is queries else 1  # an image is not looked for among its own results
    for increment in increments:
        rows = [select_rows(increment, table) for table in (queries, gallery)]
        for attribute in increment.attributes:
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
    if not (target / "README.md").exists():
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
        )
    return target


def _prepare_folder(source: Path, target: Path, max_bad_fraction: float, bad_rows: DistinctBadRows) -> Path:
    if not (target / "README.md").exists():
        write_annotations(
            target,
            read_folder(source, bad_rows=bad_rows),
            name=source.name,
            licence="unknown",
            max_bad_fraction=max_bad_fraction,
        )
    return target
