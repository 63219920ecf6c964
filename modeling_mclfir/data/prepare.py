# SPDX-License-Identifier: Apache-2.0
"""Writes a data set: Parquet shards that `load_dataset` reads, increments.json and the card, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .card import dataset_card
from .images import BadRows
from .increments import increments_keys, load_increments, read_increments_json
from .schema import SPLITS
from .shards import DatasetSummary, checked_groups, flush, write_shards

_CONTENT = {"data", "increments.json", "README.md"}


def write_dataset(
    output_dir: str | os.PathLike,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    attributes: Sequence[str],
    increments: Any,
    *,
    name: str,
    licence: str,
    citation: str = "",
    description: str = "",
    rows_per_shard: int = 10_000,
    max_bad_fraction: float = 0.01,
    check_images: bool = True,
    num_rows: Mapping[str, int] | None = None,
    bad_rows: BadRows | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DatasetSummary:
    """Writes `output_dir/{data/*.parquet, increments.json, README.md}`; memory does not grow with the rows.

    Everything goes to a hidden folder beside `output_dir` first, is flushed, and gets its name last: a folder of that
    name is always whole. Equal rows give equal bytes. A split without rows has no file, which `load_tables` and
    `open_stream` know; `load_dataset` gives the other splits.

    Args:
        output_dir: where to; must not exist, or be empty, unless `overwrite`.
        splits: split → rows `{"image", "attributes", "caption", "product_id"}`. An image is the bytes of a file, its
            path, `{"bytes", "path"}`, or a PIL image (kept as PNG); bytes are kept as they are.
        attributes: names, in order; a row that lacks one has no label for it.
        increments: path or content of an increments.json, kept whole.
        name: of the data set, in the card.
        licence: an SPDX-like id ("apache-2.0") or words.
        citation: BibTeX or words, in the card.
        description: a paragraph, in the card.
        rows_per_shard: rows a Parquet file.
        max_bad_fraction: a larger share of bad rows stops the run with the list.
        check_images: decode every image; those that fail are bad rows. Else only read them.
        num_rows: split → expected rows, for the progress bar.
        bad_rows: counter to go on with (the reader's).
        overwrite: replace a data set that was written before.
        progress: show progress bars on a terminal.

    Raises:
        FileExistsError: `output_dir` holds something, and `overwrite` is False or it is no data set of ours.
        ValueError: unknown splits or attributes, wrong increments, no rows at all, or too many bad rows.
    """
    output = Path(output_dir).absolute()
    _check_output(output, overwrite)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"unknown splits {', '.join(map(repr, unknown))}; expected some of {', '.join(SPLITS)}")
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}; expected 1 or more")
    content = read_increments_json(increments)
    for key in increments_keys(content) if content else ():
        load_increments(content, attributes, key=key)

    summary = DatasetSummary(output, tuple(attributes), bad_rows=BadRows() if bad_rows is None else bad_rows)
    summary.value_counts = {attribute: Counter() for attribute in attributes}
    partial = output.parent / f".{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    try:
        (partial / "data").mkdir(parents=True)
        for split in SPLITS:
            rows = _progress(splits.get(split, ()), split, num_rows, progress)
            groups = checked_groups(rows, split, summary, check_images)
            groups = _stop_early(groups, summary, num_rows, max_bad_fraction)
            write_shards(partial / "data", split, groups, summary, rows_per_shard)
        written = sum(summary.counts.values())
        summary.bad_rows.check(written + summary.bad_rows.total, max_bad_fraction)
        if not written:
            raise ValueError(f"no rows at all for {output}; expected rows in at least one of {', '.join(SPLITS)}")
        _write_text(partial / "increments.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        card = dataset_card(summary, content, name=name, licence=licence, citation=citation, description=description)
        _write_text(partial / "README.md", card)
        _put_in_place(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return summary


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists and is not empty; give another folder, or --overwrite")
    # Never remove what was not written here: a mistyped --output must not cost a photo collection.
    if not (output.is_dir() and (output / "data").is_dir() and {path.name for path in output.iterdir()} <= _CONTENT):
        raise FileExistsError(
            f"{output} is not a data set written before (it would hold only {', '.join(sorted(_CONTENT))}): "
            "it is not overwritten. Give another folder, or remove it yourself."
        )


def _progress(rows: Iterable, split: str, num_rows: Mapping[str, int] | None, show: bool) -> Iterable:
    from tqdm import tqdm

    # None: only where the standard error is a terminal.
    return tqdm(rows, desc=split, total=(num_rows or {}).get(split), unit="row", disable=None if show else True)


def _stop_early(
    groups: Iterator[list[dict]], summary: DatasetSummary, num_rows: Mapping[str, int] | None, max_bad_fraction: float
) -> Iterator[list[dict]]:
    """Ends a run that is bound to fail: with more bad rows by now than all expected rows may have."""
    for group in groups:
        if num_rows:
            summary.bad_rows.check(sum(num_rows.values()), max_bad_fraction)
        yield group


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
    flush(path)


def _put_in_place(partial: Path, output: Path) -> None:
    for folder in (partial / "data", partial):
        flush(folder)
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    flush(output.parent)
    shutil.rmtree(old, ignore_errors=True)
