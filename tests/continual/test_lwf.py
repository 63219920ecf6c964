# SPDX-License-Identifier: Apache-2.0
from copy import deepcopy

import numpy as np
import pytest
import torch
from shared_adapter import (
    IMAGE_IDS,
    LABELS,
    batch_of,
    begin,
    build,
    learn,
    learn_all,
    make_student,
)
from tiny_runs import train, write_increments

from modeling_mclfir.losses import InfoNCE

pytestmark = pytest.mark.usefixtures("one_thread")


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """KL(teacher ‖ student) of who is near whom, one row and attribute after the other."""
    found = []
    for attribute in range(student.shape[1]):
        for row, image in enumerate(IMAGE_IDS.tolist()):
            others = [other for other, image_of in enumerate(IMAGE_IDS.tolist()) if image_of != image]
            p, q = (
                np.exp([np.dot(embeds[row, attribute], embeds[other, attribute]) / temperature for other in others])
                for embeds in (teacher, student)
            )
            p, q = p / p.sum(), q / q.sum()
            found.append(np.sum(p * np.log(p / q)))
    return float(np.mean(found))


def distance(student: np.ndarray, teacher: np.ndarray, _: float) -> float:
    return float(np.mean(np.sum((student - teacher) ** 2, axis=2)))


@pytest.mark.parametrize("distill_on, by_hand", [(None, divergence), ("embeds", distance)])
def test_the_loss_is_that_of_the_new_part_and_what_the_model_said_before_of_the_old(make_model, distill_on, by_hand):
    model, method = make_student(make_model), build("lwf", distill_on=distill_on, distillation_weight=0.7)
    learn_all(model, method, increments=1)
    before = deepcopy(model).eval()
    begin(model, method, 1)
    learn(model, method, 1, steps=2)
    batch = batch_of(9, 1)
    parts = method.compute_loss(model, batch)
    with torch.no_grad():
        embeds = model(batch["inputs"]["pixel_values"]).embeds
        said = before(batch["inputs"]["pixel_values"]).embeds
    assert embeds.shape[1] == 3 and said.shape[1] == 2
    contrastive = InfoNCE(0.2)(embeds[:, 2:], LABELS[:, :1], IMAGE_IDS).item()
    expected = by_hand(embeds[:, :2].double().numpy(), said.double().numpy(), 0.2)
    assert expected > 1e-4
    assert parts["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    assert parts["distillation"].item() == pytest.approx(expected, rel=1e-3)
    assert parts["loss"].item() == pytest.approx(contrastive + 0.7 * expected, rel=1e-4)
    assert [name for name, value in parts.items() if value.requires_grad] == ["loss"]


def test_the_first_increment_has_nothing_to_keep(make_model):
    models = [make_student(make_model) for _ in range(2)]
    told = [
        learn_all(model, build(name), increments=1) for model, name in zip(models, ("fine_tuning", "lwf"), strict=True)
    ]
    assert told[0] == told[1]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_old_heads_learn_on_and_the_teacher_stays(make_model):
    model, method = make_student(make_model), build("lwf")
    learn_all(model, method, increments=1)
    begin(model, method, 1)
    assert model.training and not any(module.training for module in method.teacher.modules())
    start = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model, method, 1)
    said, now = method.teacher.state_dict(), model.state_dict()
    assert all(torch.equal(value, said[name]) for name, value in start.items())
    moved = {name for name, value in start.items() if not torch.equal(value, now[name])}
    assert moved == {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name.split(".")[1] for name in moved if name.startswith("heads.")} == {"0", "1"}
    assert all(value.grad is None for value in method.teacher.parameters())
    method.end_increment(model, rows=None)
    assert method.teacher is None


def test_it_pulls_the_student_back(make_model):
    """The same steps with a heavy weight leave the old embeddings nearer to where they were."""
    drift = {}
    for weight in (0.0, 100.0):
        model, method = make_student(make_model), build("lwf", distillation_weight=weight, distill_on="embeds")
        learn_all(model, method, increments=1)
        images = batch_of(0, 1)["inputs"]["pixel_values"]
        with torch.no_grad():
            before = model(images, increment_id=0).embeds
            begin(model, method, 1)
            with torch.enable_grad():
                learn(model, method, 1, steps=6)
            drift[weight] = (model(images, increment_id=0).embeds - before).square().sum(dim=2).mean().item()
    assert 0 < drift[100.0] < 0.5 * drift[0.0]


def test_how_many_attributes_are_known_outlives_a_stop(make_model):
    model, method = make_student(make_model), build("lwf")
    learn_all(model, method)
    other, resumed = deepcopy(model), build("lwf")
    kept = method.kept_state_dict()
    assert {name: int(value) for name, value in kept.items()} == {"num_known": 3}
    resumed.load_kept_state_dict(kept)
    expected = learn_all(model, method, first=2, increments=3)
    assert learn_all(other, resumed, first=2, increments=3) == expected
    assert all("distillation" in parts for parts in expected)
    fresh = build("lwf")
    fresh.load_kept_state_dict({})
    assert fresh.num_known == 0


def test_a_space_that_learns_new_values_on_is_old_and_new(make_model):
    model, method = make_student(make_model), build("lwf")
    learn_all(model, method, increments=2)
    before = deepcopy(model).eval()
    begin(model, method, 2, serving=0)
    told = learn(model, method, 2, serving=0)
    assert abs(told[0]["distillation"]) < 1e-6 < told[2]["distillation"]
    batch = batch_of(9, 2, serving=0)
    parts = method.compute_loss(model, batch)
    with torch.no_grad():
        embeds, said = (network(batch["inputs"]["pixel_values"]).embeds for network in (model, before))
    assert embeds.shape[1] == 3
    assert parts["contrastive"].item() == pytest.approx(
        InfoNCE(0.2)(embeds[:, :2], LABELS, IMAGE_IDS).item(), rel=1e-5
    )
    expected = divergence(embeds.double().numpy(), said.double().numpy(), 0.2)
    assert parts["distillation"].item() == pytest.approx(expected, rel=1e-3)


def test_heads_that_classify_attributes_get_a_gradient_each(make_model):
    """`learn` asserts it; the old increment's branch is no part of the loss."""
    model = make_student(make_model, head_type="ag_man", use_attribute_classification=True)
    method = build("lwf", classification_weight=0.5)
    told = learn_all(model, method)
    assert {"contrastive", "classification", "distillation"} <= set(told[-1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"distill_on": "pooled"}, r"distill_on must be one of \('similarities', 'embeds'\); got 'pooled'"),
        ({"distillation_weight": -1.0}, r"distillation_weight must be at least 0; got -1\.0"),
        ({"distillation_weight": float("inf")}, "distillation_weight must be at least 0; got inf"),
    ],
)
def test_settings_are_checked_when_built(changes, message):
    with pytest.raises(ValueError, match=message):
        build("lwf", **changes)


def test_new_values_in_a_shared_space(tiny_data, tmp_path):
    sequence = [
        {"name": "cut", "attributes": ["category"], "where": {"category": ["dress", "shirt", "skirt"]}},
        {"name": "more", "attribute": "category", "where": {"category": ["jumpsuit", "sweater", "trousers"]}},
    ]
    increments = write_increments(tmp_path / "values.json", sequence)
    settings = {"method": "lwf", "adapter_policy": "shared", "epochs": 1}
    report = train(tiny_data, tmp_path / "run", "--increments", increments, **settings)
    assert report["finished"]
    assert ["distillation" in row for row in report["loss"]] == [row["increment"] == "more" for row in report["loss"]]
