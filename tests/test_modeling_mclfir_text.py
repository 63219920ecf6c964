# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from peft import PeftModel
from tiny_runs import assert_equal_weights
from tiny_towers import captions, make_towers, pair_config, shake, text_config
from tiny_trunks import IMAGE_SIZE, trunk_config
from transformers import AutoModel, CLIPModel, SiglipModel

from modeling_mclfir import MclfirForTextImageRetrieval, MclfirTextImageConfig
from modeling_mclfir.text_encoders_mclfir import load_text_encoder
from modeling_mclfir.training.checkpoint import load_increment, save_increment

NAMES = ("apparel", "shoes", "bags")
PAIRS = [("vit", "bert"), ("mobilenet_v2", "bert"), ("clip", None), ("siglip", None)]


def with_increments(model, count=3):
    for index, name in enumerate(NAMES[:count]):
        model.add_increment(name, new_values=index > 0)
    return model.eval()


def learn(model, increment_id, images, steps=2):
    """Optimiser steps on both towers; weight decay moves all that the optimiser holds."""
    names = model.set_trainable(increment_id)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([parameters[name] for name in names], lr=0.03, weight_decay=0.1)
    model.train()
    input_ids, mask = captions()
    for _ in range(steps):
        embeds = model(images, input_ids, mask, increment_id=increment_id).embeds
        (embeds * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return names


@torch.no_grad()
def embed(model, images, **settings):
    return model.eval()(images, *captions(), **settings)


@pytest.fixture
def model(images):
    model = with_increments(make_towers())
    shake(model)
    return model


# What a call returns


def test_what_both_sides_give(model, images):
    output = embed(model, images, increment_id=1)
    assert output.text_embeds.shape == output.image_embeds.shape == (4, 1, 16) and output.embeds.shape == (8, 1, 16)
    assert torch.equal(output.embeds[0::2], output.text_embeds)
    assert torch.equal(output.embeds[1::2], output.image_embeds)
    assert torch.allclose(output.embeds.norm(dim=-1), torch.ones(8, 1), atol=1e-6)
    cosines = output.text_embeds[:, 0] @ output.image_embeds[:, 0].T
    torch.testing.assert_close(output.logits_per_text, cosines / 0.07, atol=1e-4, rtol=0)
    assert torch.equal(output.logits_per_image, output.logits_per_text.T)
    assert output.pooled.shape == (4, 32) and output.pooled_text.shape == (4, 32)
    assert output.attribute_logits is None


def test_spaces_asked_for(model, images):
    everything = embed(model, images)
    assert everything.embeds.shape == (8, 3, 16) and everything.logits_per_text is None and everything.pooled is None
    some = embed(model, images, attribute_ids=[2, 0])
    assert torch.equal(some.embeds, everything.embeds[:, [2, 0]])
    one = embed(model, images, increment_id=2)
    assert torch.equal(one.embeds, everything.embeds[:, 2:])
    assert len(torch.unique(everything.embeds.reshape(-1, 16), dim=0)) == 8 * 3
    assert model.attribute_ids(["text"]) == [0, 1, 2]


def test_one_side_alone(model, images):
    both, (input_ids, mask) = embed(model, images), captions()
    with torch.no_grad():
        image, text = model(images), model(input_ids=input_ids, attention_mask=mask)
        assert torch.equal(image.embeds, both.image_embeds) and image.text_embeds is None
        assert torch.equal(text.embeds, both.text_embeds) and text.image_embeds is None
        assert torch.equal(model.get_image_features(images), both.image_embeds[:, 2])
        assert torch.equal(model.get_text_features(input_ids, mask, increment_id=0), both.text_embeds[:, 0])
        fewer = model(images[:2], input_ids, mask, increment_id=0)
    assert fewer.embeds is None and fewer.logits_per_text.shape == (4, 2)


@pytest.mark.parametrize("trunk, text", PAIRS)
def test_shared_parts_stand_in_for_the_inputs(trunk, text, images):
    model = with_increments(make_towers(trunk, text), 2)
    shake(model)
    first, (input_ids, mask) = embed(model, images), captions()
    shared = {"shared_features": first.shared_features, "shared_text": first.shared_text}
    with torch.no_grad():
        again = model(input_ids=input_ids, attention_mask=mask, **shared)
    assert torch.equal(again.embeds, first.embeds)


# Pairs


@pytest.mark.parametrize("family, model_class", [("clip", CLIPModel), ("siglip", SiglipModel)])
@torch.no_grad()
def test_a_fresh_increment_answers_as_the_pair_does(family, model_class, images, tmp_path):
    torch.manual_seed(1)
    pair = model_class(pair_config(family)).eval()
    shake(pair)
    pair.save_pretrained(tmp_path)
    model = MclfirForTextImageRetrieval.from_towers(str(tmp_path))
    model.add_increment("apparel")
    model.add_increment("shoes", new_values=True)
    input_ids = torch.randint(3, 98, (4, 24), generator=torch.Generator().manual_seed(3))
    input_ids[:, -1] = 99
    output = model(images, input_ids, torch.ones_like(input_ids))
    expected = pair(input_ids=input_ids, pixel_values=images)
    for space in range(2):
        torch.testing.assert_close(output.image_embeds[:, space], expected.image_embeds, atol=1e-6, rtol=0)
        torch.testing.assert_close(output.text_embeds[:, space], expected.text_embeds, atol=1e-6, rtol=0)
    features = pair.get_image_features(images).pooler_output
    features = features / features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model.get_image_features(images), features, atol=1e-6, rtol=0)
    assert model.heads[1].logit_scale == pair.logit_scale
    # Kept with the model, before it has an increment, too.
    bare = MclfirForTextImageRetrieval.from_towers(str(tmp_path))
    bare.save_pretrained(tmp_path / "bare")
    loaded = MclfirForTextImageRetrieval.from_pretrained(tmp_path / "bare")
    loaded.add_increment("apparel")
    assert torch.equal(loaded.get_image_features(images), model.get_image_features(images))


def test_what_a_pair_refuses(images):
    with pytest.raises(ValueError, match="embed_dim 16"):
        make_towers("clip", embed_dim=16)
    config = pair_config("siglip")
    config.text_config.projection_size = 20
    with pytest.raises(ValueError, match="without a projection"):
        MclfirForTextImageRetrieval.from_towers(config)
    with pytest.raises(ValueError, match="no text tower"):
        MclfirForTextImageRetrieval.from_towers(config.vision_config)
    mixed = MclfirForTextImageRetrieval.from_towers(pair_config("clip"), pair_config("siglip"), embed_dim=8)
    mixed.add_increment("apparel")
    assert embed(mixed, images).embeds.shape == (8, 1, 8) and mixed.own_projections is None


# Nothing is forgotten


@pytest.mark.parametrize("trunk, text", PAIRS)
def test_old_embeddings_stay_bit_for_bit(trunk, text, images):
    model = make_towers(trunk, text, num_shared_layers=1)
    kept = []
    for increment_id, name in enumerate(NAMES):
        model.add_increment(name, new_values=increment_id > 0)
        start = embed(model, images)
        for old, embeds in enumerate(kept):
            assert torch.equal(start.embeds[:, old], embeds), "adding alone changed it"
        if kept:
            assert torch.equal(start.embeds[:, -1], kept[-1]), "a new space begins where the one before it ended"
        learn(model, increment_id, images)
        learned = embed(model, images, increment_id=increment_id)
        for side in ("image_embeds", "text_embeds"):
            assert not torch.allclose(getattr(start, side)[:, -1:], getattr(learned, side), atol=1e-3), side
        kept.append(learned.embeds[:, 0])
        assert torch.equal(embed(model, images).embeds, torch.stack(kept, dim=1))


def test_a_shared_adapter_moves_the_towers_of_old_increments(images):
    model = with_increments(make_towers(adapter_policy="shared"), 2)
    before = embed(model, images, increment_id=0)
    learn(model, 1, images)
    after = embed(model, images, increment_id=0)
    assert not torch.allclose(after.text_embeds, before.text_embeds, atol=1e-3)
    assert not torch.allclose(after.image_embeds, before.image_embeds, atol=1e-3)


# What learns


SETTINGS = [
    {},
    {"adapter_policy": "shared"},
    {"adapter_policy": "frozen"},
    {"adapter_policy": "stacked"},
    {"base_training": "first_increment"},
    {"num_shared_layers": 2},
    {"num_adapted_text_blocks": 0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("trunk, text", [("vit", "bert"), ("clip", None), ("siglip", None)])
def test_gradients_reach_exactly_what_set_trainable_names(trunk, text, settings, images):
    model = with_increments(make_towers(trunk, text, **settings), 2)
    shake(model)
    for increment_id in range(2):
        names = model.set_trainable(increment_id)
        model.zero_grad()
        embeds = model.train()(images, *captions(), increment_id=increment_id).embeds
        (embeds * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        assert names == [name for name, parameter in model.named_parameters() if parameter.grad is not None]
        sides = {name.split(".")[0] for name in names if ".lora_" in name or ".trunk." in name}
        if settings.get("adapter_policy") != "frozen":
            assert sides == ({"mclfir"} if settings == {"num_adapted_text_blocks": 0} else {"mclfir", "text"})
    assert model.set_trainable(None) == []


def test_counts_and_the_teachers_copy(images):
    model = make_towers()
    start = sum(parameter.numel() for parameter in model.parameters())
    with_increments(model, 2)
    added = model.num_added_parameters()
    assert sum(parameter.numel() for parameter in model.parameters()) - start == sum(added.values())
    assert added["apparel"] == added["shoes"] > 2 * 32 * 16
    names = set(model.set_trainable(1))
    twin = model.copy_trainable()
    own = dict(twin.named_parameters())
    assert {name for name, value in model.named_parameters() if own[name] is not value} == names
    before = embed(twin, images)
    learn(model, 1, images)
    model.heads[1].logit_scale.fill_(1.0)
    assert torch.equal(embed(twin, images).embeds, before.embeds) and twin.heads[1].logit_scale != 1
    assert twin.text.config is twin.config is not model.config


# Which space


@torch.no_grad()
def test_the_router_finds_the_space_of_each_side(model, images, tmp_path):
    input_ids, mask = captions()
    directions = torch.eye(32)
    with pytest.raises(ValueError, match="'apparel'.*describe_increment"):
        model.route(directions, "image")
    for increment_id in range(3):
        model.describe_increment(increment_id, directions[[increment_id]], directions[[increment_id + 3]], (0.1, 0.2))
    for side, start in (("image", 0), ("text", 3)):
        weights = model.route(directions[start : start + 3], side)
        assert weights.shape == (3, 3) and torch.equal(weights.argmax(dim=1), torch.arange(3))
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    model.save_pretrained(tmp_path)
    loaded = MclfirForTextImageRetrieval.from_pretrained(tmp_path)
    pooled = model.text.increment_forward(model.text.shared_forward(input_ids, mask), input_ids, mask, None)
    assert torch.equal(loaded.route(pooled, "text", top=2), model.route(pooled, "text", top=2))
    assert loaded.config.increments[0]["router"]["spreads"] == [0.1, 0.2]
    with pytest.raises(ValueError, match="described already"):
        model.describe_increment(0, directions[:1], directions[:1], (0.1, 0.2))
    with pytest.raises(ValueError, match="side"):
        model.route(pooled, "audio")


# On disk


@pytest.mark.parametrize("settings", [{}, {"adapter_policy": "shared"}, {"base_training": "first_increment"}], ids=str)
@pytest.mark.parametrize("trunk, text", PAIRS)
def test_round_trip(trunk, text, settings, images, tmp_path):
    model = with_increments(make_towers(trunk, text, num_shared_layers=1, **settings), 2)
    learn(model, 1, images, steps=1)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is MclfirForTextImageRetrieval
    assert_equal_weights(model.state_dict(), loaded.state_dict())
    assert torch.equal(embed(loaded, images).embeds, embed(model, images).embeds)
    assert loaded.add_increment("later", new_values=True) == 2


def test_a_checkpoint_an_increment(images, tmp_path):
    from modeling_mclfir import MclfirImageProcessor

    model = with_increments(make_towers(), 1)
    learn(model, 0, images, steps=1)
    first, processor = embed(model, images).embeds, MclfirImageProcessor()
    save_increment(tmp_path / "a", model, processor, {}, {})
    model.add_increment("shoes", new_values=True)
    learn(model, 1, images, steps=1)
    save_increment(tmp_path / "b", model, processor, {"n": 1}, {}, previous=tmp_path / "a")
    for name in ("trunk.safetensors", "text.safetensors", "adapters/apparel/text/adapter_model.safetensors"):
        assert (tmp_path / "a" / name).samefile(tmp_path / "b" / name), name
    loaded, state, _ = load_increment(tmp_path / "b", MclfirForTextImageRetrieval)
    assert torch.equal(embed(loaded, images).embeds, embed(model, images).embeds) and state == {"n": 1}
    assert torch.equal(embed(AutoModel.from_pretrained(tmp_path / "a"), images).embeds, first)
    # PEFT reads the text tower's adapter.
    bare, (input_ids, mask) = load_text_encoder(model.config.text_config), captions()
    weights = {key.replace(".base_layer.", "."): value for key, value in model.text.trunk.state_dict().items()}
    bare.load_state_dict({key: value for key, value in weights.items() if ".lora_" not in key})
    adapted = PeftModel.from_pretrained(bare, tmp_path / "b" / "adapters" / "shoes" / "text").eval()
    with torch.no_grad():
        found = model.text._pooled(adapted(input_ids=input_ids, attention_mask=mask), mask)
    torch.testing.assert_close(found, embed(model, images, increment_id=1).pooled_text, atol=1e-6, rtol=0)


# What is refused


def test_what_is_refused(model, images):
    input_ids, mask = captions()
    with pytest.raises(ValueError, match="no increment yet"):
        make_towers()(images)
    with pytest.raises(ValueError, match="Pass images"):
        model()
    with pytest.raises(ValueError, match="a tensor"):
        model(images, attribute_ids=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="increment_id 3"):
        model(images, increment_id=3)
    with pytest.raises(ValueError, match="one space"):
        model.add_increment("more", ["text", "colour"])
    with pytest.raises(ValueError, match="new_values"):
        model.add_increment("more")
    with pytest.raises(ValueError, match="'prompts'"):
        make_towers(adapter_policy="prompts")
    with pytest.raises(ValueError, match="use 'mean'"):
        embed(with_increments(make_towers("mobilenet_v2", image_pooling="first"), 1), images)


@pytest.mark.parametrize("settings, message", [
    ({"image_pooling": "max"}, "image_pooling"), ({"num_shared_layers": -1}, "num_shared_layers"),
    ({"head_type": "mclfir"}, "no other heads"), ({"text_config": {}}, "text_config needs a 'model_type'"),
])  # fmt: skip
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MclfirTextImageConfig(**settings)


def test_a_configuration_comes_back(tmp_path):
    config = make_towers("clip").config
    assert (config.image_pooling, config.text_pooling, config.embed_dim, config.text_dim) == (
        "pooler",
        "pooler",
        24,
        16,
    )
    config.save_pretrained(tmp_path)
    again = MclfirTextImageConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    plain = make_towers().config
    assert (plain.image_pooling, plain.text_pooling, plain.num_shared_layers) == ("mean", "mean", 0)


@pytest.mark.parametrize("use_low_level_features", [True, False])
def test_what_the_projections_read(use_low_level_features):
    torch.manual_seed(0)
    model = MclfirForTextImageRetrieval.from_towers(
        trunk_config("mobilenet_v2"), text_config("bert"), pretrained=False, embed_dim=8,
        use_low_level_features=use_low_level_features,
    )  # fmt: skip
    model.add_increment("one")
    model.eval()
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    tokens, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    output = model(pixels, tokens, mask, increment_id=0)
    image_blocks, text_blocks = model.projection_blocks()
    assert output.image_inputs.shape == (2, sum(image_blocks)) and output.text_inputs.shape == (2, sum(text_blocks))
    if not use_low_level_features:
        assert torch.equal(output.image_inputs, output.pooled) and torch.equal(output.text_inputs, output.pooled_text)
        return
    pooled, mean, inner, deviation, most = output.image_inputs.split(image_blocks, dim=1)
    maps = output.shared_features
    assert torch.equal(pooled, output.pooled)
    torch.testing.assert_close(mean, maps.mean((2, 3)))
    torch.testing.assert_close(deviation, maps.flatten(2).std(2, correction=0))
    torch.testing.assert_close(most, maps.flatten(2).max(2).values)
    side = maps.shape[-1]
    middle = slice(side // 4, side - side // 4)
    torch.testing.assert_close(inner, maps[:, :, middle, middle].mean((2, 3)))
    words = output.text_inputs[:, text_blocks[0] :]
    torch.testing.assert_close(words[1], output.shared_text[1, :2].mean(0))  # padding does not count


def test_projections_of_a_pair_read_pooled_features_alone():
    model = MclfirForTextImageRetrieval.from_towers(pair_config("clip"), pretrained=False)
    assert not model.config.use_low_level_features and len(model.projection_blocks()[0]) == 1
    with pytest.raises(ValueError, match="use_low_level_features"):
        MclfirForTextImageRetrieval.from_towers(pair_config("clip"), pretrained=False, use_low_level_features=True)


def test_a_checkpoint_of_another_kind(tmp_path):
    from modeling_mclfir import MclfirForImageRetrieval

    model = MclfirForTextImageRetrieval.from_towers(trunk_config("resnet"), text_config("bert"), pretrained=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'mclfir_text_image'; MclfirForImageRetrieval loads 'mclfir'"):
        MclfirForImageRetrieval.from_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), MclfirForTextImageRetrieval)
