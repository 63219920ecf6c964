# SPDX-License-Identifier: Apache-2.0
"""The data set that a user names, as the folder of a prepared one: drawn or prepared here where it is not."""

import json
from pathlib import Path

from accelerate.logging import get_logger

from ..data.atelier import ATTRIBUTES, INCREMENTS, SPLIT_SIZES, generate_split
from ..data.folder import read_folder
from ..data.images import DistinctBadRows
from ..data.prepare import write_annotations, write_dataset
from ..data.schema import SPLITS

logger = get_logger(__name__)


def prepared_folder(args, output_dir: Path, seed: int, bad_rows: DistinctBadRows) -> Path:
    """
    The folder of the data set that `DataArguments` name; what is drawn or prepared here goes below `output_dir`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: too many bad images.
    """
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
