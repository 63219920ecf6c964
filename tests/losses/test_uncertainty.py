# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from modeling_mclfir.losses import UncertaintyWeights
from modeling_mclfir.losses.uncertainty import MAX_WEIGHT

START = {"contrastive": 1.0, "classification": 0.25}


def losses(**values):
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def test_is_the_formula_of_the_paper():
    weights = UncertaintyWeights(START)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.7, -1.3]))
    given = losses(classification=0.4, contrastive=2.5)  # in another order than when built
    # Equation 7 of arXiv:1705.07115 with the deviations σ: L1 / (2 σ1²) + L2 / (2 σ2²) + log σ1 + log σ2.
    sigma = [math.exp(0.7 / 2), math.exp(-1.3 / 2)]
    expected = 2.5 / (2 * sigma[0] ** 2) + 0.4 / (2 * sigma[1] ** 2) + math.log(sigma[0]) + math.log(sigma[1])
    total = weights(given)
    total.backward()
    assert total.item() == pytest.approx(expected, rel=1e-6)
    told = weights.weights()
    assert {name: value.grad.item() for name, value in given.items()} == pytest.approx(
        {name: weight.item() for name, weight in told.items()}
    )
    slopes = [0.5 - 0.5 * math.exp(-0.7) * 2.5, 0.5 - 0.5 * math.exp(1.3) * 0.4]
    assert weights.log_variances.grad.tolist() == pytest.approx(slopes, rel=1e-5)


def test_weights_start_where_they_are_put():
    assert {name: weight.item() for name, weight in UncertaintyWeights(START).weights().items()} == pytest.approx(
        START
    )


def test_learning_leads_to_one_over_twice_the_loss():
    weights = UncertaintyWeights(START)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weights({"contrastive": torch.tensor(4.0), "classification": torch.tensor(0.1)}).backward()
        optimizer.step()
    found = {name: weight.item() for name, weight in weights.weights().items()}
    assert found == pytest.approx({"contrastive": 1 / 8, "classification": 1 / 0.2}, rel=1e-2)


def test_a_loss_of_zero_does_not_drive_its_weight_beyond_the_limit_and_it_comes_back():
    weights = UncertaintyWeights(START)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.5)

    def learn(value, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            weights({"contrastive": torch.tensor(1.0), "classification": torch.tensor(value)}).backward()
            optimizer.step()
            weights.limit()

    learn(0.0, 40)
    assert weights.weights()["classification"].item() == pytest.approx(MAX_WEIGHT)
    learn(5.0, 60)
    assert weights.weights()["classification"].item() < 1


def test_copies_divide_only_the_gradient_of_the_weights():
    found = []
    for copies in (1, 4):
        weights, given = UncertaintyWeights(START, num_copies=copies), losses(contrastive=2.0, classification=0.3)
        total = weights(given)
        (total * copies).backward()
        found.append((total.detach(), weights.log_variances.grad, *(value.grad / copies for value in given.values())))
    for one, four in zip(*found, strict=True):
        torch.testing.assert_close(one, four)


@pytest.mark.parametrize("start", [{}, {"contrastive": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": float("nan")}])
def test_bad_weights_to_start_from(start):
    with pytest.raises(ValueError, match="two losses at least, each with a weight above 0"):
        UncertaintyWeights(start)


def test_other_losses_than_it_was_built_for():
    with pytest.raises(ValueError, match=r"\['classification', 'contrastive'\]; got \['contrastive', 'prototypes'\]"):
        UncertaintyWeights(START)(losses(contrastive=1.0, prototypes=1.0))
