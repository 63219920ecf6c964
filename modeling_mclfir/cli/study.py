# SPDX-License-Identifier: Apache-2.0
"""`mclfir study RECIPE …`: continual methods compared on one data set, from runs that may be spread over days."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ..study.continual import ORDERS, STUDIED, figures, methods_for, study_runs
from ..study.report import write_study
from ..study.runs import StudyRuns

_ABOUT = """\
Trains every method in every order with every seed, and compares them: report.md, report.json and pictures in --output.
A run that is finished is not repeated: stop the study at any time (or after --minutes), and the same command goes on.
What is frozen is computed once: all runs share one feature cache. Flags that are not named here go to the training,
such as --dataset DIR, --trunk ID_OR_FOLDER, --epochs 4, --evaluate_on val."""


def main(arguments: list[str]) -> None:
    """Run (or go on with) a study and write its report. Raises ValueError and ChildProcessError as its parts do."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="mclfir study", description=_ABOUT, formatter_class=form, allow_abbrev=False)
    parser.add_argument("recipe", help="name of a folder of model_cards, or a YAML file: what all runs have in common")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    known = ", ".join(STUDIED)
    parser.add_argument("--methods", nargs="+", help=f"of {known} (default: all that learn the recipe's task)")
    parser.add_argument("--orders", nargs="+", default=["canonical"], help=f"of {', '.join(ORDERS)}")
    parser.add_argument("--seeds", type=int, default=1, help="so many of each method and order (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after that time")
    options, rest = parser.parse_known_args(arguments)
    settings = {"recipe": options.recipe, "cache_dir": str(options.output / "cache")} | _settings(rest)
    options.methods = options.methods or methods_for(settings)
    runs = study_runs(options.methods, options.orders, range(options.seeds), settings)
    study = StudyRuns(options.output, options.workers, options.threads, options.minutes)
    reports, waiting = {}, 0
    for run, report in tqdm(study.reports(runs), total=len(runs), desc="study", unit="run"):
        if report is None:
            waiting += 1
            continue
        order, method, seed = run.name.split("/")
        reports[order, method, int(seed.removeprefix("seed"))] = report
        _write(reports, options)
    if waiting:
        sys.stderr.write(f"{waiting} of {len(runs)} runs are still to come: the same command goes on.\n")
    if reports:
        sys.stderr.write(f"{options.output / 'report.md'}\n")


def _write(reports: dict[tuple[str, str, int], dict], options: argparse.Namespace) -> None:
    (order, *_), report = next(iter(reports.items()))
    increments = report["increments"] if order == "canonical" else list(reversed(report["increments"]))
    write_study(figures(reports), increments, options.output, f"Continual methods on {options.recipe}")


def _settings(words: list[str]) -> dict[str, str]:
    """`--name value` and `--name=value` → name → value. ValueError for anything else."""
    settings, rest = {}, list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or (not equals and (not rest or rest[0].startswith("--"))):
            raise ValueError(f"Expected flags of the training as --name value; got {' '.join(words)!r}.")
        settings[name[2:]] = value if equals else rest.pop(0)
    return settings
