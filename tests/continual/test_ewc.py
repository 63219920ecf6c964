# SPDX-License-Identifier: Apache-2.0
from copy import deepcopy

import numpy as np
import pytest
import torch
from shared_adapter import (
    IMAGE_IDS,
    LABELS,
    Rows,
    batch_of,
    begin,
    build,
    learn,
    learn_all,
    make_student,
)

from modeling_mclfir.losses import InfoNCE
from modeling_mclfir.training.cost import count_flops

pytestmark = pytest.mark.usefixtures("one_thread")


def learning(model) -> dict:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def fisher_by_hand(model, increment_id: int, num_batches: int) -> dict[str, np.ndarray]:
    """The mean of squared gradients, one batch after the other."""
    model = deepcopy(model).eval()
    squares = {name: [] for name in learning(model)}
    for step in range(num_batches):
        batch = batch_of(50 + step, increment_id)
        embeds = model(batch["inputs"]["pixel_values"], increment_id=increment_id).embeds
        model.zero_grad()
        InfoNCE(0.2)(embeds, LABELS[:, : embeds.shape[1]], IMAGE_IDS).backward()
        for name, value in learning(model).items():
            squares[name].append(value.grad.double().numpy() ** 2)
    return {name: np.mean(values, axis=0) for name, values in squares.items()}


def kept(method, kind: str, index: int) -> dict[str, torch.Tensor]:
    start = f"{index}.{kind}."
    return {name.removeprefix(start): v for name, v in method.kept_state_dict().items() if name.startswith(start)}


def close(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-3, atol=1e-9, err_msg=name)


def test_fisher_is_the_mean_of_squared_gradients_of_batches(make_model):
    model, method = make_student(make_model), build("ewc", ewc_batches=3)
    begin(model, method, 0)
    learn(model, method, 0)
    expected = fisher_by_hand(model, 0, 3)
    method.end_increment(model, Rows(0))
    close(kept(method, "fisher", 0), expected)
    assert max(value.max() for value in expected.values()) > 1e-5
    anchors = kept(method, "anchor", 0)
    assert all(torch.equal(anchors[name], value) for name, value in learning(model).items())
    kinds = {"adapter" if ".lora_" in name else name.split(".")[0] for name in anchors}
    assert kinds == {"adapter", "heads"}
    assert all(".shared." in name for name in anchors if ".lora_" in name)


def test_the_end_of_an_increment_leaves_the_model_as_it_was(make_model):
    model = make_student(make_model, lora_dropout=0.5)
    method = build("ewc", ewc_batches=2)
    begin(model, method, 0)
    learn(model, method, 0)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    _, flops = count_flops(lambda: method.end_increment(model, Rows(0)))
    drawn = torch.rand(1)
    assert flops > 0 and any(modes) and not all(modes)
    assert [module.training for module in model.modules()] == modes
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1)), "nothing is drawn: dropout is off"
    anchors = kept(method, "anchor", 0)
    learn(model, method, 0, steps=1)
    assert not all(torch.equal(anchors[name], value) for name, value in learning(model).items())
    assert all(torch.equal(anchors[name], state[name]) for name in anchors), "they do not follow the model"


def test_the_penalty_and_its_gradient_by_hand(make_model):
    model, method = make_student(make_model), build("ewc", ewc_weight=300.0, ewc_batches=2)
    learn_all(model, method)
    begin(model, method, 2)
    told = learn(model, method, 2)
    assert "penalty" in told[0] and told[2]["penalty"] > 0
    terms = [(kept(method, "fisher", index), kept(method, "anchor", index)) for index in range(2)]
    total, gradients = 0.0, {}
    for name, value in learning(model).items():
        gradients[name] = np.zeros(value.shape)
        for fisher, anchor in terms:
            if name in fisher:
                f, moved = fisher[name].double().numpy(), (value - anchor[name]).detach().double().numpy()
                total += 150.0 * np.sum(f * moved**2)
                gradients[name] += 300.0 * f * moved
    assert total > 0 and all(".lora_" in name for fisher, _ in terms for name in fisher)
    assert method.penalty().item() == pytest.approx(total, rel=1e-4)
    method.penalty().backward()
    for name, value in learning(model).items():
        found = np.zeros(value.shape) if value.grad is None else value.grad.numpy()
        np.testing.assert_allclose(found, gradients[name], rtol=1e-3, atol=1e-9, err_msg=name)

    batch = batch_of(9, 2)
    parts = method.compute_loss(model, batch)
    contrastive = InfoNCE(0.2)(model(**batch["inputs"]).embeds, batch["labels"], IMAGE_IDS).item()
    assert parts["penalty"].item() == pytest.approx(total, rel=1e-4)
    assert parts["loss"].item() == pytest.approx(contrastive + total, rel=1e-5)
    assert [name for name, value in parts.items() if value.requires_grad] == ["loss"]


def test_it_holds_the_adapter_back(make_model):
    """The same steps with a heavy weight leave the adapter nearer to where it was."""
    moved = {}
    for weight in (1e-9, 1e9):
        model, method = make_student(make_model), build("ewc", ewc_weight=weight, ewc_batches=2)
        learn_all(model, method, increments=1)
        begin(model, method, 1)
        learn(model, method, 1, steps=10)
        fisher, anchor = kept(method, "fisher", 0), kept(method, "anchor", 0)
        now = dict(model.named_parameters())
        moved[weight] = sum((fisher[name] * (now[name] - anchor[name]) ** 2).sum().item() for name in fisher)
    assert moved[1e9] < 0.5 * moved[1e-9]


def test_weight_zero_keeps_nothing(make_model):
    method = build("ewc", ewc_weight=0.0)
    learn_all(make_student(make_model), method)
    assert method.kept_state_dict() == {}


def test_online_keeps_one_term_that_fades_and_the_last_anchor(make_model):
    """Both methods look at the same two models, so only what they keep of it differs."""
    model = make_student(make_model)
    added, online = build("ewc", ewc_batches=2), build("ewc", ewc_batches=2, ewc_online=True, ewc_decay=0.6)
    for increment_id in range(2):
        begin(model, added, increment_id)
        online.begin_increment(model, increment_id)
        learn(model, build("fine_tuning"), increment_id)
        added.end_increment(model, Rows(increment_id))
        online.end_increment(model, Rows(increment_id))
    first, second = (kept(added, "fisher", index) for index in range(2))
    assert {name.split(".")[0] for name in online.kept_state_dict()} == {"0"}
    fisher, anchor = kept(online, "fisher", 0), kept(online, "anchor", 0)
    assert first.keys() < second.keys() == fisher.keys() == anchor.keys()
    for name, value in fisher.items():
        before = first[name].double() if name in first else 0.0
        torch.testing.assert_close(value.double(), 0.6 * before + second[name].double(), rtol=1e-5, atol=0)
        assert torch.equal(anchor[name], kept(added, "anchor", 1)[name])
    assert any(
        not torch.equal(kept(added, "anchor", 0)[name], value) for name, value in anchor.items() if name in first
    )


@pytest.mark.parametrize("online", [False, True])
def test_what_is_kept_goes_on_exactly(make_model, online):
    changes = {"ewc_online": online, "ewc_batches": 2}
    model, method = make_student(make_model), build("ewc", **changes)
    learn_all(model, method)
    other, resumed = deepcopy(model), build("ewc", **changes)
    state = {name: value.clone() for name, value in method.kept_state_dict().items()}
    resumed.load_kept_state_dict(dict(reversed(state.items())))  # a file keeps no order
    assert resumed.kept_state_dict().keys() == state.keys()
    expected = learn_all(model, method, first=2, increments=3)
    assert learn_all(other, resumed, first=2, increments=3) == expected
    assert all("penalty" in parts for parts in expected)
    for name, value in method.kept_state_dict().items():
        assert torch.equal(value, resumed.kept_state_dict()[name]), name


def test_a_head_is_held_where_it_learns_new_values_on_and_else_dropped(make_model):
    model, method = make_student(make_model), build("ewc", ewc_batches=2)
    learn_all(model, method, increments=1)
    elsewhere = deepcopy(method)
    begin(deepcopy(model), elsewhere, 1)
    assert kept(elsewhere, "fisher", 0) and all(".lora_" in name for name in kept(elsewhere, "fisher", 0))
    begin(model, method, 1, serving=0)
    assert kept(method, "fisher", 0).keys() == learning(model).keys()
    told = learn(model, method, 1, serving=0)
    assert told[0]["penalty"] == 0 < told[2]["penalty"]


def test_a_trunk_that_learns_first_is_not_covered(make_model):
    model, method = make_student(make_model, base_training="first_increment"), build("ewc", ewc_batches=2)
    begin(model, method, 0)
    assert any(name.startswith("mclfir.trunk.") for name in learning(model))
    method.end_increment(model, Rows(0))
    assert all(value.grad is None for value in model.parameters())
    assert kept(method, "fisher", 0) and all(name.startswith("heads.0.") for name in kept(method, "fisher", 0))
    begin(model, method, 1)
    assert method.kept_state_dict() == {} and "penalty" not in learn(model, method, 1)[0]
    method.end_increment(model, Rows(1))
    begin(model, method, 2)
    assert "penalty" in learn(model, method, 2)[0], "the adapter that came second"


def test_heads_that_classify_attributes_are_asked_in_eval_mode_too(make_model):
    model = make_student(make_model, head_type="ag_man", use_attribute_classification=True)
    method = build("ewc", classification_weight=0.5, ewc_batches=2)
    told = learn_all(model, method)
    assert {"contrastive", "classification", "penalty"} <= set(told[-1])
    branch = [value for name, value in kept(method, "fisher", 1).items() if "classifier" in name]
    assert branch and all(value.any() for value in branch)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ewc_weight": -1.0}, r"ewc_weight must be at least 0; got -1\.0"),
        ({"ewc_weight": float("nan")}, "ewc_weight must be at least 0; got nan"),
        ({"ewc_decay": 1.1}, r"ewc_decay must lie in 0\.\.1; got 1\.1"),
        ({"ewc_batches": 0}, "ewc_batches must be at least 1; got 0"),
    ],
)
def test_settings_are_checked_when_built(changes, message):
    with pytest.raises(ValueError, match=message):
        build("ewc", **changes)
