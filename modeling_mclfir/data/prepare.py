# SPDX-License-Identifier: Apache-2.0
"""Writes a data set: Parquet shards that `load_dataset` reads, increments.json and the card, all or nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .annotations import Annotations, Check, Rows, Table
from .card import dataset_card
from .images import BadRows, TooManyBadRowsError
from .increments import increments_keys, load_increments, read_increments_json
from .journal import Journal, SourceChangedError, flush
from .schema import SPLITS, TABLES
from .shards import DatasetSummary, SplitWriter, write_tables
from .source_images import ImagePool, ImageSettings

logger = logging.getLogger(__name__)

_CONTENT = {"data", "increments.json", "README.md", *TABLES}


def write_dataset(
    output_dir: str | os.PathLike,
    splits: Mapping[str, Rows],
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
    max_size: int | None = None,
    annotations_only: bool = False,
    keep_duplicates: bool = True,
    num_proc: int = 1,
    num_rows: Mapping[str, int] | None = None,
    columns: Mapping[str, Any] | None = None,
    tables: Mapping[str, Table] | None = None,
    checks: Sequence[Check] = (),
    notes: Sequence[str] = (),
    bad_rows: BadRows | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DatasetSummary:
    """Writes `output_dir/{data/*.parquet, TABLE/*.parquet, increments.json, README.md}`; memory does not grow with the
    rows.

    Everything goes to a hidden folder beside `output_dir` first, is flushed, and gets its name last: a folder of that
    name is always whole. An interrupted call (a signal, a full disk, too many bad rows) leaves its finished shards
    there, and the same call goes on behind them. Equal rows give equal bytes, whether interrupted or not, whatever
    `num_proc`. A split without rows has no file, which `load_tables` and `open_stream` know; `load_dataset` gives the
    other splits.

    Args:
        output_dir: where to; must not exist, or be empty, unless `overwrite`.
        splits: split → rows, as in `Annotations`; besides, an image may be the path of its file or
            `{"bytes", "path"}`. Bytes are kept as they are; a PIL image is kept as PNG.
        attributes: names, in order; a row that lacks one has no label for it.
        increments: path or content of an increments.json, kept whole.
        name, licence, citation, description: for the card. A licence is an SPDX id or words.
        rows_per_shard: rows a file, at most.
        max_bad_fraction: share of bad rows above which the run stops.
        check_images: decode every image once; bad ones are left out and counted.
        max_size: longest side in pixels; larger images are made smaller (JPEG of quality 95, or PNG).
        annotations_only: write the rows without images, which need not be there.
        keep_duplicates: False leaves byte-identical copies out, over all splits; the first one is kept.
        num_proc: processes that read and check images; 1: threads of this one.
        num_rows: split → expected rows, for the progress bar.
        columns: name → feature (or type, as in `FURTHER_COLUMNS`) of the rows' further columns.
        tables: name → further table, of rows without images.
        checks, notes: for the card.
        bad_rows: counter to go on with (the reader's).
        overwrite: replace a data set that was written before.
        progress: show progress bars on a terminal.

    Raises:
        FileExistsError: `output_dir` holds something, and `overwrite` is False or it is no data set of ours.
        ValueError: unknown splits or attributes, wrong increments, no rows at all, or too many bad rows.
        BlockingIOError: another process is preparing the same data set.
    """
    output = Path(output_dir).absolute()
    _check_output(output, overwrite)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"unknown splits {', '.join(map(repr, unknown))}; expected some of {', '.join(SPLITS)}")
    for number, what in ((rows_per_shard, "rows_per_shard"), (num_proc, "num_proc"), (1 if max_size is None else max_size, "max_size")):
        if number < 1:
            raise ValueError(f"{what} is {number}; expected 1 or more")
    content = read_increments_json(increments)
    for key in increments_keys(content) if content else ():
        load_increments(content, attributes, key=key)

    summary = DatasetSummary(output, tuple(attributes), checks=tuple(checks), notes=tuple(notes))
    summary.bad_rows = BadRows() if bad_rows is None else bad_rows
    summary.value_counts = {attribute: Counter() for attribute in attributes}
    settings = ImageSettings(read=not annotations_only, check=check_images, max_size=max_size)
    identity = {
        "name": name, "attributes": attributes, "columns": columns, "rows_per_shard": rows_per_shard,
        "settings": repr(settings), "keep_duplicates": keep_duplicates, "counts": num_rows,
    }  # fmt: skip
    partial = output.parent / f".{output.name}.partial"
    journal = Journal(partial, identity)
    try:
        if journal.counted is not None:
            summary.take_up(journal.counted)
            summary.resumed_at = journal.rows
        with (
            ImagePool(settings, num_proc) as pool,
            SplitWriter(
                partial, summary, journal, pool, columns=columns or {}, keep_duplicates=keep_duplicates,
                rows_per_shard=rows_per_shard, total_rows=sum(num_rows.values()) if num_rows else None,
                max_bad_fraction=max_bad_fraction,
            ) as writer,
        ):  # fmt: skip
            _write_splits(writer, splits, num_rows or {}, progress)
        written = sum(summary.counts.values())
        summary.bad_rows.check(written + summary.bad_rows.total, max_bad_fraction)
        if not written:
            raise ValueError(f"no rows at all for {output}; expected rows in at least one of {', '.join(SPLITS)}")
        writer.name_shards()
        write_tables(writer.folder.parent, tables or {}, summary, writer.image_ids() if tables else None)
        _write_text(writer.folder.parent / "increments.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        card = dataset_card(
            summary, content, name=name, licence=licence, citation=citation, description=description,
            columns=tuple(columns or ()), settings=settings,
        )  # fmt: skip
        _write_text(writer.folder.parent / "README.md", card)
        _put_in_place(writer.folder.parent, output)
    except BaseException as error:
        _leave(journal, error)
        raise
    journal.remove()
    return summary


def write_annotations(
    output_dir: str | os.PathLike, annotations: Annotations, increments: Any = None, **settings: Any
) -> DatasetSummary:
    """`write_dataset` of what a reader found; `increments` replaces its own, `settings` are the further arguments."""
    return write_dataset(
        output_dir,
        annotations.splits,
        annotations.attributes,
        annotations.increments if increments is None else increments,
        num_rows=annotations.counts,
        columns=annotations.columns,
        tables=annotations.tables,
        checks=annotations.checks,
        notes=annotations.notes,
        bad_rows=annotations.bad_rows,
        keep_duplicates=annotations.keep_duplicates,
        **settings,
    )


def _write_splits(writer: SplitWriter, splits: Mapping[str, Rows], num_rows: Mapping[str, int], show: bool) -> None:
    from tqdm import tqdm

    for split in SPLITS:
        state = writer.journal.splits.get(split)
        done = state.read if state else 0
        # disable=None: a bar only where the standard error is a terminal.
        disable = None if show else True
        with tqdm(desc=split, total=num_rows.get(split), initial=done, unit="row", disable=disable) as bar:
            writer.write(split, _watched(splits.get(split, ()), bar, done))


def _watched(rows: Iterable, bar: Any, done: int) -> Iterator:
    for number, row in enumerate(rows):
        if number >= done:  # the others were there before
            bar.update()
        yield row


def _leave(journal: Journal, error: BaseException) -> None:
    """Keeps what an interrupted run has done, where there is any; a mistake in the call or the rows leaves nothing."""
    mistake = isinstance(error, ValueError | TypeError) and not isinstance(error, TooManyBadRowsError)
    if isinstance(error, SourceChangedError):
        journal.close()
    elif mistake or not journal.has_shards:
        journal.remove()
    else:
        journal.close()
        logger.warning(
            "%d rows are done and kept in %s; the same command goes on behind them (or remove that folder)",
            journal.rows,
            journal.folder,
        )


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


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
    flush(path)


def _put_in_place(finished: Path, output: Path) -> None:
    for folder in (*(path for path in finished.iterdir() if path.is_dir()), finished):
        flush(folder)
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    try:
        finished.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    flush(output.parent)
    shutil.rmtree(old, ignore_errors=True)
