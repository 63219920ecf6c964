# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of spaces change exactly where their vectors may."""

import pytest
import torch

from modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training.fingerprint import space_fingerprints


@pytest.fixture
def processor():
    return MclfirImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture
def model(make_model):
    model = make_model("resnet")
    model.add_increment("cut", ["neckline", "sleeve"])
    model.add_increment("look", ["colour"])
    return model.eval()


def changed(before: list[str], after: list[str]) -> list[int]:
    return [place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new]


def test_every_space_has_its_own(model, processor):
    found = space_fingerprints(model, processor)
    assert len(set(found)) == 3 and found == space_fingerprints(model, processor)


@pytest.mark.parametrize("base_training", ["none", "first_increment"])
@pytest.mark.parametrize("adapter_policy", ["per_increment", "frozen"])
def test_a_further_increment_leaves_the_old_ones(make_model, processor, images, base_training, adapter_policy):
    """Also where it brings the model's first adapter, which wraps the trunk's layers."""
    model = make_model("resnet", base_training=base_training, adapter_policy=adapter_policy)
    model.add_increment("cut", ["neckline", "sleeve"])
    embeds = model.eval()(images).embeds.detach()
    model.refine_increment(0, embeds, torch.arange(2 * len(images)).unflatten(0, (-1, 2)) % 3)
    before = space_fingerprints(model, processor)
    model.add_increment("look", ["colour"])
    model.add_increment("shape", ["fit"])
    after = space_fingerprints(model, processor)
    assert len(after) == 4 and changed(before, after) == []


def test_saved_and_loaded_they_are_the_same(model, processor, tmp_path):
    before = space_fingerprints(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MclfirForImageRetrieval.from_pretrained(tmp_path)
    assert space_fingerprints(loaded, MclfirImageProcessor.from_pretrained(tmp_path)) == before


@pytest.mark.parametrize(
    ("part", "spaces"),
    [
        ("heads.0.projections.weight", [0, 1]),
        ("heads.1.projections.bias", [2]),
        ("adapter 1", [2]),
        ("trunk", [0, 1, 2]),
    ],
)
def test_they_change_with_the_weights_that_make_the_vectors(model, processor, part, spaces):
    before = space_fingerprints(model, processor)
    state = model.state_dict()
    names = {
        "adapter 1": [name for name in state if ".lora_B." in name and "increment_01_look" in name],
        "trunk": [name for name in state if name.startswith("mclfir.") and ".lora_" not in name and "weight" in name],
    }
    tensor = state[names.get(part, [part])[0]]
    with torch.no_grad():
        tensor.view(-1)[0] += 1.0
    assert changed(before, space_fingerprints(model, processor)) == spaces


def test_they_change_with_refinement_and_preprocessing(model, processor, images):
    before = space_fingerprints(model, processor)
    other = MclfirImageProcessor(size={"height": 32, "width": 64})
    assert changed(before, space_fingerprints(model, other)) == [0, 1, 2]
    embeds = model(images, increment_id=1).embeds.detach()
    model.refine_increment(1, embeds, torch.arange(len(images))[:, None] % 2)
    assert changed(before, space_fingerprints(model, processor)) == [2]


def test_with_a_shared_adapter_all_spaces_move(make_model, processor):
    model = make_model("resnet", adapter_policy="shared")
    model.add_increment("cut", ["neckline"])
    model.add_increment("look", ["colour"])
    before = space_fingerprints(model, processor)
    tensor = next(value for name, value in model.state_dict().items() if ".lora_B." in name)
    with torch.no_grad():
        tensor.view(-1)[0] += 1.0
    assert changed(before, space_fingerprints(model, processor)) == [0, 1]


@pytest.mark.parametrize(
    ("part", "spaces"),
    [
        ("text.trunk.embeddings.word_embeddings.weight", [0, 1]),
        ("heads.1.text_projection.mean", [1]),
        ("increment_00_one", [0]),
    ],
)
def test_spaces_of_captions_and_images(processor, part, spaces):
    from tiny_towers import text_config
    from tiny_trunks import trunk_config

    from modeling_mclfir import MclfirForTextImageRetrieval

    towers = trunk_config("resnet"), text_config("bert")
    model = MclfirForTextImageRetrieval.from_towers(*towers, pretrained=False, embed_dim=8)
    model.add_increment("one")
    first = space_fingerprints(model, processor)
    model.add_increment("two", new_values=True)  # begins as a copy
    with torch.no_grad():
        model.heads[1].image_projection.weight.add_(1.0)
    before = space_fingerprints(model, processor)
    assert before[:1] == first and len(set(before)) == 2
    tensors = [value for name, value in model.state_dict().items() if part in name and "text" in name]
    tensors[0].add_(1.0)
    assert changed(before, space_fingerprints(model, processor)) == spaces
