# SPDX-License-Identifier: Apache-2.0
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling_mclfir.continual import METHODS, ContinualMethod, EmaDistillation, FineTuning
from modeling_mclfir.losses import EmbeddingDistillation, InfoNCE
from modeling_mclfir.training.arguments import RunArguments

LABELS = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])


def settings(**changes):
    fields = asdict(RunArguments(temperature=0.2, ema_decay=0.9))
    return SimpleNamespace(**(fields | changes))


def view(seed: int):
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def batch_of(step: int, increment_id: int = 0) -> dict:
    return {
        "inputs": {"pixel_values": view(10 * step), "increment_id": increment_id},
        "teacher_inputs": {"pixel_values": view(10 * step + 1), "increment_id": increment_id},
        "labels": LABELS[:, : 2 - increment_id],
        "image_ids": torch.arange(4),
    }


@pytest.fixture
def make_student(make_model):
    def make(family="resnet", **changes):
        model = make_model(family, **changes)
        model.add_increment("shape", ["type", "hem"])
        model.set_trainable(0)
        return model.train()

    return make


def tensors_of(model) -> dict:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def learn(model, method: ContinualMethod, steps: int, first: int = 0) -> list[float]:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.SGD(free, lr=0.1), []
    for step in range(first, first + steps):
        loss = method.compute_loss(model, batch_of(step))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model)
        losses.append(loss.item())
    return losses


LEARN_BY_STEPS = [name for name, method in METHODS.items() if method.trains]
ROWS = SimpleNamespace(
    batches=lambda num_batches: (batch_of(100 + step) for step in range(num_batches)),
    chunks=lambda: iter([batch_of(0) | {"rows": torch.arange(4)}]),
)


def test_every_method_learns_and_keeps_the_contract(make_student):
    for name in LEARN_BY_STEPS:
        method = METHODS[name](settings(ewc_batches=2))
        policy = "shared" if "shared" in method.adapter_policies else method.adapter_policies[0]
        model = make_student("vit" if policy == "prompts" else "resnet", adapter_policy=policy)
        method.begin_increment(model, 0)
        before = {key: value.clone() for key, value in tensors_of(model).items()}
        learn(model, method, 1)
        parts = method.compute_loss(model, batch_of(1))
        assert parts["loss"].ndim == 0 and parts["loss"].requires_grad, name
        assert not any(value.requires_grad for key, value in parts.items() if key != "loss"), name
        free = {key for key, value in model.named_parameters() if value.requires_grad}
        moved = {key for key, value in tensors_of(model).items() if not torch.equal(value, before[key])}
        assert moved and moved <= free, name
        assert all(isinstance(value, torch.Tensor) for value in method.state_dict().values()), name
        method.end_increment(model, ROWS)
        assert all(isinstance(value, torch.Tensor) for value in method.kept_state_dict().values()), name
        assert isinstance(method, ContinualMethod)


def test_fine_tuning_is_the_contrastive_loss(make_student):
    model, method = make_student(), FineTuning(settings())
    batch = batch_of(0)
    parts = method.compute_loss(model, batch)
    expected = InfoNCE(0.2)(model(**batch["inputs"]).embeds, LABELS, torch.arange(4))
    assert parts["loss"].item() == parts["contrastive"].item() == expected.item() > 0
    assert not method.needs_teacher_view and method.state_dict() == {}


@pytest.mark.parametrize("base_training", ["none", "first_increment"])
def test_the_teacher_follows_by_its_formula_at_every_step(make_student, base_training):
    model, method = make_student(base_training=base_training), EmaDistillation(settings(ema_decay=0.3))
    method.begin_increment(model, 0)
    expected = {name: value.clone() for name, value in tensors_of(model).items()}
    free = {name for name, value in model.named_parameters() if value.requires_grad}
    for step in range(4):
        start = {name: value.clone() for name, value in tensors_of(model).items()}
        learn(model, method, 1, first=step)
        # The decay grows to its value: 2/11, 3/12, 0.3 (4/13 passes it), 0.3.
        decay = min(0.3, (2 + step) / (11 + step))
        teacher = tensors_of(method.teacher)
        for name, value in tensors_of(model).items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.detach()
                torch.testing.assert_close(teacher[name], expected[name], atol=1e-6, rtol=1e-5)
            else:
                assert torch.equal(teacher[name], value)
        # At first the B of an adapter is 0, and so is the gradient of its A; and small steps of some get lost.
        moved = {name for name, value in tensors_of(model).items() if not torch.equal(value, start[name])}
        assert len(moved & free) > 0.8 * len(free) or not step, "the student moved, else this test shows nothing"
    statistics = [name for name in expected if name.endswith("running_mean")]
    student = tensors_of(model)
    differ = [not torch.equal(tensors_of(method.teacher)[name], student[name]) for name in statistics]
    assert all(differ) if base_training == "first_increment" else not any(differ)


def test_the_teacher_shares_what_is_frozen_and_owns_what_learns(make_student):
    model, method = make_student(), EmaDistillation(settings())
    free = {name for name, value in model.named_parameters() if value.requires_grad}
    method.begin_increment(model, 0)
    teacher, student = tensors_of(method.teacher), tensors_of(model)
    assert teacher.keys() == student.keys()
    assert {name for name in student if teacher[name] is not student[name]} == free
    assert set(method.own) == free
    assert not any(value.requires_grad for value in teacher.values())
    assert {name for name, value in model.named_parameters() if value.requires_grad} == free
    assert model.training and not any(module.training for module in method.teacher.modules())


def test_the_teacher_gets_its_own_view_without_gradient(make_student):
    model, method = make_student(), EmaDistillation(settings(distillation_weight=0.7))
    method.begin_increment(model, 0)
    learn(model, method, 2)
    batch, seen = batch_of(5), []
    method.teacher.register_forward_pre_hook(
        lambda module, positional, named: seen.append((named["pixel_values"], torch.is_grad_enabled())),
        with_kwargs=True,
    )
    parts = method.compute_loss(model, batch)
    assert len(seen) == 1
    assert seen[0][0] is batch["teacher_inputs"]["pixel_values"] and not seen[0][1]
    student = model(**batch["inputs"]).embeds
    teacher = method.teacher(**batch["teacher_inputs"]).embeds
    distillation = EmbeddingDistillation()(student, teacher).item()
    contrastive = InfoNCE(0.2)(student, LABELS, torch.arange(4)).item()
    assert distillation > 0
    assert parts["distillation"].item() == pytest.approx(distillation, rel=1e-5)
    assert parts["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(contrastive + 0.7 * distillation, rel=1e-5)
    parts["loss"].backward()
    assert all(value.grad is None for value in method.teacher.parameters() if not _shared(model, value))
    assert method.needs_teacher_view


def _shared(model: nn.Module, value: torch.Tensor) -> bool:
    return any(value is other for other in model.parameters())


def test_weight_zero_is_fine_tuning_step_for_step(make_student):
    runs = {}
    for name, method in (
        ("fine_tuning", FineTuning(settings())),
        ("ema", EmaDistillation(settings(distillation_weight=0.0))),
        ("with distillation", EmaDistillation(settings())),
    ):
        model = make_student()
        method.begin_increment(model, 0)
        runs[name] = learn(model, method, 3), tensors_of(model)
    assert runs["ema"][0] == runs["fine_tuning"][0]
    assert all(torch.equal(value, runs["ema"][1][name]) for name, value in runs["fine_tuning"][1].items())
    assert runs["with distillation"][0] != runs["fine_tuning"][0]


def test_a_stopped_teacher_goes_on_exactly(make_student):
    changes = {"ema_decay": 0.9, "distillation_weight": 2.0}
    model, method = make_student(), EmaDistillation(settings(**changes))
    method.begin_increment(model, 0)
    learn(model, method, 2)
    weights = {name: value.clone() for name, value in tensors_of(model).items()}
    state = {name: value.clone() for name, value in method.state_dict().items()}
    expected = learn(model, method, 2, first=2)

    other = make_student()
    with torch.no_grad():
        for name, value in tensors_of(other).items():
            value.copy_(weights[name])
    resumed = EmaDistillation(settings(**changes))
    resumed.begin_increment(other, 0)
    resumed.load_state_dict(state)
    assert learn(other, resumed, 2, first=2) == expected
    for name, value in method.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_each_increment_has_a_teacher_of_its_own(make_student):
    model, method = make_student(), EmaDistillation(settings())
    method.begin_increment(model, 0)
    learn(model, method, 2)
    first = method.teacher
    method.end_increment(model, rows=None)
    assert method.teacher is None and not method.own
    model.add_increment("look", ["colour"])
    model.set_trainable(1)
    method.begin_increment(model, 1)
    assert method.teacher is not first and int(method.state_dict()["num_updates"]) == 0
    batch = batch_of(0, increment_id=1)
    batch["teacher_inputs"] = batch["inputs"]
    model.eval()
    assert method.compute_loss(model, batch)["distillation"].item() == 0, "it starts as the student"


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_that_never_learns_or_runs_away(decay):
    with pytest.raises(ValueError, match="ema_decay must lie in 0..1"):
        EmaDistillation(settings(ema_decay=decay))


def test_settings_of_the_loss_are_checked_when_built():
    with pytest.raises(ValueError, match="temperature"):
        FineTuning(settings(temperature=0))
    with pytest.raises(TypeError, match="compute_loss"):
        ContinualMethod(settings())
