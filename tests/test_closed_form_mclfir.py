# SPDX-License-Identifier: Apache-2.0
"""The heads that are worked out: their formula, what they refuse, what a checkpoint keeps of them."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling_mclfir import MclfirConfig, MclfirForImageRetrieval
from modeling_mclfir.closed_form_mclfir import ClosedFormHeads

N, A, D, C, V = 5, 3, 6, 7, 4  # of each attribute's D dimensions V have a value, and one of those no weights


def make_heads(size: int = 0, temperature: float = 0.0) -> ClosedFormHeads:
    torch.manual_seed(0)
    config = MclfirConfig(head_type="closed_form", embed_dim=D, projection_dim=size)
    heads = ClosedFormHeads(config, A, [3, C], C).double()
    heads.reset()
    heads.weight[:, : V - 1].normal_()
    heads.temperature.fill_(temperature)
    return heads


def pooled_features() -> torch.Tensor:
    return torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [0, 11])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_the_heads_are_their_formula(size, temperature):
    heads, pooled = make_heads(size, temperature), pooled_features()
    values, weight = pooled.numpy(), heads.weight.numpy()
    if size:
        features = np.maximum(values @ heads.projection.numpy(), 0)
    else:
        features = values / np.linalg.norm(values, axis=1, keepdims=True)
    expected = np.zeros((N, A, D))
    for n, a in np.ndindex(N, A):
        scores = [weight[a, v] @ features[n] for v in range(V - 1)]
        if temperature:
            powers = np.exp(np.array(scores) / temperature)
            scores = powers / powers.sum()
        expected[n, a, : V - 1] = scores / np.linalg.norm(scores)
    embeds, attention = heads([], pooled)
    assert attention is None and embeds.dtype == torch.float32 and np.std(expected) > 0.1
    np.testing.assert_allclose(embeds.numpy(), expected, atol=1e-6, rtol=0)


def test_attributes_may_have_temperatures_of_their_own():
    heads, pooled = make_heads(), pooled_features()
    heads.temperature[1] = 0.3
    embeds = heads([], pooled)[0]
    assert torch.equal(embeds[:, [0, 2]], make_heads()([], pooled)[0][:, [0, 2]])
    assert torch.equal(embeds[:, 1], make_heads(temperature=0.3)([], pooled)[0][:, 1])


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_before_anything_is_worked_out_embeddings_are_zero(temperature):
    heads = make_heads(temperature=temperature)
    heads.weight.zero_()
    assert torch.equal(heads([], pooled_features())[0], torch.zeros(N, A, D))


def test_nothing_learns_and_a_projection_is_drawn_once_an_increment(make_model):
    model = make_model("resnet", head_type="closed_form", projection_dim=50, adapter_policy="frozen")
    for name in ("shape", "look"):
        model.add_increment(name, [name])
    assert model.set_trainable(1) == [] and model.num_added_parameters() == {"shape": 0, "look": 0}
    first, second = (heads.projection for heads in model.heads)
    assert first.shape == (32, 50) and not torch.equal(first, second)
    assert abs(first.std() * 32**0.5 - 1) < 0.05 and abs(first.mean()) < 0.02
    assert make_model("resnet", head_type="closed_form").mclfir.last_unit == 5, "pooled features need all units"


@pytest.mark.parametrize("family", ["resnet", "vit"])
@pytest.mark.parametrize("size", [0, 9])
def test_all_comes_back_from_disk(make_model, images, tmp_path, family, size):
    model = make_model(family, head_type="closed_form", projection_dim=size, adapter_policy="frozen")
    model.add_increment("shape", ["type", "hem"])
    model.heads[0].weight[:, :5].normal_()
    model.heads[0].temperature[1] = 0.2
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is MclfirForImageRetrieval and type(loaded.heads[0]) is ClosedFormHeads
    assert loaded.config.projection_dim == size
    embeds = model(images).embeds
    assert embeds.shape == (4, 2, 16) and torch.equal(loaded(images).embeds, embeds)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4, 2))
    # A later increment changes nothing.
    loaded.add_increment("look", ["colour"])
    assert torch.equal(loaded.eval()(images, increment_id=0).embeds, embeds)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"projection_dim": -1}, "projection_dim must be a whole number of at least 0; got -1"),
        ({"projection_dim": 2.5}, "projection_dim must be a whole number of at least 0; got 2.5"),
        ({"use_spatial_attention": False}, "'closed_form' has no part that use_spatial_attention"),
        ({"prompt_type": "text", "prompt_dim": 3}, "'closed_form' reads no prompts"),
    ],
)
def test_bad_settings_are_refused_when_built(settings, message):
    with pytest.raises(ValueError, match=message):
        MclfirConfig(head_type="closed_form", **settings)
