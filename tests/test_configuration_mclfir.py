# SPDX-License-Identifier: Apache-2.0
import pytest
from transformers import AutoConfig

from modeling_mclfir import MclfirConfig

INCREMENTS = [
    {"name": "shape", "attributes": ["type", "hem"], "new_values": False},
    {"name": "look", "attributes": ["colour"], "new_values": False},
    {"name": "winter", "attributes": ["hem"], "new_values": True},
]


@pytest.fixture
def config():
    return MclfirConfig(increments=INCREMENTS)


def test_spaces_are_numbered_in_order(config):
    assert config.increment_names == ["shape", "look", "winter"]
    assert config.attributes == ["type", "hem", "colour", "hem"]
    assert [list(config.attribute_range(index)) for index in range(3)] == [[0, 1], [2], [3]]
    assert [config.increment_of(index) for index in range(4)] == [0, 0, 1, 2]


BLIND = ("use_spatial_attention", "use_channel_attention", "use_pooled_features")


@pytest.mark.parametrize("attribute_id", [-1, 4])
def test_a_space_that_is_not_there(config, attribute_id):
    with pytest.raises(ValueError, match=r"not in 0\.\.3"):
        config.increment_of(attribute_id)


@pytest.mark.parametrize("increment_id", [-1, 3])
def test_an_increment_that_is_not_there(config, increment_id):
    for ask in (config.attribute_range, config.adapter_name):
        with pytest.raises(ValueError, match=r"not in 0\.\.2.*winter"):
            ask(increment_id)


@pytest.mark.parametrize(
    "settings, names",
    [
        ({}, ["increment_00_shape", "increment_01_look", "increment_02_winter"]),
        ({"adapter_policy": "shared"}, ["shared"] * 3),
        ({"adapter_policy": "frozen"}, [None] * 3),
        ({"adapter_policy": "prompts"}, [None] * 3),
        ({"adapter_policy": "stacked"}, ["increment_00_shape", "increment_01_look", "increment_02_winter"]),
        ({"base_training": "first_increment"}, [None, "increment_01_look", "increment_02_winter"]),
        ({"base_training": "first_increment", "adapter_policy": "shared"}, [None, "shared", "shared"]),
        ({"base_training": "first_increment", "adapter_policy": "frozen"}, [None] * 3),
        (
            {"base_training": "first_increment", "adapter_policy": "stacked"},
            [None, "increment_01_look", "increment_02_winter"],
        ),
    ],
    ids=str,
)
def test_whose_adapter_an_increment_runs_with(settings, names):
    config = MclfirConfig(increments=INCREMENTS, **settings)
    assert [config.adapter_name(index) for index in range(3)] == names
    every = [name for name in dict.fromkeys(names) if name is not None]
    assert config.adapter_names() == every
    sums = settings.get("adapter_policy") == "stacked"
    runs = [() if name is None else tuple(every) if sums else (name,) for name in names]
    assert [config.running_adapters(index) for index in range(3)] == runs


def test_round_trip(config, resnet_config, tmp_path):
    config = MclfirConfig(vision_config=resnet_config, increments=INCREMENTS, embed_dim=7, out_indices=[3, 5])
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MclfirConfig and type(loaded.vision_config) is type(resnet_config)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.increments == INCREMENTS and loaded.embed_dim == 7 and loaded.out_indices == [3, 5]
    assert loaded.vision_config.hidden_sizes == [8, 16, 24, 32]


def test_a_configuration_does_not_share_its_increments_with_what_was_given(config):
    given = [{"name": "shape", "attributes": ["type"]}]
    config = MclfirConfig(increments=given)
    config.append_increment("look", ["colour"])
    config.increments[0]["attributes"].append("hem")
    assert given == [{"name": "shape", "attributes": ["type"]}]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"adapter_policy": "none"}, r"adapter_policy must be one of .*got 'none'"),
        ({"base_training": "always"}, "base_training must be one of"),
        ({"prompt_type": "image"}, "prompt_type must be one of"),
        ({"prompt_type": "text"}, "needs prompt_dim"),
        ({"embed_dim": 0}, "embed_dim must be a whole number"),
        ({"embed_dim": 12.5}, "embed_dim must be a whole number"),
        ({"lora_rank": 0}, "lora_rank must be"),
        ({"prompt_pool_size": 0}, "prompt_pool_size must be a whole number"),
        ({"prompt_length": 0}, "prompt_length must be a whole number"),
        ({"prompts_per_image": 2.5}, "prompts_per_image must be a whole number"),
        ({"prompt_pool_size": 4}, "prompts_per_image must be at most prompt_pool_size; got 5 of 4"),
        ({"adapter_policy": "prompts", "base_training": "first_increment"}, "trunk that never learns"),
        ({"gate_dim": -1}, "gate_dim must be"),
        (dict.fromkeys(BLIND, False), "sees nothing"),
        ({"vision_config": {"hidden_size": 8}}, "model_type"),
        ({"increments": [{"name": "a", "attributes": ["x"]}, {"name": "a", "attributes": ["y"]}]}, "exists already"),
        ({"increments": [{"name": "a", "attributes": ["x"]}, {"name": "b", "attributes": ["x"]}]}, "new_values"),
        ({"increments": [{"name": "a", "attributes": "hem"}]}, "list of names"),
    ],
)
def test_bad_settings_are_refused_when_built(settings, message):
    with pytest.raises(ValueError, match=message):
        MclfirConfig(**settings)
