"""Metrics of retrieval and of continual learning, as pure functions of tensors and numbers."""

from .aggregation import aggregate_attributes, mean_average_precision, mean_over_queries
from .chance import count_relevant, expected_average_precision, label_prior
from .continual import average_score, backward_transfer, forgetting, forward_transfer, intransigence
from .cross_modal import (
    Captions,
    caption_codes,
    cross_modal_recall,
    first_match_rank,
    mean_recall,
    recall_figures,
)
from .retrieval import (
    average_precision,
    average_precision_by_relevance,
    first_relevant_rank,
    precision_at_k,
    recall_at_k,
    recall_subset_at_k,
    target_rank,
    triplet_accuracy,
)

__all__ = [
    "Captions",
    "aggregate_attributes",
    "average_precision",
    "average_precision_by_relevance",
    "average_score",
    "backward_transfer",
    "caption_codes",
    "count_relevant",
    "cross_modal_recall",
    "expected_average_precision",
    "first_match_rank",
    "first_relevant_rank",
    "forgetting",
    "forward_transfer",
    "intransigence",
    "label_prior",
    "mean_average_precision",
    "mean_over_queries",
    "mean_recall",
    "precision_at_k",
    "recall_at_k",
    "recall_figures",
    "recall_subset_at_k",
    "target_rank",
    "triplet_accuracy",
]
