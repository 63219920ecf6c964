# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from shared_adapter import IMAGE_IDS, LABELS, batch_of, begin, build, learn, learn_all
from tiny_runs import assert_equal_runs, stopped_after, train, weights, write_increments

from modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.losses import InfoNCE

pytestmark = pytest.mark.usefixtures("one_thread")
L2P = {
    "method": "l2p", "adapter_policy": "prompts", "trunk": "vit", "epochs": 1, "prompt_pool_size": 6,
    "prompt_length": 2, "prompts_per_image": 3,
}  # fmt: skip


@pytest.fixture
def make_student(make_model):
    settings = {"adapter_policy": "prompts", "prompt_pool_size": 7, "prompt_length": 2, "prompts_per_image": 3}
    return lambda family="vit", **changes: make_model(family, **(settings | changes))


def test_the_loss_is_that_of_the_doublets_and_of_keys_and_queries(make_student):
    model, method = make_student(), build("l2p", key_weight=0.3)
    learn_all(model, method, increments=1)
    begin(model, method, 1)
    learn(model, method, 1, steps=2)
    batch = batch_of(9, 1)
    parts = method.compute_loss(model, batch)
    with torch.no_grad():
        embeds = model(**batch["inputs"]).embeds
        queries = model.mclfir(batch["inputs"]["pixel_values"]).pooled.double().numpy()
    keys = model.mclfir.prompt_pool.keys.detach().double().numpy()
    far = []
    for query in queries:
        cosines = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in keys]
        far += [1 - cosine for cosine in sorted(cosines)[-3:]]
    contrastive = InfoNCE(0.2)(embeds, LABELS[:, :1], IMAGE_IDS).item()
    assert parts["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    assert parts["key_distance"].item() == pytest.approx(np.mean(far), rel=1e-5)
    assert parts["loss"].item() == pytest.approx(contrastive + 0.3 * np.mean(far), rel=1e-5)
    assert [name for name, value in parts.items() if value.requires_grad] == ["loss"]


def test_the_pool_and_the_new_heads_learn_and_nothing_else(make_student):
    model, method = make_student(), build("l2p")
    learn_all(model, method, increments=1)
    images = batch_of(0, 0)["inputs"]["pixel_values"]
    with torch.no_grad():
        before = model.eval()(images, increment_id=0).embeds
    begin(model, method, 1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model, method, 1)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    heads = {name for name in start if name.startswith("heads.1.")}
    assert moved == {"mclfir.prompt_pool.prompts", "mclfir.prompt_pool.keys"} | heads
    with torch.no_grad():
        assert not torch.allclose(model.eval()(images, increment_id=0).embeds, before, atol=1e-3), "no drift"


def test_keys_are_drawn_to_the_images_that_chose_them(make_student):
    nearer = {}
    for weight in (0.0, 5.0):
        model, method = make_student(), build("l2p", key_weight=weight)
        begin(model, method, 0)
        images = batch_of(0, 0)["inputs"]["pixel_values"]  # the first of those learned from
        with torch.no_grad():
            before = model(images).prompt_similarity.mean().item()
            with torch.enable_grad():
                learn(model, method, 0, steps=4)
            nearer[weight] = model(images).prompt_similarity.mean().item() - before
    assert nearer[5.0] > 0.1 and nearer[0.0] < 0.05


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_settings_are_checked_when_built(weight):
    with pytest.raises(ValueError, match=f"key_weight must be at least 0; got {weight}"):
        build("l2p", key_weight=weight)


# ---- whole runs


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_data, one_thread):
    folder = tmp_path_factory.mktemp("l2p") / "run"
    return train(tiny_data, folder, **L2P), folder


def test_a_run_stopped_between_increments_ends_as_the_unbroken_one(unbroken, tiny_data, tmp_path):
    report, folder = unbroken
    assert all("key_distance" in row for row in report["loss"])
    again = stopped_after(1, folder, tmp_path / "again")
    assert_equal_runs(report, train(tiny_data, again, "--resume", **L2P), (folder, again))


def test_checkpoints_hold_the_pool_beside_a_linked_trunk(unbroken):
    report, folder = unbroken
    before, after = weights(folder, 0), weights(folder, 2)
    pool = ["mclfir.prompt_pool.prompts", "mclfir.prompt_pool.keys"]
    assert all(not torch.equal(before[name], after[name]) for name in pool)
    first, last = (folder / f"increment-{number:02d}" for number in (0, 2))
    assert (first / "trunk.safetensors").samefile(last / "trunk.safetensors")
    model = MclfirForImageRetrieval.from_pretrained(last)
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name], after[name]) for name in pool)
    sizes = [sum(value.numel() for value in head.parameters()) for head in model.heads]
    pool_size = 6 * 2 * 16 + 6 * 16
    assert list(report["parameters"]["added"].values()) == [sizes[0] + pool_size, *sizes[1:]]


def test_new_values_learn_on_in_the_space_of_their_attribute(tiny_data, tmp_path):
    sequence = [
        {"name": "cut", "attributes": ["category"], "where": {"category": ["dress", "shirt", "skirt"]}},
        {"name": "more", "attribute": "category", "where": {"category": ["jumpsuit", "sweater", "trousers"]}},
    ]
    increments = write_increments(tmp_path / "values.json", sequence)
    report = train(tiny_data, tmp_path / "run", "--increments", increments, **L2P)
    assert report["finished"] and list(report["parameters"]["added"]) == ["cut"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"adapter_policy": "frozen"}, "method 'l2p' needs adapter_policy 'prompts'; got 'frozen'"),
        ({"method": "fine_tuning"}, "method 'fine_tuning' needs adapter_policy .*; got 'prompts'"),
        ({"method": "o_lora"}, "method 'o_lora' needs adapter_policy 'stacked'; got 'prompts'"),
        ({"trunk": "resnet"}, "'prompts' puts tokens before .* trunk of type 'resnet' has none"),
        ({"prompts_per_image": 7}, "prompts_per_image must be at most prompt_pool_size; got 7 of 6"),
        ({"base_training": "first_increment"}, "trunk that never learns; got base_training 'first_increment'"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_data, tmp_path / "run", **(L2P | settings))
