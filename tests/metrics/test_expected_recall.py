# SPDX-License-Identifier: Apache-2.0
"""The recall to be expected of a random order."""

import doctest
from itertools import permutations

import pytest
import torch

from modeling_mclfir.metrics import chance
from modeling_mclfir.metrics.chance import expected_recall_at_k


@pytest.mark.parametrize("num_gallery", [1, 2, 5, 6])
def test_over_all_permutations(num_gallery):
    for num_relevant in range(1, num_gallery + 1):
        orders = list(permutations([True] * num_relevant + [False] * (num_gallery - num_relevant)))
        for k in range(1, num_gallery + 3):
            expected = sum(any(order[:k]) for order in orders) / len(orders)
            found = expected_recall_at_k(torch.tensor([num_relevant]), torch.tensor([num_gallery]), k)
            assert found.item() == pytest.approx(expected, abs=1e-12), (num_relevant, k)


def test_against_simulation():
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(4000, 100, generator=generator).argsort(dim=1)  # the place of each item
    for num_relevant in (1, 7):
        first = ranks[:, :num_relevant].amin(dim=1)
        for k in (1, 5, 10):
            expected = expected_recall_at_k(torch.tensor([num_relevant]), torch.tensor([100]), k).item()
            assert (first < k).double().mean().item() == pytest.approx(expected, abs=0.02), (num_relevant, k)


def test_of_several_queries():
    found = expected_recall_at_k(torch.tensor([0, 1, 3, 3]), torch.tensor([4, 4, 4, 3]), 2)
    assert found[0].isnan() and found[1:].tolist() == [0.5, 1.0, 1.0] and found.dtype == torch.float64
    empty = torch.zeros(0, dtype=torch.int64)
    assert expected_recall_at_k(empty, empty, 5).shape == (0,)


@pytest.mark.parametrize("wrong, error", [
    ((torch.tensor([3]), torch.tensor([2]), 1), ValueError), ((torch.tensor([1]), torch.tensor([2]), 0), ValueError),
    ((torch.tensor([1.0]), torch.tensor([2]), 1), TypeError),
])  # fmt: skip
def test_what_is_refused(wrong, error):
    with pytest.raises(error):
        expected_recall_at_k(*wrong)


def test_the_example():
    assert doctest.testmod(chance).failed == 0
