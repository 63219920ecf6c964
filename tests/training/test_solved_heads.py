# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import arguments, assert_equal_runs, assert_equal_weights, stopped_after, train, weights
from torch.nn import functional

import modeling_mclfir.training.solved_heads as solved_heads
from modeling_mclfir.training.solved_heads import LeaveOneOutRidge, finish_heads, start_heads


def fitted(features, targets, ridge):
    """Ridge regression with an intercept that is not shrunk, by the normal equations."""
    centre, middle = features.mean(0), targets.mean(0)
    x, y = features - centre, targets - middle
    weight = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
    return weight, middle - centre @ weight


@pytest.mark.parametrize("noise", [0.05, 3.0])
def test_the_ridge_is_the_one_that_predicts_each_row_best_from_the_others(noise):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(14, 5)) * np.array([3, 1, 1, 0.3, 0.1])
    targets = features @ rng.normal(size=(5, 3)) + noise * rng.normal(size=(14, 3)) + 2.0
    centred = features - features.mean(0)
    ridges = np.array(solved_heads._RIDGES) * np.trace(centred.T @ centred) / 5
    errors = []
    for ridge in ridges:
        left_out = []
        for row in range(14):
            others = np.delete(np.arange(14), row)
            # The scale of the ridges is that of all rows, and so is the centre: as if one row were weighted 0.
            weight, bias = fitted(features[others], targets[others], ridge)
            left_out.append(((targets[row] - features[row] @ weight - bias) ** 2).sum())
        errors.append(sum(left_out))
    expected = fitted(features, targets, ridges[int(np.argmin(errors))])
    found = LeaveOneOutRidge(torch.from_numpy(features)).solve(torch.from_numpy(targets))
    np.testing.assert_allclose(found[0].numpy(), expected[0], atol=1e-9)
    np.testing.assert_allclose(found[1].numpy(), expected[1], atol=1e-9)


class Heads(torch.nn.Module):
    def __init__(self, num_features, num_attributes, dim):
        super().__init__()
        self.pooled_norm = torch.nn.LayerNorm(num_features, elementwise_affine=False)
        self.pooled_projection = torch.nn.Linear(num_features, num_attributes * dim)

    def attended(self, feature_maps):
        return feature_maps[0][..., None] * 0.3, None


class Model(torch.nn.Module):
    """Heads on features that are given as they are."""

    def __init__(self, *heads, adapters=None):
        super().__init__()
        self.heads = torch.nn.ModuleList(heads)
        self.runs = []
        stops = np.cumsum([0, *(2 for _ in heads)])
        self.config = SimpleNamespace(
            attribute_range=lambda i: range(stops[i], stops[i + 1]),
            adapter_name=lambda i: (adapters or [None] * len(heads))[i],
        )

    def mclfir(self, shared_features, increment_id):
        self.runs.append(increment_id)
        return SimpleNamespace(pooled=shared_features, feature_maps=[shared_features[:, :2]])


def batches(features, labels):
    def chunks(most):
        for start in range(0, len(features), 16):
            part = slice(start, start + 16)
            yield {"inputs": {"shared_features": features[part], "increment_id": 99}, "labels": labels[part]}

    return SimpleNamespace(chunks=chunks, labels=labels)


@pytest.fixture
def drawn():
    """Features (60, 12) and labels of two attributes, of 3 and 9 values; some rows have none."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(60, 12, generator=rng)
    labels = torch.stack([features[:, :3].argmax(1), features[:, 3:].argmax(1)], dim=1)
    labels[::7, 0] = -1
    labels[3::5, 1] = -1
    return features, labels


def expected_scores(features, codes, count):
    """Ridge scores (n, V) of all rows, learned from those with a label; features normalised as the heads do."""
    normal = functional.layer_norm(features, features.shape[1:]).double()
    known = codes >= 0
    weight, bias = LeaveOneOutRidge(normal[known]).solve(functional.one_hot(codes[known], count).double())
    return (normal @ weight + bias).numpy()


def cosines(vectors):
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


@pytest.mark.parametrize("dim", [16, 4])
def test_an_embedding_starts_as_the_scores_of_the_values(drawn, monkeypatch, dim):
    monkeypatch.setattr(solved_heads, "_NOISE", 0.0)
    features, labels = drawn
    torch.manual_seed(3)
    heads = Heads(12, 2, dim)
    start_heads(Model(heads), [0], batches(features, labels), seed=5)
    with torch.no_grad():
        embeds = heads.pooled_projection(heads.pooled_norm(features)).unflatten(1, (2, dim)).double().numpy()
    for place, count in ((0, 3), (1, 9)):
        scores = expected_scores(features, labels[:, place], count)
        known = (labels[:, place] >= 0).numpy()
        if count > dim:  # only the main directions find room
            _, _, axes = np.linalg.svd(scores[known], full_matrices=False)
            scores = scores @ axes[:dim].T
        np.testing.assert_allclose(cosines(embeds[:, place]), cosines(scores), atol=2e-4)
        # As long as what a linear layer gives at random.
        assert np.linalg.norm(embeds[known, place], axis=1).mean() == pytest.approx((dim / 3) ** 0.5, rel=1e-3)


def test_a_share_of_what_was_drawn_stays(drawn, monkeypatch):
    features, labels = drawn
    found = []
    for noise in (0.0, 0.25):
        monkeypatch.setattr(solved_heads, "_NOISE", noise)
        torch.manual_seed(3)
        heads = Heads(12, 2, 16)
        before = heads.pooled_projection.weight.detach().clone()
        start_heads(Model(heads), [0], batches(features, labels), seed=5)
        found.append(heads.pooled_projection.weight.detach().clone())
    torch.testing.assert_close(found[1] - found[0], 0.25 * before, atol=1e-6, rtol=0)


def test_an_attribute_without_labels_stays_as_it_was_drawn_and_nothing_else_is_drawn(drawn):
    features, labels = drawn
    labels[:, 1] = -1
    heads = Heads(12, 2, 8)
    before = heads.pooled_projection.weight.detach().clone()
    state = torch.get_rng_state()
    start_heads(Model(heads), [0], batches(features, labels), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    after = heads.pooled_projection.weight.detach()
    assert torch.equal(after[8:], before[8:]) and not torch.equal(after[:8], before[:8])


def test_what_is_learned_from_triplets_alone_stays_as_it_was_drawn(drawn):
    features, labels = drawn
    heads = Heads(12, 2, 8)
    before = heads.pooled_projection.weight.detach().clone()
    start_heads(Model(heads), [0], batches(features, torch.full_like(labels, -1)), seed=5)
    assert torch.equal(heads.pooled_projection.weight, before)


def test_each_increments_heads_learn_from_their_own_attributes(drawn):
    features, labels = drawn
    alone = Heads(12, 2, 8)
    second = Heads(12, 2, 8)
    second.load_state_dict(alone.state_dict())
    first = Heads(12, 2, 8)
    torch.manual_seed(0)
    start_heads(Model(alone), [0], batches(features, labels), seed=5)
    both = torch.cat([torch.full_like(labels, -1), labels], dim=1)
    model = Model(first, second, adapters=["one", "one"])
    start_heads(model, [0, 1], batches(features, both), seed=5)
    assert model.runs == [0] * 4  # four chunks, once for the adapter that both share
    other = Model(Heads(12, 2, 8), Heads(12, 2, 8), adapters=["one", "two"])
    start_heads(other, [0, 1], batches(features, both), seed=5)
    assert other.runs == [0] * 4 + [1] * 4
    # The features' directions are drawn first, whatever comes then: the same scores, turned another way perhaps.
    with torch.no_grad():
        found = [h.pooled_projection(h.pooled_norm(features))[:, :8] for h in (alone, second)]
    assert found[0].norm(dim=1).mean() == pytest.approx(float(found[1].norm(dim=1).mean()), rel=0.2)
    assert np.corrcoef(*(cosines(f.numpy()).ravel() for f in found))[0, 1] > 0.98


def test_at_the_end_a_tenth_of_what_was_learned_stays_beside_what_is_solved(drawn):
    features, labels = drawn
    heads, solved = Heads(12, 2, 16), Heads(12, 2, 16)
    with torch.no_grad():  # learned: much longer than what a layer begins with
        heads.pooled_projection.weight.mul_(7)
        for parameter in solved.pooled_projection.parameters():
            parameter.zero_()
    learned = {name: value.clone() for name, value in heads.pooled_projection.state_dict().items()}
    start_heads(Model(solved), [0], batches(features, labels), seed=5)
    embeds, found = finish_heads(Model(heads), [0], batches(features, labels), seed=5)
    assert torch.equal(found, labels)
    normal = functional.layer_norm(features, features.shape[1:])
    expected = []
    for place in range(2):
        part, known = slice(16 * place, 16 * (place + 1)), labels[:, place] >= 0
        old = normal @ learned["weight"][part].T + learned["bias"][part]
        share = 0.1 * (16 / 3) ** 0.5 / old[known].norm(dim=1).mean()
        new = normal @ solved.pooled_projection.weight[part].T + solved.pooled_projection.bias[part]
        expected.append(share * old + new + 0.3 * features[:, place, None])
    expected = functional.normalize(torch.stack(expected, dim=1).detach(), dim=-1)
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)


def test_at_most_so_many_rows_are_looked_at_evenly(tiny_data):
    from modeling_mclfir.data.augmentation import Augmentation
    from modeling_mclfir.data.increments import load_increments
    from modeling_mclfir.data.table import load_tables
    from modeling_mclfir.processing_mclfir import MclfirImageProcessor
    from modeling_mclfir.training.batches import IncrementBatches

    accelerator = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    batches = IncrementBatches(
        load_tables(tiny_data)["train"], load_increments([{"name": "a", "attributes": ["category", "colour"]}]), None,
        1, MclfirImageProcessor.for_trunk(None, 16, 16), Augmentation(), accelerator, increment_id=0,
        plan_seed=(0, 0), batch_size=8,
    )  # fmt: skip
    every = [int(row) for chunk in batches.chunks() for row in chunk["rows"]]
    some = [int(row) for chunk in batches.chunks(size=4, most=7) for row in chunk["rows"]]
    assert [int(row) for chunk in batches.chunks(most=10_000) for row in chunk["rows"]] == every
    assert some == [every[round(place)] for place in np.linspace(0, len(every) - 1, 7)]


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("starts")
    return {
        start: (train(tiny_data, folder / start, head_start=start), folder / start) for start in ("random", "ridge")
    }


def test_a_run_that_starts_so_resumes_bit_equal_and_pays_for_it(runs, tiny_data, tmp_path):
    report, folder = runs["ridge"]
    again = stopped_after(1, folder, tmp_path / "again")
    resumed = train(tiny_data, again, "--resume", head_start="ridge")
    assert_equal_runs(report, resumed, (folder, again))
    assert report["cost"]["flops"] > runs["random"][0]["cost"]["flops"]
    assert report["cost"]["samples"] == runs["random"][0]["cost"]["samples"]
    with pytest.raises(AssertionError):
        assert_equal_weights(weights(folder, 0), weights(runs["random"][1], 0))


def test_a_trunk_that_learns_leaves_nothing_to_regress_from(tiny_data, tmp_path):
    settings = {"base_training": "first_increment", "adapter_policy": "frozen", "epochs": 0.25}
    both = [train(tiny_data, tmp_path / start, head_start=start, **settings) for start in ("random", "ridge")]
    assert both[0]["loss"][0] == both[1]["loss"][0]  # the first increment's
    assert both[0]["loss"][-1] != both[1]["loss"][-1]


def test_heads_without_such_a_layer_start_as_ever(tiny_data, tmp_path, caplog):
    both = [train(tiny_data, tmp_path / start, head_type="csn", head_start=start) for start in ("random", "ridge")]
    assert both[0]["scores"] == both[1]["scores"]
    assert "head_type 'csn' has none: left out" in caplog.text


@pytest.mark.parametrize("method, policy", [("fine_tuning", "per_increment"), ("static", "shared")])
def test_spaces_are_refined_by_the_embeddings_of_the_solved_heads(tiny_data, tmp_path, monkeypatch, method, policy):
    from modeling_mclfir.training import run as run_module

    seen = []

    def watched(model, increment_ids, batches, seed):
        embeds, labels = finish_heads(model, increment_ids, batches, seed)
        with torch.no_grad(), model.unrefined():
            chunks = [chunk["inputs"] for chunk in batches.chunks()]
            parts = [
                torch.cat([model(**inputs | {"increment_id": index}).embeds for inputs in chunks])
                for index in increment_ids
            ]
        torch.testing.assert_close(embeds, torch.cat(parts, dim=1), atol=1e-5, rtol=0)
        seen.append((embeds.shape[1], labels.shape[1]))
        return embeds, labels

    monkeypatch.setattr(run_module, "finish_heads", watched)
    settings = {"method": method, "adapter_policy": policy, "head_finish": "ridge", "epochs": 0.5}
    train(tiny_data, tmp_path / "run", **settings)
    assert seen == [(count, count) for count in ([2, 1, 2] if method != "static" else [2, 3, 5])]


def test_a_run_that_ends_so_resumes_bit_equal_and_needs_no_step(runs, tiny_data, tmp_path):
    settings = {"head_finish": "ridge", "epochs": 0}
    report = train(tiny_data, tmp_path / "none", **settings)
    assert report["cost"]["samples"] == report["cost"]["steps"] == 0 and report["loss"] == []
    assert 0 < report["cost"]["flops"] < runs["ridge"][0]["cost"]["flops"]
    again = stopped_after(1, tmp_path / "none", tmp_path / "again")
    assert_equal_runs(report, train(tiny_data, again, "--resume", **settings), (tmp_path / "none", again))


def test_without_a_step_there_must_be_something_to_solve(tiny_data, tmp_path):
    settings = {"head_finish": "ridge", "epochs": 0}
    with pytest.raises(ValueError, match="head_type 'csn' has none"):
        train(tiny_data, tmp_path / "run", head_type="csn", **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 0}, "--epochs must be above 0, or with --head_finish ridge 0"),
        ({"head_finish": "warm"}, "--head_finish must be one of .*; got 'warm'"),
        ({"head_finish": "ridge", "streaming": True}, "--head_finish ridge looks at rows .* --head_finish learned"),
        ({"head_start": "warm"}, "--head_start must be one of .*; got 'warm'"),
        ({"head_start": "ridge", "streaming": True}, "--head_start ridge looks at rows .* leave --streaming out"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_data, tmp_path, settings, message):
    from modeling_mclfir.training.arguments import parse_arguments

    with pytest.raises(ValueError, match=message):
        parse_arguments(arguments(tiny_data, tmp_path / "run", **settings))
