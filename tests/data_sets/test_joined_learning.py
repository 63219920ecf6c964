# SPDX-License-Identifier: Apache-2.0
"""Learning data sets one after the other: whose rows are in a batch and on either side of a score, and the recipe."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from joined_sets import raw_rows
from tiny_runs import train

import train_mclfir
from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.increments import load_increments
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training.arguments import parse_arguments
from modeling_mclfir.training.batches import IncrementBatches, StreamBatches

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = "stanford-then-myntra"


@pytest.mark.parametrize("kind", [IncrementBatches, StreamBatches])
@pytest.mark.parametrize(("place", "name"), [(0, "drawn"), (1, "shop")])
def test_a_batch_holds_rows_of_its_data_set_alone(both, kind, place, name):
    table = load_tables(both, labels_only=() if kind is IncrementBatches else ("train",))["train"]
    (increment,) = load_increments(both / "increments.json", key="data_sets")[place : place + 1]
    accelerator = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    more = {"shuffle_buffer": 24} if kind is StreamBatches else {}
    first = (table, [increment], None) if kind is IncrementBatches else (both, table, [increment])
    batches = kind(
        *first, 1, MclfirImageProcessor.for_trunk(None, 16, 16), Augmentation(), accelerator,
        increment_id=0, plan_seed=(0, place), batch_size=16, **more,
    )  # fmt: skip
    whole = load_tables(both)["train"]
    own = np.array([image_id.startswith(f"{name}/") for image_id in whole.image_names])
    assert own.sum() == {"drawn": 64, "shop": 27}[name] == batches.num_rows
    known = set(whole.image_ids[own].tolist())
    assert not known & set(whole.image_ids[~own].tolist())
    for batch in batches.loader(0, 12, 0):
        assert set(batch["image_ids"].tolist()) <= known
        assert (batch["labels"] >= 0).any(dim=1).all()


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Path:
    """A MobileNetV2 a quarter as wide, of random weights."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trunk") / "trunk"
    plan = {"model_type": "mobilenet_v2", "depth_multiplier": 0.25, "image_size": 32}
    AutoModel.from_config(AutoConfig.for_model(**plan)).save_pretrained(folder)
    return folder


def labelled(folder: Path, split: str, attribute: str) -> int:
    return sum(row["attributes"][attribute] is not None for row in raw_rows(folder, split))


def test_the_recipe_takes_two_steps_on_each_data_set(both, tiny_data, shop, trunk, tmp_path):
    # 32 rows a batch: two steps are one epoch of 64 rows and, rounded, two of 27.
    flags = {
        "trunk": trunk, "dataset": both, "output_dir": tmp_path / "run", "image_height": 32, "image_width": 32,
        "batch_size": 32, "first_epochs": 1.0, "epochs": 2.0, "report_to": "none", "save_steps": 0, "plots": False,
    }  # fmt: skip
    given = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    report = train_mclfir.main(["--recipe", RECIPE, *given])
    assert report["finished"] and report["increments"] == ["drawn", "shop"]
    assert [row["increment"] for row in report["loss"]] == ["drawn"] * 2 + ["shop"] * 2
    assert all(row["contrastive"] > 0 and row["prototypes"] > 0 for row in report["loss"])
    assert report["data"]["splits"] == {"train": 91, "val": 37, "query": 31, "gallery": 59}
    # Each attribute is scored by the labelled rows of its own data set, on both sides.
    for row in report["attributes"]:
        folder = {"drawn": tiny_data, "shop": shop}[row["increment"]]
        own = row["attribute"].removeprefix(f"{row['increment']}_")
        counts = [labelled(folder, split, own) for split in ("query", "gallery")]
        assert [row["num_queries"], row["num_gallery"]] == counts
    assert len(report["attributes"]) == 5 + 4


def test_the_attributes_of_all_sets_are_learned_one_increment_after_the_other(both, tiny_data, shop, tmp_path):
    flags = "--increments_key", "attributes", "--evaluate_on", "val"
    report = train(both, tmp_path / "run", *flags, epochs=0.25, num_views=1)
    assert report["finished"] and len(report["increments"]) == 5 and len(report["attributes"]) == 9
    for row in report["attributes"]:
        name, own = row["attribute"].split("_", 1)
        count = labelled({"drawn": tiny_data, "shop": shop}[name], "val", own)
        assert row["num_queries"] == row["num_gallery"] == count


def test_the_recipe_has_the_settings_of_the_card():
    model, data, run = parse_arguments(["--recipe", RECIPE])
    assert (model.image_height, model.image_width, data.num_views, data.increments_key) == (192, 160, 2, "data_sets")
    assert (run.epochs, run.batch_size, run.learning_rate, run.temperature) == (6, 128, 0.004, 0.3)
    assert (run.prototype_weight, run.value_balance, run.output_dir) == (1.0, 0.5, f"runs/{RECIPE}")
    card = (Path(train_mclfir.__file__).parent / "model_cards" / RECIPE / "README.md").read_text()
    assert "not run yet" in card and "data_scripts.joined " in card and f"--recipe {RECIPE} " in card
