# SPDX-License-Identifier: Apache-2.0
import json
import os

import pytest
import torch
from peft import PeftModel
from tiny_runs import TRUNKS, assert_equal_weights

from modeling_mclfir.modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training import checkpoint
from modeling_mclfir.training.checkpoint import (
    increment_folder,
    load_increment,
    load_state,
    publish,
    read_state,
    recover,
    save_increment,
    save_state,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = MclfirForImageRetrieval.from_trunk(TRUNKS["vit"], pretrained=False, embed_dim=16, lora_rank=2)
    model.add_increment("cut", ["category"])
    return model


def save(folder, model, previous=None, state=None):
    processor = MclfirImageProcessor.for_trunk(None, 32, 32)
    save_increment(folder, model, processor, state or {"n": 1}, {"a": torch.ones(2)}, previous)


def disturb(parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))


def test_what_is_saved_comes_back(tmp_path, model):
    disturb(model.parameters())
    save(tmp_path / "x", model)
    loaded, state, method_state = load_increment(tmp_path / "x")
    assert_equal_weights(model.state_dict(), loaded.state_dict())
    assert state == {"n": 1} and torch.equal(method_state["a"], torch.ones(2))


def test_a_link_where_nothing_changed_and_a_copy_where_links_fail(tmp_path, model, monkeypatch):
    first, second, third, fourth = (increment_folder(tmp_path, i) for i in range(4))
    save(first, model)
    model.add_increment("more", ["colour"])
    save(second, model, first)
    assert (first / "trunk.safetensors").stat().st_ino == (second / "trunk.safetensors").stat().st_ino
    assert (first / "heads.safetensors").stat().st_ino != (second / "heads.safetensors").stat().st_ino

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    model.add_increment("most", ["hem"])
    save(third, model, second)
    assert (third / "trunk.safetensors").stat().st_nlink == 1
    assert (third / "trunk.safetensors").read_bytes() == (first / "trunk.safetensors").read_bytes()
    # A trunk that learned is written anew, and the older folder keeps its own.
    before = (third / "trunk.safetensors").read_bytes()
    disturb(model.mclfir.trunk.parameters())
    save(fourth, model, third)
    assert (fourth / "trunk.safetensors").read_bytes() != before == (third / "trunk.safetensors").read_bytes()
    assert_equal_weights(model.state_dict(), load_increment(fourth)[0].state_dict())


def test_adapters_are_in_the_layout_of_peft(tmp_path, model):
    disturb(model.parameters())
    save(tmp_path / "x", model)
    from transformers import AutoModel

    trunk = AutoModel.from_config(model.config.vision_config)
    state = {name.replace(".base_layer.", "."): value for name, value in model.mclfir.trunk.state_dict().items()}
    trunk.load_state_dict({name: value for name, value in state.items() if ".lora_" not in name})
    adapted = PeftModel.from_pretrained(trunk, tmp_path / "x" / "adapters" / "cut").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval().mclfir(pixels, increment_id=0).feature_maps[-1]
        found = adapted(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(found[:, 1:].transpose(1, 2).reshape(expected.shape), expected, atol=1e-5)


def test_a_state_holds_weights_optimiser_and_method(tmp_path, model):
    names = model.set_trainable(0)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([parameters[name] for name in names], lr=0.1)
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32), increment_id=0).embeds.square().sum().backward()
        optimizer.step()
    save_state(tmp_path / "last", model, optimizer, {"teacher": torch.arange(3)}, {"step": 2})
    kept = {name: parameters[name].detach().clone() for name in names}
    moments = {parameter: state["exp_avg"].clone() for parameter, state in optimizer.state.items()}
    disturb(parameters[name] for name in names)
    other = torch.optim.AdamW([parameters[name] for name in names], lr=0.3)
    method_state = load_state(tmp_path / "last", model, other)
    assert_equal_weights(kept, {name: parameters[name].detach() for name in names})
    assert moments.keys() == other.state.keys()
    assert all(torch.equal(moment, other.state[parameter]["exp_avg"]) for parameter, moment in moments.items())
    assert all(float(state["step"]) == 2 for state in other.state.values())
    assert other.param_groups[0]["lr"] == 0.3  # rates are the run's business
    assert torch.equal(method_state["teacher"], torch.arange(3)) and read_state(tmp_path / "last") == {"step": 2}


def test_read_state_of_nothing(tmp_path):
    assert read_state(tmp_path / "none") is None


def make(folder, text):
    folder.mkdir()
    (folder / checkpoint.STATE_FILE).write_text(json.dumps({"at": text}))
    return folder


def test_publish_replaces_and_recover_takes_back(tmp_path):
    folder = tmp_path / "last"
    publish(make(tmp_path / "a", "first"), folder)
    publish(make(tmp_path / "b", "second"), folder)
    assert read_state(folder) == {"at": "second"} and [path.name for path in tmp_path.iterdir()] == ["last"]
    # Stopped between the two renames: only the old folder is there, under its other name.
    os.rename(folder, tmp_path / "last.old")
    make(tmp_path / "last.partial", "third")
    recover(folder)
    assert read_state(folder) == {"at": "second"}
    # Stopped after them: the old one is of no more use.
    make(tmp_path / "last.old", "first")
    recover(folder)
    assert read_state(folder) == {"at": "second"} and not (tmp_path / "last.old").exists()
