# SPDX-License-Identifier: Apache-2.0
"""The study of continual methods: what is compared, and the figures of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..continual import METHODS
from ..metrics import average_score, forgetting, intransigence
from ..training.arguments import RunArguments, read_recipe
from .runs import StudyRun

SHARED = {"adapter_policy": "shared"}
# An embedding holds a score for each value of an attribute: enough numbers for the largest.
CLOSED_FORM = {"adapter_policy": "frozen", "head_type": "closed_form", "embed_dim": 128}
# Heads are solved from the features at the end, not before: the pass for it is what there is to save.
SOLVED = {"head_start": "random", "head_finish": "ridge", "num_views": 1}
# Without a step there is no adapter and no attention to learn.
UNLEARNED = {"adapter_policy": "frozen", "head_type": "linear"}
# Of the epochs that all others have, as small batches (so that there are steps to speak of). Chosen on Stanford's val.
TENTH = {"share": 0.1, "batch_size": 32, "learning_rate": 0.001, **SOLVED}
# Name in the study → settings. Those that learn by steps learn the same layers: adapters of upper blocks, and heads.
# `lora_uncached` is ours with the whole trunk run for every sample.
# What is lost where an increment may take a tenth of the epochs is told of ours and of static alike; without a step
# (`solved_heads`) both are the same.
STUDIED: dict[str, dict[str, Any]] = {
    "zero_shot": {"method": "zero_shot", "adapter_policy": "frozen"},
    "fine_tuning": {"method": "fine_tuning", **SHARED},
    "ema_distillation": {"method": "ema_distillation", **SHARED},
    "lwf": {"method": "lwf", **SHARED},
    "ewc": {"method": "ewc", **SHARED},
    "ewc_online": {"method": "ewc", "ewc_online": True, **SHARED},
    "replay": {"method": "replay", **SHARED},
    "replay_means": {"method": "replay", "exemplar_means": True, **SHARED},
    "o_lora": {"method": "o_lora", "adapter_policy": "stacked"},
    "simplecil": {"method": "simplecil", **CLOSED_FORM},
    "ranpac": {"method": "ranpac", "projection_dim": 2000, **CLOSED_FORM},
    "lora_per_increment": {"method": "fine_tuning", "adapter_policy": "per_increment"},
    "lora_uncached": {"method": "fine_tuning", "adapter_policy": "per_increment", "max_cache_gib": 0},
    "lora_tenth": {"method": "fine_tuning", "adapter_policy": "per_increment", **TENTH},
    "solved_heads": {"method": "fine_tuning", "epochs": 0, "first_epochs": 0, **SOLVED, **UNLEARNED},
    "static": {"method": "static", **SHARED},
    "static_tenth": {"method": "static", **SHARED, **TENTH},
}
BOUNDS = ("zero_shot", "static", "static_tenth")
ORDERS = {"canonical": {}, "reversed": {"reverse_increments": True}}
COSTS = ("samples", "steps", "flops", "seconds", "peak_memory_bytes")


def study_runs(
    methods: Sequence[str], orders: Sequence[str], seeds: Iterable[int], settings: Mapping[str, Any]
) -> list[StudyRun]:
    """
    Every method, in every order, with every seed; `settings` go to all of them.

    Raises:
        ValueError: an unknown method or order.
    """
    for what, given, known in (("methods", methods, STUDIED), ("orders", orders, ORDERS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"Unknown {what} {unknown}; known are {list(known)}.")
    common = {"plots": False, "save_steps": 0, "report_to": "none"} | dict(settings)
    own = {method: dict(STUDIED[method]) for method in methods}
    for chosen in own.values():
        if "share" in chosen:
            chosen |= _share_of_epochs(chosen.pop("share"), common)
    return [
        StudyRun(f"{order}/{method}/seed{seed}", common | ORDERS[order] | own[method] | {"seed": seed})
        for seed in seeds
        for order in orders
        for method in methods
    ]


def methods_for(settings: Mapping[str, Any]) -> list[str]:
    """The methods of the study that can learn the task that is told, else the recipe's, else the usual one."""
    recipe = read_recipe(settings["recipe"]) if settings.get("recipe") else {}
    task = settings.get("task") or recipe.get("task") or "attribute"
    return [name for name, own in STUDIED.items() if task in METHODS[own["method"]].tasks]


def _share_of_epochs(share: float, settings: Mapping[str, Any]) -> dict[str, float]:
    """So much of the epochs as told, else of the recipe's, else of the usual ones; of the first increment's too."""
    recipe = read_recipe(settings["recipe"]) if settings.get("recipe") else {}
    told = {name: settings.get(name) or recipe.get(name) for name in ("epochs", "first_epochs")}
    told["epochs"] = told["epochs"] or RunArguments.epochs
    return {name: share * float(epochs) for name, epochs in told.items() if epochs}


@dataclass(frozen=True)
class MethodFigures:
    """
    What the runs of one method in one order came to: mean over seeds, spread (standard deviation, 0 of a single one).

    Attributes:
        scores: a[i][j], 0–1, the mean over seeds; None above the diagonal.
        average, forgetting, backward_transfer, forward_transfer, intransigence: (mean, spread), 0–1; intransigence is
            None without runs of static.
        cost: name of `COSTS` → total of the whole sequence, the mean over seeds.
        cost_ratio: the same as a share of static's; None without runs of static.
        unknown_average, unknown_forgetting: the same where an attribute has several spaces and nobody says which one a
            query's value belongs to; None where increments bring attributes.
        unknown_after_each: and after each increment.
        stored_bytes: what is kept after the last increment beside the trunk: adapters, heads, the method's state.
        exemplars: photos kept after the last increment.
        task: what is searched by.
        policies: of text-image retrieval: reindex policy → known | unknown → (mean, spread) of the average after the
            last increment.
    """

    order: str
    method: str
    num_seeds: int
    scores: list[list[float | None]]
    average: tuple[float, float]
    forgetting: tuple[float, float]
    backward_transfer: tuple[float, float]
    forward_transfer: tuple[float, float]
    intransigence: tuple[float, float] | None
    unknown_average: tuple[float, float] | None
    unknown_forgetting: tuple[float, float] | None
    unknown_after_each: list[float] | None
    cost: dict[str, float]
    cost_ratio: dict[str, float] | None
    stored_bytes: float
    exemplars: float
    task: str = "attribute"
    policies: dict[str, dict[str, tuple[float, float]]] | None = None

    @property
    def headline(self) -> tuple[float, float]:
        """The average that methods are compared by: the one that is asked of all of them alike."""
        return self.unknown_average or self.average

    @property
    def after_each(self) -> list[float]:
        """Mean score over the increments seen so far, after each increment; as `headline` is meant."""
        return self.unknown_after_each or _after_each(self.scores)


def figures(reports: Mapping[tuple[str, str, int], dict]) -> list[MethodFigures]:
    """The figures of every method in every order, from reports by (order, method, seed)."""
    groups: dict[tuple[str, str], dict[int, dict]] = {}
    for (order, method, seed), report in reports.items():
        groups.setdefault((order, method), {})[seed] = report
    # Compared by one figure: where one run lacks the scores of increments that are not told, nobody's count.
    unknown = all(report.get("scores_unknown_increment") for report in reports.values())
    return [_figures(*name, runs, groups.get((name[0], "static"), {}), unknown) for name, runs in groups.items()]


def _figures(order: str, method: str, runs: dict[int, dict], static: dict[int, dict], not_told: bool) -> MethodFigures:
    every = list(runs.values())
    count = len(every[0]["scores"])
    learned = [
        [[row[j] if j <= i else None for j in range(count)] for i, row in enumerate(report["scores"])]
        for report in every
    ]
    mean = [
        [float(np.mean([scores[i][j] for scores in learned])) if j <= i else None for j in range(count)]
        for i in range(count)
    ]
    cost = {name: float(np.mean([report["cost"][name] for report in every])) for name in COSTS}
    lacks = None
    ratio = None
    if static:
        # static[j]: all data up to j at once, scored on j, with the same seed where there is one.
        bounds = {seed: [row[j] for j, row in enumerate(report["scores"])] for seed, report in static.items()}
        some = next(iter(bounds.values()))
        lacks = _spread(
            [intransigence(scores, bounds.get(seed, some)) for seed, scores in zip(runs, learned, strict=True)]
        )
        of_static = {name: np.mean([report["cost"][name] for report in static.values()]) for name in COSTS}
        ratio = {name: float(cost[name] / of_static[name]) if of_static[name] else 0.0 for name in COSTS}
    unknown = [report["scores_unknown_increment"] for report in every] if not_told else []
    last = [report["cost_per_increment"][-1] for report in every]
    return MethodFigures(
        order=order,
        method=method,
        num_seeds=len(every),
        scores=mean,
        average=_spread([average_score(scores) for scores in learned]),
        forgetting=_spread([report["forgetting"] for report in every]),
        backward_transfer=_spread([report["backward_transfer"] for report in every]),
        forward_transfer=_spread([report["forward_transfer"] for report in every]),
        intransigence=lacks,
        unknown_average=_spread([average_score(scores) for scores in unknown]) if unknown else None,
        unknown_forgetting=_spread([forgetting(scores) for scores in unknown]) if unknown else None,
        unknown_after_each=np.mean([_after_each(scores) for scores in unknown], axis=0).tolist() if unknown else None,
        cost=cost,
        cost_ratio=ratio,
        stored_bytes=float(np.mean([row["stored_bytes"] for row in last])),
        exemplars=float(np.mean([row["exemplars"] for row in last])),
        task=every[0].get("task", "attribute"),  # an earlier version knew no other
        policies=_policies([report["policies"][-1] for report in every]) if every[0].get("policies") else None,
    )


def _policies(last: Sequence[Mapping]) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        policy: {kind: _spread([one[policy][kind]["mean_recall"] for one in last]) for kind in kinds}
        for policy, kinds in last[0].items()
    }


def _after_each(scores: Sequence[Sequence[float | None]]) -> list[float]:
    return [float(np.mean(row[: i + 1])) for i, row in enumerate(scores)]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
