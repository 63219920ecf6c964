# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from peft import PeftModel
from tiny_towers import TEXT, captions, shake, text_config
from torch.nn import functional

from modeling_mclfir import MclfirTextImageConfig
from modeling_mclfir.adapters_mclfir import adapter_layers, use_adapter
from modeling_mclfir.text_encoders_mclfir import load_text_encoder
from modeling_mclfir.text_tower_mclfir import TextTower

# ALBERT has no list of layers; T5's first layer prepares what later ones need.
OPAQUE = ("albert", "t5")


def make_tower(family="bert", increments=1, **settings):
    torch.manual_seed(0)
    config = MclfirTextImageConfig(text_config=text_config(family), lora_rank=2, **settings)
    for index in range(increments):
        config.append_increment(f"i{index}", ["text"], new_values=index > 0)
    tower = TextTower(config).eval()
    shake(tower)
    return tower


def whole(tower, input_ids, mask, increment_id=None):
    """What the encoder itself gives in one go."""
    names = () if increment_id is None else tower.config.running_adapters(increment_id)
    with torch.no_grad(), use_adapter(adapter_layers(tower.trunk), names):
        outputs = tower.trunk(input_ids=input_ids, attention_mask=mask)
    return tower._pooled(outputs, mask)


@pytest.mark.parametrize("family", [family for family in TEXT if family != "siglip"])
@torch.no_grad()
def test_two_parts_give_what_the_whole_gives(family):
    tower, (input_ids, mask) = make_tower(family), captions()
    shared = tower.shared_forward(input_ids, mask)
    assert shared.shape[:2] == input_ids.shape and tower.opaque == (family in OPAQUE)
    bare, own = (tower.increment_forward(shared, input_ids, mask, increment_id) for increment_id in (None, 0))
    assert torch.equal(bare, whole(tower, input_ids, mask))
    assert torch.equal(own, whole(tower, input_ids, mask, 0))
    assert not torch.allclose(own, bare, atol=1e-4), "the adapter does something"
    assert own.shape == (4, tower.config.text_dim)


@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_padding_makes_no_difference(family):
    tower, (input_ids, mask) = make_tower(family), captions()
    one = tower.increment_forward(tower.shared_forward(input_ids, mask), input_ids, mask, 0)
    input_ids, mask = functional.pad(input_ids, (0, 6)), functional.pad(mask, (0, 6))
    other = tower.increment_forward(tower.shared_forward(input_ids, mask), input_ids, mask, 0)
    torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    assert not torch.allclose(one[0], one[1], atol=1e-3)


@torch.no_grad()
def test_siglip_pads_to_its_full_length_as_it_was_trained():
    tower, (input_ids, mask) = make_tower("siglip"), captions()
    padded = functional.pad(input_ids, (0, 17))
    assert tower.full_length == padded.shape[1] == 24 and not tower.opaque
    shared = tower.shared_forward(input_ids, mask)
    assert shared.shape == (4, 24, 32)
    found = tower.increment_forward(shared, input_ids, mask, None)
    with use_adapter(adapter_layers(tower.trunk), None):
        expected = tower.trunk(input_ids=padded).pooler_output
    assert torch.equal(found, expected) and found.shape == (4, 24)


@pytest.mark.parametrize("count, first_shared", [(None, 3), (1, 3), (4, 0), (0, 3)])
@torch.no_grad()
def test_layers_below_the_first_adapted_one_run_once(count, first_shared):
    tower, (input_ids, mask) = make_tower(num_adapted_text_blocks=count), captions()
    tower.shared_forward(input_ids, mask)  # looks, once, how the encoder answers
    calls = []
    for place, layer in enumerate(tower.layers):
        own = layer.attention if place < 4 else layer
        own.register_forward_hook(lambda *_, place=place: calls.append(place))
    shared = tower.shared_forward(input_ids, mask)
    assert calls == list(range(first_shared))
    calls.clear()
    tower.increment_forward(shared, input_ids, mask, 0)
    assert calls == list(range(first_shared, 4))
    adapted = {name.split(".")[2] for name, _ in tower.trunk.named_parameters() if ".lora_A." in name}
    assert adapted == {str(place) for place in range(4 - (1 if count is None else count), 4)}


def test_layers_get_their_own_forward_back_even_after_an_error():
    tower, (input_ids, mask) = make_tower(), captions()
    tower.shared_forward(input_ids, mask)
    with pytest.raises((IndexError, RuntimeError)):
        tower.shared_forward(input_ids + 1000, mask)
    assert all("forward" not in layer.__dict__ and not layer._forward_pre_hooks for layer in tower.layers)


def test_the_frozen_part_drops_nothing_in_training_and_has_no_graph():
    tower, (input_ids, mask) = make_tower(), captions()
    with torch.no_grad():
        expected = tower.shared_forward(input_ids, mask)
    tower.train()
    shared = tower.shared_forward(input_ids, mask)
    assert torch.equal(shared, expected) and not shared.requires_grad
    one, other = (tower.increment_forward(shared, input_ids, mask, 0) for _ in range(2))
    assert torch.equal(one, other), "a frozen encoder's own dropout is off"
    tower = make_tower(lora_dropout=0.5).train()
    shake(tower)
    one, other = (tower.increment_forward(shared, input_ids, mask, 0) for _ in range(2))
    assert not torch.equal(one, other), "that of adapters is not"
    tower._trunk_trains = True
    assert tower.train().shared_forward(input_ids, mask).requires_grad


@pytest.mark.parametrize("pooling, expected", [("first", lambda out: out.last_hidden_state[:, 0]),
                                               ("pooler", lambda out: out.pooler_output)])  # fmt: skip
@torch.no_grad()
def test_poolings(pooling, expected):
    tower, (input_ids, mask) = make_tower(increments=0, text_pooling=pooling), captions()
    found = tower.increment_forward(tower.shared_forward(input_ids, mask), input_ids, mask)
    assert torch.equal(found, expected(tower.trunk(input_ids=input_ids, attention_mask=mask)))


@torch.no_grad()
def test_an_adapter_works_in_peft():
    from modeling_mclfir.adapters_mclfir import adapter_state_dict

    tower, (input_ids, mask) = make_tower(), captions()
    name = tower.config.adapter_name(0)
    state = {key.replace(".base_layer.", "."): value for key, value in tower.trunk.state_dict().items()}
    bare = load_text_encoder(tower.config.text_config)
    bare.load_state_dict({key: value for key, value in state.items() if ".lora_" not in key})
    adapted = PeftModel(bare, tower.adapter_settings()).eval()
    state = adapter_state_dict(tower.trunk, name)
    state = {key.replace(".weight", ".default.weight"): value for key, value in state.items()}
    assert not adapted.load_state_dict(state, strict=False).unexpected_keys
    found = adapted(input_ids=input_ids, attention_mask=mask)
    torch.testing.assert_close(tower._pooled(found, mask), whole(tower, input_ids, mask, 0), atol=1e-6, rtol=0)


def test_what_is_refused():
    input_ids, mask = captions()
    with pytest.raises(ValueError, match=r"0\.\.4"):
        make_tower(num_adapted_text_blocks=5)
    with pytest.raises(ValueError, match="no pooled output"):
        make_tower("distilbert", text_pooling="pooler")
    with pytest.raises(ValueError, match="text_config is missing"):
        TextTower(MclfirTextImageConfig())
    with pytest.raises(ValueError, match="takes pixel_values"):
        load_text_encoder({"model_type": "resnet"})
    with pytest.raises(ValueError, match="model_type"):
        load_text_encoder({"hidden_size": 8})
    tower = make_tower()
    with pytest.raises(ValueError, match="input_ids must be"):
        tower.shared_forward(input_ids[0], mask[0])
    with pytest.raises(ValueError, match="attention_mask"):
        tower.shared_forward(input_ids, mask[:, :3])
    shared = tower.shared_forward(input_ids, mask)
    with pytest.raises(ValueError, match="same padding"):
        tower.increment_forward(shared, input_ids[:, :5], mask[:, :5], 0)
