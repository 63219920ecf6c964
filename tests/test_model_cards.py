# SPDX-License-Identifier: Apache-2.0
"""Every card has a recipe whose settings exist and whose trunk can be built."""

from pathlib import Path

import pytest

from modeling_mclfir.training.arguments import parse_arguments

CARDS = Path(__file__).parents[1] / "model_cards"
NAMES = sorted(path.parent.name for path in CARDS.glob("*/recipe.yaml"))


def test_there_are_cards():
    assert "atelier" in NAMES and (CARDS / "template.md").exists()


@pytest.mark.parametrize("name", NAMES)
def test_card_and_recipe(name):
    model, data, run = parse_arguments(["--recipe", name, "--output_dir", "elsewhere"])
    assert model.trunk is not None and run.output_dir == "elsewhere"
    card = (CARDS / name / "README.md").read_text()
    assert "recipe.yaml" in card and "mclfir train" in card


def test_no_flags_take_the_atelier_recipe():
    assert parse_arguments([]) == parse_arguments(["--recipe", "atelier"])
    assert parse_arguments(["--seed", "3"])[2].seed == 3


def test_the_trunk_of_the_default_recipe_can_be_built():
    from modeling_mclfir import MclfirForImageRetrieval

    model, _, _ = parse_arguments([])
    built = MclfirForImageRetrieval.from_trunk(model.trunk, pretrained=False, base_training=model.base_training)
    assert built.config.base_training == "first_increment"
