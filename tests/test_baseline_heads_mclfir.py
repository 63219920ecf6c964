# SPDX-License-Identifier: Apache-2.0
"""The baseline heads: their formulas, derived again with plain loops in double precision, their sizes, their parts."""

import numpy as np
import pytest
import torch
from slow_heads import (
    array,
    linear,
    project,
    rows,
    sigmoid,
    slow_channels,
    slow_gate,
    slow_low_level,
    slow_places,
    slow_softmax,
    slow_sum,
)

from modeling_mclfir import MclfirConfig
from modeling_mclfir.ag_man_mclfir import LowLevelBranch, SpatialGate
from modeling_mclfir.attention_mclfir import AttributeHeads
from modeling_mclfir.baseline_heads_mclfir import (
    AsenPlaceAttention,
    AttributeMasks,
    PlaceAttention,
)
from modeling_mclfir.configuration_mclfir import HEAD_TYPES
from modeling_mclfir.modeling_mclfir import HEADS

N, A, D, K, H, W = 2, 3, 6, 5, 4, 3
LOW, HIGH, POOLED = 3, 4, 7
# Heads that learn by steps; those that are worked out have a file of their own, test_closed_form_mclfir.py.
BASELINES = [name for name in HEAD_TYPES if name not in ("mclfir", "closed_form")]
PROMPTED = [name for name in BASELINES if name not in ("linear", "csn")]
CLASSIFYING = {"head_type": "ag_man", "use_attribute_classification": True}
TEXT = {"prompt_type": "text", "prompt_dim": 9}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads(head_type, num_attributes=A, **settings):
    """Heads of a small size whose parameters are all off their starting values."""
    torch.manual_seed(0)
    sizes = {"embed_dim": D, "attribute_dim": K, "gate_dim": 8}
    config = MclfirConfig(head_type=head_type, **(sizes | settings))
    built = HEADS[head_type](config, num_attributes, [LOW, HIGH], POOLED).double()
    built.reset()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if settings.get("prompt_type") == "text":
            built.prompts.normal_()
    return built


def inputs(size=N):
    """Maps of two levels and pooled features."""
    return [random(size, LOW, 2 * H - 1, 2 * W), random(size, HIGH, H, W, seed=1)], random(size, POOLED, seed=2)


def unit(embeds):
    return embeds / np.linalg.norm(embeds, axis=-1, keepdims=True)


def check(found, expected, tolerance=1e-10):
    assert np.std(expected) > 1e-3, "a constant would prove little"
    np.testing.assert_allclose(array(found), expected, atol=tolerance, rtol=0)


def check_heads(built, expected, attention):
    """Embeddings are float32: 1e-6. The attention stays in double precision."""
    embeds, found = built(*inputs())
    assert embeds.dtype == torch.float32
    check(embeds, unit(expected), 1e-6)
    check(found, attention)


def shake(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    return module.double()


def test_place_attention_is_its_formula():
    attention, projected, queries = shake(PlaceAttention(D)), random(N, D, H, W), random(A, D, seed=1)
    found = attention(projected, queries)
    check(found, slow_places(attention, array(projected), array(queries)))
    torch.testing.assert_close(found.sum(dim=(2, 3)), torch.ones(N, A, dtype=torch.float64), atol=1e-12, rtol=0)


def test_place_attention_of_the_first_version_is_its_formula():
    torch.manual_seed(0)
    attention, feature_map, codes = AsenPlaceAttention(HIGH, D, K).double(), random(N, HIGH, H, W), random(A, K)
    keys = np.tanh(project(attention.map_projection, array(feature_map)))
    expected = np.empty((N, A, H, W))
    for n, a in np.ndindex(N, A):
        query = np.tanh(array(attention.code_projection.weight) @ array(codes)[a])
        scores = np.empty((H, W))
        for row, column in np.ndindex(H, W):
            scores[row, column] = linear(attention.score, query * keys[n, :, row, column])[0]
        expected[n, a] = slow_softmax(np.tanh(scores))
    check(attention(feature_map, codes), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_spatial_gate_is_its_formula(sign):
    torch.manual_seed(0)
    gate, feature_map = SpatialGate().double(), random(N, D, H, W)
    weights = sign * random(N, A, H, W, seed=1).softmax(dim=-1)
    check(gate(feature_map, weights), slow_gate(gate, array(feature_map), array(weights)))


def test_low_level_branch_is_its_formula():
    branch, (low, high) = LowLevelBranch(LOW, HIGH).double(), inputs()[0]
    check(branch(low, high), slow_low_level(branch, array(low), array(high)))


def test_low_level_branch_of_a_token_trunk_pools_nothing():
    branch, low, high = LowLevelBranch(LOW, HIGH).double(), random(N, LOW, H, W), random(N, HIGH, H, W, seed=1)
    check(branch(low, high), array(high) + project(branch.projection, array(low)))


@pytest.mark.parametrize("low, high", [((9, 9), (4, 4)), ((28, 28), (7, 7)), ((2, 5), (1, 2)), ((4, 4), (2, 4))])
def test_low_level_branch_takes_any_pair_of_grids(low, high):
    branch = LowLevelBranch(LOW, HIGH).double()
    assert branch(random(N, LOW, *low), random(N, HIGH, *high)).shape == (N, HIGH, *high)


def test_masks_by_kind():
    blocks, fixed = AttributeMasks(3, 7, "blocks"), AttributeMasks(3, 7, "fixed")
    drawn = AttributeMasks(3, 5000, "random")
    torch.manual_seed(0)
    for masks in (blocks, fixed, drawn):
        masks.reset()
    own = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]])
    assert torch.equal(fixed.weight, own) and not list(fixed.parameters())
    torch.testing.assert_close(blocks.weight.detach(), own + 0.1 * (1 - own))
    assert abs(drawn.weight.mean() - 0.9) < 0.02 and abs(drawn.weight.std() - 0.7) < 0.02
    embeds = random(2, 1, 5000).float()
    torch.testing.assert_close(drawn(embeds), embeds * drawn.weight.clamp(min=0))
    assert (drawn(embeds) == 0).any()


def test_more_attributes_than_dimensions_still_get_a_block():
    masks = AttributeMasks(5, 3, "fixed")
    masks.reset()
    assert (masks.weight.sum(dim=1) == 1).all()


def test_linear_heads_are_their_formula():
    built, pooled = heads("linear"), inputs()[1]
    values = array(pooled)
    normal = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5)
    expected = np.stack([rows(built.projection, normal)[:, a * D : (a + 1) * D] for a in range(A)], axis=1)
    embeds, attention = built(*inputs())
    check(embeds, unit(expected), 1e-6)
    assert attention is None


def test_csn_heads_are_their_formula():
    built = heads("csn")
    shared = rows(built.projection, array(inputs()[1]))
    expected = shared[:, None] * np.maximum(array(built.masks.weight), 0)
    check(built(*inputs())[0], unit(expected), 1e-6)


def test_csn_without_masks_has_one_embedding_for_all_attributes():
    embeds, _ = heads("csn", use_masks=False)(*inputs())
    assert torch.equal(embeds, embeds[:, :1].expand(-1, A, -1))


def test_asen_heads_are_their_formula():
    built, feature_map = heads("asen"), inputs()[0][-1]
    attention = array(built.spatial(feature_map, torch.eye(A).double()))
    attended = slow_sum(array(feature_map), attention)
    prompts = np.maximum(array(built.channel_prompts.weight).T, 0)  # a one-hot code picks a column
    attended = attended * slow_channels(built.channel, attended, prompts)
    expected = np.stack([rows(built.projection, image) for image in attended])
    check_heads(built, expected, attention)


def test_asen_v2_heads_are_their_formula():
    built, feature_map = heads("asen_v2"), array(inputs()[0][-1])
    prompts = array(built.prompts)
    queries = np.tanh(rows(built.spatial_prompts, prompts))
    attention = slow_places(built.spatial, project(built.map_projection, feature_map), queries)
    attended = slow_sum(feature_map, attention)
    gates = slow_channels(built.channel, attended, np.maximum(rows(built.channel_prompts, prompts), 0))
    expected = np.stack([rows(built.projection, image) for image in attended * gates])
    check_heads(built, expected, attention)


def test_published_mclfir_heads_are_their_formula():
    built, feature_map = heads("mclfir_published", **TEXT), array(inputs()[0][-1])
    queries = rows(built.prompt_projection, array(built.prompts))
    projected = project(built.map_projection, feature_map)
    attention = slow_places(built.spatial, projected, queries)
    attended = slow_sum(projected, attention)
    check_heads(built, attended * slow_channels(built.channel, attended, queries), attention)


@pytest.mark.parametrize("self_gate", [True, False])
@pytest.mark.parametrize("low_level", [True, False])
def test_ag_man_heads_are_their_formula(self_gate, low_level):
    built = heads("ag_man", use_self_gate=self_gate, use_low_level_branch=low_level)
    low, high = (array(level) for level in inputs()[0])
    fused = np.concatenate([high, slow_low_level(built.low_level, low, high)], axis=1) if low_level else high

    def queries(layer):
        plain = rows(layer, array(built.prompts))
        return plain * sigmoid(plain) if self_gate else plain

    projected = project(built.map_projection, built.map_scale.item() * fused)
    attention = slow_places(built.spatial, projected, queries(built.spatial_prompts))
    weights = built.attention_scale.item() * attention
    attended = slow_sum(projected, weights * slow_gate(built.spatial_gate, projected, weights))
    gates = slow_channels(built.channel, attended, queries(built.channel_prompts))
    check_heads(built, attended * gates * np.maximum(array(built.masks.weight), 0), attention)


def test_ag_man_classifies_by_pooled_features_and_the_fused_map():
    built = heads("ag_man", use_attribute_classification=True)
    maps, pooled = inputs()
    fused = slow_low_level(built.low_level, *(array(level) for level in maps)).mean(axis=(2, 3))
    expected = rows(built.classifier, np.concatenate([array(pooled), fused], axis=1))
    check(built.classify(maps, pooled), expected)
    alone = heads("ag_man", use_attribute_classification=True, use_low_level_branch=False)
    check(alone.classify(maps, pooled), rows(alone.classifier, array(pooled)))


def test_a_factor_of_the_channel_gates_would_not_change_an_embedding():
    # Why the third learned factor of the published code is left out.
    built = heads("ag_man")
    before = built(*inputs())[0]
    with torch.no_grad():
        built.masks.weight.mul_(1.7)
    torch.testing.assert_close(built(*inputs())[0], before, atol=1e-6, rtol=0)


def alone(built, head_type, index, **settings):
    """Heads of one attribute, with what `built` has for it and what it shares."""
    single, state = heads(head_type, 1, **settings), {}
    for name, value in single.state_dict().items():
        whole = built.state_dict()[name]
        axes = [axis for axis in range(value.ndim) if value.shape[axis] != whole.shape[axis]]
        # The one-hot code of one attribute is 1 whichever it is.
        is_code = head_type == "asen" and name == "prompts" and not settings
        size = value.shape[axes[0]] if axes else 0
        state[name] = value if is_code else whole.narrow(axes[0], index * size, size) if axes else whole
    single.load_state_dict(state)
    return single


@pytest.mark.parametrize("head_type, settings", [(h, {}) for h in BASELINES] + [(h, TEXT) for h in PROMPTED], ids=str)
def test_all_attributes_at_once_are_each_of_them_alone(head_type, settings):
    if head_type == "ag_man":
        settings = settings | {"use_attribute_classification": True}
    built = heads(head_type, **settings)
    embeds, attention = built(*inputs())
    logits = built.classify(*inputs())
    for index in range(A):
        single = alone(built, head_type, index, **settings)
        one, looked = single(*inputs())
        torch.testing.assert_close(one[:, 0], embeds[:, index], atol=1e-6, rtol=0)
        if attention is not None:
            torch.testing.assert_close(looked[:, 0], attention[:, index], atol=1e-12, rtol=0)
        if logits is not None:
            torch.testing.assert_close(single.classify(*inputs())[:, 0], logits[:, index], atol=1e-12, rtol=0)


# Sizes: what the papers' code has, counted from its layers


def published(head_type, num_attributes, **settings):
    config = MclfirConfig(head_type=head_type, **settings)
    built = HEADS[head_type](config, num_attributes, [512, 1024], 2048)
    return built, sum(parameter.numel() for parameter in built.parameters())


def test_published_mclfir_counts():
    # Their head has 312,192: an attr_transform2 of 512 * 128 + 128 gets no gradient.
    built, count = published(
        "mclfir_published", 1, embed_dim=128, gate_dim=128, prompt_type="text", prompt_dim=512, attribute_dim=512
    )
    assert count == 246_528 == 312_192 - (512 * 128 + 128)
    parts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in built.named_children()}
    assert parts == {"map_projection": 131_200, "prompt_projection": 65_664, "spatial": 256, "channel": 49_408}
    assert sum(p.numel() for p in built.channel.reduce.parameters()) == 32_896


PAPER = {"embed_dim": 1024, "attribute_dim": 512, "gate_dim": 512}


@pytest.mark.parametrize(
    "head_type, settings, expected",
    [
        # mask_fc1, mask_fc2, conv1, conv2, fc1, fc2, feature_fc of ASENet
        ("asen", PAPER, 8 * 512 + 8 * 1024 + 524_800 + 513 + 1_049_088 + 525_312 + 1_049_600),
        # attr_embedding, attr_transform1, conv1, img_bn1, attr_transform2, fc1, fc2, feature_fc of ASENet_V2
        ("asen_v2", PAPER, 8 * 512 + 262_656 + 524_800 + 1024 + 262_656 + 786_944 + 525_312 + 1_049_600),
        # attr_embedding, attr_transform1, conv1, img_bn1, sa, attr_transform2, fc1, fc2, w, w1, masks; conv1_1
        (
            "ag_man",
            PAPER | {"embed_dim": 512},
            8 * 512 + 262_656 + 1_049_088 + 1024 + 98 + 262_656 + 524_800 + 262_656 + 2 + 8 * 512 + 525_312,
        ),
        ("csn", {"embed_dim": 64}, 2048 * 64 + 64 + 8 * 64),
        ("csn", {"embed_dim": 64, "mask_type": "fixed"}, 2048 * 64 + 64),
        ("linear", {"embed_dim": 128}, 8 * (2048 * 128 + 128)),
    ],
    ids=["asen", "asen_v2", "ag_man", "csn", "csn fixed", "linear"],
)
def test_counts_at_the_papers_sizes(head_type, settings, expected):
    assert published(head_type, 8, **settings)[1] == expected


# Switches


SWITCHES = {
    ("asen", "use_spatial_attention"): ["spatial"],
    ("asen", "use_channel_attention"): ["channel", "channel_prompts"],
    ("asen_v2", "use_spatial_attention"): ["spatial", "spatial_prompts", "map_projection"],
    ("asen_v2", "use_channel_attention"): ["channel", "channel_prompts"],
    ("mclfir_published", "use_spatial_attention"): ["spatial"],
    ("mclfir_published", "use_channel_attention"): ["channel"],
    ("csn", "use_masks"): ["masks"],
    ("ag_man", "use_spatial_attention"): ["spatial", "spatial_prompts", "attention_scale"],
    ("ag_man", "use_channel_attention"): ["channel", "channel_prompts"],
    ("ag_man", "use_low_level_branch"): ["low_level"],
    ("ag_man", "use_self_gate"): [],
    ("ag_man", "use_spatial_gate"): ["spatial_gate"],
    ("ag_man", "use_masks"): ["masks"],
}


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("head_type, switch", SWITCHES, ids=str)
def test_a_switch_takes_exactly_its_part_away(head_type, switch):
    whole, without = heads(head_type), heads(head_type, **{switch: False})
    gone = {name for name in shapes(whole) if name.split(".")[0] in SWITCHES[head_type, switch]}
    expected = {name: shape for name, shape in shapes(whole).items() if name not in gone}
    if switch == "use_low_level_branch":  # the map is no longer that of two levels side by side
        expected["map_projection.weight"] = (D, HIGH, 1, 1)
    assert shapes(without) == expected
    # The same weights in what is left: the part did something.
    if switch != "use_low_level_branch":
        without.load_state_dict({name: whole.state_dict()[name] for name in expected})
    assert not torch.allclose(without(*inputs())[0], whole(*inputs())[0], atol=1e-4)


def test_the_classification_branch_is_there_on_request_only():
    whole, plain = heads(**CLASSIFYING), heads("ag_man")
    extra = set(shapes(whole)) - set(shapes(plain))
    assert extra == {"classifier.weight", "classifier.bias"}
    plain.load_state_dict({name: value for name, value in whole.state_dict().items() if name not in extra})
    assert torch.equal(plain(*inputs())[0], whole(*inputs())[0]), "embeddings do not depend on it"
    for head_type in HEAD_TYPES:
        assert heads(head_type).classify(*inputs()) is None


@pytest.mark.parametrize("head_type", PROMPTED)
def test_without_any_attention_no_prompt_idles(head_type):
    built = heads(head_type, use_spatial_attention=False, use_channel_attention=False)
    assert not any("prompt" in name for name, _ in built.named_parameters())
    embeds, attention = built(*inputs())
    assert embeds.shape == (N, A, D) and attention is None


@pytest.mark.parametrize("head_type", PROMPTED)
def test_without_spatial_attention_every_place_counts_alike(head_type):
    settings = {"use_spatial_gate": False} if head_type == "ag_man" else {}
    built = heads(head_type, use_spatial_attention=False, **settings)
    maps, pooled = inputs()
    embeds, attention = built(maps, pooled)
    assert attention is None
    turned = [level.flip(2) for level in maps]  # rows alone: pooling to every second place is even for odd numbers
    torch.testing.assert_close(built(turned, pooled)[0], embeds)


def test_every_head_type_has_its_class_and_its_switches_are_known():
    assert list(HEADS) == list(HEAD_TYPES)
    assert {(head, part) for head in BASELINES for part in HEAD_TYPES[head]} == set(SWITCHES) | {
        ("csn", "mask_type"),
        ("ag_man", "mask_type"),
        ("ag_man", "use_attribute_classification"),
    }


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"head_type": "resnet"}, r"head_type must be one of .*'ag_man'.*got 'resnet'"),
        ({"head_type": "csn", "mask_type": "soft"}, "mask_type must be one of"),
        ({"attribute_dim": 0}, "attribute_dim must be a whole number"),
        ({"head_type": "linear", "use_spatial_attention": False}, r"'linear' has no part that use_spatial_attention"),
        ({"head_type": "asen", "use_self_gate": False}, r"heads that have it: \['ag_man'\]"),
        ({"use_masks": False}, r"heads that have it: \['csn', 'ag_man'\]"),
        ({"head_type": "asen_v2", "mask_type": "fixed"}, "no part that mask_type='fixed'"),
        ({"head_type": "csn", "use_attribute_classification": True}, "use_attribute_classification=True"),
        ({"head_type": "linear"} | TEXT, "reads no prompts"),
        ({"head_type": "csn"} | TEXT, "reads no prompts"),
        ({"head_type": "asen", "prompt_type": "text"}, "needs prompt_dim"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_built(settings, message):
    with pytest.raises(ValueError, match=message):
        MclfirConfig(**settings)


def test_settings_survive_a_round_trip(tmp_path):
    settings = {"head_type": "ag_man", "attribute_dim": 7, "use_self_gate": False, "mask_type": "random"}
    config = MclfirConfig(**settings, use_attribute_classification=True)
    config.save_pretrained(tmp_path)
    loaded = MclfirConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.attribute_dim == 7 and not loaded.use_self_gate and loaded.use_attribute_classification


def test_the_default_heads_are_what_they_were():
    # Numbers from before there were others, drawn with the same seed: checkpoints and seeds keep their meaning.
    assert MclfirConfig().head_type == "mclfir"
    torch.manual_seed(0)
    config = MclfirConfig(embed_dim=4, gate_dim=5)
    built = AttributeHeads(config, 3, [LOW, HIGH], POOLED)
    built.reset()
    assert shapes(built) == {
        "prompts": (3, 4),
        "gain": (3, 4),
        "fusion.projections.0.weight": (4, 3, 1, 1),
        "fusion.projections.0.bias": (4,),
        "fusion.projections.1.weight": (4, 4, 1, 1),
        "fusion.projections.1.bias": (4,),
        "fusion.norm.weight": (4,),
        "fusion.norm.bias": (4,),
        "spatial.logit_scale": (),
        "channel.reduce.weight": (5, 8),
        "channel.reduce.bias": (5,),
        "channel.expand.weight": (4, 5),
        "channel.expand.bias": (4,),
        "projections.weight": (12, 7),
        "projections.bias": (12,),
    }
    maps, pooled = inputs()
    embeds, attention = built([level.float() for level in maps], pooled.float())
    torch.testing.assert_close(embeds, torch.tensor(BEFORE), atol=1e-4, rtol=0)
    assert attention.shape == (N, A, 2 * H - 1, 2 * W)


BEFORE = [
    [
        [0.60628, 0.29449, 0.73120, -0.10511],
        [-0.00803, -0.61117, 0.49794, 0.61520],
        [0.56476, -0.17977, -0.69607, -0.40523],
    ],
    [
        [0.31450, -0.59239, 0.61163, -0.41962],
        [-0.29832, -0.59366, -0.65563, -0.35878],
        [0.40352, -0.47735, 0.56665, 0.53686],
    ],
]
