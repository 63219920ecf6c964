# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml

from modeling_mclfir.training.arguments import (
    DEFAULT_RECIPE,
    DataArguments,
    RunArguments,
    parse_arguments,
    read_recipe,
)


def recipe(tmp_path, **settings):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["--recipe", str(path)]


def test_without_flags_the_default_recipe():
    model_args, data_args, args = parse_arguments([])
    settings = read_recipe(DEFAULT_RECIPE)
    assert data_args.dataset == "atelier" and model_args.trunk == settings["trunk"]
    assert args.batch_size == settings["batch_size"]


def test_flags_win_over_the_recipe(tmp_path):
    flags = recipe(tmp_path, trunk="some/trunk", epochs=3, batch_size=8, plots=False)
    model_args, data_args, args = parse_arguments([*flags, "--batch_size", "10", "--trunk", "other/trunk"])
    assert (args.epochs, args.batch_size, args.plots, model_args.trunk) == (3, 10, False, "other/trunk")
    assert data_args.num_views == DataArguments().num_views


def test_a_trunk_or_a_dataset_of_ones_own_needs_no_recipe(tmp_path):
    model_args, data_args, _ = parse_arguments(["--trunk", "some/trunk", "--dataset", "photos"])
    assert (model_args.trunk, model_args.base_training, data_args.dataset) == ("some/trunk", "none", "photos")


def test_numbers_that_yaml_takes_for_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-3\n")  # YAML 1.1 wants 1.0e-3
    assert parse_arguments(["--recipe", str(path)])[2].learning_rate == 0.001


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lerning_rate": 1}, r"unknown settings \['lerning_rate'\]; known are .*learning_rate"),
        ({"method": "none_such"}, "--method must be one of .*; got 'none_such'"),
        ({"epochs": 0}, "--epochs must be above 0"),
        ({"first_epochs": -1}, "--epochs must be above 0"),
        ({"batch_size": 15}, "--batch_size must be even.*got 15"),
        ({"batch_size": 0}, "--batch_size must be even.*got 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps must be at least 1; got 0"),
        ({"save_steps": -1}, "--save_steps must be at least 0; got -1"),
        ({"seed": -1}, "--seed must be at least 0; got -1"),
        ({"num_views": 0}, "--num_views must be at least 1; got 0"),
        ({"shuffle_buffer": 0}, "--shuffle_buffer must be at least 1; got 0"),
        ({"max_bad_fraction": 1.5}, "--max_bad_fraction is a share of the rows, 0..1; got 1.5"),
        ({"classification_weight": 0.5}, r"go together; got False and 0\.5\. Set both or neither"),
        ({"head_type": "ag_man", "use_attribute_classification": True}, r"go together; got True and 0\.0\."),
    ],
)
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(recipe(tmp_path, trunk="x", **settings))


def test_a_recipe_that_is_not_there_or_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe file 'none_such' and no model card .*; cards: .*atelier"):
        parse_arguments(["--recipe", "none_such"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold 'setting: value' lines; got list"):
        read_recipe(str(tmp_path / "list.yaml"))


def test_an_unknown_flag():
    with pytest.raises(ValueError, match="lerning_rate"):
        parse_arguments(["--lerning_rate", "1"])


def test_defaults_are_sound():
    assert RunArguments().batch_size % 2 == 0 and DataArguments().max_bad_fraction == 0.01


def test_captions_of_two_towers_begin_with_a_solved_space():
    flags = ["--task", "text-image", "--trunk", "t", "--text_encoder", "e"]
    model, _, run = parse_arguments(flags)
    assert (run.head_start, run.learning_rate, model.embed_dim) == ("ridge", 1e-4, 128)
    _, _, run = parse_arguments([*flags, "--head_start", "random", "--epochs", "7"])
    assert (run.head_start, run.epochs) == ("random", 7)
    with pytest.raises(ValueError, match="--streaming True is for attributes"):  # not what nobody gave
        parse_arguments([*flags, "--streaming", "true"])
    # A pair of towers has a space already; attributes have no captions.
    assert parse_arguments(flags[:4])[2].head_start == parse_arguments(flags[2:4])[2].head_start == "random"


def test_help_tells_the_defaults_without_a_recipe(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: mclfir train") and "size of an embedding (default: 32)" in text
    assert "head_start is ridge" in text


def test_a_recipe_of_captions_that_is_run_for_attributes_keeps_their_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: text-image\ntext_encoder: X\ntrunk: Y\n")
    model, data, run = parse_arguments(["--recipe", str(recipe), "--task", "attribute"])
    assert data.task == "attribute" and (run.head_start, run.epochs, model.embed_dim) == ("random", 10.0, 32)
