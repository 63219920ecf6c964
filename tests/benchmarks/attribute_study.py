# SPDX-License-Identifier: Apache-2.0
"""Which parts earn their cost: heads × losses × teacher on a prepared data set, by successive halving.

    python tests/benchmarks/attribute_study.py --dataset DIR --recipe mobilenetv2-stanford --trunk DIR --output DIR

Every combination is trained for a few epochs and scored on val; the better part goes on to the next rung with more
epochs; the last ones are trained in full with several seeds and scored on query. A run that is finished is not
repeated: stop the study at any time (or after --minutes), and the same command goes on. study.md and study.json are
rewritten after each run.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# All give 128 numbers, so that an index costs the same; the other sizes are the papers' shares of it.
HEADS = {
    "mclfir": {},
    "linear": {"head_type": "linear"},
    "csn": {"head_type": "csn"},
    "asen": {"head_type": "asen", "gate_dim": 128},
    "asen_v2": {"head_type": "asen_v2", "gate_dim": 128},
    "ag_man": {"head_type": "ag_man", "gate_dim": 128},
    "mclfir_published": {"head_type": "mclfir_published", "gate_dim": 128},
}
LOSSES = {
    "triplet": {"loss": "triplet", "mining": "random"},
    "infonce": {"same_value": "negatives"},
    "value_aware": {"same_value": "positives"},
    "value_aware_prototypes": {"same_value": "positives", "prototype_weight": 1.0},
}
TEACHERS = {"alone": {}, "teacher": {"method": "ema_distillation"}}
# Found by the value-aware loss; the others are given both, for none shall lose by a rate that suits another.
RATES = {"slow": {"learning_rate": 0.001}, "fast": {"learning_rate": 0.004}}


def cells() -> dict[str, dict]:
    """Name → settings that differ from the recipe."""
    axes = [list(axis.items()) for axis in (HEADS, LOSSES, TEACHERS, RATES)]
    result = {}
    for choice in product(*axes):
        settings = {"prototype_weight": 0.0}
        for _, part in choice:
            settings |= part
        result["-".join(name for name, _ in choice)] = settings
    return result


def train(folder: Path, settings: dict, options: argparse.Namespace, epochs: int, seed: int, evaluate_on: str) -> dict:
    """The report of a run; of an earlier one, where it is finished."""
    report = folder / "report.json"
    if report.exists() and (found := json.loads(report.read_text()))["finished"]:
        return found
    given = {
        "recipe": options.recipe, "dataset": options.dataset, "trunk": options.trunk, "output_dir": folder,
        "cache_dir": options.output / "cache", "epochs": epochs, "seed": seed, "evaluate_on": evaluate_on,
        "plots": False, "save_steps": 0, "report_to": "none", **settings,
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "train_mclfir.py")]
    command += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    if any(folder.glob("increment-*")):
        command += ["--resume"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    for path in (*folder.glob("increment-*/*.safetensors"), *folder.glob("last/*.safetensors")):
        path.unlink()  # the scores are what is wanted; a study's weights would fill the disk
    return json.loads(report.read_text())


def score(report: dict) -> float:
    """MAP in percent, the mean over attributes."""
    return 100 * report["average"]["mean_average_precision"]


class Study:
    """What has been run so far, and what comes next."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.rows = options, {}
        self.end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")

    def run(self) -> None:
        """All rungs, then the last ones with several seeds; ends early where the time is up."""
        names = list(cells())
        options = self.options
        for rung, (epochs, keep) in enumerate(zip(options.epochs, options.keep, strict=True)):
            scores = {}
            for name in names:
                report = self._one(f"rung{rung}/{name}", cells()[name], epochs, options.seed, "val")
                if report is None:
                    return
                scores[name] = score(report)
            names = self._best(scores, keep)
        for name, seed in product(names, range(options.seed, options.seed + options.seeds)):
            if self._one(f"final/{name}/seed{seed}", cells()[name], options.final_epochs, seed, "query") is None:
                return

    def _best(self, scores: dict[str, float], keep: int) -> list[str]:
        # The best of each head stays until the end, or the table would not compare heads at their best.
        ordered = sorted(scores, key=scores.get, reverse=True)
        best_of_head = {name.split("-")[0]: name for name in reversed(ordered)}
        return [name for place, name in enumerate(ordered) if place < keep or name in best_of_head.values()]

    def _one(self, place: str, settings: dict, epochs: int, seed: int, evaluate_on: str) -> dict | None:
        folder = self.options.output / place
        if time.monotonic() > self.end and not (folder / "report.json").exists():
            return None
        report = train(folder, settings, self.options, epochs, seed, evaluate_on)
        self.rows[place] = {
            "map": score(report),
            "gain": 100 * report["average"]["gain_over_prior"],
            "seconds": report["cost"]["seconds"],
            "parameters": report["parameters"]["added_per_attribute"],
            "epochs": epochs,
        }
        self.write()
        return report

    def write(self) -> None:
        """study.json with every run, study.md with a table for each rung and one for the last ones."""
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
            lines += ["| head | loss | teacher | rate | MAP % | gain % | parameters | seconds | runs |"]
            lines += ["| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
            for name, found in sorted(runs.items(), key=lambda item: -np.mean([row["map"] for row in item[1]])):
                maps = [row["map"] for row in found]
                spread = f" ± {np.std(maps, ddof=1):.2f}" if len(maps) > 1 else ""
                means = {key: np.mean([row[key] for row in found]) for key in ("gain", "parameters", "seconds")}
                lines.append(
                    f"| {' | '.join(name.split('-'))} | {np.mean(maps):.2f}{spread} | {means['gain']:.1f} | "
                    f"{means['parameters']:,.0f} | {means['seconds']:.0f} | {len(maps)} |"
                )
            lines.append("")
        (self.options.output / "study.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--trunk", default=None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 4], help="of each rung")
    parser.add_argument("--keep", type=int, nargs="+", default=[24, 3], help="cells that go on from each rung")
    parser.add_argument("--final-epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after that time")
    options = parser.parse_args()
    study = Study(options)
    study.run()
    print((options.output / "study.md").read_text())


if __name__ == "__main__":
    main()
