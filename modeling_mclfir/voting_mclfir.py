# SPDX-License-Identifier: Apache-2.0
"""Values of attributes by the vote of near gallery items (floor 1; travels to the Hub with a checkpoint)."""

from typing import NamedTuple

import torch


class ValuePrediction(NamedTuple):
    """
    What an image shows of an attribute.

    Attributes:
        value: its name; None where no item of the gallery has a value of this attribute.
        confidence: its share of the vote, 0..1.
    """

    value: str | None
    confidence: float


def vote(
    queries: torch.Tensor, embeds: torch.Tensor, labels: torch.Tensor, num_values: int, k: int, temperature: float
) -> torch.Tensor:
    """
    The vote of each query's k nearest labelled items; one has the weight exp(cosine / temperature).

    Args:
        queries: unit-length (N, D).
        embeds: unit-length (G, D).
        labels: (G,) in 0..num_values-1; below 0: no value, no vote.
        k: fewer vote where there are fewer.
        temperature: above 0; the higher, the more alike the k votes.

    Returns:
        (N, num_values), rows that sum to 1; all 0 where no item has a value.

    Raises:
        ValueError: k below 1, a temperature not above 0, shapes that do not fit, a label without a value.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}.")
    fits = queries.ndim == embeds.ndim == 2 and queries.shape[1] == embeds.shape[1]
    if not fits or labels.shape != embeds.shape[:1]:
        raise ValueError(
            f"Expected queries (N, D), embeds (G, D), labels (G,); got {tuple(queries.shape)}, {tuple(embeds.shape)}, "
            f"{tuple(labels.shape)}."
        )
    queries, known = queries.float(), labels >= 0
    embeds, labels = embeds[known].to(queries), labels[known].to(queries.device)
    shares = queries.new_zeros(len(queries), num_values)
    if not len(labels):
        return shares
    if labels.max() >= num_values:
        raise ValueError(f"labels must lie below the number of values, {num_values}; got {int(labels.max())}.")
    nearest, places = (queries @ embeds.T).topk(min(k, len(labels)), dim=1)
    weights = torch.softmax(nearest / temperature, dim=1)
    return shares.scatter_add_(1, labels[places], weights)
