# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_mclfir.losses import EmbeddingDistillation, FeatureDistillation, SimilarityDistillation


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


# ---- similarities

IMAGE_IDS = torch.tensor([0, 1, 2, 0, 3])


def divergence_by_hand(student, teacher, image_ids, temperature) -> float:
    """KL(teacher ‖ student), float64, one anchor after the other."""
    student, teacher, found = student.double().numpy(), teacher.double().numpy(), []
    for attribute in range(student.shape[1]):
        for anchor, image in enumerate(image_ids.tolist()):
            others = [row for row, other in enumerate(image_ids.tolist()) if other != image]
            logits = [
                np.array([embeds[anchor, attribute] @ embeds[row, attribute] for row in others]) / temperature
                for embeds in (teacher, student)
            ]
            log_p, log_q = (part - np.log(np.exp(part).sum()) for part in logits)
            found.append(np.sum(np.exp(log_p) * (log_p - log_q)))
    return float(np.mean(found))


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2.0])
def test_similarities_by_hand(temperature):
    student, teacher = unit(5, 3, 4, seed=0), unit(5, 3, 4, seed=1)
    loss = SimilarityDistillation(temperature)(student, teacher, IMAGE_IDS)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert loss.item() == pytest.approx(divergence_by_hand(student, teacher, IMAGE_IDS, temperature), rel=1e-5)


def test_a_turn_of_the_space_costs_nothing_and_its_direction_counts():
    student, teacher = unit(5, 3, 4, seed=0), unit(5, 3, 4, seed=1)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))
    loss = SimilarityDistillation(0.2)
    assert loss(student @ turn, student, IMAGE_IDS).item() == pytest.approx(0, abs=1e-6)
    assert EmbeddingDistillation()(student @ turn, student).item() > 0.1
    there, back = loss(student, teacher, IMAGE_IDS).item(), loss(teacher, student, IMAGE_IDS).item()
    assert there > 0 < back and there != pytest.approx(back, rel=0.01)


def test_rows_of_the_same_image_are_no_others():
    """Rows 0 and 3 show one image: how alike student and teacher find them does not count, though all else does."""
    student, apart, together = unit(5, 1, 8, seed=0), torch.zeros(5, 1, 8), torch.zeros(5, 1, 8)
    apart[range(5), 0, range(5)] = together[range(5), 0, range(5)] = 1.0
    together[3] = together[0]  # all other rows are still at right angles to it
    loss = SimilarityDistillation(0.2)
    assert loss(student, apart, IMAGE_IDS).item() == pytest.approx(loss(student, together, IMAGE_IDS).item(), rel=1e-6)
    strangers = torch.arange(5)
    assert loss(student, apart, strangers).item() != pytest.approx(loss(student, together, strangers).item(), rel=0.1)


def test_rows_without_others_drop_out():
    student, teacher = unit(4, 2, 3, seed=0).requires_grad_(), unit(4, 2, 3, seed=1)
    loss = SimilarityDistillation(0.2)(student, teacher, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and student.grad is not None and not student.grad.any()


def test_similarities_of_two_rows_are_always_the_same():
    student, teacher = unit(2, 2, 3, seed=0), unit(2, 2, 3, seed=1)
    assert SimilarityDistillation(0.2)(student, teacher, torch.tensor([0, 1])).item() == 0


def test_the_gradient_reaches_the_student_alone_and_goes_downhill():
    student, teacher = unit(5, 2, 4, seed=0).requires_grad_(), unit(5, 2, 4, seed=1).requires_grad_()
    loss = SimilarityDistillation(0.2)
    before = loss(student, teacher, IMAGE_IDS)
    before.backward()
    assert teacher.grad is None and torch.isfinite(student.grad).all() and student.grad.any()
    after = loss((student - 0.01 * student.grad).detach(), teacher, IMAGE_IDS)
    assert after < before


def test_similarities_are_worked_out_in_full_precision_under_autocast():
    student, teacher = unit(5, 2, 4, seed=0), unit(5, 2, 4, seed=1)
    expected = SimilarityDistillation(0.01)(student, teacher, IMAGE_IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SimilarityDistillation(0.01)(student, teacher, IMAGE_IDS), expected)
    halves = SimilarityDistillation(0.01)(student.bfloat16(), teacher.bfloat16(), IMAGE_IDS)
    rounded = student.bfloat16().float(), teacher.bfloat16().float()
    assert torch.equal(halves, SimilarityDistillation(0.01)(*rounded, IMAGE_IDS))


def test_what_similarities_refuse():
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        SimilarityDistillation(0)
    loss, embeds = SimilarityDistillation(), torch.zeros(2, 1, 3)
    with pytest.raises(ValueError, match=r"embeddings must match; got \(2, 1, 3\) and \(2, 2, 3\)"):
        loss(embeds, torch.zeros(2, 2, 3), torch.arange(2))
    with pytest.raises(ValueError, match=r"image_ids \(N,\); got \(2, 1, 3\) and \(3,\)"):
        loss(embeds, embeds, torch.arange(3))
