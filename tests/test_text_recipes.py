# SPDX-License-Identifier: Apache-2.0
"""The recipes of text-image retrieval start on tiny sets of the same form, with towers of the same plan."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import write_increments
from tiny_text_runs import DOMAINS, write_tiny_clip

pytestmark = pytest.mark.usefixtures("one_thread")

CARDS = Path(__file__).parents[1] / "model_cards"
NAMES = ("secoco", "sevige", "mobilenetv2-minilm-myntra", "clip-myntra")
# The plans of the networks that the recipes name, a few channels wide.
PLANS = {
    "microsoft/resnet-50": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 16, 32, 32],
                            "depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
    "google/mobilenet_v2_1.0_224": {"model_type": "mobilenet_v2", "depth_multiplier": 0.25, "image_size": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Hub id → a folder with a model of that plan; any other id, a CLIP whose tokens are letters."""
    from transformers import AutoConfig, AutoModel

    clip = write_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")
    folders = {}
    for name, plan in PLANS.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("trunks") / "trunk"
        AutoModel.from_config(AutoConfig.for_model(**plan)).save_pretrained(folders[name])
    return lambda name: str(folders.get(name, clip))


def test_these_are_all_of_them():
    found = {path.parent.name for path in CARDS.glob("*/recipe.yaml") if "task: text-image" in path.read_text()}
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_starts(name, prepared, tiny_data, towers, tmp_path):
    import train_mclfir

    recipe = yaml.safe_load((CARDS / name / "recipe.yaml").read_text())
    own = name in ("secoco", "sevige")
    flags = {
        "trunk": towers(recipe["trunk"]),
        "image_height": 32,
        "image_width": 32,
        "batch_size": 16,
        "epochs": 1,
        "dataset": prepared(name) if own else tiny_data,
        "output_dir": tmp_path / "run",
        "plots": False,
        "report_to": "none",
        "save_steps": 0,
    }
    if "text_encoder" in recipe:
        flags["text_encoder"] = towers(recipe["text_encoder"])
    given = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    if not own:
        key = {"domains": DOMAINS}
        given += ["--increments", write_increments(tmp_path / "increments.json", key)]
    report = train_mclfir.main(["--recipe", name, *given])
    assert report["finished"] and report["task"] == "text-image" and report["forgetting"] == 0
    assert report["increments"] == (["street", "field", "home"] if own else ["tops", "rest"])
    assert report["cost"]["steps"] == len(report["loss"]) >= len(report["increments"])
    assert all(math.isfinite(row["loss"]) for row in report["loss"])
    for policies in report["policies"]:
        assert policies["full"] == policies["none"]
