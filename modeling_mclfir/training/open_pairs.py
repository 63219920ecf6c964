# SPDX-License-Identifier: Apache-2.0
"""Text-image retrieval: from what a user names to checked tables and domains, before any training starts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from ..data.increments import Increment, increments_keys, read_increments_json, select_rows
from ..data.table import ImageTable
from .open_data import TrainingData, open_tables, read_increments

TASK = "text"  # what a text-image model calls its spaces, all of them
DOMAINS = "domains"


def open_pairs(args, output_dir: Path, seed: int, accelerator: Accelerator) -> TrainingData:
    """
    Open (or draw, or prepare) the data set that `DataArguments` name, for pairs of captions and images. Its increments
    are domains; each further one brings a space of its own of the one task, as new values do of an attribute.

    Raises:
        FileNotFoundError: no such data set.
        ValueError: too many bad images; increments that are no domains; a domain without pairs to learn from or to be
            scored on.
    """
    folder, tables, bad_rows = open_tables(args, output_dir, seed, accelerator)
    args = replace(args, increments_key=args.increments_key or _key_of_domains(args, folder))
    domains = read_increments(args, folder, tables["train"].attributes)
    others = [increment.name for increment in domains if increment.attributes]
    if others:
        raise ValueError(
            f"increments {others} name attributes; text-image retrieval learns domains, entries of \"name\" and "
            "\"where\" alone. Choose such a list with --increments_key, or write one and name it with --increments."
        )
    increments = [
        replace(domain, attributes=(TASK,), new_values=place > 0) for place, domain in enumerate(domains)
    ]
    sides = test_tables(tables, args.evaluate_on)
    for increment in increments:
        for what, parts in (("train", [tables["train"]]), (args.evaluate_on, sides)):
            if not sum(len(pair_rows(increment, table)) for table in parts):
                raise ValueError(
                    f"increment {increment.name!r} has no image with a caption in split {what!r} "
                    f"({increment.to_dict().get('where')}). Mend its 'where', or leave the increment out."
                )
    return TrainingData(args.dataset, folder, tables, increments, bad_rows)


def _key_of_domains(args, folder: Path) -> str | None:
    """The data sets' own files call their list of domains so."""
    source = args.increments if args.increments is not None else folder / "increments.json"
    return DOMAINS if DOMAINS in increments_keys(read_increments_json(source)) else None


def test_tables(tables: dict[str, ImageTable], evaluate_on: str) -> list[ImageTable]:
    """
    The tables whose pairs are the test: captions are searched among their images and images among their captions.
    "query": query and gallery together, which keep apart the photos of a product that attributes are searched by;
    "val": val.
    """
    splits = ("query", "gallery") if evaluate_on == "query" else ("val",)
    return [tables[split] for split in splits if len(tables[split])]


def pair_rows(increment: Increment, table: ImageTable) -> np.ndarray:
    """Rows of the increment that have a caption, int64, ascending."""
    rows = select_rows(increment, table)
    return rows[[bool(table.all_captions[row]) for row in rows]] if len(rows) else rows
