# SPDX-License-Identifier: Apache-2.0
"""Distillation from a teacher's embeddings or features."""

import torch
from torch import nn
from torch.nn.functional import kl_div


class EmbeddingDistillation(nn.Module):
    """
    Mean squared distance of unit-length embeddings to the teacher's, 2 - 2 cos (MCL-FIR, arXiv:2603.20648, draws it
    on embeddings; its released code takes pooled features).
    """

    def forward(self, student_embeds: torch.Tensor, teacher_embeds: torch.Tensor) -> torch.Tensor:
        """Both (N, A, D) of unit length → scalar; no gradient flows into the teacher. ValueError on unequal shapes."""
        _check_shapes("embeddings", student_embeds, teacher_embeds)
        return (student_embeds - teacher_embeds.detach()).square().sum(dim=-1).mean()


class FeatureDistillation(nn.Module):
    """
    Mean squared error of the trunk's pooled features to the teacher's, over rows and channels: what the released code
    of MCL-FIR does (there it is the sum of that over anchor, positive and negative).
    """

    def forward(self, student_pooled: torch.Tensor, teacher_pooled: torch.Tensor) -> torch.Tensor:
        """Both (N, C) → scalar; no gradient flows into the teacher. ValueError on unequal shapes."""
        _check_shapes("features", student_pooled, teacher_pooled)
        return (student_pooled.float() - teacher_pooled.detach().float()).square().mean()


class SimilarityDistillation(nn.Module):
    """
    How similar the student finds the other rows of the batch, drawn to how similar the teacher does: of each attribute
    and row, KL(teacher ‖ student) of the softmax over the other rows of cosine similarity / temperature.

    What distillation of class logits at a temperature is to a classifier (Learning without Forgetting,
    arXiv:1606.09282), for embeddings, which have no logits: a turn of the whole space costs nothing, a change of who
    is near whom does (relational distillation, arXiv:1904.05068).

    As in InfoNCE, rows of the same image are left out. The mean is over attributes and over rows that have others.

    Args:
        temperature: of both softmaxes. The loss is not multiplied by its square, as is sometimes done.

    Raises:
        ValueError: a temperature not above 0.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}.")
        self.temperature = temperature

    def forward(
        self,
        student_embeds: torch.Tensor,
        teacher_embeds: torch.Tensor,
        image_ids: torch.Tensor,
        sides: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            student_embeds, teacher_embeds: (N, A, D) of unit length; no gradient flows into the teacher.
            image_ids: (N,), equal for rows that show the same image.
            sides: (N,) integers: rows are compared with those of another side only, captions with images (what
                Mod-X draws together, the contrastive matrix, arXiv:2305.07437).

        Returns:
            scalar; 0, with gradients of 0, where no row has another.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check_shapes("embeddings", student_embeds, teacher_embeds)
        if image_ids.shape != student_embeds.shape[:1]:
            raise ValueError(
                f"Expected embeddings (N, A, D) and image_ids (N,); got {tuple(student_embeds.shape)} and "
                f"{tuple(image_ids.shape)}."
            )
        others = image_ids[:, None] != image_ids[None, :]
        if sides is not None:
            others = others & (sides[:, None] != sides[None, :])
        student = self._log_shares(student_embeds, others)
        teacher = self._log_shares(teacher_embeds.detach(), others)
        per_row = kl_div(student, teacher, reduction="none", log_target=True).sum(dim=2)  # (A, N)
        # A row without others has equal shares on both sides, and so adds 0.
        return per_row.sum() / (len(per_row) * others.any(dim=1).sum()).clamp(min=1)

    def _log_shares(self, embeds: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        embeds = embeds.float().transpose(0, 1)  # (A, N, D)
        with torch.autocast(embeds.device.type, enabled=False):  # a low temperature makes bfloat16's steps large
            logits = embeds @ embeds.transpose(1, 2) / self.temperature
        # Not -inf: a share of 0 times an infinite difference would be no number.
        return logits.masked_fill(~others, torch.finfo(logits.dtype).min).log_softmax(dim=2)


def _check_shapes(what: str, student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student and teacher {what} must match; got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
