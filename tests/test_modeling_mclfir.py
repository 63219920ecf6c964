# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch

from modeling_mclfir import MclfirConfig, MclfirForImageRetrieval, MclfirModel
from modeling_mclfir.training.checkpoint import increment_folder, save_increment

FAMILIES = ("resnet", "vit", "mobilenet_v2")
INCREMENTS = (("shape", ["type", "sleeve length"]), ("cut", ["hem"]), ("look", ["colour", "pattern", "keys"]))
NUM_ATTRIBUTES = 6


def with_increments(model, count: int = 3):
    for name, attributes in INCREMENTS[:count]:
        model.add_increment(name, attributes)
    return model.eval()


def shake(model):
    """Move every adapter off its start, where it adds nothing."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(make_model, family):
    return shake(with_increments(make_model(family)))


# What a call returns


def test_one_pass_gives_every_attribute_as_a_unit_vector(model, images):
    embeds = model(images).embeds
    assert embeds.shape == (4, NUM_ATTRIBUTES, 16)
    assert torch.allclose(embeds.norm(dim=-1), torch.ones(4, NUM_ATTRIBUTES), atol=1e-6)
    assert len(torch.unique(embeds.reshape(-1, 16), dim=0)) == 4 * NUM_ATTRIBUTES, "no two spaces or images agree"


def test_a_list_of_ids_gives_its_slices_in_its_order(model, images):
    everything = model(images).embeds
    some = model(images, attribute_ids=[4, 0, 4]).embeds
    assert torch.equal(some, everything[:, [4, 0, 4]])


def test_increment_id_restricts_to_its_own_attributes(model, images):
    assert torch.equal(model(images, increment_id=2).embeds, model(images).embeds[:, 3:])


def test_a_tensor_of_ids_gives_one_embedding_an_image(model, images):
    everything = model(images, output_attentions=True)
    ids = torch.tensor([5, 0, 2, 1])
    one_each = model(images, attribute_ids=ids, output_attentions=True)
    assert one_each.embeds.shape == (4, 16)
    rows = torch.arange(4)
    torch.testing.assert_close(one_each.embeds, everything.embeds[rows, ids], atol=1e-5, rtol=0)
    torch.testing.assert_close(one_each.attentions, everything.attentions[rows, ids], atol=1e-5, rtol=0)


def test_names_lead_to_ids(model):
    assert model.attribute_ids(["hem", "type"]) == [2, 0]
    model.add_increment("new-hems", ["hem"], new_values=True)
    assert model.attribute_ids(["hem"]) == [2, NUM_ATTRIBUTES]


def test_attention_maps_come_on_request_only(model, images):
    assert model(images).attentions is None
    attentions = model(images, output_attentions=True).attentions
    assert attentions.shape[:2] == (4, NUM_ATTRIBUTES) and attentions.ndim == 4
    assert torch.allclose(attentions.sum(dim=(2, 3)), torch.ones(4, NUM_ATTRIBUTES), atol=1e-5)


def test_attention_maps_are_none_where_heads_do_not_look_at_places(make_model, images):
    model = with_increments(make_model("resnet", use_spatial_attention=False))
    assert model(images, output_attentions=True).attentions is None


def test_shared_features_stand_in_for_the_images(model, images):
    first = model(images)
    assert torch.equal(model(shared_features=first.shared_features).embeds, first.embeds)


def test_images_of_another_size_work_too(model):
    assert model(torch.zeros(1, 3, 64, 64)).embeds.shape == (1, NUM_ATTRIBUTES, 16)
    if model.config.vision_config.model_type != "vit":
        assert model(torch.zeros(1, 3, 96, 64)).embeds.shape == (1, NUM_ATTRIBUTES, 16)


def test_an_embedding_does_not_depend_on_its_batch(model, images):
    # In float64: an untrained trunk of many layers blows float32's rounding up.
    model, images = model.double(), images.double()
    torch.testing.assert_close(model(images[1:2]).embeds, model(images).embeds[1:2], atol=1e-6, rtol=0)


def test_the_shared_part_runs_once_for_three_increments(model, images):
    mclfir, calls = model.mclfir, {}

    def count(index):
        return lambda *_: calls.__setitem__(index, calls.get(index, 0) + 1)

    for index, names in enumerate(mclfir.units.names):
        mclfir.trunk.get_submodule(names[-1]).register_forward_hook(count(index))
    model(images)
    first = mclfir.first_adapted
    assert first > 0
    assert calls == {index: 1 if index < first else 3 for index in range(mclfir.num_units)}


@torch.no_grad()
def test_real_weights_keep_the_promise_across_batch_shapes(shared_dir):
    weights = shared_dir / "weights" / "mobilenet_v2_1.0_224"
    if not weights.is_dir():
        pytest.skip("there are no MobileNetV2 weights in ../shared/weights")
    torch.manual_seed(0)
    model = shake(with_increments(MclfirForImageRetrieval.from_trunk(str(weights))))
    images = torch.rand(8, 3, 192, 192, generator=torch.Generator().manual_seed(7)) * 2 - 1
    whole = model(images).embeds
    alone = torch.cat([model(images[row : row + 1]).embeds for row in range(8)])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)
    assert not torch.allclose(whole[0], whole[1], atol=1e-2)


# What is refused


@pytest.mark.parametrize("ids", [[6], [-1], [], torch.tensor([0, 1, 2, 6]), torch.tensor([0, 1, 2, -1])])
def test_unknown_attribute_ids(model, images, ids):
    with pytest.raises(ValueError, match="attribute_ids must lie in 0..5"):
        model(images, attribute_ids=ids)


def test_unknown_attribute_name_is_named(model):
    with pytest.raises(ValueError, match=r"Unknown attributes \['collar'\].*'hem'"):
        model.attribute_ids(["hem", "collar"])


@pytest.mark.parametrize("increment_id", [-1, 3])
def test_unknown_increment_id(model, images, increment_id):
    with pytest.raises(ValueError, match="increment_id"):
        model(images, increment_id=increment_id)
    with pytest.raises(ValueError, match="increment_id"):
        model.mclfir(images, increment_id=increment_id)
    with pytest.raises(ValueError, match="increment_id"):
        model.set_trainable(increment_id)


def test_ids_of_a_wrong_shape(model, images):
    for ids in (torch.tensor([0, 1]), torch.zeros(4, 1, dtype=torch.long), torch.tensor(0)):
        with pytest.raises(ValueError, match="one id an image"):
            model(images, attribute_ids=ids)


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64), (2, 64, 64, 3)])
def test_images_of_a_wrong_shape(model, shape):
    with pytest.raises(ValueError, match="pixel_values must be"):
        model(torch.zeros(shape))


def test_images_and_features_together_or_neither(model, images):
    features = model(images).shared_features
    with pytest.raises(ValueError, match="either"):
        model(images, shared_features=features)
    with pytest.raises(ValueError, match="either"):
        model()


def test_a_model_without_increments_says_so(make_model, images):
    with pytest.raises(ValueError, match="add_increment"):
        make_model("resnet")(images)


def test_a_model_without_trunk_says_so():
    with pytest.raises(ValueError, match="from_trunk"):
        MclfirModel(MclfirConfig())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("shape", ["collar"]), "exists already"),
        (("more", ["hem"]), "known already"),
        (("more", []), "at least one attribute"),
        (("more", ["collar", "collar"]), "each named once"),
        (("more", "hat"), "list"),
        (("a/b", ["collar"]), "letters, digits"),
        (("", ["collar"]), "letters, digits"),
        ((None, ["collar"]), "letters, digits"),
    ],
)
def test_bad_increments_are_refused_and_change_nothing(make_model, images, arguments, message):
    model = with_increments(make_model("resnet"))
    before, embeds = model.config.to_dict(), model(images).embeds
    with pytest.raises(ValueError, match=message):
        model.add_increment(*arguments)
    assert model.config.to_dict() == before
    assert torch.equal(model(images).embeds, embeds)


def test_new_values_open_a_further_space_and_leave_the_old_one(model, images):
    before = model(images).embeds
    increment_id = model.add_increment("winter", ["hem"], new_values=True)
    after = model.eval()(images).embeds
    assert increment_id == 3 and after.shape[1] == NUM_ATTRIBUTES + 1
    assert torch.equal(after[:, :NUM_ATTRIBUTES], before)
    assert not torch.allclose(after[:, -1], after[:, 2])


def test_out_indices_outside_the_trunk_are_refused_when_built(make_model):
    with pytest.raises(ValueError, match="not units of this trunk"):
        make_model("resnet", out_indices=[6])


def test_out_indices_below_the_shared_output_are_refused_when_built(make_model):
    with pytest.raises(ValueError, match="lie below"):
        make_model("resnet", out_indices=[0, 5])


def test_no_adapted_block_needs_the_frozen_policy(make_model, images):
    with pytest.raises(ValueError, match="adapter_policy='frozen'"):
        make_model("resnet", num_adapted_blocks=0)
    model = with_increments(make_model("resnet", num_adapted_blocks=0, adapter_policy="frozen"))
    assert model(images).embeds.shape == (4, NUM_ATTRIBUTES, 16)


def test_more_adapted_blocks_than_there_are(make_model):
    with pytest.raises(ValueError, match=r"0\.\.5"):
        make_model("resnet", num_adapted_blocks=6)


# Nothing is forgotten


def test_old_embeddings_stay_bit_for_bit(make_model, family, images, learn):
    model = make_model(family)
    kept = []
    for increment_id, (name, attributes) in enumerate(INCREMENTS):
        model.add_increment(name, attributes)
        for old, embeds in enumerate(kept):
            assert torch.equal(model.eval()(images, increment_id=old).embeds, embeds), "adding alone changed it"
        start = model.eval()(images, increment_id=increment_id).embeds
        learn(model, increment_id, images)
        learned = model(images, increment_id=increment_id).embeds
        assert not torch.allclose(start, learned, atol=1e-3), "the increment did learn"
        kept.append(learned)
        assert torch.equal(model(images).embeds, torch.cat(kept, dim=1))


def test_a_shared_adapter_does_change_old_embeddings(make_model, images, learn):
    # The counterpart of the test above: it fails if training never reaches what embeddings depend on.
    model = with_increments(make_model("resnet", adapter_policy="shared"), 2)
    learn(model, 0, images)
    before = model(images, increment_id=0).embeds
    learn(model, 1, images)
    assert not torch.allclose(model(images, increment_id=0).embeds, before, atol=1e-3)


def test_base_training_then_nothing_is_forgotten(make_model, family, images, learn):
    model = make_model(family, base_training="first_increment")
    model.add_increment(*INCREMENTS[0])
    learn(model, 0, images)
    before = model(images, increment_id=0).embeds
    for increment_id, (name, attributes) in enumerate(INCREMENTS[1:], start=1):
        model.add_increment(name, attributes)
        learn(model, increment_id, images)
    assert torch.equal(model(images, increment_id=0).embeds, before)


# What learns


def gradients_of(model, images, increment_id):
    names = model.set_trainable(increment_id)
    model.train()
    model.zero_grad()
    embeds = model(images, increment_id=increment_id).embeds
    (embeds * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return names, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter_policy": "shared"},
        {"adapter_policy": "frozen"},
        {"adapter_policy": "stacked"},
        {"base_training": "first_increment"},
        {"use_channel_attention": False},
        {"use_spatial_attention": False},
        {"use_pooled_features": False},
    ],
    ids=str,
)
def test_gradients_reach_exactly_what_set_trainable_names(make_model, family, images, settings):
    model = shake(with_increments(make_model(family, **settings)))
    for increment_id in range(3):
        names, gradients = gradients_of(model, images, increment_id)
        assert names
        assert {name for name, gradient in gradients.items() if gradient is not None} == set(names)
        # A bias that a normalisation takes out again has a gradient of rounding size, never of exactly 0 everywhere.
        without = [name for name in names if not gradients[name].any() and "key" not in name and "k_proj" not in name]
        assert not without


@pytest.mark.parametrize("other", ["dinov2", "deit", "siglip", "clip_vision", "convnext", "mobilenet_v1"])
@pytest.mark.parametrize("base_training", ["none", "first_increment"])
def test_every_listed_family_trains_without_idle_parameters(make_model, images, other, base_training):
    model = make_model(other, base_training=base_training)
    model.add_increment("shape", ["type", "hem"])
    names, gradients = gradients_of(model, images, 0)
    assert names and {name for name, gradient in gradients.items() if gradient is not None} == set(names)


def test_set_trainable_frees_the_increments_own_head_and_adapter(make_model):
    model = with_increments(make_model("resnet"))
    names = model.set_trainable(1)
    assert all(name.startswith("heads.1.") or ".increment_01_cut." in name for name in names)
    assert any(".lora_A." in name for name in names) and any(name.startswith("heads.1.") for name in names)
    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert model.set_trainable(None) == []
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_evaluation_between_steps_does_not_change_what_learns(make_model, images):
    model = with_increments(make_model("vit"))
    names = model.set_trainable(1)
    model.eval()(images)
    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_adding_an_increment_leaves_nothing_trainable(make_model):
    model = with_increments(make_model("vit"), 1)
    model.set_trainable(0)
    model.add_increment("cut", ["hem"])
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings, adapters",
    [
        ({}, ["increment_00_shape", "increment_01_cut", "increment_02_look"]),
        ({"adapter_policy": "shared"}, ["shared"]),
        ({"adapter_policy": "frozen"}, []),
        ({"adapter_policy": "stacked"}, ["increment_00_shape", "increment_01_cut", "increment_02_look"]),
        ({"base_training": "first_increment"}, ["increment_01_cut", "increment_02_look"]),
        ({"base_training": "first_increment", "adapter_policy": "shared"}, ["shared"]),
    ],
    ids=str,
)
def test_adapter_policies(make_model, settings, adapters):
    model = with_increments(make_model("resnet", **settings))
    found = {name.split(".lora_A.")[1].split(".")[0] for name in model.state_dict() if ".lora_A." in name}
    assert found == set(adapters)


def test_base_training_learns_the_whole_trunk_once(make_model, images, learn):
    model = make_model("resnet", base_training="first_increment")
    model.add_increment("shape", ["type"])
    start = copy.deepcopy(model.mclfir.trunk.state_dict())
    names = learn(model, 0, images)
    moved = {name for name, value in model.mclfir.trunk.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == set(start), "weights and statistics of every layer, the stem included"
    assert {f"mclfir.trunk.{name}" for name, _ in model.mclfir.trunk.named_parameters()} <= set(names)
    model.add_increment("cut", ["hem"])
    frozen = {
        name.replace(".base_layer.", "."): value.clone()
        for name, value in model.mclfir.trunk.state_dict().items()
        if ".lora_" not in name
    }
    assert set(frozen) == set(start)
    learn(model, 1, images)
    after = {name.replace(".base_layer.", "."): value for name, value in model.mclfir.trunk.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def statistics(model):
    return {name: value.clone() for name, value in model.mclfir.trunk.named_buffers() if "running" in name}


@pytest.mark.parametrize("family_with_bn", ["resnet", "mobilenet_v2"])
def test_batch_normalisation_of_a_frozen_trunk_keeps_its_statistics(make_model, family_with_bn, images, learn):
    model = with_increments(make_model(family_with_bn))
    before = statistics(model)
    assert before
    learn(model, 1, 5 * images + 3)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())


def test_batch_normalisation_stops_learning_with_the_trunk(make_model, images):
    # The order of calls must not matter: train() before set_trainable() freezes the statistics just as well.
    model = make_model("resnet", base_training="first_increment")
    model.add_increment("shape", ["type"])
    model.train()
    model.set_trainable(0)
    before = statistics(model)
    model(images, increment_id=0)
    after = statistics(model)
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    model.add_increment("cut", ["hem"])
    model.set_trainable(1)
    assert model.training
    before = statistics(model)
    model(images, increment_id=1)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())


def test_the_frozen_shared_part_drops_nothing_in_training(make_model, make_trunk_config, images):
    # What a cache holds must be what training without a cache would see.
    config = make_trunk_config("vit")
    config.hidden_dropout_prob = 0.5
    model = MclfirForImageRetrieval.from_trunk(config, embed_dim=16, base_training="first_increment")
    model.add_increment("shape", ["type"])
    model.add_increment("cut", ["hem"])
    expected = model.eval().mclfir.shared_forward(images)
    model.set_trainable(1)
    assert torch.equal(model.train().mclfir.shared_forward(images), expected)
    model.set_trainable(0)
    assert not torch.allclose(model.mclfir.shared_forward(images), expected, atol=1e-2)


def test_the_shared_part_keeps_no_graph_when_frozen(make_model, images):
    model = with_increments(make_model("resnet", base_training="first_increment"), 2)
    model.set_trainable(1)
    assert not model(images, increment_id=1).shared_features.requires_grad
    model.set_trainable(0)
    assert model(images, increment_id=0).shared_features.requires_grad


def test_a_new_adapter_starts_where_the_previous_one_ended(make_model, images, learn):
    model = with_increments(make_model("vit"), 1)
    learn(model, 0, images)
    model.add_increment("cut", ["hem"])
    old, new, bare = (model.mclfir(images, increment_id=index).pooled for index in (0, 1, None))
    assert torch.equal(old, new)
    assert not torch.allclose(old, bare, atol=1e-3)


# Prompts


def test_text_prompts_are_stored_and_steer_the_head(make_model, images, tmp_path):
    prompts = torch.randn(2, 6, generator=torch.Generator().manual_seed(4))
    model = make_model("resnet", prompt_type="text", prompt_dim=6)
    model.add_increment("shape", ["type", "sleeve length"], prompt_embeds=prompts)
    assert torch.equal(model.heads[0].prompts, prompts)
    assert "heads.0.prompts" not in model.set_trainable(0), "the text encoder's words are not learned"
    embeds = model.eval()(images).embeds
    model.save_pretrained(tmp_path)
    assert torch.equal(MclfirForImageRetrieval.from_pretrained(tmp_path)(images).embeds, embeds)
    model.heads[0].prompts.copy_(prompts.flip(0))
    assert not torch.allclose(model(images).embeds, embeds, atol=1e-4)


@pytest.mark.parametrize("prompts", [None, torch.zeros(2, 5), torch.zeros(1, 6), torch.zeros(6)])
def test_text_prompts_missing_or_of_a_wrong_shape(make_model, prompts):
    model = make_model("resnet", prompt_type="text", prompt_dim=6)
    with pytest.raises(ValueError, match=r"prompt_embeds of shape \(2, 6\)"):
        model.add_increment("shape", ["type", "hem"], prompt_embeds=prompts)
    assert model.config.increments == []


def test_text_prompts_where_prompts_are_learned(make_model):
    with pytest.raises(ValueError, match="prompt_type is 'learned'"):
        make_model("resnet").add_increment("shape", ["type"], prompt_embeds=torch.zeros(1, 6))


# On disk


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter_policy": "shared"},
        {"adapter_policy": "frozen"},
        {"adapter_policy": "stacked"},
        {"base_training": "first_increment"},
    ],
    ids=str,
)
def test_round_trip_after_every_increment(make_model, family, images, learn, tmp_path, settings):
    from modeling_mclfir import MclfirImageProcessor

    model, previous = make_model(family, **settings), None
    for increment_id, (name, attributes) in enumerate(INCREMENTS):
        model.add_increment(name, attributes)
        learn(model, increment_id, images, steps=1)
        embeds = model(images).embeds
        model.save_pretrained(tmp_path / "plain")
        folder = increment_folder(tmp_path, increment_id)
        save_increment(folder, model, MclfirImageProcessor(), {}, {}, previous=previous)
        previous = folder
        for source in (tmp_path / "plain", folder):
            loaded = MclfirForImageRetrieval.from_pretrained(source)
            assert torch.equal(loaded(images).embeds, embeds)
            assert not loaded.training
    # A loaded model goes on where the saved one would have.
    torch.manual_seed(5)
    model.add_increment("later", ["lapel"])
    torch.manual_seed(5)
    loaded.add_increment("later", ["lapel"])
    assert torch.equal(loaded(images).embeds, model(images).embeds)


def test_first_checkpoint_still_loads_after_the_last(make_model, images, learn, tmp_path):
    from modeling_mclfir import MclfirImageProcessor

    model = make_model("resnet")
    model.add_increment(*INCREMENTS[0])
    learn(model, 0, images, steps=1)
    first = model(images).embeds
    save_increment(tmp_path / "a", model, MclfirImageProcessor(), {}, {})
    model.add_increment(*INCREMENTS[1])
    learn(model, 1, images, steps=1)
    save_increment(tmp_path / "b", model, MclfirImageProcessor(), {}, {}, previous=tmp_path / "a")
    assert torch.equal(MclfirForImageRetrieval.from_pretrained(tmp_path / "a")(images).embeds, first)
    trunk = "trunk.safetensors"
    assert (tmp_path / "a" / trunk).samefile(tmp_path / "b" / trunk), "the frozen trunk is linked, not copied"


# What an increment costs


@pytest.mark.parametrize("name, share", [("MobileNetV2Config", 0.03), ("ResNetConfig", 0.01)])
def test_parameters_added_an_attribute(name, share):
    import transformers

    model = MclfirForImageRetrieval.from_trunk(getattr(transformers, name)())
    trunk = sum(parameter.numel() for parameter in model.mclfir.trunk.parameters())
    start = sum(parameter.numel() for parameter in model.parameters())
    for increment_id, count in enumerate((6, 5, 5, 5, 5)):
        model.add_increment(f"increment{increment_id}", [f"{increment_id} {number}" for number in range(count)])
    added = sum(parameter.numel() for parameter in model.parameters()) - start
    assert added == sum(model.num_added_parameters().values())
    assert added / 26 < share * trunk, f"{added / 26 / trunk:.2%} of the trunk an attribute"


# The teacher's copy


def test_copy_trainable_shares_what_is_frozen_and_copies_what_learns(make_model, images, learn):
    model = with_increments(make_model("resnet"), 2)
    names = set(model.set_trainable(1))
    twin = model.copy_trainable()
    assert torch.equal(twin(images).embeds, model(images).embeds)
    own = dict(twin.named_parameters())
    assert {name for name, value in model.named_parameters() if own[name] is not value} == names
    before = twin(images).embeds
    learn(model, 1, images)
    assert torch.equal(twin(images).embeds, before)
    assert not torch.equal(model(images).embeds, before)
