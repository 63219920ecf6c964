# SPDX-License-Identifier: Apache-2.0
"""Distillation from a teacher's embeddings or features."""

import torch
from torch import nn


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


def _check_shapes(what: str, student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student and teacher {what} must match; got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
