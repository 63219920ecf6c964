# SPDX-License-Identifier: Apache-2.0
"""SimpleCIL and RanPAC: what they work out, derived again in numpy, and runs of the main script with them."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import assert_equal_runs, assert_equal_weights, stopped_after, train, weights

from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor
from modeling_mclfir.continual import RanPac, SimpleCil
from modeling_mclfir.continual.closed_form import RIDGES, ridge_solutions
from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.training.arguments import RunArguments
from modeling_mclfir.training.feature_cache import load_pixels

FROZEN = {"adapter_policy": "frozen", "head_type": "closed_form"}
SIMPLECIL = {"method": "simplecil", **FROZEN}
RANPAC = {"method": "ranpac", "projection_dim": 24, **FROZEN}
KINDS = {"simplecil": SIMPLECIL, "ranpac": RANPAC, "ranpac bare": RANPAC | {"projection_dim": 0}}


def settings(**changes):
    return SimpleNamespace(**(asdict(RunArguments()) | changes))


@pytest.fixture
def make_student(make_model):
    def make(**changes):
        model = make_model("vit", **(FROZEN | changes))
        model.add_increment("shape", ["type", "hem"])
        return model.eval()

    return make


class Rows:
    """Random images whose labels are drawn, some missing."""

    def __init__(self, num_rows=40, increment_id=0, num_values=(4, 3), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randn(num_rows, 3, 64, 64, generator=generator)
        self.labels = torch.stack(
            [torch.randint(-1, most, (num_rows,), generator=generator) for most in num_values], dim=1
        )
        self.increment_id = increment_id

    def chunks(self, size=7):
        for part in torch.arange(len(self.pixels)).split(size):
            inputs = {"pixel_values": self.pixels[part], "increment_id": self.increment_id}
            yield {"inputs": inputs, "labels": self.labels[part], "image_ids": part, "rows": part}


def pooled_of(model, pixels) -> np.ndarray:
    with torch.no_grad():
        return model.eval().mclfir(pixels, increment_id=0).pooled.double().numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# ---- what is worked out


def test_simplecil_weights_are_the_means_of_each_attributes_own_labelled_rows(make_student):
    model, rows = make_student().train(), Rows()
    method = SimpleCil(settings(method="simplecil"))
    method.begin_increment(model, 0, [4, 3])
    method.end_increment(model, rows)
    features, found = unit(pooled_of(model, rows.pixels)), model.heads[0].weight.numpy()
    for place, most in enumerate((4, 3)):
        labels = rows.labels[:, place].numpy()
        expected = np.stack([unit(features[labels == value].mean(axis=0)) for value in range(most)])
        np.testing.assert_allclose(found[place, :most], expected, atol=1e-6)
        assert not found[place, most:].any() and (labels < 0).any()


def test_simplecil_ranks_values_by_the_nearest_mean(make_student):
    model, rows = make_student(), Rows()
    SimpleCil(settings(method="simplecil")).end_increment(model, rows)
    others = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    features, learned = unit(pooled_of(model, others)), unit(pooled_of(model, rows.pixels))
    with torch.no_grad():
        embeds = model(others).embeds.numpy()
    for place, most in enumerate((4, 3)):
        labels = rows.labels[:, place].numpy()
        means = np.stack([unit(learned[labels == value].mean(axis=0)) for value in range(most)])
        order = np.argsort(features @ means.T, axis=1)
        assert np.array_equal(np.argsort(embeds[:, place, :most], axis=1), order)
        assert len(np.unique(order[:, -1])) > 1 and not embeds[:, place, most:].any()


@pytest.mark.parametrize("given, expected", [(None, (0.01, 0.1)), (0.0, (0.0, 0.0)), (0.3, (0.3, 0.3))])
def test_the_temperature_is_the_methods_own_unless_it_is_given(make_student, given, expected):
    for method_class, temperature in zip((SimpleCil, RanPac), expected, strict=True):
        model = make_student()
        method_class(settings(score_temperature=given)).end_increment(model, Rows(num_rows=12))
        assert model.heads[0].temperature.tolist() == pytest.approx([temperature] * 2)


def test_values_that_come_later_to_a_simplecil_space_leave_the_others_as_they_are(make_student):
    model, rows = make_student(), Rows()
    method = SimpleCil(settings(method="simplecil"))
    method.end_increment(model, rows)
    before = model.heads[0].weight.clone()
    later = Rows(num_rows=9, seed=3)
    later.labels = torch.full((9, 2), 4)
    method.end_increment(model, later)
    changed = (model.heads[0].weight != before).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 4], [1, 4]]


@pytest.mark.parametrize("num_rows", [9, 60])
def test_ridge_solutions_are_those_of_an_augmented_least_squares_problem(num_rows):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(num_rows, 12)), rng.normal(size=(num_rows, 3))
    ridges = (1e-3, 0.5, 100.0)
    gram, products = torch.from_numpy(features.T @ features), torch.from_numpy(features.T @ targets)
    for ridge, found in zip(ridges, ridge_solutions(gram, products, ridges), strict=True):
        rows = np.concatenate([features, np.sqrt(ridge) * np.eye(12)])
        expected = np.linalg.lstsq(rows, np.concatenate([targets, np.zeros((12, 3))]), rcond=None)[0]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def slow_ranpac(features, labels, num_values):
    """Weights (V, F) of an attribute, with the ridge that is best on each fifth labelled row."""
    features, labels = features[labels >= 0], labels[labels >= 0]
    targets = np.eye(num_values)[labels]
    held_out = np.arange(len(labels)) % 5 == 4

    def solve(rows, ridge):
        gram = features[rows].T @ features[rows] + ridge * np.eye(features.shape[1])
        return np.linalg.solve(gram, features[rows].T @ targets[rows])

    errors = [((targets[held_out] - features[held_out] @ solve(~held_out, ridge)) ** 2).sum() for ridge in RIDGES]
    return solve(np.ones(len(labels), dtype=bool), RIDGES[int(np.argmin(errors))]).T, int(np.argmin(errors))


@pytest.mark.parametrize("size", [0, 20])
def test_ranpac_is_the_ridge_regression_of_each_attributes_own_labelled_rows(make_student, size):
    model, rows = make_student(projection_dim=size), Rows(num_rows=80)
    # Some signal in the labels: else the best ridge is that which gives nothing.
    rows.labels[:, 0] = torch.where(rows.labels[:, 0] < 0, -1, (torch.arange(80) % 4))
    rows.pixels += 2 * rows.labels[:, :1, None, None].clamp(min=0)
    method = RanPac(settings(method="ranpac"))
    method.begin_increment(model, 0, [4, 3])
    method.end_increment(model, rows)
    pooled, chosen = pooled_of(model, rows.pixels), []
    features = np.maximum(pooled @ model.heads[0].projection.double().numpy(), 0) if size else unit(pooled)
    for place, most in enumerate((4, 3)):
        expected, ridge = slow_ranpac(features, rows.labels[:, place].numpy(), most)
        chosen.append(ridge)
        found = model.heads[0].weight[place].numpy()
        np.testing.assert_allclose(found[:most], expected, atol=1e-4 * np.abs(expected).max())
        assert not found[most:].any()
    assert 0 < chosen[0] < len(RIDGES) - 1


def test_what_is_worked_out_does_not_depend_on_the_chunks(make_student):
    for method in (SimpleCil(settings(method="simplecil")), RanPac(settings(method="ranpac"))):
        found = []
        for size in (5, 40):
            model, rows = make_student(), Rows()
            method.end_increment(model, SimpleNamespace(chunks=lambda rows=rows, size=size: rows.chunks(size)))
            found.append(model.heads[0].weight)
        torch.testing.assert_close(*found, atol=1e-4 * found[0].abs().max().item(), rtol=0)


def test_a_method_without_steps_has_no_loss(make_student):
    for method in (SimpleCil(settings(method="simplecil")), RanPac(settings(method="ranpac"))):
        assert not method.trains and method.needs_rows and method.kept_state_dict() == {}
        with pytest.raises(TypeError, match=f"{method.settings.method} has no loss"):
            method.compute_loss(make_student(), {})


def test_an_attribute_without_labels_and_one_with_too_many_values(make_student):
    model, rows = make_student(), Rows()
    rows.labels[:, 1] = -1
    method = SimpleCil(settings(method="simplecil"))
    with pytest.raises(ValueError, match=r"method 'simplecil' works an attribute out of rows with labels.*, 0\]"):
        method.end_increment(model, rows)
    with pytest.raises(ValueError, match="has 17 values and embed_dim is 16; set --embed_dim to at least 17"):
        method.begin_increment(model, 0, [3, 17])
    method.begin_increment(model, 0, [3, 16])
    with pytest.raises(ValueError, match="'ranpac' solves a space once, but increment 1 brings new values"):
        RanPac(settings(method="ranpac")).begin_increment(model, 1, [3])


# ---- runs of the main script


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_data, one_thread):
    """kind → report and folder of a run that is never stopped."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("closed") / kind
            made[kind] = train(tiny_data, folder, **KINDS[kind]), folder
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_takes_no_step_forgets_nothing_and_fits_its_rows(unbroken, tiny_data, kind):
    report, folder = unbroken(kind)
    assert report["cost"]["steps"] == 0 and report["cost"]["flops"] > 0 and not report["loss"]
    assert report["forgetting"] == 0.0 == report["backward_transfer"] and report["finished"]
    for name, value in weights(folder, 1).items():
        assert torch.equal(value, weights(folder, 2)[name]), name
    model = MclfirForImageRetrieval.from_pretrained(folder / "increment-02")
    table = load_tables(tiny_data)["train"]
    processor = MclfirImageProcessor.from_pretrained(folder / "increment-02")
    pixels = load_pixels(table, range(len(table)), 0, processor, Augmentation(), 0)
    features = unit(pooled_of(model, pixels))
    with torch.no_grad():
        embeds = model(pixels).embeds
    gains = []  # of the share of rows whose value has the highest score, over always naming the commonest
    for place, name in enumerate(model.config.attributes):
        labels = torch.from_numpy(table.labels(name))
        known, most = labels >= 0, len(table.values(name))
        right = embeds[known, place, :most].argmax(dim=1) == labels[known]
        gains.append(right.float().mean() - labels[known].bincount().max() / known.sum())
        if kind == "simplecil":  # cached training features are half precision
            owner = model.config.increment_of(place)
            found = model.heads[owner].weight[place - model.config.attribute_range(owner).start].numpy()
            means = [unit(features[labels == value].mean(axis=0)) for value in labels[known].unique()]
            np.testing.assert_allclose(found[labels[known].unique()], means, atol=2e-3)
        assert not embeds[:, place, most:].any()
    assert np.mean(gains) > 0.05


@pytest.mark.parametrize("kind", ["simplecil", "ranpac"])
def test_a_run_stopped_between_increments_goes_on_as_if_it_had_not(unbroken, tiny_data, tmp_path, kind):
    report, folder = unbroken(kind)
    again = stopped_after(1, folder, tmp_path / "again")
    resumed = train(tiny_data, again, "--resume", **KINDS[kind])
    assert_equal_runs(report, resumed, (folder, again))


def test_without_cached_features_the_answer_is_nearly_the_same(unbroken, tiny_data, tmp_path):
    train(tiny_data, tmp_path / "run", **SIMPLECIL, max_cache_gib=0.0)
    first, second = weights(unbroken("simplecil")[1], 2), weights(tmp_path / "run", 2)
    # Cached training features are half precision.
    torch.testing.assert_close(first["heads.0.weight"], second["heads.0.weight"], atol=2e-3, rtol=0)
    with pytest.raises(AssertionError):
        assert_equal_weights(first, weights(unbroken("ranpac bare")[1], 2))


@pytest.mark.parametrize(
    "changes, message",
    [
        (SIMPLECIL | {"head_type": "mclfir"}, "'simplecil' needs head_type 'closed_form'.*; got 'mclfir'"),
        (RANPAC | {"head_type": "linear"}, "'ranpac' needs head_type 'closed_form'.*; got 'linear'"),
        (SIMPLECIL | {"adapter_policy": "shared"}, "'simplecil' needs adapter_policy 'frozen'; got 'shared'"),
        (RANPAC | {"adapter_policy": "per_increment"}, "'ranpac' needs adapter_policy 'frozen'; got 'per_increment'"),
        (SIMPLECIL | {"projection_dim": 8}, "needs projection_dim 0; got 8.*'ranpac' takes"),
        (SIMPLECIL | {"streaming": True}, "--method simplecil looks at the rows of an increment again"),
        (RANPAC | {"streaming": True}, "--method ranpac looks at the rows of an increment again"),
        (RANPAC | {"embed_dim": 2}, "values and embed_dim is 2; set --embed_dim to at least"),
        (SIMPLECIL | {"score_temperature": -0.1}, "score_temperature must be at least 0; got -0.1"),
        (RANPAC | {"score_temperature": float("nan")}, "score_temperature must be at least 0; got nan"),
    ],
)
def test_what_does_not_go_together_is_refused(one_thread, tiny_data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_data, tmp_path / "run", **changes)
