# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn.functional import normalize

from modeling_mclfir.losses import EmbeddingDistillation


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
