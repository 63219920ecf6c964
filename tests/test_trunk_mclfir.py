# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import transformers

from modeling_mclfir.trunk_mclfir import TrunkUnits, fold_tokens, load_trunk, unit_channels

# The families whose last_hidden_state is the last unit's output; CLIP's is taken before its final norm.
CHAINED = (
    "resnet",
    "vit",
    "deit",
    "mobilenet_v1",
    "mobilenet_v2",
    "convnext",
    "dinov2",
    "dinov2_with_registers",
    "siglip",
)


@pytest.fixture
def make_units(make_trunk_config):
    def make(family):
        torch.manual_seed(0)
        return TrunkUnits(load_trunk(make_trunk_config(family)).eval())

    return make


@pytest.mark.parametrize("family", CHAINED)
@torch.no_grad()
def test_the_chain_of_units_is_the_trunk(make_units, images, family):
    units = make_units(family)
    expected = units.trunk(images).last_hidden_state
    assert not units.opaque and expected.std() > 0
    output, _ = units.run(images, 0, units.num_units)
    assert torch.equal(output, expected)


@torch.no_grad()
def test_the_chain_of_clip_is_its_tower_and_final_norm(make_units, images):
    units = make_units("clip_vision")
    states = units.trunk(images, output_hidden_states=True)
    output, kept = units.run(images, 0, units.num_units, (units.last_block(),))
    assert torch.equal(kept[units.last_block()], states.last_hidden_state)
    assert torch.equal(output[:, 0], states.pooler_output)


@pytest.mark.parametrize("family", CHAINED)
@torch.no_grad()
def test_two_parts_are_the_whole(make_units, images, family):
    units = make_units(family)
    first = units.first_adapted(None)
    shared, _ = units.run(images, 0, first)
    output, kept = units.run(shared, first, units.num_units, tuple(range(units.num_units)))
    assert torch.equal(output, units.run(images, 0, units.num_units)[0])
    assert sorted(kept) == list(range(first, units.num_units))
    assert torch.equal(kept[units.num_units - 1], output)


@pytest.mark.parametrize("family", (*CHAINED, "clip_vision", "swin"))
@torch.no_grad()
def test_channels_are_those_of_the_outputs(make_units, images, family):
    units = make_units(family)
    states = units.run_opaque(images) if units.opaque else None
    if states is None:
        states = units.run(images, 0, units.num_units, tuple(range(units.num_units)))[1].values()
    maps = [fold_tokens(state, units.trunk.config) for state in states]
    assert all(feature_map.ndim == 4 for feature_map in maps)
    assert unit_channels(units) == [feature_map.shape[1] for feature_map in maps]


def test_a_quarter_of_the_blocks_is_adapted_by_default(make_units):
    units = make_units("resnet")
    assert len(units.blocks) == 5 and units.first_adapted(None) == 4
    assert units.first_adapted(0) == 6 and units.first_adapted(5) == 1
    for count in (-1, 6):
        with pytest.raises(ValueError, match=r"0\.\.5"):
            units.first_adapted(count)


def test_adaptable_layers_lie_in_the_asked_units_and_none_is_depthwise(make_units):
    units = make_units("mobilenet_v2")
    start = units.first_adapted(None)
    names = units.adaptable_modules(start)
    assert names and len(set(names)) == len(names)
    allowed = tuple(f"{name}." for unit in units.names[start:] for name in unit)
    for name, module in units.trunk.named_modules():
        layer = isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
        wanted = layer and name.startswith(allowed) and getattr(module, "groups", 1) == 1
        assert (name in names) == wanted, name
    assert any(module.groups > 1 for module in units.trunk.modules() if isinstance(module, torch.nn.Conv2d))


# Which models serve


@torch.no_grad()
def test_an_unlisted_family_works(make_model, images):
    model = make_model("swin")
    assert model.mclfir.units.opaque
    model.add_increment("shape", ["type", "hem"])
    first = model.eval()(images)
    assert first.embeds.shape == (4, 2, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.1)
    learned = model(images).embeds
    assert not torch.allclose(learned, first.embeds, atol=1e-3), "the adapters reach it"
    model.add_increment("look", ["colour"])
    assert torch.equal(model.eval()(images).embeds[:, :2], learned)


def test_of_two_towers_the_vision_tower_is_taken(make_model, make_trunk_config, images, tmp_path):
    torch.manual_seed(0)
    clip = transformers.AutoModel.from_config(make_trunk_config("clip")).eval()
    clip.save_pretrained(tmp_path)
    trunk = load_trunk(str(tmp_path)).eval()
    assert trunk.config.model_type == "clip_vision_model"
    with torch.no_grad():
        expected = clip.get_image_features(pixel_values=images).pooler_output
        # The tower's own answer, before CLIP's projection into the space of its texts.
        assert torch.equal(clip.visual_projection(trunk(images).pooler_output), expected)
    model = make_model("clip")
    model.add_increment("shape", ["type"])
    assert model.eval()(images).embeds.shape == (4, 1, 16)


def test_weights_come_from_the_folder_unless_refused(resnet_config, images, tmp_path):
    torch.manual_seed(0)
    saved = transformers.AutoModel.from_config(resnet_config).eval()
    saved.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = saved(images).last_hidden_state
        assert torch.equal(load_trunk(str(tmp_path)).eval()(images).last_hidden_state, expected)
        random = load_trunk(str(tmp_path), pretrained=False).eval()
        assert not torch.allclose(random(images).last_hidden_state, expected, atol=1e-4)
    assert load_trunk(resnet_config.to_dict()).config.hidden_sizes == resnet_config.hidden_sizes


def test_a_dict_without_a_family():
    with pytest.raises(ValueError, match="model_type"):
        load_trunk({"hidden_size": 3})


def test_a_text_model_is_no_trunk():
    text = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ValueError, match="BertModel takes input_ids"):
        load_trunk(text)


# Tokens → maps


def tokens_of(height, width, num_prefix):
    """One image whose token at (h, w) holds 100 h + w; prefix tokens hold -1."""
    grid = torch.tensor([[100.0 * h + w] for h in range(height) for w in range(width)])
    return torch.cat([-torch.ones(num_prefix, 1), grid])[None]


def config_of(**settings):
    return transformers.PreTrainedConfig(**settings)


@pytest.mark.parametrize("num_prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "image_size, patch_size, grid",
    [(64, 16, (4, 4)), ([32, 64], 16, (2, 4)), ([32, 64], [16, 16], (2, 4)), ((96, 32), (32, 16), (3, 2))],
)
def test_grids_are_folded_and_prefix_tokens_dropped(num_prefix, image_size, patch_size, grid):
    config = config_of(image_size=image_size, patch_size=patch_size, num_register_tokens=4)
    folded = fold_tokens(tokens_of(*grid, num_prefix), config)
    expected = torch.tensor([[[[100.0 * h + w for w in range(grid[1])] for h in range(grid[0])]]])
    assert torch.equal(folded, expected)


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_a_square_image_of_another_size_than_configured(num_prefix):
    # DINOv2 is configured for 518 pixels and mostly run at 224.
    config = config_of(image_size=518, patch_size=14, num_register_tokens=4)
    assert fold_tokens(tokens_of(16, 16, num_prefix), config).shape == (1, 1, 16, 16)


def test_maps_stay_as_they_are():
    maps = torch.randn(2, 3, 4, 5)
    assert fold_tokens(maps, config_of()) is maps


@pytest.mark.parametrize("grid, num_prefix", [((5, 4), 1), ((8, 7), 1), ((6, 5), 0), ((16, 12), 1), ((4, 4), 3)])
def test_a_number_of_tokens_that_fits_no_grid(grid, num_prefix):
    # 8 x 7 patches and a class token are 7 x 7 and 8 more: taken for a square, every place would be a wrong one.
    with pytest.raises(ValueError, match="fit no grid"):
        fold_tokens(tokens_of(*grid, num_prefix), config_of(image_size=518, patch_size=14))
