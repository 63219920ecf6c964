# SPDX-License-Identifier: Apache-2.0
"""Writes a data set: Parquet shards that `load_dataset` reads, increments.json and the card, all or nothing."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .annotations import Annotations, BadLines, Check, Rows, Table
from .card import CONTENT_MARK, dataset_card
from .further_tables import write_tables
from .images import BadRows, TooManyBadRowsError
from .increments import increments_keys, load_increments, read_increments_json
from .journal import Journal, SourceChangedError, flush
from .schema import SPLITS, TABLES
from .shards import DatasetSummary, SplitWriter
from .source_images import ImagePool, ImageSettings

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"\w+-\d{5}-of-\d{5}\.parquet")
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
    bad_lines: Mapping[str, BadLines] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DatasetSummary:
    """Writes `output_dir/{data/*.parquet, TABLE/*.parquet, increments.json, README.md}`; memory does not grow with the
    rows (but for different values and, where there are tables, image ids: about 0.2 GB for a million).

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
        bad_lines: kind of line → what the reader left out of those that make no row.
        overwrite: replace a data set that was written before.
        progress: show progress bars on a terminal.

    Raises:
        FileExistsError: `output_dir` holds something, and `overwrite` is False or it is no data set of ours.
        ValueError: unknown splits or attributes, wrong increments, no rows at all, or too many bad rows.
        BlockingIOError: another process is preparing the same data set.
    """
    output = Path(os.path.realpath(output_dir))  # where a link leads to
    _check_output(output, overwrite)
    BadRows().check(0, max_bad_fraction)  # a share that is none is told before any work
    for kind, lines in (bad_lines or {}).items():
        lines.counter.check(lines.total, max_bad_fraction, f"{kind} line")
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"unknown splits {', '.join(map(repr, unknown))}; expected some of {', '.join(SPLITS)}")
    for number, what in ((rows_per_shard, "rows_per_shard"), (num_proc, "num_proc"), (max_size, "max_size")):
        if number is not None and number < 1:
            raise ValueError(f"{what} is {number}; expected 1 or more")
    content = read_increments_json(increments)
    for key in increments_keys(content) if content else ():
        load_increments(content, attributes, key=key)

    summary = DatasetSummary(output, tuple(attributes), checks=tuple(checks), notes=tuple(notes))
    summary.bad_lines = dict(bad_lines or {})
    summary.bad_rows = BadRows() if bad_rows is None else bad_rows
    summary.value_counts = {attribute: Counter() for attribute in attributes}
    reader_bad = summary.bad_rows.total
    settings = ImageSettings(read=not annotations_only, check=check_images, max_size=max_size)
    identity = {
        "name": name, "attributes": attributes, "columns": columns, "rows_per_shard": rows_per_shard,
        "settings": repr(settings), "keep_duplicates": keep_duplicates, "counts": num_rows,
    }  # fmt: skip
    partial = output.parent / f".{output.name}.partial"
    journal, finished = Journal(partial, identity), False
    try:
        if journal.counted is not None:
            summary.take_up(journal.counted)
            summary.resumed_at = journal.rows
        with (
            ImagePool(settings, num_proc) as pool,
            SplitWriter(
                partial, summary, journal, pool, columns=columns or {}, keep_duplicates=keep_duplicates,
                rows_per_shard=rows_per_shard, total_rows=sum(num_rows.values()) if num_rows else None,
                bad_before=reader_bad, max_bad_fraction=max_bad_fraction,
            ) as writer,
        ):  # fmt: skip
            _write_splits(writer, splits, num_rows or {}, progress)
        summary.bad_rows.check(summary.written + summary.bad_rows.total, max_bad_fraction)
        if not summary.written:
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
        finished = True
        shutil.rmtree(_old(output), ignore_errors=True)
    except BaseException as error:
        journal.remove() if finished else _leave(journal, error)
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
        bad_lines=annotations.bad_lines,
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
    """Keeps what an interrupted run has done, where there is any."""
    if not journal.has_shards:
        journal.remove()
        return
    journal.close()
    if isinstance(error, SourceChangedError):  # which says it all
        return
    way = "the same command goes on behind them"
    if isinstance(error, TooManyBadRowsError):
        way = "with a larger share allowed the same command goes on behind them; after mending them, remove it first"
    logger.warning("%d rows are done and kept in %s: %s", journal.rows, journal.folder, way)


def _check_output(output: Path, overwrite: bool) -> None:
    if os.path.ismount(output):
        raise FileExistsError(f"{output} is a mount point, which nothing can be renamed to; give a folder inside it")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists and is not empty; give another folder, or --overwrite")
    # Never remove what was not written here: a mistyped --output must not cost a photo collection.
    if not _is_ours(output):
        raise FileExistsError(
            f"{output} is not a data set written before (it would hold only {', '.join(sorted(_CONTENT))}, and in its "
            "folders only shards): it is not overwritten. Give another folder, or remove it yourself."
        )


def _is_ours(folder: Path) -> bool:
    """Whether everything in the folder is what `write_dataset` writes."""
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= _CONTENT:
        return False
    card = folder / "README.md"
    if not card.is_file() or CONTENT_MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return False
    inside = [path for name in ("data", *TABLES) if (folder / name).is_dir() for path in (folder / name).iterdir()]
    return all(path.is_file() and _SHARD.fullmatch(path.name) for path in inside)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
    flush(path)


def _put_in_place(finished: Path, output: Path) -> None:
    for folder in (*(path for path in finished.iterdir() if path.is_dir()), finished):
        flush(folder)
    old = _old(output)
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


def _old(output: Path) -> Path:
    return output.parent / f".{output.name}.old"
