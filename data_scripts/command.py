# SPDX-License-Identifier: Apache-2.0
"""What the commands of this folder share: their flags, and how a user's mistake is told."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_scripts.formats.text_files import exists
from modeling_mclfir.data.annotations import Annotations
from modeling_mclfir.data.increments import read_increments_json
from modeling_mclfir.data.prepare import write_annotations as write
from modeling_mclfir.data.shards import DatasetSummary


def parser(name: str, description: str | None, *, source: str | None) -> argparse.ArgumentParser:
    """The flags of a data script; `source` says what --source is, None leaves it out."""
    result = argparse.ArgumentParser(
        prog=f"python -m data_scripts.{name}", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    if source:
        result.add_argument("--source", type=Path, required=True, help=source)
        result.add_argument(
            "--annotations-only",
            action="store_true",
            help="leave the images out, which need not be there; without --output, only count",
        )
        result.add_argument(
            "--num-proc", type=int, default=1, help="processes that read and check images (default: 1)"
        )
        result.add_argument(
            "--max-size",
            type=int,
            default=None,
            metavar="PIXELS",
            help="make images with a longer side this long (default: all are kept as they are)",
        )
    result.add_argument("--output", type=Path, required=not source, help="folder to write; must be new or empty")
    result.add_argument("--overwrite", action="store_true", help="replace a data set written there before")
    result.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="stop when a larger share of rows is bad (default: 0.01)"
    )
    result.add_argument("--rows-per-shard", type=int, default=10_000, help="rows a Parquet file (default: 10000)")
    result.add_argument(
        "--increments-key", default=None, help="keep only this list of increments.json (default: all of them)"
    )
    return result


def run(main: Callable[[Sequence[str] | None], DatasetSummary]) -> None:
    """Runs a command; a user's mistake ends it with one message and status 2, without a traceback."""
    try:
        summary = main(None)
    except (ValueError, OSError) as error:  # OSError: a full disk, a folder that may not be written, …
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    sys.stderr.write(_report(summary))


def require_files(source: Path, names: Sequence[str]) -> None:
    """Raises FileNotFoundError, naming all that is missing, where `source` is another folder; `NAME.gz` will do."""
    missing = [name for name in names if not exists(source, name)]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; expected one with {', '.join(names)}")
    if missing:
        raise FileNotFoundError(
            f"{source} is not the expected folder; of {len(names)} files {len(missing)} are missing: "
            f"{', '.join(missing)}. Mend --source; data_scripts/README.md says how to obtain the data."
        )


def choose_increments(content: list | dict, key: str | None) -> list | dict:
    """The list of that key, or everything for None."""
    content = read_increments_json(content)
    if key is None:
        return content
    if not isinstance(content, dict) or key not in content:
        known = ", ".join(content) if isinstance(content, dict) else "none, it is one plain list"
        raise ValueError(f"--increments-key {key}: increments.json has no such list; it has: {known}")
    return content[key]


def write_annotations(
    annotations: Annotations,
    options: argparse.Namespace,
    *,
    name: str,
    licence: str,
    citation: str,
    description: str = "",
) -> DatasetSummary:
    """Writes what a reader found, as the flags say; without images and --output, it is only counted."""
    if options.output is None:
        if not options.annotations_only:
            raise ValueError("--output is missing; expected the folder to write, or --annotations-only to count only")
        return count(annotations)
    return write(
        options.output,
        annotations,
        choose_increments(annotations.increments, options.increments_key),
        name=name,
        licence=licence,
        citation=citation,
        description=description,
        rows_per_shard=options.rows_per_shard,
        max_bad_fraction=options.max_bad_fraction,
        max_size=options.max_size,
        annotations_only=options.annotations_only,
        num_proc=options.num_proc,
        overwrite=options.overwrite,
    )


def count(annotations: Annotations) -> DatasetSummary:
    """The counts of a data set, of which nothing is written."""
    summary = DatasetSummary(None, annotations.attributes, dict(annotations.counts), checks=tuple(annotations.checks))
    summary.bad_lines = dict(annotations.bad_lines)
    summary.notes, summary.bad_rows = tuple(annotations.notes), annotations.bad_rows
    summary.tables = {
        name: {split: sum(1 for _ in rows) for split, rows in table.splits.items()}
        for name, table in annotations.tables.items()
    }
    return summary


def _report(summary: DatasetSummary) -> str:
    """What a command says at its end."""
    lines = list(summary.notes)
    for check in summary.checks:
        verdict = ""
        if check.published is not None:
            same = check.counted == check.published
            verdict = f"  (published: {check.published:,}{'' if same else ' – DIFFERENT'})"
        lines.append(f"{check.what}: {check.counted:,}{verdict}")
    for name, splits in summary.tables.items():
        lines.append(f"table {name}: " + ", ".join(f"{split} {rows:,}" for split, rows in splits.items()))
        if summary.dangling.get(name):
            lines.append(f"table {name}: {summary.dangling[name]:,} rows name an image that is not there")
    for kind, bad in summary.bad_lines.items():
        if bad.counter.total:
            lines.append(f"of {bad.total:,} {kind} lines: {bad.counter.summary('line')}")
    copies = sum(summary.duplicates.values())
    if copies:
        lines.append(f"left out: {copies} byte-identical copies (the first of each is kept)")
    if summary.resumed_at:
        lines.append(f"went on behind {summary.resumed_at:,} rows of an interrupted run")
    counts = ", ".join(f"{split} {rows:,}" for split, rows in summary.counts.items())
    where = "counted only, nothing is written" if summary.path is None else str(summary.path)
    return "\n".join([*lines, f"{where}: {counts}; {summary.bad_rows.summary()}", ""])
