# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from peft import PeftModel

from modeling_mclfir import MclfirImageProcessor
from modeling_mclfir.adapters_mclfir import (
    adapter_layers,
    adapter_names,
    adapter_parameters,
    add_adapter,
    use_adapter,
)
from modeling_mclfir.training.checkpoint import save_increment


def move(trunk, name: str, seed: int = 0):
    """Give an adapter weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(trunk, name).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def mclfir(make_model):
    """A trunk model with the adapters a and b, both moved."""
    model = make_model("mobilenet_v2").mclfir
    for seed, name in enumerate("ab"):
        add_adapter(model.trunk, model.adapter_settings(), name)
        move(model.trunk, name, seed)
    return model


@pytest.mark.parametrize("family", ["resnet", "vit", "mobilenet_v2", "convnext"])
def test_adapters_sit_on_the_last_units_linear_and_convolution_layers_none_on_depthwise(make_model, family):
    model = make_model(family).mclfir
    add_adapter(model.trunk, model.adapter_settings(), "a")
    layers = adapter_layers(model.trunk)
    kinds = {type(layer.get_base_layer()) for layer in layers}
    expected = {"vit": {torch.nn.Linear}, "convnext": {torch.nn.Linear, torch.nn.Conv2d}}
    assert kinds == expected.get(family, {torch.nn.Conv2d})
    assert all(getattr(layer.get_base_layer(), "groups", 1) == 1 for layer in layers)
    adapted = tuple(f"{name}." for unit in model.units.names[model.first_adapted :] for name in unit)
    names = [name for name, module in model.trunk.named_modules() if any(module is layer for layer in layers)]
    assert len(names) == len(layers) and all(f"{name}.".startswith(adapted) for name in names)


def test_convolution_adapters_work_under_tensorflow_padding(mclfir, images):
    # MobileNetV2 reads stride and kernel size from its layers, which PEFT's wrapper does not have.
    assert mclfir.config.vision_config.tf_padding
    layers = adapter_layers(mclfir.trunk)
    with torch.no_grad():
        features = mclfir.shared_forward(images)
        with use_adapter(layers, "a"):
            adapted = mclfir.units.run(features, mclfir.first_adapted, mclfir.num_units)[0]
        with use_adapter(layers, None):
            bare = mclfir.units.run(features, mclfir.first_adapted, mclfir.num_units)[0]
    assert adapted.shape == bare.shape and not torch.allclose(adapted, bare, atol=1e-3)


@torch.no_grad()
def test_a_second_adapter_sits_on_the_same_layers(mclfir, images):
    assert adapter_names(mclfir.trunk) == ["a", "b"]
    assert all(list(layer.lora_A) == ["a", "b"] for layer in adapter_layers(mclfir.trunk))


def test_a_new_adapter_adds_nothing_until_it_learns(make_model, images):
    model = make_model("vit").mclfir
    with torch.no_grad():
        bare = model.trunk(images).last_hidden_state
        add_adapter(model.trunk, model.adapter_settings(), "a")
        with use_adapter(adapter_layers(model.trunk), "a"):
            assert torch.equal(model.trunk(images).last_hidden_state, bare)
            move(model.trunk, "a")
            assert not torch.equal(model.trunk(images).last_hidden_state, bare)


def test_a_new_adapter_starts_as_a_copy_and_then_goes_its_own_way(mclfir):
    add_adapter(mclfir.trunk, mclfir.adapter_settings(), "c", start_from="b")
    old, new = adapter_parameters(mclfir.trunk, "b"), adapter_parameters(mclfir.trunk, "c")
    assert len(old) == len(new) > 0
    assert all(torch.equal(new[name.replace(".b.", ".c.")], value) for name, value in old.items())
    before = copy.deepcopy(old)
    move(mclfir.trunk, "c", 9)
    assert all(torch.equal(value, before[name]) for name, value in old.items())


def test_adding_an_adapter_thaws_nothing_and_freezes_nothing(make_model):
    model = make_model("resnet").mclfir
    model.trunk.requires_grad_(False)
    chosen = model.trunk.get_submodule(model.units.names[-1][0]).layer[0].convolution.weight
    chosen.requires_grad_(True)
    for name in "ab":
        add_adapter(model.trunk, model.adapter_settings(), name)
        free = [parameter for parameter in model.trunk.parameters() if parameter.requires_grad]
        assert len(free) == 1 and free[0] is chosen
    parameters = adapter_parameters(model.trunk, "a")
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    add_adapter(model.trunk, model.adapter_settings(), "c")
    free = {name for name, parameter in model.trunk.named_parameters() if parameter.requires_grad}
    assert set(parameters) <= free and len(free) == len(parameters) + 1


def test_using_an_adapter_leaves_requires_grad_and_the_choice_before_alone(mclfir):
    layers = adapter_layers(mclfir.trunk)
    for parameter in adapter_parameters(mclfir.trunk, "a").values():
        parameter.requires_grad_(True)
    for parameter in adapter_parameters(mclfir.trunk, "b").values():
        parameter.requires_grad_(False)

    def free():
        return [name for name, parameter in mclfir.trunk.named_parameters() if parameter.requires_grad]

    before = free()
    with use_adapter(layers, "a"):
        for name in ("b", None):
            with use_adapter(layers, name):
                assert free() == before
        assert all(layer.active_adapters == ["a"] and not layer.disable_adapters for layer in layers)
    with pytest.raises(KeyError), use_adapter(layers, "b"):
        raise KeyError
    assert free() == before


@torch.no_grad()
def test_adapters_do_not_touch_each_other(mclfir, images):
    layers = adapter_layers(mclfir.trunk)

    def output(name):
        with use_adapter(layers, name):
            return mclfir.trunk(images).last_hidden_state

    a, b, bare = output("a"), output("b"), output(None)
    assert not torch.allclose(a, b, atol=1e-3) and not torch.allclose(a, bare, atol=1e-3)
    move(mclfir.trunk, "b", 5)
    assert torch.equal(output("a"), a) and torch.equal(output(None), bare)
    assert not torch.equal(output("b"), b)


@torch.no_grad()
def test_several_adapters_run_as_their_sum(mclfir, images):
    mclfir.double()  # batch normalisation of a random trunk makes much of rounding
    layers = adapter_layers(mclfir.trunk)

    def output(name):
        with use_adapter(layers, name):
            return mclfir.trunk(images.double()).last_hidden_state

    both = output(("a", "b"))
    assert torch.equal(output(()), output(None)) and torch.equal(output(("b",)), output("b"))
    for layer in layers:
        base = layer.get_base_layer()
        for name in "ab":
            a, b = (part[name].weight for part in (layer.lora_A, layer.lora_B))
            base.weight += layer.scaling[name] * (b.flatten(1) @ a.flatten(1)).view_as(base.weight)
    torch.testing.assert_close(output(None), both, atol=1e-8, rtol=1e-8)
    assert not torch.allclose(both, output("a"), atol=1e-3)


def test_names_that_are_taken_or_unknown(mclfir):
    with pytest.raises(ValueError, match="'a' already"):
        add_adapter(mclfir.trunk, mclfir.adapter_settings(), "a")
    with pytest.raises(ValueError, match=r"no adapter 'x'.*\['a', 'b'\]"):
        add_adapter(mclfir.trunk, mclfir.adapter_settings(), "c", start_from="x")
    assert adapter_names(mclfir.trunk) == ["a", "b"]


# Words that name methods of PEFT's or torch's containers.
@pytest.mark.parametrize("name", ["type", "keys", "items", "train", "weight"])
def test_increments_may_have_any_name(make_model, images, name):
    model = make_model("vit")
    model.add_increment(name, [name])
    model.add_increment(f"{name}-2", ["values"])
    assert model.eval()(images).embeds.shape == (4, 2, 16)


@pytest.mark.parametrize("family", ["resnet", "vit", "mobilenet_v2"])
def test_peft_alone_reads_what_is_saved(make_model, images, tmp_path, family):
    model = make_model(family)
    bare = copy.deepcopy(model.mclfir.trunk)
    previous = None
    for increment_id, name in enumerate(("shape", "look")):
        model.add_increment(name, [f"a{increment_id}"])
        move(model.mclfir.trunk, model.config.adapter_name(increment_id), increment_id)
        folder = tmp_path / str(increment_id)
        save_increment(folder, model.eval(), MclfirImageProcessor(), {}, {}, previous=previous)
        previous = folder
    for increment_id, name in enumerate(("shape", "look")):
        with torch.no_grad():
            expected = model.mclfir(images, increment_id=increment_id).pooled
            loaded = PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path / "1" / "adapters" / name).eval()
            if family == "mobilenet_v2":
                # PEFT's wrapper lacks what TensorFlow's padding reads (see adapters_mclfir).
                for layer in adapter_layers(loaded):
                    for setting in ("stride", "kernel_size", "dilation"):
                        setattr(layer, setting, getattr(layer.get_base_layer(), setting))
            states = loaded(images).last_hidden_state
            pooled = states.mean(dim=(2, 3)) if states.ndim == 4 else states[:, 1:].mean(dim=1)
            assert not torch.allclose(model.mclfir(images).pooled, expected, atol=1e-3)
            torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-6)
