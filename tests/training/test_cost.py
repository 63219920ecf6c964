# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_mclfir.training.cost import Cost, count_flops, peak_memory_bytes


def stack(groups: int, channels: int = 16) -> nn.Module:
    layers = [nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False) for _ in range(4)]
    return nn.Sequential(*layers)


def forward_and_step(model, pixels) -> tuple[int, int]:
    with torch.no_grad():
        _, forward = count_flops(lambda: model(pixels))

    def step():
        outputs = model(pixels)
        outputs = outputs if isinstance(outputs, torch.Tensor) else outputs.last_hidden_state
        outputs.sum().backward()

    return forward, count_flops(step)[1]


@pytest.mark.parametrize("groups", [1, 2, 8, 16])
def test_a_step_of_convolutions_costs_three_forwards_less_the_first_ones_input(groups):
    forward, step = forward_and_step(stack(groups), torch.randn(2, 16, 8, 8))
    # 4 layers forward, 4 gradients of weights, 3 of inputs: the images need none.
    assert forward == 4 * 2 * 2 * 8 * 8 * 16 * (16 // groups) * 9
    assert step == forward * 11 // 4


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (2, 4)])
def test_transposed_convolutions(stride, groups):
    layer = nn.ConvTranspose2d(8, 12, 3, stride=stride, groups=groups, bias=False)
    pixels = torch.randn(2, 8, 5, 5, requires_grad=True)
    _, forward = count_flops(lambda: layer(pixels))
    _, step = count_flops(lambda: layer(pixels).sum().backward())
    assert forward == 2 * 2 * 5 * 5 * 8 * (12 // groups) * 9
    assert step == 3 * forward


@pytest.mark.parametrize("family", ["mobilenet_v2", "mobilenet_v1", "resnet", "convnext", "vit"])
def test_a_training_step_of_a_trunk_costs_two_to_three_forwards(make_trunk_config, family):
    import transformers

    model = transformers.AutoModel.from_config(make_trunk_config(family)).train()
    forward, step = forward_and_step(model, torch.randn(2, 3, 64, 64))
    assert 2 <= step / forward <= 3


def test_dense_layers_are_counted_as_torch_does():
    model = nn.Sequential(stack(1), nn.Flatten(), nn.Linear(16 * 64, 10), nn.ReLU(), nn.Linear(10, 3))
    pixels = torch.randn(2, 16, 8, 8)

    def step():
        return model(pixels).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    assert count_flops(step)[1] == counter.get_total_flops() > 0


def test_work_runs_once_and_its_result_comes_back():
    calls = []
    result, flops = count_flops(lambda: calls.append(1) or "done")
    assert (result, flops, calls) == ("done", 0, [1])


def test_bills_add_up_and_the_higher_peak_stands():
    bill = Cost(samples=1, steps=2, flops=3, seconds=0.5, waiting_seconds=0.125, peak_memory_bytes=100)
    bill.add(Cost(samples=10, steps=20, flops=30, seconds=0.25, waiting_seconds=0.125, peak_memory_bytes=40))
    assert bill.to_dict() == {
        "samples": 11, "steps": 22, "flops": 33, "seconds": 0.75, "waiting_seconds": 0.25, "peak_memory_bytes": 100
    }  # fmt: skip
    bill.add(Cost(peak_memory_bytes=300))
    assert bill.peak_memory_bytes == 300


def test_the_peak_is_in_bytes():
    # A Python with torch holds tens of megabytes at least; kilobytes or pages would come out a thousandfold lower.
    assert 30e6 < peak_memory_bytes(torch.device("cpu")) < 1e12
