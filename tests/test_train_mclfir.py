# SPDX-License-Identifier: Apache-2.0
"""The main job end to end, on a tiny data set."""

import json
import math
import sys

import pytest
import torch
from launching import launch
from tiny_runs import (
    INCREMENTS,
    LEARNED_SCALES,
    SIZES,
    arguments,
    assert_equal_weights,
    weights,
    write_increments,
)
from transformers import AutoImageProcessor, AutoModel

import modeling_mclfir  # noqa: F401  registers the Auto classes
import train_mclfir
from modeling_mclfir.evaluation import Evaluator

NAMES = [increment["name"] for increment in INCREMENTS]


def is_null_or_share(value):
    return value is None or 0 <= value <= 1


def check_report(report, num_train=SIZES["train"]):
    """All keys of the report, with sane values."""
    number = len(report["increments"])
    assert report["finished"] is True
    assert [len(row) for row in report["scores"]] == [number] * number
    for i, row in enumerate(report["scores"]):
        assert all(is_null_or_share(value) for value in row)
        assert [value is None for value in row] == [j > i + 1 for j in range(number)]
    average = report["average"]
    assert 0 < average["mean_average_precision"] < 1 and 0 < average["random_ranking"] < 1
    assert -1 < average["gain_over_random"] < 1
    cost = report["cost"]
    assert cost["steps"] > 0 and cost["samples"] > 0 and cost["flops"] > 0
    assert cost["seconds"] > 0 and cost["peak_memory_bytes"] > 1e6
    assert cost["steps"] == sum(bill["steps"] for bill in report["cost_per_increment"]) == len(report["loss"])
    assert all(math.isfinite(row["loss"]) for row in report["loss"])
    assert [row["attribute"] for row in report["attributes"]] == [
        name for increment in INCREMENTS[:number] for name in increment["attributes"]
    ]
    assert len(report["history"]) == number and report["data"]["splits"]["train"] == num_train
    assert report["arguments"]["seed"] == 0 and report["versions"]["torch"] == torch.__version__
    assert set(report["initial_trunk"]) == set(average)
    assert report["parameters"]["trunk"] > 0 and set(report["parameters"]["added"]) == set(report["increments"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_data):
    """One run with plots, its report, and the embeddings that it was scored by: (increment, split) → (N, A, D)."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    kept, embed = [], Evaluator.embed

    def keep(self, model, side, increment_id, pooled=False):
        embeds = embed(self, model, side, increment_id, pooled)
        if not pooled:
            kept.append((len(model.heads) - 1, side.table.split, increment_id, embeds))
        return embeds

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "embed", keep)
        report = train_mclfir.main(arguments(tiny_data, folder, epochs=5, plots=True, report_to="tensorboard"))
    torch.set_num_threads(threads)
    return folder, report, kept


def test_the_report_is_whole(finished):
    folder, report, _ = finished
    assert report["increments"] == NAMES
    check_report(report)
    on_disk = json.loads((folder / "report.json").read_text())
    assert on_disk["scores"] == report["scores"] and on_disk["cost"] == report["cost"]
    assert "cut" in (folder / "report.md").read_text()
    assert len(list((folder / "plots").glob("*.png"))) >= 4
    assert list(folder.glob("tracking/**/events*"))


def test_it_learns_and_forgets_nothing(finished):
    _, report, _ = finished
    assert report["forgetting"] == 0 and report["backward_transfer"] == 0
    for name in NAMES:
        losses = [row["loss"] for row in report["loss"] if row["increment"] == name]
        assert sum(losses[-3:]) < sum(losses[:3])
    for column in range(3):
        assert len({report["scores"][i][column] for i in range(column, 3)}) == 1


def test_old_embeddings_are_bit_for_bit_the_same(finished):
    _, _, kept = finished
    for increment_id in range(2):
        for split in ("query", "gallery"):
            found = [e for _, name, owner, e in kept if name == split and owner == increment_id]
            assert len(found) == 3 - increment_id
            assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("increment_id", range(3))
def test_checkpoints_are_complete(finished, tiny_data, increment_id):
    from modeling_mclfir.data.augmentation import Augmentation
    from modeling_mclfir.data.table import load_tables
    from modeling_mclfir.training.feature_cache import load_pixels

    folder, _, kept = finished
    checkpoint = folder / f"increment-{increment_id:02d}"
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert model.config.increment_names == NAMES[: increment_id + 1]
    gallery = load_tables(tiny_data)["gallery"]
    with torch.no_grad():
        for owner in range(increment_id + 1):
            expected = next(e for at, split, of, e in kept if (at, split, of) == (increment_id, "gallery", owner))
            for start in (0, 16):  # the batches of the run: other shapes may give other bits
                pixels = load_pixels(gallery, range(start, start + 16), 0, processor, Augmentation(), 0)
                embeds = model(pixel_values=pixels, increment_id=owner).embeds
                assert torch.equal(embeds, expected[start : start + 16])
    adapters = sorted(path.name for path in (checkpoint / "adapters").iterdir())
    assert adapters == sorted(NAMES[: increment_id + 1])


def test_an_increment_costs_no_copy_of_the_trunk(finished):
    folder, _, _ = finished
    trunks = [folder / f"increment-{i:02d}" / "trunk.safetensors" for i in range(3)]
    assert len({path.stat().st_ino for path in trunks}) == 1 and trunks[0].stat().st_nlink == 3
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        paths = [folder / f"increment-{i:02d}" / "adapters" / "cut" / name for i in range(3)]
        assert len({path.stat().st_ino for path in paths}) == 1
    assert not list(folder.glob("*.partial")) and not list(folder.glob("*.old"))


def test_the_trunk_that_learns_first_is_linked_once_it_carries_adapters(run, tmp_path):
    report = run(base_training="first_increment")
    check_report(report)
    assert report["forgetting"] == 0
    inodes = [(tmp_path / "run" / f"increment-{i:02d}" / "trunk.safetensors").stat().st_ino for i in range(3)]
    assert inodes[1] == inodes[2]


@pytest.mark.parametrize("policy", ["shared", "frozen"])
def test_other_adapter_policies(run, policy):
    report = run(adapter_policy=policy, trunk="vit")
    check_report(report)
    assert report["forgetting"] is not None
    if policy == "frozen":
        assert report["forgetting"] == 0
    else:  # one trunk that keeps learning moves the old embeddings
        assert report["scores"][0][0] != report["scores"][2][0] and report["forgetting"] != 0


def test_reversed_increments_and_the_validation_split(run):
    report = run("--reverse_increments", "--evaluate_on", "val")
    assert report["increments"] == NAMES[::-1] and report["finished"]
    assert report["data"]["evaluate_on"] == "val"
    assert all(row["num_gallery"] <= SIZES["val"] for row in report["attributes"])


def test_new_values_of_a_known_attribute(run, tmp_path):
    sequence = [
        {"name": "cut", "attributes": ["category"], "where": {"category": ["dress", "shirt", "skirt"]}},
        {"name": "more", "attribute": "category", "where": {"category": ["jumpsuit", "sweater", "trousers"]}},
    ]
    report = run("--increments", write_increments(tmp_path / "values.json", sequence))
    assert report["finished"] and report["forgetting"] == 0
    assert [(row["increment"], row["attribute"]) for row in report["attributes"]] == [
        ("cut", "category"),
        ("more", "category"),
    ]
    # The first searches its own rows, the new values the gallery of all values.
    first, more = report["attributes"]
    assert first["num_queries"] + more["num_queries"] == SIZES["query"]
    assert (first["num_values"], more["num_values"]) == (3, 6)
    assert first["num_gallery"] < more["num_gallery"] == SIZES["gallery"]
    bills = report["cost_per_increment"]
    assert all(bill["samples"] < 2 * SIZES["train"] for bill in bills)  # an epoch is the increment's own rows
    model = AutoModel.from_pretrained(tmp_path / "run" / "increment-01")
    assert model.config.attributes == ["category", "category"]


def test_two_runs_are_equal(run, tmp_path):
    first, second = run(method="ema_distillation"), run(method="ema_distillation", name="again")
    assert first["loss"] == second["loss"] and first["scores"] == second["scores"]
    assert_equal_weights(weights(tmp_path / "run", 2), weights(tmp_path / "again", 2))
    other = run(method="ema_distillation", name="other", seed=1)
    assert other["loss"] != first["loss"]


def test_the_command_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_mclfir.py", "--dataset", str(tmp_path / "no"), "--trunk", "x"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: --dataset .*no such folder"):
        train_mclfir.command()


TWO_PROCESSES = """
import json, shutil, sys
from pathlib import Path
from accelerate.state import PartialState
import train_mclfir
PartialState.destroy_process_group = lambda *_: None  # several runs in one launch: starting up takes the time
commands, resumed = json.loads(sys.argv[1])
for arguments in commands:
    train_mclfir.main(arguments)
state, last = PartialState(), Path(resumed) / "increment-02"
assert state.num_processes == 2
if state.is_main_process:  # as if it had been stopped in the last increment
    shutil.copy(Path(resumed) / "report.json", Path(resumed) / "unbroken.json")
    shutil.rmtree(last)
state.wait_for_everyone()
arguments = next(arguments for arguments in commands if resumed in arguments)
train_mclfir.main([*arguments, "--resume"])
"""


def test_two_processes_give_the_run_of_one(run, tmp_path, tiny_data):
    kinds = {
        "fine_tuning": {},
        "ema_distillation": {"method": "ema_distillation", "gradient_accumulation_steps": 2},
        "streaming": {"streaming": True, "shuffle_buffer": 16, "save_steps": 3},
        "batch_norm": {"base_training": "first_increment", "epochs": 1},
        "learned_scales": {"method": "ema_distillation", "distill_on": "pooled", "epochs": 1, **LEARNED_SCALES},
        "solved": {"head_start": "ridge", "head_finish": "ridge", "epochs": 1},
    }
    commands = [arguments(tiny_data, tmp_path / "two" / kind, **settings) for kind, settings in kinds.items()]
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    done = launch(script, json.dumps([commands, str(tmp_path / "two" / "streaming")]))
    for kind in ("fine_tuning", "ema_distillation", "learned_scales", "solved"):
        one = run(name=kind, **kinds[kind])
        two = json.loads((tmp_path / "two" / kind / "report.json").read_text())
        assert ("temperature" in one["loss"][-1]) == (kind == "learned_scales")
        assert [row["loss"] for row in two["loss"]] == pytest.approx([row["loss"] for row in one["loss"]], abs=1e-5)
        assert two["scores"][2] == pytest.approx(one["scores"][2], abs=1e-5)
        assert two["cost"]["samples"] == one["cost"]["samples"] and two["cost"]["steps"] == one["cost"]["steps"]
        # Each process works out the loss over all rows: that much more is done. Heads are solved by each of them.
        more = 2 if kind == "solved" else 1.02
        assert one["cost"]["flops"] <= two["cost"]["flops"] < more * one["cost"]["flops"]
        models = [
            AutoModel.from_pretrained(tmp_path / place / "increment-02").eval() for place in (kind, f"two/{kind}")
        ]
        pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            embeds = [model(pixel_values=pixels).embeds for model in models]
        print(
            kind,
            "loss",
            max(abs(a["loss"] - b["loss"]) for a, b in zip(one["loss"], two["loss"], strict=True)),
            "embeds",
            (embeds[0] - embeds[1]).abs().max().item(),
        )
        # A regression makes more of features that differ in their last bits.
        assert torch.allclose(*embeds, atol=1e-4 if kind == "solved" else 1e-5, rtol=0)
    for kind in ("streaming", "batch_norm"):
        assert json.loads((tmp_path / "two" / kind / "report.json").read_text())["finished"]
    assert "batch normalisation on several CPU processes" in done.stderr + done.stdout
    resumed, unbroken = (
        json.loads((tmp_path / "two" / "streaming" / f"{name}.json").read_text()) for name in ("report", "unbroken")
    )
    assert resumed["loss"] == unbroken["loss"] and resumed["scores"] == unbroken["scores"]


def test_the_command_of_the_readme_starts_two_processes(run, tmp_path, tiny_data):
    settings = {"epochs": 1, "increments": write_increments(tmp_path / "one.json", [INCREMENTS[1]])}
    flags = arguments(tiny_data, tmp_path / "two", **settings)
    launch(train_mclfir.__file__, *flags, flag="--cpu")
    one, two = run(name="one", **settings), json.loads((tmp_path / "two" / "report.json").read_text())
    assert [row["loss"] for row in two["loss"]] == pytest.approx([row["loss"] for row in one["loss"]], abs=1e-5)
    # Each process works out the loss over all rows, so two cost a little more than one: two it was.
    assert one["cost"]["flops"] < two["cost"]["flops"] < 1.02 * one["cost"]["flops"]


def test_a_launch_without_processes_to_add(monkeypatch):
    from modeling_mclfir.training.launch import processes_asked_for

    for name in ("ACCELERATE_USE_CPU", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes_asked_for() == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert processes_asked_for() == 1  # pytest was not started with --num_processes
