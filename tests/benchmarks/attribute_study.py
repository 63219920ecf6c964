# SPDX-License-Identifier: Apache-2.0
"""Which parts earn their cost: heads × losses × teacher on a prepared data set, by successive halving.

    python tests/benchmarks/attribute_study.py --dataset DIR --recipe mobilenetv2-stanford --trunk DIR --output DIR
    python tests/benchmarks/attribute_study.py --dataset DIR --recipe mobilenetv2-myntra --trunk DIR --output DIR2 \\
        --finalists DIR --final-epochs 3

The first command trains every combination for an epoch and scores it on val; of each head and loss the better one
goes on with more epochs, with --slow the best of each head at a slower rate as well, with --ridge begun at the ridge
regression to values; parts are taken from the best of our own heads one by one; the best of each head are trained in
full with several seeds and scored on query. The second takes the finalists of the first to another data set. A run
that is finished is not repeated: stop the study at any time (or after --minutes), and the same command goes on.
study.md and study.json are rewritten after each run.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np

from modeling_mclfir.study.runs import StudyRun, StudyRuns

# Ours gives 32 numbers by default, the others MCL-FIR's 128; what else they have is the papers' share of that.
_WIDE = {"embed_dim": 128, "gate_dim": 128}
HEADS = {
    "mclfir": {},
    "mclfir_wide": {"embed_dim": 128},
    "linear": {"head_type": "linear", "embed_dim": 128},
    "csn": {"head_type": "csn", "embed_dim": 128},
    "asen": {"head_type": "asen", **_WIDE},
    "asen_v2": {"head_type": "asen_v2", **_WIDE},
    "ag_man": {"head_type": "ag_man", **_WIDE},
    "mclfir_published": {"head_type": "mclfir_published", **_WIDE},
}
LOSSES = {
    "triplet": {"loss": "triplet", "mining": "random"},
    "infonce": {"same_value": "negatives"},
    "value_aware": {"same_value": "positives"},
    "value_aware_prototypes": {"same_value": "positives", "prototype_weight": 1.0},
}
TEACHERS = {"alone": {}, "teacher": {"method": "ema_distillation"}}
# The fast one was found by our own heads; what goes on is given both, for none shall lose by a rate that suits others.
# "ridge": heads that begin at the ridge regression, at a rate that does not throw that away.
RATES = {
    "fast": {"learning_rate": 0.004},
    "slow": {"learning_rate": 0.001},
    "ridge": {"learning_rate": 0.002, "head_start": "ridge"},
}
WITH_RIDGE = ("mclfir", "mclfir_wide", "linear")  # heads that project the pooled features for each attribute
AXES = (HEADS, LOSSES, TEACHERS, RATES)
# Our heads without one of their parts each, wider, and without adapters below them.
PARTS = {
    "whole": {},
    "no spatial attention": {"use_spatial_attention": False},
    "no channel attention": {"use_channel_attention": False},
    "no attention": {"use_spatial_attention": False, "use_channel_attention": False},
    "no pooled features": {"use_pooled_features": False},
    "128 numbers": {"embed_dim": 128},
    "no adapters": {"adapter_policy": "frozen"},
}


def settings_of(name: str) -> dict:
    """What a combination such as mclfir-infonce-alone-fast sets beside the recipe."""
    settings = {"prototype_weight": 0.0}
    for choice, axis in zip(name.split("-"), AXES, strict=True):
        settings |= axis[choice]
    return settings


def score(report: dict) -> float:
    """MAP in percent, the mean over attributes."""
    return 100 * report["average"]["mean_average_precision"]


class Study:
    """What has been run so far, and what comes next."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.rows = options, {}
        self.runs = StudyRuns(options.output, options.workers, options.threads, options.minutes)

    def run(self) -> None:
        """All stages; ends early where the time is up."""
        options = self.options
        if options.finalists:
            finalists = json.loads((options.finalists / "finalists.json").read_text())[: options.keep_finalists]
            self._last(finalists, finalists)
            return
        first = ["-".join(choice) + "-fast" for choice in product(HEADS, LOSSES, TEACHERS)]
        scores = self._stage("rung0", {name: settings_of(name) for name in first}, options.epochs[0])
        if scores is None:
            return
        names = self._best(scores, 2)
        if options.slow:
            names += [name.replace("-fast", "-slow") for name in self._best(scores, 1)]
        if options.ridge:
            best = [name for name in self._best(scores, 1) if name.split("-")[0] in WITH_RIDGE]
            names += [name.replace("-fast", "-ridge") for name in best]
        scores = self._stage("rung1", {name: settings_of(name) for name in names}, options.epochs[1])
        if scores is None:
            return
        begun_alike = [name for name in scores if name.startswith("mclfir-") and name.endswith("-fast")]
        ours = max(begun_alike, key=scores.get)
        parts = {name: settings_of(ours) | part for name, part in PARTS.items()}
        if self._stage("parts", parts, options.epochs[1]) is None:
            return
        names = self._best(scores, 1)
        finalists = names[: options.keep_finalists]
        (options.output / "finalists.json").write_text(json.dumps(finalists))
        self._last(names, finalists)

    def _best(self, scores: dict[str, float], num_axes: int) -> list[str]:
        """The best of each choice on the first axes (1: of each head, 2: of each head and loss), best first."""
        ordered = sorted(scores, key=scores.get, reverse=True)
        best = {tuple(name.split("-")[:num_axes]): name for name in reversed(ordered)}
        return [name for name in ordered if name in best.values()]

    def _stage(self, stage: str, runs: dict[str, dict], epochs: int) -> dict[str, float] | None:
        """Scores on val of runs with one seed; None where the time was up."""
        seed = self.options.seed
        reports = self._all([(f"{stage}/{name}", settings, epochs, seed, "val") for name, settings in runs.items()])
        return None if None in reports else dict(zip(runs, map(score, reports), strict=True))

    def _last(self, names: list[str], finalists: list[str]) -> None:
        """In full on query: everything with the first seed, then the finalists with the others, then the rest."""
        options, seeds = self.options, range(self.options.seed, self.options.seed + self.options.seeds)
        rest = [name for name in names if name not in finalists]
        order = [(name, seeds[0]) for name in names] + [*product(finalists, seeds[1:]), *product(rest, seeds[1:])]
        jobs = [
            (f"final/{name}/seed{seed}", settings_of(name), options.final_epochs, seed, "query")
            for name, seed in order
        ]
        self._all(jobs)

    def _all(self, jobs: list[tuple]) -> list[dict | None]:
        """Reports of jobs: place, settings, epochs, seed, side that is scored."""
        options, reports = self.options, []
        common = {
            "recipe": options.recipe, "dataset": options.dataset, "trunk": options.trunk,
            "cache_dir": options.output / "cache", "plots": False, "save_steps": 0, "report_to": "none",
            # Heads and losses are compared as they learn; refined afterwards, their differences would be smaller.
            "refine_spaces": False,
        }  # fmt: skip
        runs = [
            StudyRun(place, common | settings | {"epochs": epochs, "seed": seed, "evaluate_on": side})
            for place, settings, epochs, seed, side in jobs
        ]
        for job, (run, report) in zip(jobs, self.runs.reports(runs), strict=True):
            if report is not None:
                self._note(run.name, job[2], report)
            reports.append(report)
        return reports

    def _note(self, place: str, epochs: int, report: dict) -> None:
        steps = max(1, report["cost"]["steps"])
        self.rows[place] = {
            "map": score(report),
            "gain": 100 * report["average"]["gain_over_prior"],
            "seconds": report["cost"]["seconds"],
            "gflops_a_sample": report["cost"]["flops"] / max(1, report["cost"]["samples"]) / 1e9,
            "steps": steps,
            "parameters": report["parameters"]["added_per_attribute"],
            "epochs": epochs,
        }
        self.write()

    def write(self) -> None:
        """study.json with every run, study.md with a table for each stage."""
        self.options.output.mkdir(parents=True, exist_ok=True)
        (self.options.output / "study.json").write_text(json.dumps(self.rows, indent=1))
        groups: dict[str, dict[str, list[dict]]] = {}
        for place, row in self.rows.items():
            stage, name = place.split("/")[:2]
            groups.setdefault(stage, {}).setdefault(name, []).append(row)
        lines = []
        for stage, runs in groups.items():
            where = "query and gallery" if stage == "final" else "val"
            epochs = next(iter(runs.values()))[0]["epochs"]
            lines += [f"## {stage}: {epochs} epochs, scored on {where}", ""]
            lines += ["| head | loss | teacher | rate |" if stage != "parts" else "| our heads |"]
            lines[-1] += " MAP % | gain % | added an attribute | GFLOPs a sample | seconds | runs |"
            names = lines[-1].count("|") - 7
            lines += ["|" + " --- |" * names + " ---: |" * 6]
            for name, found in sorted(runs.items(), key=lambda item: -np.mean([row["map"] for row in item[1]])):
                lines.append(self._line(name.split("-") if stage != "parts" else [name], found))
            lines.append("")
        (self.options.output / "study.md").write_text("\n".join(lines))

    def _line(self, names: list[str], found: list[dict]) -> str:
        maps = [row["map"] for row in found]
        spread = f" ± {np.std(maps, ddof=1):.2f}" if len(maps) > 1 else ""
        keys = ("gain", "parameters", "gflops_a_sample", "seconds")
        means = {key: np.mean([row[key] for row in found]) for key in keys}
        return (
            f"| {' | '.join(names)} | {np.mean(maps):.2f}{spread} | {means['gain']:.1f} | "
            f"{means['parameters']:,.0f} | {means['gflops_a_sample']:.2f} | {means['seconds']:.0f} | {len(maps)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--trunk", default=None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--finalists", type=Path, default=None, help="output of a study whose finalists run here")
    parser.add_argument("--epochs", type=int, nargs=2, default=[1, 4], help="of the first two rungs")
    parser.add_argument("--slow", action="store_true", help="the best of each head at a slower rate as well")
    parser.add_argument(
        "--ridge", action="store_true", help="the best of some heads begun at the ridge regression too"
    )
    parser.add_argument("--keep-finalists", type=int, default=3)
    parser.add_argument("--final-epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after that time")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    options = parser.parse_args()
    study = Study(options)
    study.run()
    print((options.output / "study.md").read_text())


if __name__ == "__main__":
    main()
