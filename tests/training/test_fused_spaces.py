# SPDX-License-Identifier: Apache-2.0
"""New values of an attribute in spaces of their own, and queries of which nobody says where their value came from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import assert_equal_runs, stopped_after, train, write_increments

from modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training.feature_cache import load_pixels


@pytest.fixture(scope="module")
def sequence(tiny_data, tmp_path_factory):
    """The first is an attribute like any other; after another attribute two increments bring new values of it."""
    table = load_tables(tiny_data)["train"]
    codes, counts = np.unique(table.labels("category"), return_counts=True)
    names = [table.values("category")[code] for code in codes[np.argsort(-counts)]]
    groups = [names[0:2], names[2:4], names[4:6]]
    entries = [
        {"name": "cut", "attributes": ["sleeve_length", "category"], "where": {"category": groups[0]}},
        {"name": "surface", "attributes": ["colour"]},
        {"name": "more", "attribute": "category", "where": {"category": groups[1]}},
        {"name": "most", "attribute": "category", "where": {"category": groups[2]}},
    ]
    return write_increments(tmp_path_factory.mktemp("values") / "values.json", entries), groups


@pytest.fixture(scope="module")
def finished(tiny_data, sequence, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("fused") / "run"
    return train(tiny_data, folder, "--increments", sequence[0]), folder


def test_scores_without_the_increment_stand_beside_those_with_it(finished):
    report, _ = finished
    known, unknown = report["scores"], report["scores_unknown_increment"]
    # One space for the attribute so far, or an attribute that has one only: the same.
    assert unknown[0] == [known[0][0], None, None, None]
    assert unknown[1] == [*known[1][:2], None, None]
    assert unknown[3][1] == known[3][1]
    assert [value is None for value in unknown[2]] == [False, False, False, True]
    # Of several spaces the right one has to be found, and the others' noise is added.
    assert unknown[3][0] != known[3][0] and unknown[3][2] != known[3][2]


def test_the_checkpoint_gives_these_scores(finished, tiny_data, sequence):
    report, folder = finished
    model = MclfirForImageRetrieval.from_pretrained(folder / "increment-03")
    processor = MclfirImageProcessor.from_pretrained(folder / "increment-03")
    tables = load_tables(tiny_data)
    sides = []
    for side in ("query", "gallery"):
        pixels = load_pixels(tables[side], range(len(tables[side])), 0, processor, Augmentation(), 0)
        make = model.fused_queries if side == "query" else model.fused_gallery
        sides.append((make("category", pixels).double().numpy(), tables[side].labels("category")))
    (queries, labels), (gallery, values) = sides
    assert queries.shape[1] == gallery.shape[1] == 3 * model.config.embed_dim
    wanted = [tables["query"].values("category").index(name) for name in sequence[1][1]]
    assert [model.config.attributes.index("category"), len(model.attribute_ids(["category"]))] == [1, 3]
    precisions = []
    for query, label in zip(queries, labels, strict=True):
        if label in wanted and (values == label).any():
            relevant = values[np.argsort(-(gallery @ query), kind="stable")] == label
            precisions.append((np.cumsum(relevant) / np.arange(1, len(relevant) + 1))[relevant].mean())
    assert report["scores_unknown_increment"][3][2] == pytest.approx(np.mean(precisions), abs=1e-6)


def test_a_further_space_leaves_the_old_vectors_and_the_router_as_they_were(finished, tiny_data):
    _, folder = finished
    processor = MclfirImageProcessor.from_pretrained(folder / "increment-03")
    table = load_tables(tiny_data)["query"]
    pixels = load_pixels(table, range(len(table)), 0, processor, Augmentation(), 0)
    before, after = (MclfirForImageRetrieval.from_pretrained(folder / f"increment-0{i}") for i in (2, 3))
    old, new = before.fused_gallery("category", pixels), after.fused_gallery("category", pixels)
    assert torch.equal(new[:, : old.shape[1]], old) and new.shape[1] == old.shape[1] * 3 // 2
    with torch.no_grad():
        pooled = before.mclfir(pixels).pooled
        assert torch.equal(after.router(pooled)[:, :2], before.router(pooled))
    entries = [increment.get("router") for increment in after.config.increments]
    assert entries[1] is None and [entries[i]["place"] for i in (0, 2, 3)] == [0, 1, 2]
    assert [entries[i]["num_prototypes"] for i in (2, 3)] == [2, 2] and entries[0]["num_prototypes"] > 2


def test_prototypes_are_the_mean_directions_of_the_training_rows(finished, tiny_data, sequence):
    _, folder = finished
    model = MclfirForImageRetrieval.from_pretrained(folder / "increment-03")
    processor = MclfirImageProcessor.from_pretrained(folder / "increment-03")
    table = load_tables(tiny_data)["train"]
    pixels = load_pixels(table, range(len(table)), 0, processor, Augmentation(), 0)
    with torch.no_grad():
        pooled = model.mclfir(pixels).pooled.double().numpy()
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    codes = sorted(table.values("category").index(name) for name in sequence[1][0])
    inside = np.isin(table.labels("category"), codes)
    means = [unit[inside & (table.labels("sleeve_length") == code)].mean(0)
             for code in np.unique(table.labels("sleeve_length")[inside]) if code >= 0]  # fmt: skip
    means = np.stack(means + [unit[table.labels("category") == code].mean(0) for code in codes])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    # Cached training features are half precision.
    np.testing.assert_allclose(model.router.prototypes[: len(means)].numpy(), means, atol=2e-3)


def test_a_stopped_run_goes_on_as_if_it_had_not(finished, tiny_data, sequence, tmp_path):
    report, folder = finished
    for number in (2, 3):
        again = stopped_after(number, folder, tmp_path / f"again{number}")
        resumed = train(tiny_data, again, "--increments", sequence[0], "--resume")
        assert_equal_runs(report, resumed, (folder, again), 4)
        assert resumed["scores_unknown_increment"] == report["scores_unknown_increment"]


def test_where_one_space_learns_on_nothing_is_to_be_told_apart(tiny_data, sequence, tmp_path):
    with pytest.raises(ValueError, match="the space of 'category' learns .* shares its heads with .*'per_increment'"):
        train(tiny_data, tmp_path / "both", "--increments", sequence[0], adapter_policy="shared")
    entries = json.loads(Path(sequence[0]).read_text())
    entries[0]["attributes"] = ["category"]
    alone = write_increments(tmp_path / "alone.json", entries)
    report = train(tiny_data, tmp_path / "run", "--increments", alone, adapter_policy="shared")
    told = [[value if j <= i else None for j, value in enumerate(row)] for i, row in enumerate(report["scores"])]
    assert report["scores_unknown_increment"] == told
    model = MclfirForImageRetrieval.from_pretrained(tmp_path / "run" / "increment-03")
    assert model.router is None and model.config.attributes == ["category", "colour"]


def test_features_that_serve_all_increments_alike_have_one_answer(tiny_data, sequence, tmp_path):
    report = train(tiny_data, tmp_path / "run", "--increments", sequence[0], method="zero_shot")
    told = [[value if j <= i else None for j, value in enumerate(row)] for i, row in enumerate(report["scores"])]
    assert report["scores_unknown_increment"] == told and report["finished"]


def test_a_run_of_an_earlier_version_describes_its_spaces_when_it_goes_on(finished, tiny_data, sequence, tmp_path):
    """As it was before there was a router: nothing of it in the configuration, nor among the weights."""
    report, folder = finished
    again = stopped_after(3, folder, tmp_path / "again")
    last = again / "increment-02"
    config = json.loads((last / "config.json").read_text())
    for increment in config["increments"]:
        increment.pop("router", None)
    (last / "config.json").write_text(json.dumps(config))
    heads = load_file(last / "heads.safetensors")
    del heads["router.prototypes"]
    (last / "heads.safetensors").unlink()
    save_file(heads, last / "heads.safetensors", metadata={"format": "pt"})
    index = json.loads((last / "model.safetensors.index.json").read_text())
    del index["weight_map"]["router.prototypes"]
    (last / "model.safetensors.index.json").write_text(json.dumps(index))
    state = json.loads((last / "training_state.json").read_text())
    state["progress"]["scores_unknown"] = []
    (last / "training_state.json").write_text(json.dumps(state))
    resumed = train(tiny_data, again, "--increments", sequence[0], "--resume")
    assert resumed["scores"] == report["scores"] and resumed["scores_unknown_increment"] is None
    fused = [MclfirForImageRetrieval.from_pretrained(path / "increment-03").router for path in (again, folder)]
    assert torch.equal(fused[0].prototypes, fused[1].prototypes)


def test_increments_of_attributes_have_no_such_scores(tiny_data, tmp_path):
    assert train(tiny_data, tmp_path / "run")["scores_unknown_increment"] is None


def test_a_space_that_was_not_described_cannot_be_fused():
    from transformers import ResNetConfig

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    model = MclfirForImageRetrieval.from_trunk(config)
    model.add_increment("cut", ["category"])
    model.add_increment("more", ["category"], new_values=True)
    pixels = torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match="Nothing tells the space of increment 'cut' from others; call describe_inc"):
        model.fused_queries("category", pixels)
    prototypes = torch.nn.functional.normalize(torch.rand(3, 16), dim=-1)
    model.describe_increment(1, prototypes, [0.2])  # in any order
    with pytest.raises(ValueError, match="Increment 'more' is described already"):
        model.describe_increment(1, prototypes, [0.2])
    with pytest.raises(ValueError, match="Expected 1 spreads, one a space; got 2"):
        model.describe_increment(0, prototypes, [0.2, 0.3])
    model.describe_increment(0, prototypes[:2], [0.4])
    assert model.fused_queries("category", pixels, top=1).shape == (2, 2 * model.config.embed_dim)
    assert MclfirForImageRetrieval(model.config).router.prototypes.shape == (5, 16)
