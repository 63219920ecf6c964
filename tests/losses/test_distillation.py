# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn.functional import normalize

from modeling_mclfir.losses import EmbeddingDistillation, FeatureDistillation


def unit(*shape, seed):
    return normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_is_the_mean_of_two_minus_twice_the_cosine():
    student, teacher = unit(4, 3, 5, seed=0), unit(4, 3, 5, seed=1)
    total = sum(
        2 - 2 * sum(p * q for p, q in zip(student[n, a].tolist(), teacher[n, a].tolist(), strict=True))
        for n in range(4)
        for a in range(3)
    )
    assert EmbeddingDistillation()(student, teacher).item() == pytest.approx(total / 12, rel=1e-5)


def test_closed_forms():
    student = unit(4, 3, 5, seed=0)
    assert EmbeddingDistillation()(student, student).item() == 0
    assert EmbeddingDistillation()(student, -student).item() == pytest.approx(4, rel=1e-6)


def test_no_gradient_reaches_the_teacher():
    student, teacher = unit(2, 1, 3, seed=0).requires_grad_(), unit(2, 1, 3, seed=1).requires_grad_()
    EmbeddingDistillation()(student, teacher).backward()
    assert student.grad.any() and teacher.grad is None


def test_unequal_shapes():
    with pytest.raises(ValueError, match=r"\(2, 1, 3\) and \(2, 2, 3\)"):
        EmbeddingDistillation()(torch.zeros(2, 1, 3), torch.zeros(2, 2, 3))


def test_features_are_compared_by_the_mean_square():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, generator=generator).requires_grad_() for _ in range(2))
    loss = FeatureDistillation()(student, teacher)
    squares = [(a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    assert loss.item() == pytest.approx(sum(squares) / 15, rel=1e-5)
    loss.backward()
    assert student.grad.any() and teacher.grad is None
    with pytest.raises(ValueError, match=r"features must match; got \(3, 5\) and \(3, 4\)"):
        FeatureDistillation()(torch.zeros(3, 5), torch.zeros(3, 4))
