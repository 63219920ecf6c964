# SPDX-License-Identifier: Apache-2.0
"""What report.json says of a run."""

import platform
from importlib.metadata import version

import modeling_mclfir

from ..evaluation import summarise
from ..metrics import backward_transfer, forgetting, forward_transfer
from .open_pairs import test_tables
from .run import Run
from .text_image_pairs import count_captioned, describe_tests, read_test_pairs
from .text_image_policies import average_policies
from .text_image_report import policy_forgetting


def build_report(run: Run) -> dict:
    """Everything that report.json holds; see README."""
    progress = run.progress
    rows = progress.history[-1] if progress.history else []
    return _common(run) | {"average": summarise(rows) if rows else None, "attributes": rows}


def build_text_image_report(run: Run) -> dict:
    """The same of a run of text-image retrieval: recalls under each reindex policy, and what became of the towers."""
    history = run.progress.history
    policies = [average_policies(rows) for rows in history]
    report, data = _common(run), run.data
    pairs = read_test_pairs(data.increments, test_tables(data.tables, run.data_args.evaluate_on))
    tests = describe_tests(data.increments, pairs, len(history))
    learned = [test["random_order"] for test in tests[: len(history)]]
    return report | {
        "data": report["data"] | {"captioned": count_captioned(data.tables)},
        "tests": tests,
        "random_order": average_policies(learned) if learned else None,
        "average": policies[-1]["full"]["known"] if policies else None,
        "policies": policies,
        "policies_per_increment": history,
        "forgetting_by_policy": {
            policy: {kind: policy_forgetting(history, policy, kind) for kind in kinds}
            for policy, kinds in (policies[-1] if policies else {}).items()
        },
        "drift": run.progress.drift,
    }


def _common(run: Run) -> dict:
    progress, config = run.progress, run.model.config
    learned = len(progress.history)
    square = [row[:learned] for row in progress.scores]
    added = run.model.num_added_parameters()
    per_attribute = sum(added.values()) / max(1, len(config.attributes))
    trunk = sum(
        parameter.numel() for tower in run.model.towers for name, parameter in tower.trunk.named_parameters()
        if ".lora_" not in name
    )  # fmt: skip
    return {
        "task": run.data_args.task,
        "increments": [increment.name for increment in run.data.increments],
        "scores": progress.scores,
        # A run that began with an earlier version lacks the first rows.
        "scores_unknown_increment": progress.scores_unknown if 0 < learned == len(progress.scores_unknown) else None,
        "forgetting": forgetting(square) if square else None,
        "backward_transfer": backward_transfer(square) if square else None,
        "forward_transfer": forward_transfer(square, progress.zero_shot[:learned]) if square else None,
        "initial_trunk": progress.initial_trunk,
        "cost": progress.cost.to_dict(),
        "cost_per_increment": progress.cost_per_increment,
        "history": progress.history,
        "loss": progress.loss,
        "parameters": {
            "trunk": trunk,
            "added": added,
            "added_per_attribute": per_attribute,
            "share_of_trunk": per_attribute / trunk,
        },
        "data": run.data.describe(run.data_args.evaluate_on),
        "arguments": run.settings,
        "versions": _versions(),
        "finished": learned == len(run.data.increments),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "accelerate", "datasets", "peft", "safetensors", "numpy", "pillow")
    return {
        "mclfir": modeling_mclfir.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
