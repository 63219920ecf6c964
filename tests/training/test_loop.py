# SPDX-License-Identifier: Apache-2.0
import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from modeling_mclfir.continual import FineTuning
from modeling_mclfir.training.arguments import RunArguments
from modeling_mclfir.training.loop import IncrementTrainer, Progress, _rate


def trainer(accelerator=None, **settings):
    args = SimpleNamespace(
        **{
            "epochs": 2.0,
            "first_epochs": None,
            "batch_size": 16,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.1,
            "base_learning_rate": 0.01,
            "weight_decay": 0.0,
        }
        | settings
    )
    return IncrementTrainer(accelerator or Accelerator(), args, None)


@pytest.mark.parametrize(
    "settings, increment_id, steps",
    [
        ({}, 0, 9),
        ({}, 1, 9),
        ({"first_epochs": 1.0}, 0, 5),
        ({"first_epochs": 1.0}, 1, 9),
        ({"gradient_accumulation_steps": 4}, 0, 3),
        ({"epochs": 0.001}, 0, 1),
    ],
)
def test_number_of_steps(settings, increment_id, steps):
    assert trainer(**settings).num_steps(65, increment_id) == steps


def test_the_rate_rises_and_falls():
    rates = [_rate(step, 20, 0.25) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[5] == 1.0
    assert all(a > b for a, b in zip(rates[5:], rates[6:], strict=False)) and 0 < rates[-1] < 0.02
    assert _rate(0, 1, 0.0) == 1.0


def test_progress_survives_json():
    import json

    progress = Progress(loss=[{"loss": 1.0}], zero_shot=[0.25], cached=["a"])
    progress.cost.flops = 10**15
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def test_the_trunk_has_a_rate_of_its_own(make_model):
    model = make_model("resnet", base_training="first_increment", adapter_policy="per_increment")
    model.add_increment("cut", ["category"])
    model.set_trainable(0)
    method = FineTuning(RunArguments(prototype_weight=1.0))
    groups = trainer()._optimizer(model, method).param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.1]
    assert sum(p.numel() for p in groups[0]["params"]) > 0
    model.add_increment("more", ["colour"])
    model.set_trainable(1)
    method.begin_increment(model, 1, num_values=[3])
    (group,) = trainer()._optimizer(model, method).param_groups
    # The prototypes of the method learn beside the model.
    assert group["lr"] == 0.1 and len(group["params"]) == 1 + sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("device, processes", [("cuda", 2), ("cpu", 2), ("cpu", 1)])
def test_batch_statistics_on_several_processes(make_model, caplog, device, processes):
    model = make_model("resnet", base_training="first_increment")
    model.add_increment("cut", ["category"])
    model.set_trainable(0)
    parameters, names = list(model.parameters()), list(model.state_dict())
    fake = SimpleNamespace(num_processes=processes, device=torch.device(device))
    Accelerator()  # its logger needs a state
    with caplog.at_level(logging.WARNING):
        trainer(fake)._share_batch_statistics(model)
    synchronised = [isinstance(module, nn.SyncBatchNorm) for module in model.modules()]
    assert any(synchronised) == (device == "cuda")
    assert ("batch normalisation on several CPU processes" in caplog.text) == ((device, processes) == ("cpu", 2))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert names == list(model.state_dict())
    # A frozen trunk keeps its statistics: nothing to share.
    frozen = make_model("resnet")
    frozen.add_increment("cut", ["category"])
    frozen.set_trainable(0)
    trainer(fake)._share_batch_statistics(frozen)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in frozen.modules())
