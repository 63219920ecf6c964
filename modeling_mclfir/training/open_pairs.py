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
    sides = test_tables(tables, args.evaluate_on)
    splits = {"train": [tables["train"]], "query and gallery" if args.evaluate_on == "query" else "val": sides}
    for split, parts in splits.items():
        if not any(any(table.all_captions) for table in parts):
            raise ValueError(
                f"--dataset {args.dataset} has no captions in split {split!r}. In a folder of images they are the "
                "column 'caption' of the labels, or another one: python -m data_scripts.folder --caption-column NAME."
            )
    domains = _read_domains(args, folder, tables["train"])
    increments = [replace(domain, attributes=(TASK,), new_values=place > 0) for place, domain in enumerate(domains)]
    for increment in increments:
        for split, parts in splits.items():
            if not sum(len(pair_rows(increment, table)) for table in parts):
                count = sum(len(select_rows(increment, table)) for table in parts)
                raise ValueError(
                    f"increment {increment.name!r} ({increment.to_dict().get('where')}) has no image with a caption "
                    f"in split {split!r}: {count} images are its own there. Mend its 'where', the captions or the "
                    "split, or leave the increment out."
                )
    return TrainingData(args.dataset, folder, tables, increments, bad_rows)


def _read_domains(args, folder: Path, table: ImageTable) -> list[Increment]:
    source = args.increments if args.increments is not None else folder / "increments.json"
    content, names = read_increments_json(source), list(table.attributes)
    # What a folder of images gets that brings no list of its own.
    if content in ([], [{"name": "all", "attributes": names}]):
        return [Increment("all", ())]
    # The data sets' own files call their list of domains so.
    key = args.increments_key or (DOMAINS if DOMAINS in increments_keys(content) else None)
    domains = read_increments(replace(args, increments_key=key), folder, table.attributes)
    if others := [increment.name for increment in domains if increment.attributes]:
        raise ValueError(
            f'increments {others} name attributes; text-image retrieval learns domains, entries of "name" and '
            '"where" alone, as {"name": "tops", "where": {"line": ["tops"]}}. Choose such a list with '
            "--increments_key, or write one and name it with --increments."
        )
    return domains


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
