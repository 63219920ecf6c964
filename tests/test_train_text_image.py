# SPDX-License-Identifier: Apache-2.0
"""train_mclfir.py --task text-image: the same loop, methods and checkpoints, for captions and their images."""

import json
import math

import numpy as np
import pytest
import torch
from launching import launch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import assert_equal_runs, stopped_after, weights
from tiny_text_runs import SETTINGS, TEXT, pair_arguments, train_pairs, write_tiny_clip, write_tiny_siglip

import train_mclfir
from modeling_mclfir.continual import METHODS
from modeling_mclfir.training.arguments import parse_arguments

pytestmark = pytest.mark.usefixtures("one_thread")

ABLE = [name for name, method in METHODS.items() if "text-image" in method.tasks]
POLICY_OF = {"ema_distillation": "shared", "lwf": "shared", "ewc": "shared", "replay": "shared", "static": "shared",
             "o_lora": "stacked", "fine_tuning": "shared"}  # fmt: skip
FIGURES = {"recall_at_1", "recall_at_5", "recall_at_10", "median_rank"}


@pytest.fixture(scope="module")
def ours(tiny_data, tmp_path_factory):
    """A run with an adapter an increment: its folder and its report."""
    folder = tmp_path_factory.mktemp("ours") / "run"
    return folder, train_pairs(tiny_data, folder, plots=True)


def check_figures(report):
    count = len(report["increments"])
    assert report["finished"] and report["task"] == "text-image"
    assert all(math.isfinite(row["loss"]) for row in report["loss"])
    assert len(report["scores"]) == len(report["policies"]) == len(report["drift"]) == count
    for place, row in enumerate(report["scores"]):
        known = [one["full"]["known"]["mean_recall"] for one in report["policies_per_increment"][place]]
        assert row[: place + 1] == pytest.approx(known) and len(report["drift"][place]) == place
    for policies in report["policies"]:
        assert list(policies) == ["full", "none", "drift_compensated", "mean_drift"]
        for kinds in policies.values():
            assert list(kinds) == ["known", "unknown"]
            for figures in kinds.values():
                assert set(figures["text_to_image"]) == set(figures["image_to_text"]) == FIGURES
                assert 0 <= figures["mean_recall"] <= 1
    assert report["average"] == report["policies"][-1]["full"]["known"]
    assert report["forgetting_by_policy"]["full"]["known"] == pytest.approx(report["forgetting"])
    assert json.loads(json.dumps(report["average"])) == report["average"]


@pytest.mark.parametrize("method", ABLE)
def test_each_method_learns_both_towers(tiny_data, tmp_path, method):
    report = train_pairs(tiny_data, tmp_path / "run", method=method, adapter_policy=POLICY_OF[method], exemplars=16,
                         replay_batch_size=8, ewc_batches=2)  # fmt: skip
    check_figures(report)
    # The towers moved between the increments, so that old galleries are no longer what today's model gives.
    drift = report["drift"][1][0]
    assert drift["image_drift"] > 0 and drift["text_drift"] > 0
    first, second = (weights(tmp_path / "run", place) for place in (0, 1))
    for side in ("image_projection", "text_projection"):
        if method != "o_lora":  # its spaces are each increment's own
            assert not torch.equal(first[f"heads.0.{side}.weight"], second[f"heads.0.{side}.weight"])


def test_ours_forgets_nothing_and_needs_no_reindex(ours, tiny_data):
    folder, report = ours
    check_figures(report)
    assert report["forgetting"] == 0 and report["scores"][0][0] == report["scores"][1][0]
    for policies in report["policies"]:
        assert policies["full"] == policies["none"] == policies["drift_compensated"]
    assert report["drift"][1][0]["image_drift"] == report["drift"][1][0]["text_drift"] == 0
    first, second = (weights(folder, place) for place in (0, 1))
    for name, value in first.items():  # what tells increments apart grows by rows, everything else stays
        kept = second[name][: len(value)] if name.endswith("router.prototypes") else second[name]
        assert torch.equal(value, kept), name
    assert {"increment_00_tops", "increment_01_rest"} == {
        name.split(".")[-2] for name in second if ".lora_A." in name and name.startswith("text.")
    }


def test_without_a_step_each_domain_has_a_space_of_its_own(tiny_data, tmp_path):
    settings = {"adapter_policy": "frozen", "epochs": 0, "head_finish": "ridge"}
    report = train_pairs(tiny_data, tmp_path / "run", **settings)
    assert report["cost"]["steps"] == 0 and report["forgetting"] == 0
    assert report["policies"][1]["full"] == report["policies"][1]["none"]
    heads = weights(tmp_path / "run", 1)
    first, second = (heads[f"heads.{place}.text_projection.weight"] for place in (0, 1))
    assert first.abs().sum() > 0 and not torch.equal(first, second)
    assert not any(".lora_" in name for name in heads)


def test_a_checkpoint_answers_as_it_was_scored(ours, tiny_data):
    from transformers import AutoModel, AutoProcessor

    from modeling_mclfir.data.increments import load_increments
    from modeling_mclfir.data.table import load_tables
    from modeling_mclfir.training.open_pairs import pair_rows, test_tables

    folder, _ = ours
    model = AutoModel.from_pretrained(folder / "increment-01")
    processor = AutoProcessor.from_pretrained(folder / "increment-01")
    domain = load_increments(folder.parent / "domains.json")[1]
    tables = test_tables(load_tables(tiny_data), "query")
    photos, captions = [], []
    for table in tables:
        for row in pair_rows(domain, table):
            photos.append(table.image(row))
            captions += table.all_captions[row]
    inputs = processor(images=photos, text=captions, return_tensors="pt", padding=True)
    with torch.no_grad():
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        images = model.get_image_features(inputs["pixel_values"])
    indexed = load_file(folder / "indexed" / "rest.safetensors")
    torch.testing.assert_close(texts, indexed["texts"], atol=1e-5, rtol=0)
    torch.testing.assert_close(images, indexed["images"], atol=1e-5, rtol=0)


def test_the_temperature_is_in_the_checkpoint(ours, tiny_data, tmp_path):
    scale = weights(ours[0], 1)["heads.1.logit_scale"]
    assert scale.exp() == pytest.approx(1 / SETTINGS["temperature"], rel=1e-5)
    train_pairs(tiny_data, tmp_path / "run", learn_temperature=True)
    learned = weights(tmp_path / "run", 1)["heads.1.logit_scale"]
    assert learned != scale


@pytest.mark.parametrize("method", ["fine_tuning", "ewc", "replay"])
def test_a_run_is_taken_up_where_it_stopped(tiny_data, tmp_path, method):
    policy = "per_increment" if method == "fine_tuning" else "shared"
    settings = {"method": method, "adapter_policy": policy, "exemplars": 16, "replay_batch_size": 8, "ewc_batches": 2}
    whole = train_pairs(tiny_data, tmp_path / "whole", **settings)
    stopped_after(1, tmp_path / "whole", tmp_path / "part")
    again = train_pairs(tiny_data, tmp_path / "part", "--resume", "true", **settings)
    assert_equal_runs(whole, again, (tmp_path / "whole", tmp_path / "part"), num_increments=2)
    assert whole["policies"] == again["policies"] and whole["drift"] == again["drift"]


TWO_PROCESSES = """
import json, sys
from accelerate.state import PartialState
import train_mclfir
PartialState.destroy_process_group = lambda *_: None  # several runs in one launch: starting up takes the time
for arguments in json.loads(sys.argv[1]):
    train_mclfir.main(arguments)
assert PartialState().num_processes == 2
"""


def test_two_processes_give_the_run_of_one(tiny_data, tmp_path):
    shared = {"adapter_policy": "shared", "exemplars": 16, "replay_batch_size": 8, "distillation_weight": 1.0}
    kinds = {
        "ours": {"head_start": "ridge"},
        "replay": {"method": "replay", **shared},
        "lwf": {"method": "lwf", **shared},
    }
    commands = [pair_arguments(tiny_data, tmp_path / "two" / kind, **settings) for kind, settings in kinds.items()]
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launch(script, json.dumps(commands))
    for kind, settings in kinds.items():
        one = train_pairs(tiny_data, tmp_path / kind, **settings)
        two = json.loads((tmp_path / "two" / kind / "report.json").read_text())
        # Projections are solved: a regression makes more of features that differ in their last bits.
        within = 1e-3 if kind == "ours" else 1e-5
        assert [row["loss"] for row in two["loss"]] == pytest.approx([row["loss"] for row in one["loss"]], abs=within)
        assert two["cost"]["samples"] == one["cost"]["samples"] and two["cost"]["steps"] == one["cost"]["steps"]


def test_caches_change_little(tiny_data, tmp_path, ours):
    report = train_pairs(tiny_data, tmp_path / "run", max_cache_gib=0, num_views=1)
    check_figures(report)
    cached = train_pairs(tiny_data, tmp_path / "cached", num_views=1)
    losses = [[row["loss"] for row in one["loss"]] for one in (report, cached)]
    # Half precision of what is cached, and crops drawn anew, are all that differs: view 0 is the photo as it is.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("write_towers", [write_tiny_clip, write_tiny_siglip])
def test_two_towers_of_one_model(tiny_data, tmp_path, write_towers):
    towers = write_towers(tmp_path / "towers")
    report = train_pairs(tiny_data, tmp_path / "run", trunk=str(towers), text_encoder=None, pretrained=True,
                         image_height=32, image_width=32)  # fmt: skip
    check_figures(report)
    assert report["forgetting"] == 0
    assert len({round(row["loss"], 4) for row in report["loss"]}) > 1  # it learns


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ranpac", "adapter_policy": "frozen"}, "learns attributes only"),
        ({"loss": "triplet"}, "--loss triplet is for attributes"),
        ({"exemplar_means": True, "method": "replay", "adapter_policy": "shared"}, "--exemplar_means True is for"),
        ({"streaming": True}, "--streaming True is for attributes"),
        ({"base_training": "first_increment"}, "--base_training first_increment is for"),
    ],
)
def test_what_is_for_attributes_only(tmp_path, settings, message):
    flags = [word for name, value in ({"task": "text-image"} | settings).items() for word in (f"--{name}", str(value))]
    with pytest.raises(ValueError, match=message):
        parse_arguments(flags)


def test_nothing_to_solve_and_no_step(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="one space serves all increments"):
        train_pairs(tiny_data, tmp_path / "run", adapter_policy="shared", epochs=0, head_finish="ridge")


def test_a_tower_of_clips_kind_tells_captions_apart(tiny_data, tmp_path):
    """Named by its configuration, it pools where its tokeniser, learned here, ends a caption."""
    clip = {name: value for name, value in TEXT.items() if name != "model_type"} | {"model_type": "clip_text_model"}
    train_pairs(tiny_data, tmp_path / "run", text_encoder=clip, epochs=0.1, max_text_length=12)
    texts = load_file(tmp_path / "run" / "indexed" / "tops.safetensors")["texts"]
    assert (texts[0] - texts[1]).abs().max() > 1e-4


def test_long_captions_are_cut_alike_in_training_and_after(tiny_data, tmp_path):
    from transformers import AutoProcessor

    train_pairs(tiny_data, tmp_path / "run", epochs=0.1, max_text_length=6)
    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "increment-01")
    assert processor(text=["a long dress with buttons " * 20])["input_ids"].shape == (1, 6)


def test_features_of_both_towers_are_distilled(tiny_data, tmp_path):
    settings = {"method": "ema_distillation", "adapter_policy": "shared", "distill_on": "pooled"}
    report = train_pairs(tiny_data, tmp_path / "run", **settings)
    check_figures(report)
    assert report["loss"][-1]["distillation"] > 0


def test_a_folder_of_photos_with_captions_is_one_increment(tmp_path):
    """No increments.json, no flag but the folder: the column "caption" is what is learned."""
    photos, colours = tmp_path / "photos", ["red", "green", "blue", "black"]
    photos.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,brand,caption,split"]
    for number in range(24):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(photos / f"{number}.png")
        split = ("train", "train", "query", "gallery")[number % 4]
        lines.append(f"{number}.png,b{number % 2},a {colours[number // 6]} shirt of kind {number},{split}")
    (photos / "labels.csv").write_text("\n".join(lines))
    path = pair_arguments(photos, tmp_path / "run", epochs=1)[1]
    report = train_mclfir.main(["--recipe", path, "--output_dir", str(tmp_path / "run")])
    assert report["finished"] and report["increments"] == ["all"]
    assert (tmp_path / "run" / "indexed" / "all.safetensors").is_file()
    (photos / "labels.csv").write_text("\n".join(line.replace("caption", "words") for line in lines))
    with pytest.raises(ValueError, match="no captions in split 'train'.*--caption-column"):
        train_mclfir.main(["--recipe", path, "--output_dir", str(tmp_path / "other")])


def test_increments_that_are_no_domains(tiny_data, tmp_path):
    attributes = [{"name": "cut", "attributes": ["category"]}]
    with pytest.raises(ValueError, match="increments \\['cut'\\] name attributes"):
        train_pairs(tiny_data, tmp_path / "run", domains=attributes)
    nobody = [{"name": "nobody", "where": {"category": ["hat"]}}]
    with pytest.raises(ValueError, match="no image with a caption in split 'train'"):
        train_pairs(tiny_data, tmp_path / "run", domains=nobody)


def test_the_text_tower_learns_its_words_from_the_captions(ours):
    tokenizer = json.loads((ours[0] / "increment-00" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) <= SETTINGS["vocabulary_size"]
    assert json.loads((ours[0] / "increment-00" / "config.json").read_text())["text_config"]["hidden_size"] == (
        TEXT["hidden_size"]
    )
