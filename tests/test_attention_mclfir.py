# SPDX-License-Identifier: Apache-2.0
"""The heads against their formulas, written out here with loops over Python numbers in double precision."""

import math

import pytest
import torch

from modeling_mclfir import MclfirConfig
from modeling_mclfir.attention_mclfir import (
    AttributeChannelAttention,
    AttributeHeads,
    AttributeSpatialAttention,
    MultiLevelFusion,
)

N, A, D, H, W = 2, 3, 4, 3, 2


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_spatial(fused, prompts, scale):
    """softmax over places of scale <prompt, tanh(map)> / sqrt(D), then the map's mean under it."""
    fused, prompts = fused.tolist(), prompts.tolist()
    places, size = len(fused[0][0]), len(fused[0])
    attended, attention = [], []
    for image in fused:
        attended.append([])
        attention.append([])
        for prompt in prompts:
            powers = []
            for p in range(places):
                score = sum(prompt[d] * math.tanh(image[d][p]) for d in range(size)) / math.sqrt(size)
                powers.append(math.exp(scale * score))
            weights = [power / sum(powers) for power in powers]
            attention[-1].append(weights)
            attended[-1].append([sum(weights[p] * image[d][p] for p in range(places)) for d in range(size)])
    return torch.tensor(attended, dtype=torch.float64), torch.tensor(attention, dtype=torch.float64)


def slow_channel(attended, prompts, reduce, expand):
    """sigmoid(F2 relu(F1 [attended; prompt]))."""

    def linear(layer, values):
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        return [sum(w * v for w, v in zip(weights, values, strict=True)) + bias for weights, bias in rows]

    gates = []
    for image in attended.tolist():
        gates.append([])
        for vector, prompt in zip(image, prompts.tolist(), strict=True):
            hidden = [max(value, 0.0) for value in linear(reduce, vector + prompt)]
            gates[-1].append([1 / (1 + math.exp(-value)) for value in linear(expand, hidden)])
    return torch.tensor(gates, dtype=torch.float64)


def test_spatial_attention_is_its_formula():
    attention = AttributeSpatialAttention().double()
    with torch.no_grad():
        attention.logit_scale.fill_(0.7)
    fused, prompts = random(N, D, H * W), random(A, D, seed=1)
    attended, weights = attention(fused, prompts)
    slow_attended, slow_weights = slow_spatial(fused, prompts, math.exp(0.7))
    torch.testing.assert_close(attended, slow_attended, atol=1e-10, rtol=0)
    torch.testing.assert_close(weights, slow_weights, atol=1e-10, rtol=0)


def test_attention_sums_to_one_also_where_scores_are_large():
    attended, weights = AttributeSpatialAttention()(1000 * random(N, D, 50).float(), 1000 * random(A, D).float())
    assert torch.allclose(weights.sum(-1), torch.ones(N, A), atol=1e-6)
    assert (weights >= 0).all() and attended.isfinite().all()


def test_channel_attention_is_its_formula():
    torch.manual_seed(0)
    gate = AttributeChannelAttention(D, 5).double()
    attended, prompts = random(N, A, D), random(A, D, seed=1)
    gates = gate(attended, prompts)
    slow = slow_channel(attended, prompts, gate.reduce, gate.expand)
    torch.testing.assert_close(gates, slow, atol=1e-10, rtol=0)
    assert slow.std() > 0.01


def test_fusion_adds_projected_levels_on_the_finest_grid():
    torch.manual_seed(0)
    fusion = MultiLevelFusion([3, 5], D).double()
    fine, coarse = random(N, 3, 4, 4), random(N, 5, 2, 2, seed=1)
    fused = fusion([fine, coarse])
    expected = torch.empty(N, D, 4, 4, dtype=torch.float64)
    for row in range(4):
        for column in range(4):
            levels = fine[:, :, row, column], coarse[:, :, row // 2, column // 2]
            expected[:, :, row, column] = sum(
                values @ projection.weight[:, :, 0, 0].T + projection.bias
                for projection, values in zip(fusion.projections, levels, strict=True)
            )
    mean = expected.mean(dim=(1, 2, 3), keepdim=True)
    variance = expected.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
    expected = (expected - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(fused, expected, atol=1e-10, rtol=0)


def heads(**settings):
    torch.manual_seed(0)
    config = MclfirConfig(**({"embed_dim": D, "gate_dim": 5} | settings))
    built = AttributeHeads(config, A, [3, 5], 5).double()
    built.reset()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def inputs(size=N):
    return [random(size, 3, H, W), random(size, 5, H, W, seed=1)], random(size, 5, seed=2)


@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("with_pooled", [False, True])
@pytest.mark.parametrize("prompt", [{}, {"prompt_type": "text", "prompt_dim": 6}], ids=["learned", "text"])
def test_a_head_is_the_sum_of_its_parts_normalised(channel, with_pooled, prompt):
    built = heads(use_channel_attention=channel, use_pooled_features=with_pooled, **prompt)
    if prompt:
        built.prompts.copy_(random(A, 6, seed=3))
    maps, pooled = inputs()
    embeds, attention = built(maps, pooled)
    prompts = built.prompts @ built.prompt_projection.weight.T if prompt else built.prompts
    fused = built.fusion(maps).flatten(2)
    attended, weights = slow_spatial(fused, prompts, built.spatial.logit_scale.exp().item())
    expected = attended * built.gain
    if channel:
        expected = expected * slow_channel(attended, prompts, built.channel.reduce, built.channel.expand)
    if with_pooled:
        mean, variance = pooled.mean(1, keepdim=True), pooled.var(1, keepdim=True, unbiased=False)
        projected = (pooled - mean) / (variance + 1e-5).sqrt() @ built.projections.weight.T + built.projections.bias
        expected = expected + projected.reshape(N, A, D)  # an attribute after the other
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(attention.flatten(2), weights, atol=1e-10, rtol=0)
    assert attention.shape == (N, A, H, W)


def test_without_spatial_attention_every_place_counts_alike():
    built = heads(use_spatial_attention=False)
    maps, pooled = inputs()
    embeds, attention = built(maps, pooled)
    assert attention is None
    assert not torch.equal(built([torch.zeros_like(level) for level in maps], pooled)[0], embeds)
    torch.testing.assert_close(built([level.flip(2, 3) for level in maps], pooled)[0], embeds)


def test_without_any_attention_the_maps_are_not_read():
    built = heads(use_spatial_attention=False, use_channel_attention=False)
    maps, pooled = inputs()
    embeds, attention = built(maps, pooled)
    assert attention is None
    assert torch.equal(built([torch.zeros_like(level) for level in maps], pooled)[0], embeds)


def test_images_of_a_batch_do_not_touch_each_other():
    built = heads().train()
    maps, pooled = inputs(5)
    whole = built(maps, pooled)
    for n in range(5):
        alone = built([level[n : n + 1] for level in maps], pooled[n : n + 1])
        torch.testing.assert_close(alone[0], whole[0][n : n + 1], atol=1e-6, rtol=0)
        torch.testing.assert_close(alone[1], whole[1][n : n + 1], atol=1e-10, rtol=0)


def test_attributes_of_an_increment_start_apart():
    embeds, attention = heads()(*inputs())
    for first in range(A):
        for second in range(first):
            assert not torch.allclose(embeds[:, first], embeds[:, second], atol=1e-2)
            assert not torch.allclose(attention[:, first], attention[:, second], atol=1e-3)
