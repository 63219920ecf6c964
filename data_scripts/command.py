# SPDX-License-Identifier: Apache-2.0
"""What the commands of this folder share: their flags, and how a user's mistake is told."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from modeling_mclfir.data.folder import FolderDataset
from modeling_mclfir.data.increments import read_increments_json
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.shards import DatasetSummary


def parser(name: str, description: str | None, *, source: str | None) -> argparse.ArgumentParser:
    """The flags of a data script; `source` says what --source is, None leaves it out."""
    result = argparse.ArgumentParser(
        prog=f"python -m data_scripts.{name}", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    if source:
        result.add_argument("--source", type=Path, required=True, help=source)
    result.add_argument("--output", type=Path, required=True, help="folder to write; must be new or empty")
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
    counts = ", ".join(f"{split} {count:,}" for split, count in summary.counts.items())
    sys.stderr.write(f"{summary.path}: {counts}; {summary.bad_rows.summary()}\n")


def require_files(source: Path, names: Sequence[str]) -> None:
    """Raises FileNotFoundError, naming all that is missing, where `source` is not the folder that a script expects."""
    missing = [name for name in names if not (source / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{source} is not the expected folder; missing: {', '.join(missing)} (expected: {', '.join(names)}). "
            "Mend --source; data_scripts/README.md says how to obtain the data."
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


def write_folder(dataset: FolderDataset, options: argparse.Namespace, **card: str) -> DatasetSummary:
    """Writes what a reader found, and says what it left out."""
    summary = write_dataset(
        options.output,
        dataset.splits,
        dataset.attributes,
        choose_increments(dataset.increments, options.increments_key),
        rows_per_shard=options.rows_per_shard,
        max_bad_fraction=options.max_bad_fraction,
        num_rows=dataset.counts,
        bad_rows=dataset.bad_rows,
        overwrite=options.overwrite,
        **card,
    )
    copies = sum(dataset.duplicates.values())
    if copies or dataset.left_out:
        sys.stderr.write(
            f"left out: {copies} byte-identical copies (the first of each is kept), "
            f"{dataset.left_out} rows that the split file does not name\n"
        )
    return summary
