# SPDX-License-Identifier: Apache-2.0
"""Whole models with the baseline heads, on a convolution and on a token trunk."""

import pytest
import torch

from modeling_mclfir import MclfirConfig, MclfirForImageRetrieval
from modeling_mclfir.configuration_mclfir import HEAD_TYPES
from modeling_mclfir.modeling_mclfir import HEADS

# Heads that learn by steps; those that are worked out have a file of their own, test_closed_form_mclfir.py.
BASELINES = [name for name in HEAD_TYPES if name not in ("mclfir", "closed_form")]
PROMPTED = [name for name in BASELINES if name not in ("linear", "csn")]
TEXT = {"prompt_type": "text", "prompt_dim": 9}
INCREMENTS = (("shape", ["type", "sleeve length", "hem"]), ("look", ["colour", "pattern"]))
KINDS = {name: {"head_type": name, "attribute_dim": 12} for name in BASELINES}
KINDS["csn fixed"] = KINDS["csn"] | {"mask_type": "fixed"}
KINDS["ag_man classifying"] = KINDS["ag_man"] | {"use_attribute_classification": True}
KINDS |= {f"{name} text": KINDS[name] | TEXT for name in PROMPTED}


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompts_of(model, attributes, seed):
    if model.config.prompt_type == "learned":
        return None
    return torch.randn(len(attributes), model.config.prompt_dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["resnet", "vit"])
def family(request):
    return request.param


@pytest.fixture
def build(make_model, family):
    """kind → a model of two increments, in evaluation."""

    def made(kind, **settings):
        model = make_model(family, **(KINDS[kind] | settings))
        for seed, (name, attributes) in enumerate(INCREMENTS):
            model.add_increment(name, attributes, prompt_embeds=prompts_of(model, attributes, seed))
        return model.eval()

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_attribute_from_one_pass(build, kind, images):
    model = build(kind)
    outputs = model(images, output_attentions=True)
    assert outputs.embeds.shape == (4, 5, 16) and outputs.embeds.dtype == torch.float32
    torch.testing.assert_close(outputs.embeds.norm(dim=-1), torch.ones(4, 5), atol=1e-6, rtol=0)
    if kind.startswith(("linear", "csn")):
        assert outputs.attentions is None
    else:
        assert outputs.attentions.shape[:2] == (4, 5) and outputs.attentions.ndim == 4
        torch.testing.assert_close(outputs.attentions.sum(dim=(2, 3)), torch.ones(4, 5), atol=1e-5, rtol=0)
    for index in range(5):
        assert torch.equal(model(images, attribute_ids=[index]).embeds[:, 0], outputs.embeds[:, index])
        for other in range(index):
            assert not torch.allclose(outputs.embeds[:, index], outputs.embeds[:, other], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_does_not_depend_on_its_batch_in_training_either(build, kind, images):
    # In float64: an untrained trunk of many layers blows float32's rounding up.
    model, images = build(kind).double().train(), images.double()
    torch.testing.assert_close(model(images[1:2]).embeds, model(images).embeds[1:2], atol=1e-5, rtol=0)


def train_step(model, images, increment_id):
    names = model.set_trainable(increment_id)
    model.train()
    outputs = model(images, increment_id=increment_id)
    loss = (outputs.embeds * random(outputs.embeds.shape, seed=3)).sum()
    if outputs.attribute_logits is not None:
        loss = loss + (outputs.attribute_logits * random(outputs.attribute_logits.shape, seed=4)).sum()
    loss.backward()
    return names, {name: parameter.grad for name, parameter in model.named_parameters()}


ABLATIONS = {
    f"{head} without {part}": KINDS[head] | {part: False}
    for head in BASELINES
    for part in HEAD_TYPES[head]
    if part.startswith("use_") and part != "use_attribute_classification"
}
ABLATIONS |= {
    f"{head} without attention": KINDS[head] | {"use_spatial_attention": False, "use_channel_attention": False}
    for head in PROMPTED
}
ABLATIONS["ag_man classifying one map"] = KINDS["ag_man classifying"] | {"use_low_level_branch": False}


@pytest.mark.parametrize("settings", (KINDS | ABLATIONS).values(), ids=(KINDS | ABLATIONS).keys())
def test_gradients_reach_every_parameter_that_learns(make_model, family, images, settings):
    model = make_model(family, **settings)
    name, attributes = INCREMENTS[0]
    model.add_increment(name, attributes, prompt_embeds=prompts_of(model, attributes, 0))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".lora_B." in parameter_name:
                parameter.normal_(std=0.1)
    names, gradients = train_step(model, images, 0)
    assert {name for name, gradient in gradients.items() if gradient is not None} == set(names)
    idle = [name for name in names if not gradients[name].any() and "key" not in name and "k_proj" not in name]
    assert not idle
    own = {name for name, _ in model.named_parameters() if name.startswith("heads.")}
    assert own <= set(names)


def test_maps_below_the_pooled_features_are_the_top_where_those_are_not_read(make_model):
    settings = {"num_adapted_blocks": 3, "out_indices": [2, 4]}
    tops = {name: make_model("resnet", **KINDS[name], **settings).mclfir.last_unit for name in BASELINES}
    assert tops == {"linear": 5, "csn": 5, "asen": 4, "asen_v2": 4, "ag_man": 4, "mclfir_published": 4}
    assert make_model("resnet", **KINDS["ag_man classifying"], **settings).mclfir.last_unit == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_increment_changes_no_old_embedding_and_all_comes_back_from_disk(build, kind, images, learn, tmp_path):
    from transformers import AutoModel

    model = build(kind)
    learn(model, 0, images, steps=1)
    before = model(images, increment_id=0).embeds
    learn(model, 1, images, steps=1)
    attributes = ["lapel"]
    model.add_increment("later", attributes, prompt_embeds=prompts_of(model, attributes, 7))
    embeds = model.eval()(images).embeds
    assert torch.equal(embeds[:, :3], before)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is MclfirForImageRetrieval
    assert type(loaded.heads[0]) is HEADS[model.config.head_type]
    assert torch.equal(loaded(images).embeds, embeds)


@pytest.mark.parametrize("name", PROMPTED)
def test_text_prompts_steer_the_heads_and_are_not_learned(build, name, images):
    model = build(f"{name} text")
    before = model(images, increment_id=0).embeds
    assert "heads.0.prompts" not in model.set_trainable(0)
    model.heads[0].prompts.copy_(model.heads[0].prompts.flip(0))
    assert not torch.allclose(model(images, increment_id=0).embeds, before, atol=1e-4)


def test_attribute_logits_come_in_training_or_on_request(build, images):
    model = build("ag_man classifying")
    assert model(images).attribute_logits is None
    logits = model(images, output_attribute_logits=True).attribute_logits
    assert logits.shape == (4, 5)
    assert torch.equal(
        model(images, attribute_ids=[3, 0], output_attribute_logits=True).attribute_logits, logits[:, [3, 0]]
    )
    model.train()
    assert model(images, increment_id=1).attribute_logits.shape == (4, 2)
    assert model(images, output_attribute_logits=False).attribute_logits is None
    assert build("ag_man").train()(images, output_attribute_logits=True).attribute_logits is None


def test_attribute_logits_of_batches_with_one_attribute_an_image(build, images):
    model = build("ag_man classifying")
    everything = model(images, increment_id=0, output_attribute_logits=True).attribute_logits
    ids = torch.tensor([2, 0, 0, 1])
    found = model(images, attribute_ids=ids, output_attribute_logits=True).attribute_logits
    torch.testing.assert_close(found, everything)
    mixed = model(images, attribute_ids=torch.tensor([2, 0, 0, 4]), output_attribute_logits=True)
    assert mixed.attribute_logits is None


def test_ag_man_over_one_map_says_what_to_do(make_model):
    with pytest.raises(ValueError, match="needs maps of 2 levels.*use_low_level_branch"):
        make_model("resnet", head_type="ag_man", out_indices=[5])
    make_model("resnet", head_type="ag_man", out_indices=[5], use_low_level_branch=False)


def test_the_command_line_reaches_every_setting(run, tmp_path):
    settings = {
        "head_type": "ag_man",
        "attribute_dim": 12,
        "use_low_level_branch": False,
        "use_self_gate": False,
        "use_spatial_gate": False,
        "mask_type": "random",
    }
    run("--epochs", "1", "--no_use_channel_attention", **settings)
    config = MclfirConfig.from_pretrained(tmp_path / "run" / "increment-02")
    assert {name: getattr(config, name) for name in settings} == settings
    assert not config.use_channel_attention and config.use_spatial_attention
    assert config.use_masks and not config.use_attribute_classification
