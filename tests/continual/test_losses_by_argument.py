# SPDX-License-Identifier: Apache-2.0
"""What the arguments of the losses and of the teacher do to a method."""

from copy import deepcopy
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import distributed, multiprocessing

from modeling_mclfir.continual import METHODS, EmaDistillation, FineTuning
from modeling_mclfir.losses import (
    AttributeClassification,
    InfoNCE,
    PrototypeInfoNCE,
    SimilarityDistillation,
    TripletLoss,
    world_size,
)
from modeling_mclfir.training.arguments import RunArguments
from modeling_mclfir.training.loop import IncrementTrainer

NUM_VALUES = [3, 2]
LABELS = torch.tensor([[0, 1], [0, 1], [1, -1], [1, -1], [2, 0], [2, 0], [-1, 1], [-1, 1]])
LEARNED = {"learn_temperature": True, "temperature": 0.3, "learn_loss_weights": True, "classification_weight": 0.5}


def settings(**changes):
    return SimpleNamespace(**(asdict(RunArguments(temperature=0.2)) | changes))


def batch_of(step: int, rows: slice = slice(None)) -> dict:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randn(2, len(LABELS), 3, 64, 64, generator=generator)
    return {
        "inputs": {"pixel_values": pixels[0, rows], "increment_id": 0},
        "teacher_inputs": {"pixel_values": pixels[1, rows], "increment_id": 0},
        "labels": LABELS[rows],
        "image_ids": torch.arange(len(LABELS))[rows],
    }


@pytest.fixture
def make_student(make_model):
    def make(**changes):
        heads = {"head_type": "ag_man", "use_attribute_classification": True}
        model = make_model("resnet", **(heads | changes))
        model.add_increment("shape", ["type", "hem"])
        model.set_trainable(0)
        return model.train()

    return make


def begin(make_student, method_class=FineTuning, model=None, **changes):
    """A method that has begun with a student, both as they are at every call."""
    model = make_student() if model is None else model
    method = method_class(settings(**changes))
    torch.manual_seed(1)
    method.begin_increment(model, 0, NUM_VALUES)
    return model, method


def learn(model, method, steps, first=0, optimizer=None) -> list[dict]:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer or torch.optim.SGD([*free, *method.parameters()], lr=0.05)
    told = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        parts = method.compute_loss(model, batch_of(step))
        parts["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model)
        told.append({name: value.item() for name, value in parts.items()})
    return told


# ---- what is added up


def parts_by_hand(output, temperature=0.2):
    embeds, ids = output.embeds, torch.arange(len(LABELS))
    torch.manual_seed(1)
    prototypes = PrototypeInfoNCE(NUM_VALUES, embeds.shape[-1], temperature)
    return {
        "contrastive": InfoNCE(temperature)(embeds, LABELS, ids),
        "triplet": TripletLoss(0.2, "all")(embeds, LABELS, ids),
        "prototypes": prototypes(embeds, LABELS),
        "classification": AttributeClassification()(output.attribute_logits, LABELS),
    }


def test_the_default_is_the_contrastive_loss_and_half_the_prototypes_bit_for_bit(make_student):
    model, method = begin(make_student, model=make_student(head_type="mclfir", use_attribute_classification=False))
    parts = method.compute_loss(model, batch_of(0))
    output = model(**batch_of(0)["inputs"])
    torch.manual_seed(1)
    prototypes = PrototypeInfoNCE(NUM_VALUES, 16, 0.2)(output.embeds, LABELS)
    contrastive = InfoNCE(0.2)(output.embeds, LABELS, torch.arange(len(LABELS)))
    assert list(parts) == ["loss", "contrastive", "prototypes"]
    assert torch.equal(parts["loss"], contrastive + 0.5 * prototypes)
    assert list(method.state_dict()) == ["prototypes"] and len(method.parameters()) == 1


@pytest.mark.parametrize("doublets", ["contrastive", "triplet"])
def test_parts_and_their_fixed_weights(make_student, doublets):
    loss = {"contrastive": "infonce", "triplet": "triplet"}[doublets]
    model, method = begin(
        make_student, loss=loss, mining="all", prototype_weight=0.7, classification_weight=0.3
    )  # fmt: skip
    parts = method.compute_loss(model, batch_of(0))
    expected = parts_by_hand(model(**batch_of(0)["inputs"]))
    assert set(parts) == {"loss", doublets, "prototypes", "classification"}
    for name in set(parts) - {"loss"}:
        assert parts[name].item() == pytest.approx(expected[name].item(), rel=1e-5) and parts[name] > 0
    total = expected[doublets] + 0.7 * expected["prototypes"] + 0.3 * expected["classification"]
    assert parts["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_learned_weights_start_at_the_fixed_ones_and_move_with_the_temperature(make_student):
    model, method = begin(make_student, prototype_weight=0.7, **LEARNED)
    told = learn(model, method, 5)
    assert told[0]["temperature"] == pytest.approx(0.3)
    start = {"contrastive_weight": 1.0, "prototypes_weight": 0.7, "classification_weight": 0.5}
    assert {name: told[0][name] for name in start} == pytest.approx(start)
    moved = [name for name in ("temperature", *start) if told[-1][name] != pytest.approx(told[0][name], rel=1e-3)]
    assert moved == ["temperature", *start]
    parts = method.compute_loss(model, batch_of(0))
    assert [name for name, value in parts.items() if value.requires_grad] == ["loss"]


def test_explicit_triplets_teach_no_prototypes_and_are_labelled(make_student):
    model, method = begin(make_student, loss="triplet", prototype_weight=1.0, classification_weight=1.0)
    batch = batch_of(0)
    batch["labels"] = torch.tensor([0, 0, 2, 2, 1, 3, -1, -1])[:, None].repeat(1, 2)
    batch["sets"] = torch.tensor([0, 0, 1, 1, 0, 1, -1, -1])[:, None].repeat(1, 2)
    parts = method.compute_loss(model, batch)
    assert parts["triplet"] > 0 and parts["prototypes"] == 0 and parts["classification"] > 0


def test_heads_that_classify_without_a_weight_keep_every_parameter_in_the_graph(make_student):
    model, method = begin(make_student)
    parts = method.compute_loss(model, batch_of(0))
    parts["loss"].backward()
    assert "classification" not in parts
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_a_weight_without_heads_that_classify(make_student):
    model, method = begin(
        make_student, model=make_student(use_attribute_classification=False), classification_weight=1.0
    )
    with pytest.raises(ValueError, match=r"classification_weight is 1\.0, but this model's heads give no"):
        method.compute_loss(model, batch_of(0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"loss": "arcface"}, r"loss must be one of \('infonce', 'triplet'\); got 'arcface'"),
        ({"loss": "triplet", "learn_temperature": True}, "learn_temperature needs loss 'infonce'; got 'triplet'"),
        ({"loss": "triplet", "margin": 0}, "margin must be above 0; got 0"),
        ({"loss": "triplet", "mining": "hard"}, "mining must be one of .*; got 'hard'"),
        ({"learn_temperature": True, "temperature": 2.0}, "within 0.01..1; got 2.0"),
        ({"classification_weight": -1}, "classification_weight must be at least 0; got -1"),
        ({"prototype_weight": float("nan")}, "prototype_weight must be at least 0; got nan"),
        ({"learn_loss_weights": True, "prototype_weight": 0}, "there is one only"),
    ],
)
def test_settings_are_checked_when_the_arguments_are_read(changes, message):
    for method_class in METHODS.values():
        with pytest.raises(ValueError, match=message):
            method_class(settings(**changes))
    with pytest.raises(ValueError, match=message):
        RunArguments(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"distill_on": "maps"}, r"distill_on must be one of \('embeds', 'pooled', 'similarities'\); got 'maps'"),
        ({"teacher_view": "clean"}, r"teacher_view must be one of \('other', 'same'\); got 'clean'"),
        ({"distillation_weight": -0.5}, "distillation_weight must be at least 0; got -0.5"),
        ({"ema_decay": 1.0}, "ema_decay must lie in 0..1"),
    ],
)
def test_settings_of_the_teacher_are_checked_when_the_arguments_are_read(changes, message):
    with pytest.raises(ValueError, match=message):
        RunArguments(method="ema_distillation", **changes)


# ---- what is learned, saved and loaded


def test_the_optimiser_gets_what_is_learned_and_draws_no_scale_to_zero(make_student):
    model, method = begin(make_student, **LEARNED)
    args = SimpleNamespace(learning_rate=0.1, base_learning_rate=0.01, weight_decay=0.3)
    groups = IncrementTrainer(Accelerator(), args, None)._optimizer(model, method).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    scales = {id(parameter) for parameter in groups[1]["params"]}
    assert scales == {id(method.loss.logit_scale), id(method.loss_weights.log_variances)}
    assert any(parameter is method.prototypes.prototypes for parameter in groups[0]["params"])


# L2P needs a model with prompts; tests/training/test_run.py stops and resumes one.
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trains and name != "l2p"])
def test_what_is_learned_goes_on_exactly(make_student, name):
    model, method = begin(make_student, METHODS[name], **LEARNED)
    learn(model, method, 3)
    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    state = {key: value.clone() for key, value in method.state_dict().items()}
    assert {"prototypes", "logit_scale", "log_variances"} <= set(state)
    expected = learn(model, method, 3, first=3)

    other, resumed = begin(make_student, METHODS[name], **LEARNED)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert learn(other, resumed, 3, first=3) == expected
    for key, value in method.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_each_increment_begins_anew(make_student):
    model, method = begin(make_student, **LEARNED)
    start = {name: value.clone() for name, value in method.state_dict().items()}
    learn(model, method, 2)
    assert not any(torch.equal(value, method.state_dict()[name]) for name, value in start.items())
    torch.manual_seed(1)
    method.begin_increment(model, 0, NUM_VALUES)
    assert all(torch.equal(value, start[name]) for name, value in method.state_dict().items())


# ---- the teacher


def test_distillation_on_pooled_features(make_student):
    model, method = begin(make_student, EmaDistillation, distill_on="pooled", distillation_weight=0.3)
    learn(model, method, 2)
    batch = batch_of(5)
    student, teacher = (
        network.mclfir(**batch[view]).pooled
        for network, view in ((model, "inputs"), (method.teacher, "teacher_inputs"))
    )
    parts = method.compute_loss(model, batch)
    expected = (student - teacher).square().mean()
    assert expected > 0 and parts["distillation"].item() == pytest.approx(expected.item(), rel=1e-5)
    fixed = parts["contrastive"] + 0.5 * parts["prototypes"] + 0.3 * expected
    assert parts["loss"].item() == pytest.approx(fixed.item(), rel=1e-5)


def test_distillation_on_similarities(make_student):
    model, method = begin(make_student, EmaDistillation, distill_on="similarities", distillation_weight=0.3)
    learn(model, method, 2)
    batch = batch_of(5)
    student, teacher = model(**batch["inputs"]).embeds, method.teacher(**batch["teacher_inputs"]).embeds
    parts = method.compute_loss(model, batch)
    expected = SimilarityDistillation(0.2)(student, teacher, batch["image_ids"])
    assert expected > 0 and parts["distillation"].item() == pytest.approx(expected.item(), rel=1e-5)
    fixed = parts["contrastive"] + 0.5 * parts["prototypes"] + 0.3 * expected
    assert parts["loss"].item() == pytest.approx(fixed.item(), rel=1e-5)


def test_pooled_features_are_told_where_they_are_those_of_one_adapter(make_student, images):
    model = make_student().eval()
    model.add_increment("look", ["colour"])
    for increment_id in range(2):
        expected = model.mclfir(images, increment_id=increment_id).pooled
        assert torch.equal(model(images, increment_id=increment_id).pooled, expected)
    assert model(images).pooled is None and model(images, attribute_ids=[0, 2]).pooled is None


def test_a_teacher_that_is_not_updated_stays_where_the_increment_started(make_student):
    model, method = begin(make_student, EmaDistillation, teacher_update=False)
    start = {name: value.clone() for name, value in method.own.items()}
    learn(model, method, 3)
    assert start and all(torch.equal(value, method.own[name]) for name, value in start.items())
    student = dict(model.named_parameters())
    assert any(not torch.equal(value, student[name]) for name, value in start.items())


def test_the_students_own_view(make_student):
    model, method = begin(make_student, EmaDistillation, teacher_view="same")
    assert not method.needs_teacher_view
    batch, seen = batch_of(0), []
    del batch["teacher_inputs"]
    method.teacher.register_forward_pre_hook(
        lambda module, positional, named: seen.append(named["pixel_values"]), with_kwargs=True
    )
    method.compute_loss(model, batch)
    assert len(seen) == 1 and seen[0] is batch["inputs"]["pixel_values"]


def test_as_released_the_teacher_is_a_pull_towards_the_start(make_student):
    released = {
        "teacher_update": False,
        "teacher_view": "same",
        "distill_on": "pooled",
        "distillation_weight": 1e-4,
        "same_value": "negatives",
        "temperature": 0.3,
        "prototype_weight": 0.0,
    }
    model, method = begin(make_student, EmaDistillation, **released)
    told = learn(model, method, 4)
    assert told[0]["distillation"] == 0 and told[3]["distillation"] > 0
    assert told[3]["loss"] == pytest.approx(told[3]["contrastive"] + 1e-4 * told[3]["distillation"], rel=1e-6)


# ---- several processes

KINDS = {
    "learned": {"method": "ema_distillation", "distill_on": "pooled", **LEARNED},
    "triplet": {"loss": "triplet", "classification_weight": 0.5, "learn_loss_weights": True},
}


def steps_of(model, changes, rows: slice, steps: int = 3) -> dict:
    """Steps of a process on its rows, with the average of gradients that distributed training takes."""
    method = METHODS[changes.get("method", "fine_tuning")](settings(**changes))
    torch.manual_seed(1)
    method.begin_increment(model, 0, NUM_VALUES)
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([*free, *method.parameters()], lr=0.05)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        parts = method.compute_loss(model, batch_of(step, rows))
        parts["loss"].backward()
        if world_size() > 1:
            for parameter in free:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= world_size()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model)
        losses.append(parts["loss"].detach() / world_size())
    return {"losses": torch.stack(losses)} | {
        name: value.detach().clone() for name, value in (method.state_dict() | model.state_dict()).items()
    }


def one_of_two(rank, folder, model):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    rows = slice(4 * rank, 4 * rank + 4)
    # A copy: tensors that come from another process are shared with it.
    found = {kind: steps_of(deepcopy(model), changes, rows) for kind, changes in KINDS.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_learn_as_one(make_student, tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path), make_student()), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    start = make_student().state_dict()
    for kind, changes in KINDS.items():
        expected = steps_of(make_student(), changes, slice(None))
        assert any(not torch.equal(expected[name], value) for name, value in start.items())
        for found in two:
            assert found[kind].keys() == expected.keys()
            for name, value in expected.items():
                message = f"{kind} {name}"
                torch.testing.assert_close(found[kind][name], value, atol=1e-5, rtol=1e-4, msg=message)
