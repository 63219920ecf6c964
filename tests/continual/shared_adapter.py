# SPDX-License-Identifier: Apache-2.0
"""A tiny student whose increments share one adapter, and the steps that a method takes with it."""

from dataclasses import asdict
from types import SimpleNamespace

import torch
from torch import distributed

from modeling_mclfir.continual import METHODS
from modeling_mclfir.losses import world_size
from modeling_mclfir.training.arguments import RunArguments

ATTRIBUTES = [["type", "hem"], ["colour"], ["collar", "print"]]
LABELS = torch.tensor([[0, 1], [0, 1], [1, -1], [1, -1], [2, 0], [2, 0], [0, 1], [0, 1]])
IMAGE_IDS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 6])  # rows 0 and 6 show the same image


def build(name: str, **changes):
    """A method; temperature 0.2 where nothing else is said."""
    return METHODS[name](SimpleNamespace(**(asdict(RunArguments(temperature=0.2)) | changes)))


def batch_of(step: int, increment_id: int, rows: slice = slice(None), serving: int | None = None) -> dict:
    """`serving`: the model's increment, where it is not that of the data."""
    pixels = torch.randn(len(LABELS), 3, 64, 64, generator=torch.Generator().manual_seed(100 * increment_id + step))
    serving = increment_id if serving is None else serving
    return {
        "inputs": {"pixel_values": pixels[rows], "increment_id": serving},
        "labels": LABELS[rows, : len(ATTRIBUTES[serving])],
        "image_ids": IMAGE_IDS[rows],
    }


class Rows:
    """What an increment was learned from."""

    def __init__(self, increment_id: int, rows: slice = slice(None), serving: int | None = None):
        self.arguments = increment_id, rows, serving

    def batches(self, num_batches: int):
        return (batch_of(50 + step, *self.arguments) for step in range(num_batches))


def make_student(make_model, family="resnet", adapter_policy="shared", **changes):
    return make_model(family, adapter_policy=adapter_policy, **changes)


def begin(model, method, increment_id: int, serving: int | None = None) -> None:
    """As the run does: heads of their own seed (none, where a known space learns on), then the method."""
    torch.manual_seed(increment_id)
    if serving is None:
        model.add_increment(f"increment{increment_id}", ATTRIBUTES[increment_id])
    model.set_trainable(increment_id if serving is None else serving, old_heads=method.learns_old_heads)
    model.train()
    method.begin_increment(model, increment_id)


def learn(model, method, increment_id: int, steps: int = 3, rows: slice = slice(None), serving=None) -> list[dict]:
    """Steps of AdamW, with the average of gradients that distributed training takes; what they told."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, told = torch.optim.AdamW(free, lr=0.02, eps=1e-3), []  # a smaller eps makes much of rounding
    for step in range(steps):
        parts = method.compute_loss(model, batch_of(step, increment_id, rows, serving))
        parts["loss"].backward()
        assert all(parameter.grad is not None for parameter in free), "distributed training would refuse"
        if world_size() > 1:
            for parameter in free:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= world_size()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model)
        told.append({name: value.item() for name, value in parts.items()} | {"loss": parts["loss"].item()})
        told[-1]["loss"] /= world_size()
    return told


def learn_all(model, method, increments: int = 2, first: int = 0, rows: slice = slice(None)) -> list[dict]:
    """Whole increments, one after the other."""
    told = []
    for increment_id in range(first, increments):
        begin(model, method, increment_id)
        told += learn(model, method, increment_id, rows=rows)
        method.end_increment(model, Rows(increment_id, rows))
        model.set_trainable(None)
    return told
