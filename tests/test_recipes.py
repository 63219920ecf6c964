# SPDX-License-Identifier: Apache-2.0
"""Each recipe of the papers' data sets, and of the shoes made like one of them, starts on a tiny set of the same form,
with the settings that it names."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import write_increments
from tiny_text_runs import write_tiny_clip

from modeling_mclfir.continual import METHODS
from modeling_mclfir.training.arguments import DataArguments, ModelArguments, RunArguments, parse_arguments

pytestmark = pytest.mark.usefixtures("one_thread")

CARDS = Path(__file__).parents[1] / "model_cards"
SETS = ("fashionai", "darn", "deepfashion", "zappos50k")
FAMILIES = ("csn", "asen-v2", "ag-man", "mclfir", "ours")
AS_RELEASED = "mclfir-fashionai-as-released"
# The photos of these can be had.
SHOES = "myntra-shoes"
NAMES = [f"{family}-{name}" for family in FAMILIES for name in SETS] + [AS_RELEASED, f"csn-{SHOES}", f"ours-{SHOES}"]
LEARNED_AT_ONCE = ("csn", "asen-v2", "ag-man")
# As the cards say, these learn from triplets; MCL-FIR and ours from labels. Set → how it is prepared without labels.
FROM_TRIPLETS = {"zappos50k": ((), {"meta": False}), "myntra_shoes": (("--without-labels",), {})}
DEFAULTS = {
    field.name: field.default
    for arguments in (ModelArguments, DataArguments, RunArguments)
    for field in fields(arguments)
}
MODEL = {field.name for field in fields(ModelArguments)} - {
    "trunk", "pretrained", "image_height", "image_width", "text_encoder",
}  # fmt: skip
# The plans of the networks that the recipes name, a few channels wide: unit numbers mean the same.
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 16, 32, 32]}
PLANS = {
    "microsoft/resnet-50": RESNET | {"depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
    "microsoft/resnet-18": RESNET | {"depths": [2, 2, 2, 2], "layer_type": "basic"},
    "google/mobilenet_v2_1.0_224": {"model_type": "mobilenet_v2", "depth_multiplier": 0.25, "image_size": 32},
}
# Names of weights of its early parts, and of its last.
PARTS = {
    "resnet": (("embedder.", ".stages.0.", ".stages.1.", ".stages.2."), ".stages.3."),
    "mobilenet_v2": (("conv_stem.", "layer.0.", "layer.7.", "layer.15."), "conv_1x1."),
}


def read(name):
    return yaml.safe_load((CARDS / name / "recipe.yaml").read_text())


def family_of(name):
    return next(family for family in FAMILIES if name.startswith(f"{family}-"))


def set_of(name):
    return "myntra_shoes" if name.endswith(SHOES) else next(part for part in SETS if part in name)


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    """Hub id → a folder with a pretrained trunk of that plan, of a few thousand weights."""
    from transformers import AutoConfig, AutoModel

    folders = {}
    for name, plan in PLANS.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("trunks") / "trunk"
        AutoModel.from_config(AutoConfig.for_model(**plan)).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    """A folder with a CLIP of random weights, 24 wide, whose tokens are letters."""
    return write_tiny_clip(tmp_path_factory.mktemp("text") / "clip")


@pytest.fixture
def start(prepared, trunks, text_encoder, tmp_path):
    """Two steps an increment of a recipe by its name → the report, the folder of the run, that of the trunk."""

    def run(name):
        import train_mclfir

        recipe, data_set = read(name), set_of(name)
        triplets = family_of(name) in LEARNED_AT_ONCE and data_set in FROM_TRIPLETS
        options, settings = FROM_TRIPLETS[data_set] if triplets else ((), {})
        folder = prepared(data_set, *options, **settings)
        batch_size = 48 if triplets else 32
        increments = increments_of(name, folder)
        flags = {
            "trunk": trunks[recipe["trunk"]],
            "image_height": 32,
            "image_width": 32,
            "batch_size": batch_size,
            "epochs": 1.9 * batch_size / most_rows(folder, increments),
            "dataset": folder,
            "output_dir": tmp_path / "run",
            "plots": False,
            "report_to": "none",
            "save_steps": 0,
        }
        if "text_encoder" in recipe:
            flags["text_encoder"] = text_encoder
        if "increments_key" not in recipe:
            flags["increments"] = write_increments(tmp_path / "increments.json", increments)
        given = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
        return train_mclfir.main(["--recipe", name, *given]), tmp_path / "run", flags["trunk"]

    return run


def increments_of(name, folder):
    """What is learned: all at once, or one attribute after the other, of which two are enough for a test."""
    lists = json.loads((folder / "increments.json").read_text())
    if "increments_key" in read(name):
        return lists[read(name)["increments_key"]]
    return lists["attributes"][: 1 if name == AS_RELEASED else 2]  # as released: one run an attribute


def most_rows(folder, increments):
    """Most rows of train that one of the increments learns from: by labels or, where there are none, by triplets."""
    from modeling_mclfir.data.table import load_tables
    from modeling_mclfir.data.triplets import load_triplets

    table = load_tables(folder)["train"]
    triplets = load_triplets(folder, "train", [table])
    in_use = {}
    for name in table.attributes:
        labelled = np.flatnonzero(table.labels(name) >= 0)
        in_use[name] = labelled if len(labelled) else triplets.get(name, np.empty(0)).ravel()
    return max(len(set().union(*(in_use[name] for name in entry["attributes"]))) for entry in increments)


def test_there_is_a_recipe_of_each_method_on_each_set():
    assert {path.parent.name for path in CARDS.glob("*/recipe.yaml")} >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_known_settings_that_differ_from_the_defaults(name):
    recipe = read(name)
    assert set(recipe) <= set(DEFAULTS)
    assert not {key for key, value in recipe.items() if value == DEFAULTS[key]}
    assert recipe["output_dir"] == f"runs/{name}"
    model_args, data_args, args = parse_arguments(["--recipe", name])
    read_back = vars(model_args) | vars(data_args) | vars(args)
    assert {key: read_back[key] for key in recipe} == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_short_and_says_what_was_not_done(name):
    card = (CARDS / name / "README.md").read_text()
    assert len(card.splitlines()) <= 40 and f"--recipe {name} " in card
    assert f"data_scripts.{set_of(name)} " in card
    assert ("Not run at full size here" in card) != name.endswith(SHOES)
    assert "**Published**" in card and ("**Deviations**" in card or family_of(name) == "ours")


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_two_steps_with_its_settings(start, name):
    report, folder, trunk = start(name)
    recipe, config = read(name), json.loads((folder / "increment-00" / "config.json").read_text())
    assert report["finished"]
    assert {key: config[key] for key in MODEL & set(recipe)} == {key: recipe[key] for key in MODEL & set(recipe)}
    assert report["cost"]["steps"] == len(report["loss"]) == 2 * len(report["increments"])
    # The parts of the loss are those that the recipe names.
    family, parts = family_of(name), set(report["loss"][0]) - {"increment", "step", "loss"}
    expected = {"triplet" if recipe.get("loss") == "triplet" else "contrastive"}
    if family == "ours":
        expected |= {"prototypes"}
    if family == "mclfir":
        expected |= {"distillation"}
    if name in ("ag-man-fashionai", "ag-man-deepfashion"):
        expected |= {"classification", "triplet_weight", "classification_weight"}
    assert parts == expected
    assert all(row[part] > 0 for row in report["loss"] for part in expected - {"triplet", "distillation"})
    assert sum(row[part] for row in report["loss"] for part in expected & {"triplet", "contrastive"}) > 0
    if family in LEARNED_AT_ONCE:
        assert len(report["increments"]) == 1
        sizes = {"fashionai": 8, "darn": 9, "deepfashion": 5, "zappos50k": 4, "myntra_shoes": 4}
        assert len(report["attributes"]) == sizes[set_of(name)]
    assert ("triplet_accuracy" in report["average"]) == (set_of(name) in ("zappos50k", "myntra_shoes"))
    if family == "mclfir":
        assert (config["prompt_type"], config["prompt_dim"]) == ("text", 24)
    check_what_learned(name, folder, trunk)


def check_what_learned(name, folder, trunk):
    """The papers' whole backbone; or adapters on a trunk that stays as it was."""
    before = load_file(trunk / "model.safetensors")
    after = load_file(folder / "increment-00" / "trunk.safetensors")
    after = {key.replace(".base_layer.", ".").removeprefix("mclfir.trunk."): value for key, value in after.items()}
    assert after.keys() == before.keys()
    weights = {key for key in after if key.endswith(("weight", "bias"))}
    learned = {key for key in weights if not torch.equal(after[key], before[key])}
    adapters = (folder / "increment-00" / "adapters").is_dir()
    if family_of(name) in LEARNED_AT_ONCE or name == AS_RELEASED:
        below, last = PARTS[PLANS[read(name)["trunk"]]["model_type"]]
        above = {key for key in learned if last in key}
        whole = family_of(name) == "csn" or name in ("ag-man-fashionai", "ag-man-deepfashion")
        assert bool(above) == whole and not adapters
        for part in below:
            assert any(part in key for key in learned), part
    else:
        assert not learned and adapters


@pytest.mark.parametrize("name", ["mclfir-fashionai", AS_RELEASED])
def test_what_the_released_code_does_otherwise(name):
    _, _, args = parse_arguments(["--recipe", name])
    method = METHODS[args.method](args)
    released = name == AS_RELEASED
    assert method.needs_teacher_view != released and args.teacher_update != released
    assert method.loss.same_value == ("negatives" if released else "masked")
    assert (method.loss.temperature, args.distill_on, args.prototype_weight) == (0.3, "pooled", 0.0)
    assert released or args.ema_decay == 0.999
