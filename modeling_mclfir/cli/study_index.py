# SPDX-License-Identifier: Apache-2.0
"""`mclfir study-index RUN …`: what old spaces still give under each reindex policy, after each increment of a run."""

import argparse
import sys
from pathlib import Path

from ..study.reindexing import ReindexStudy
from ..study.reindexing_report import write_reindexing
from ..study.snapshots import open_run

_ABOUT = """\
Lets the checkpoints of a finished training run land one after the other in an index of its gallery, under each reindex
policy (full, none, drift_compensated with several maps), and scores old and new attributes after each: report.md,
report.json and a picture in --output. Each image is embedded once a checkpoint; what is embedded is kept in --output,
and the same command goes on where it was stopped."""


def main(arguments: list[str]) -> None:
    """
    Run the study and write its report.

    Raises:
        FileNotFoundError: no run, no weights in it, no data.
        ValueError: see `open_run` and `ReindexStudy`.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="mclfir study-index", description=_ABOUT, formatter_class=form)
    parser.add_argument("run", type=Path, help="--output_dir of a training run, with increment-00, increment-01, …")
    parser.add_argument("--output", type=Path, required=True, help="folder of the report and of what is embedded")
    parser.add_argument("--dataset", help="the run's data, where they are elsewhere now")
    parser.add_argument("--calibration", type=int, default=200, help="images that drift maps are fitted on (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of those (0)")
    parser.add_argument("--batch_size", type=int, default=64, help="images embedded at a time (64)")
    args = parser.parse_args(arguments)
    settings, increments, snapshots, evaluator = open_run(args.run, args.output, args.dataset, args.batch_size)
    study = ReindexStudy(increments, snapshots, evaluator, args.calibration, args.seed)
    rows, landings = study.compare(args.output)
    write_reindexing(study, rows, landings, settings, args.output)
    sys.stderr.write(f"{args.output / 'report.md'}\n")
