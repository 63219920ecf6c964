# SPDX-License-Identifier: Apache-2.0
"""Losses: embeddings in, scalar out."""

from .classification import AttributeClassification
from .distillation import EmbeddingDistillation, FeatureDistillation, SimilarityDistillation
from .gather import for_copies, gather_rows, world_size
from .info_nce import InfoNCE
from .prototypes import PrototypeInfoNCE
from .triplet import TripletLoss
from .uncertainty import UncertaintyWeights

__all__ = [
    "AttributeClassification",
    "EmbeddingDistillation",
    "FeatureDistillation",
    "InfoNCE",
    "PrototypeInfoNCE",
    "SimilarityDistillation",
    "TripletLoss",
    "UncertaintyWeights",
    "for_copies",
    "gather_rows",
    "world_size",
]
