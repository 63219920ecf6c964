# SPDX-License-Identifier: Apache-2.0
"""Losses: embeddings in, scalar out."""

from .distillation import EmbeddingDistillation
from .gather import gather_rows, world_size
from .info_nce import InfoNCE
from .prototypes import PrototypeInfoNCE

__all__ = ["EmbeddingDistillation", "InfoNCE", "PrototypeInfoNCE", "gather_rows", "world_size"]
