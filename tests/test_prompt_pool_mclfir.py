# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import nn

from modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.prompt_pool_mclfir import PromptPool

FAMILIES = ("vit", "deit", "dinov2", "dinov2_with_registers", "siglip", "clip_vision")
SIZES = {"prompt_pool_size": 7, "prompt_length": 2, "prompts_per_image": 3}


@pytest.fixture
def make_student(make_model):
    """A model with one increment, its prompts large enough to be felt."""

    def make(family="vit", **changes):
        model = make_model(family, adapter_policy="prompts", **(SIZES | changes))
        model.add_increment("shape", ["type", "hem"])
        with torch.no_grad():
            model.mclfir.prompt_pool.prompts.mul_(50)
        return model.eval()

    return make


def test_each_image_gets_the_prompts_of_the_nearest_keys():
    torch.manual_seed(0)
    pool = PromptPool(pool_size=9, length=2, per_image=4, token_dim=5, query_dim=6)
    queries = torch.randn(8, 6)
    tokens, cosines = pool(queries)
    assert tokens.shape == (8, 8, 5) and cosines.shape == (8, 4)
    keys, prompts = (part.detach().double().numpy() for part in (pool.keys, pool.prompts))
    chosen = set()
    for row, query in enumerate(queries.double().numpy()):
        angles = keys @ query / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-angles)[:4]
        chosen |= set(nearest)
        np.testing.assert_allclose(cosines[row].detach().numpy(), angles[nearest], rtol=1e-5)
        np.testing.assert_array_equal(tokens[row].detach().double().numpy(), np.concatenate(prompts[nearest]))
    assert len(chosen) > 4, "images choose differently"


def test_gradients_reach_the_prompts_and_keys_that_were_chosen_and_not_the_query():
    torch.manual_seed(0)
    pool = PromptPool(pool_size=9, length=2, per_image=4, token_dim=5, query_dim=6)
    tokens, cosines = pool(torch.randn(1, 6))
    (tokens.square().sum() + cosines.sum()).backward()
    learned = pool.prompts.grad.flatten(1).any(dim=1)
    assert int(learned.sum()) == 4 and torch.equal(learned, pool.keys.grad.any(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_without_tokens_of_prompts_an_increment_sees_the_bare_trunk(make_student, images, family):
    """Bit for bit, whatever class and register tokens there are: nothing of the image is cut off or moved."""
    model = make_student(family)
    mclfir = model.mclfir
    bare = mclfir(images)
    prompted = mclfir(images, increment_id=0)
    assert not torch.allclose(prompted.pooled, bare.pooled, atol=1e-3)
    mclfir.prompt_pool.prompts = nn.Parameter(mclfir.prompt_pool.prompts[:, :0])
    empty = mclfir(images, increment_id=0)
    for found in (prompted, empty):
        assert [part.shape for part in found.feature_maps] == [part.shape for part in bare.feature_maps]
        assert torch.equal(found.shared_features, bare.shared_features)
    assert torch.equal(empty.pooled, bare.pooled)
    assert all(torch.equal(*pair) for pair in zip(empty.feature_maps, bare.feature_maps, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_taken_away_again(make_student, images, family, monkeypatch):
    """Where no token looks at another, prompts change nothing: what is left is each of the image's own tokens."""

    def nothing(*hidden, hidden_states=None, **_):
        return torch.zeros_like(hidden[0] if hidden else hidden_states), None

    model = make_student(family)
    for layer in model.mclfir.trunk.modules():
        if type(layer).__name__.endswith("Attention") and hasattr(layer, "forward"):
            monkeypatch.setattr(layer, "forward", nothing)
    bare, prompted = model.mclfir(images), model.mclfir(images, increment_id=0)
    torch.testing.assert_close(prompted.pooled, bare.pooled, atol=1e-6, rtol=1e-6)
    for found, expected in zip(prompted.feature_maps, bare.feature_maps, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_prompts_stand_before_the_tokens_at_the_first_adapted_unit(make_student, images):
    """Step by step: the blocks of the trunk on prompts, class token and patches."""
    model = make_student("vit", num_adapted_blocks=2)
    mclfir, trunk = model.mclfir, model.mclfir.trunk
    hidden = trunk.embeddings(images)
    for block in trunk.layers[:2]:
        hidden = block(hidden)
    query = trunk(images).last_hidden_state[:, 1:].mean(dim=1)
    prompts, cosines = mclfir.prompt_pool(query)
    tokens = torch.cat([prompts, hidden], dim=1)
    for block in trunk.layers[2:]:
        tokens = block(tokens)
    expected = trunk.layernorm(tokens)[:, prompts.shape[1] + 1 :]
    assert expected.shape == (4, 16, 32)
    found = mclfir(images, increment_id=0)
    torch.testing.assert_close(found.shared_features, hidden)
    torch.testing.assert_close(found.pooled, expected.mean(dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.prompt_similarity, cosines, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_all_increments_share_one_run_and_it_can_be_taken_up_in_the_middle(make_student, images):
    model = make_student()
    model.add_increment("look", ["colour"])
    every = model.eval()(images)
    assert every.prompt_similarity.shape == (4, 3) and every.pooled.shape == (4, 32)
    assert torch.equal(model(shared_features=every.shared_features).embeds, every.embeds)
    assert torch.equal(model(images, increment_id=1).embeds, every.embeds[:, 2:])
    one_each = model(images, attribute_ids=torch.tensor([0, 2, 1, 2])).embeds
    torch.testing.assert_close(one_each, every.embeds[torch.arange(4), [0, 2, 1, 2]], atol=1e-6, rtol=1e-5)


def test_an_image_has_the_same_query_in_training(make_model, make_trunk_config, images):
    """Though the trunk drops things in training."""
    config = make_trunk_config("vit")
    config.hidden_dropout_prob = 0.5
    model = MclfirForImageRetrieval.from_trunk(config, adapter_policy="prompts", **SIZES)
    model.add_increment("shape", ["type"])
    with torch.no_grad():
        expected = model.eval()(images).prompt_similarity
        assert torch.equal(model.train()(images).prompt_similarity, expected)


def test_a_model_comes_back_from_disk(make_student, images, tmp_path):
    model = make_student("dinov2_with_registers")
    with torch.no_grad():
        embeds = model(images).embeds
        model.save_pretrained(tmp_path)
        loaded = MclfirForImageRetrieval.from_pretrained(tmp_path)
        assert torch.equal(loaded(images).embeds, embeds)
    assert (tmp_path / "prompt_pool_mclfir.py").exists(), "the code travels"


def test_the_pool_learns_with_an_increment_and_is_frozen_without(make_student):
    model = make_student()
    pool = {"mclfir.prompt_pool.prompts", "mclfir.prompt_pool.keys"}
    assert pool <= set(model.set_trainable(0)) and model.set_trainable(None) == []
    added = sum(value.numel() for value in (*model.heads.parameters(), *model.mclfir.prompt_pool.parameters()))
    assert model.num_added_parameters() == {"shape": added}


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2", "convnext", "swin"])
def test_trunks_without_tokens_are_refused(make_model, family):
    with pytest.raises(ValueError, match=f"trunk of type '{family}' has none to join; take a ViT-like one"):
        make_model(family, adapter_policy="prompts")
