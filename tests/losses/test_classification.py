# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from modeling_mclfir.losses import AttributeClassification


def test_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 3, (7, 4), generator=generator)
    labels[2] = -1  # of no attribute: it takes no part
    rows = []
    for n in (0, 1, 3, 4, 5, 6):
        terms = []
        for a in range(4):
            probability = 1 / (1 + math.exp(-logits[n, a].item()))
            terms.append(-math.log(probability if labels[n, a] >= 0 else 1 - probability))
        rows.append(sum(terms) / 4)
    assert AttributeClassification()(logits, labels).item() == pytest.approx(sum(rows) / 6, rel=1e-6)


def test_values_make_no_difference():
    logits = torch.randn(4, 3)
    one_hot = torch.full((4, 3), -1)
    one_hot[torch.arange(4), [0, 1, 1, 2]] = torch.tensor([5, 0, 2, 7])
    other = torch.where(one_hot >= 0, one_hot + 1, -1)
    loss = AttributeClassification()
    assert torch.equal(loss(logits, one_hot), loss(logits, other))


def test_large_logits_stay_finite_and_gradients_lead_to_the_labelled_attribute():
    logits = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
    loss = AttributeClassification()(logits, torch.tensor([[0, -1], [1, -1]]))
    loss.backward()
    assert loss.item() == pytest.approx(250.0)  # the second row is wrong twice by 500, and half of the rows
    assert logits.grad[0].abs().max() == 0 and logits.grad[1, 0] < 0 < logits.grad[1, 1]


def test_no_labels_give_zero_with_gradients_of_zero():
    logits = torch.randn(3, 2, requires_grad=True)
    loss = AttributeClassification()(logits, torch.full((3, 2), -1))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(3, 2))


def test_unequal_shapes():
    with pytest.raises(ValueError, match=r"labels' shape \(3, 2\); got \(3, 4\)"):
        AttributeClassification()(torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.long))
