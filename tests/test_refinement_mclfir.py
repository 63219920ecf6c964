# SPDX-License-Identifier: Apache-2.0
"""Refined spaces: the map against its formula, what it is worth where it should be, and what stays as it was."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.metrics import average_precision
from modeling_mclfir.refinement_mclfir import SpaceRefinement

D, NUM_VALUES = 6, 4


def space(num_rows: int, seed: int, noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings around the values' directions, off the origin, with one direction that tells nothing; and values."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(NUM_VALUES, D, generator=torch.Generator().manual_seed(99))
    values = torch.arange(num_rows) % NUM_VALUES
    rows = directions[values] + noise * torch.randn(num_rows, D, generator=generator)
    rows[:, 0] += 4 * torch.randn(num_rows, generator=generator)
    return normalize(rows + 3.0, dim=1), values


def refined(embeds: torch.Tensor, values: torch.Tensor, **changes) -> SpaceRefinement:
    refinement = SpaceRefinement(1, D, changes.get("num_values", NUM_VALUES))
    refinement.fit(embeds[:, None], values[:, None])
    return refinement


def by_formula(rows: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The three steps again, row by row, in float64."""
    groups = [rows[values == value] for value in np.unique(values)]
    within = np.mean([np.cov(group.T, bias=True) for group in groups], axis=0)
    sizes, vectors = np.linalg.eigh(within + np.eye(D) * np.trace(within) / D)
    whitening = vectors @ np.diag(sizes**-0.5) @ vectors.T

    def unit(vector):
        return vector / np.linalg.norm(vector)

    turned = [np.array([unit(row @ whitening) for row in group]) for group in groups]
    centre = np.mean([group.mean(axis=0) for group in turned], axis=0)
    means = [unit(np.mean([unit(row - centre) for row in group], axis=0)) for group in turned]
    found = []
    for row in asked:
        centred = unit(unit(row @ whitening) - centre)
        shares = np.exp([5 * centred @ mean for mean in means])
        found.append(unit(centred + unit(sum(share * mean for share, mean in zip(shares, means, strict=True)))))
    return np.array(found)


def test_the_map_is_that_of_its_formula():
    (embeds, values), (others, _) = space(50, 0), space(20, 1)
    found = refined(embeds, values)(others[:, None])[:, 0]
    expected = by_formula(embeds.double().numpy(), values.numpy(), others.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6, rtol=0)


def test_unseen_images_of_a_value_lie_closer_together():
    (embeds, values), (others, other_values) = space(80, 0), space(60, 1)
    before, after = others, refined(embeds, values)(others[:, None])[:, 0]
    ids = torch.arange(60)
    scores = [
        average_precision(side, side, other_values, other_values, query_ids=ids, gallery_ids=ids).mean()
        for side in (before, after)
    ]
    assert scores[1] > scores[0] + 0.1


def test_an_attribute_without_labels_or_with_one_value_stays_as_it_is():
    embeds, values = space(40, 0)
    three = torch.stack([embeds] * 3, dim=1)
    labels = torch.stack([values, torch.full_like(values, -1), torch.full_like(values, 2)], dim=1)
    refinement = SpaceRefinement(3, D, NUM_VALUES)
    refinement.fit(three, labels)
    found = refinement(three)
    torch.testing.assert_close(found[:, 1:], three[:, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, :1], refined(embeds, values)(embeds[:, None]), atol=0, rtol=0)
    assert (found[:, 0] - embeds).abs().max() > 0.1


def test_a_value_without_rows_draws_nothing_and_further_values_leave_the_map_alone():
    embeds, values = space(40, 0)
    first = values < 2
    refinement = refined(embeds[first], values[first])
    whitening, centre, means = (tensor.clone() for tensor in refinement.buffers())
    assert not means[0, 2:].any()
    torch.testing.assert_close(
        refinement(embeds[:, None]), refined(embeds[first], values[first], num_values=2)(embeds[:, None])
    )
    refinement.fit(embeds[~first][:, None], values[~first][:, None])
    assert torch.equal(refinement.whitening, whitening) and torch.equal(refinement.centre, centre)
    assert torch.equal(refinement.means[0, :2], means[0, :2]) and refinement.means[0, 2:].any(dim=-1).all()
    torch.testing.assert_close(refinement.means.norm(dim=-1), torch.ones(1, NUM_VALUES))


def test_a_batch_in_half_precision_and_under_autocast_is_worked_out_in_float32():
    embeds, values = space(40, 0)
    refinement = refined(embeds, values)
    expected = refinement(embeds[:, None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(refinement(embeds[:, None]), expected)
    assert refinement(embeds[:, None].half()).dtype == torch.float32


@pytest.mark.parametrize("head_type", ["mclfir", "linear", "csn"])
def test_a_refined_model_is_saved_and_loaded_bit_for_bit(make_model, images, tmp_path, head_type):
    model = make_model("resnet", head_type=head_type)
    model.add_increment("cut", ["neckline", "sleeve"])
    model.add_increment("look", ["colour"])
    model.eval()
    with torch.no_grad():
        before = model(images).embeds
        labels = torch.arange(2 * len(images)).unflatten(0, (-1, 2)) % 3
        model.refine_increment(0, before[:, :2], labels, num_values=5)
        after = model(images).embeds
        with model.unrefined():
            assert torch.equal(model(images).embeds, before)
        assert torch.equal(after[:, 2], before[:, 2])  # another increment's
        assert not torch.allclose(after[:, :2], before[:, :2], atol=1e-3)
        assert torch.equal(model(images).embeds, after)
        model.save_pretrained(tmp_path)
        loaded = MclfirForImageRetrieval.from_pretrained(tmp_path)
        assert torch.equal(loaded(images).embeds, after)
    assert loaded.config.increments[0]["refined_values"] == 5
    assert "refined_values" not in loaded.config.increments[1]


def test_what_does_not_fit_is_refused(make_model, images):
    model = make_model("resnet")
    model.add_increment("cut", ["neckline", "sleeve"])
    embeds = model.eval()(images).embeds.detach()
    labels = torch.zeros(len(images), 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"Expected embeds \(n, 2, 16\)"):
        model.refine_increment(0, embeds[:, :1], labels)
    with pytest.raises(ValueError, match=r"Expected embeds \(n, 2, 16\)"):
        model.refine_increment(0, embeds[:, :, :8], labels)
    with pytest.raises(ValueError, match="room for 3 values"):
        model.refine_increment(0, embeds, labels + 3, num_values=3)
    with pytest.raises(ValueError, match="increment_id 1 is not in"):
        model.refine_increment(1, embeds, labels)
    assert model.heads[0].refinement is None and "refined_values" not in model.config.increments[0]
    model.describe_increment(0, torch.eye(model._pooled_dim)[:2], [0.1, 0.2])
    with pytest.raises(ValueError, match="described already"):
        model.refine_increment(0, embeds, labels)
