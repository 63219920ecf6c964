# SPDX-License-Identifier: Apache-2.0
from copy import deepcopy

import numpy as np
import pytest
import torch
from shared_adapter import ATTRIBUTES, IMAGE_IDS, LABELS, batch_of, begin, build, learn, learn_all
from tiny_runs import assert_equal_runs, stopped_after, train, weights, write_increments

from modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.adapters_mclfir import adapter_layers, adapter_parameters
from modeling_mclfir.losses import InfoNCE

pytestmark = pytest.mark.usefixtures("one_thread")
STACKED = {"method": "o_lora", "adapter_policy": "stacked", "epochs": 1}


@pytest.fixture
def make_student(make_model):
    return lambda family="resnet", **changes: make_model(family, **({"adapter_policy": "stacked"} | changes))


def lora_parts(model) -> list[dict[str, dict[str, np.ndarray]]]:
    """Of each layer: "A" and "B" → adapter → float64."""
    return [
        {
            kind: {name: part.weight.detach().double().numpy() for name, part in parts.items()}
            for kind, parts in (("A", layer.lora_A), ("B", layer.lora_B))
        }
        for layer in adapter_layers(model.mclfir.trunk)
    ]


def overlap(model) -> float:
    """Squared products of each direction of the newest adapter with each of all others, one after the other."""
    *old, new = model.config.adapter_names()
    total = 0.0
    for layer in lora_parts(model):
        for name in old:
            for before in layer["A"][name]:
                for direction in layer["A"][new]:
                    total += float((before * direction).sum() ** 2)
    return total


@pytest.mark.parametrize("family", ["resnet", "vit"])  # convolutions, linear layers
def test_the_loss_is_that_of_the_doublets_and_of_what_adapters_share(make_student, family):
    model, method = make_student(family), build("o_lora", orthogonality_weight=0.3)
    learn_all(model, method, increments=2)
    begin(model, method, 2)
    learn(model, method, 2, steps=2)
    batch = batch_of(9, 2)
    parts = method.compute_loss(model, batch)
    with torch.no_grad():
        embeds = model(**batch["inputs"]).embeds
    contrastive = InfoNCE(0.2)(embeds, LABELS, IMAGE_IDS).item()
    expected = overlap(model)
    assert expected > 0.01
    assert method.penalty().item() == pytest.approx(expected, rel=1e-5)
    assert parts["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    assert parts["orthogonality"].item() == pytest.approx(0.3 * expected, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(contrastive + 0.3 * expected, rel=1e-5)
    assert [name for name, value in parts.items() if value.requires_grad] == ["loss"]


def test_weight_zero_is_fine_tuning_of_stacked_adapters_step_for_step(make_student):
    """Bit for bit, over three increments."""
    runs = []
    for method in (build("fine_tuning"), build("o_lora", orthogonality_weight=0.0)):
        model = make_student()
        runs.append((learn_all(model, method, increments=3), model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][key]) for key, value in runs[0][1].items())


@pytest.mark.parametrize("policy", ["stacked", "per_increment", "shared"])
def test_a_single_increment_is_fine_tuning_whatever_the_weight(make_student, policy):
    fine_tuned, model = make_student(adapter_policy=policy), make_student()
    told = learn_all(fine_tuned, build("fine_tuning"), increments=1)
    assert learn_all(model, build("o_lora", orthogonality_weight=7.0), increments=1) == told
    images = batch_of(0, 0)["inputs"]["pixel_values"]
    with torch.no_grad():
        assert torch.equal(model.eval()(images).embeds, fine_tuned.eval()(images).embeds)


def test_a_new_adapter_changes_nothing_and_is_no_copy(make_student):
    model, method = make_student(), build("o_lora")
    learn_all(model, method, increments=1)
    images = batch_of(0, 0)["inputs"]["pixel_values"]
    with torch.no_grad():
        before = model.eval()(images).embeds
        model.add_increment("increment1", ATTRIBUTES[1])
        assert torch.equal(model.eval()(images, increment_id=0).embeds, before)
    first, second = model.config.adapter_names()
    for layer in lora_parts(model):
        assert not layer["B"][second].any() and layer["B"][first].any()
        assert layer["A"][second].any() and not np.allclose(layer["A"][second], layer["A"][first])


def test_the_newest_adapter_learns_alone_and_old_embeddings_drift(make_student):
    model, method = make_student(), build("o_lora")
    learn_all(model, method, increments=2)
    images = batch_of(0, 0)["inputs"]["pixel_values"]
    with torch.no_grad():
        before = model.eval()(images, increment_id=0).embeds
    begin(model, method, 2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model, method, 2)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    newest = adapter_parameters(model.mclfir.trunk, model.config.adapter_names()[-1])
    heads = {name for name in start if name.startswith("heads.2.")}
    assert moved == {f"mclfir.trunk.{name}" for name in newest} | heads
    with torch.no_grad():
        assert not torch.allclose(model.eval()(images, increment_id=0).embeds, before, atol=1e-3)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_every_increment_runs_with_the_sum_of_all_adapters(make_student, family):
    """As a trunk does that has all of them added into its weights."""
    model = make_student(family)
    learn_all(model, build("o_lora"), increments=3)
    merged = deepcopy(model).eval()
    scale = model.config.lora_alpha / model.config.lora_rank
    with torch.no_grad():
        for layer, parts in zip(adapter_layers(merged.mclfir.trunk), lora_parts(model), strict=True):
            weight = layer.get_base_layer().weight
            for name in model.config.adapter_names():
                a, b = parts["A"][name], parts["B"][name]
                delta = (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(weight.shape)
                weight += torch.from_numpy(scale * delta).to(weight)
                layer.lora_B[name].weight.zero_()
        images = batch_of(0, 0)["inputs"]["pixel_values"]
        expected = merged(images).embeds
        assert expected.shape[1] == sum(map(len, ATTRIBUTES))
        every = model.eval()(images)
        torch.testing.assert_close(every.embeds, expected, atol=1e-5, rtol=1e-4)
        assert every.pooled is not None, "one run serves all increments"
        for increment_id in range(3):
            alone = model(images, increment_id=increment_id).embeds
            assert torch.equal(alone, every.embeds[:, list(model.config.attribute_range(increment_id))])


def test_the_penalty_turns_adapters_away_from_each_other(make_student):
    left = {}
    for weight in (0.0, 50.0):
        model, method = make_student(), build("o_lora", orthogonality_weight=weight)
        learn_all(model, method, increments=1)
        begin(model, method, 1)
        start = overlap(model)
        learn(model, method, 1, steps=8)
        left[weight] = overlap(model) / start
    assert left[50.0] < 0.2 < left[0.0]


def test_a_trunk_that_learns_first_has_no_adapter_to_be_orthogonal_to(make_student):
    model, method = make_student(base_training="first_increment"), build("o_lora")
    told = learn_all(model, method, increments=3)
    assert ["orthogonality" in parts for parts in told] == [False] * 6 + [True] * 3
    assert [len(model.config.running_adapters(index)) for index in range(3)] == [0, 2, 2]


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_settings_are_checked_when_built(weight):
    with pytest.raises(ValueError, match=f"orthogonality_weight must be at least 0; got {weight}"):
        build("o_lora", orthogonality_weight=weight)


# ---- whole runs


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_data, one_thread):
    folder = tmp_path_factory.mktemp("o_lora") / "run"
    return train(tiny_data, folder, **STACKED), folder


def test_a_run_stopped_between_increments_ends_as_the_unbroken_one(unbroken, tiny_data, tmp_path):
    report, folder = unbroken
    assert ["orthogonality" in row for row in report["loss"]] == [row["increment"] != "cut" for row in report["loss"]]
    again = stopped_after(1, folder, tmp_path / "again")
    assert_equal_runs(report, train(tiny_data, again, "--resume", **STACKED), (folder, again))


def test_checkpoints_hold_all_adapters_and_old_ones_stay_as_they_were(unbroken):
    _, folder = unbroken
    before, after = weights(folder, 0), weights(folder, 2)
    kept = [name for name in before if ".lora_" in name or name.startswith("heads.0.")]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    adapters = folder / "increment-02" / "adapters"
    assert sorted(path.name for path in adapters.iterdir()) == ["cut", "details", "surface"]
    file = "cut/adapter_model.safetensors"
    assert (adapters / file).samefile(folder / "increment-00" / "adapters" / file)
    model = MclfirForImageRetrieval.from_pretrained(folder / "increment-02")
    assert model.config.adapter_policy == "stacked" and len(model.config.running_adapters(0)) == 3


def test_new_values_get_a_further_space_and_an_adapter(tiny_data, tmp_path):
    sequence = [
        {"name": "cut", "attributes": ["category"], "where": {"category": ["dress", "shirt", "skirt"]}},
        {"name": "more", "attribute": "category", "where": {"category": ["jumpsuit", "sweater", "trousers"]}},
    ]
    increments = write_increments(tmp_path / "values.json", sequence)
    report = train(tiny_data, tmp_path / "run", "--increments", increments, **STACKED)
    assert report["finished"]
    assert ["orthogonality" in row for row in report["loss"]] == [row["increment"] == "more" for row in report["loss"]]
    assert list(report["parameters"]["added"]) == ["cut", "more"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"adapter_policy": "per_increment"}, "method 'o_lora' needs adapter_policy 'stacked'; got 'per_increment'"),
        ({"adapter_policy": "shared"}, "method 'o_lora' needs adapter_policy 'stacked'; got 'shared'"),
        ({"method": "lwf"}, "method 'lwf' needs adapter_policy 'shared'; got 'stacked'"),
        ({"method": "static"}, "method 'static' needs adapter_policy 'shared' or 'frozen'; got 'stacked'"),
        ({"method": "ema_distillation"}, "method 'ema_distillation' needs adapter_policy .*; got 'stacked'"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_data, tmp_path / "run", **(STACKED | settings))
