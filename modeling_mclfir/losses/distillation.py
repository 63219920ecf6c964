# SPDX-License-Identifier: Apache-2.0
"""Distillation from a teacher's embeddings."""

import torch
from torch import nn


class EmbeddingDistillation(nn.Module):
    """
    Mean squared distance of unit-length embeddings to the teacher's, 2 - 2 cos (MCL-FIR, arXiv:2603.20648, draws it
    on embeddings; its released code takes pooled features).
    """

    def forward(self, student_embeds: torch.Tensor, teacher_embeds: torch.Tensor) -> torch.Tensor:
        """Both (N, A, D) of unit length → scalar; no gradient flows into the teacher. ValueError on unequal shapes."""
        if student_embeds.shape != teacher_embeds.shape:
            raise ValueError(
                f"Student and teacher embeddings must match; got {tuple(student_embeds.shape)} and "
                f"{tuple(teacher_embeds.shape)}."
            )
        return (student_embeds - teacher_embeds.detach()).square().sum(dim=-1).mean()
