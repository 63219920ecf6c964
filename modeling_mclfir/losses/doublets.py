# SPDX-License-Identifier: Apache-2.0
"""What the losses over doublets have in common: which rows meet, and what the mean is taken over."""

import torch


def check_doublets(
    embeds: torch.Tensor,
    labels: torch.Tensor,
    image_ids: torch.Tensor,
    sets: torch.Tensor | None,
    sides: torch.Tensor | None = None,
) -> None:
    """ValueError unless embeds are (N, A, D), labels and sets (N, A), image_ids and sides (N,), and N is even."""
    if embeds.ndim != 3 or labels.shape != embeds.shape[:2] or image_ids.shape != embeds.shape[:1]:
        raise ValueError(
            f"Expected embeds (N, A, D), labels (N, A), image_ids (N,); got {tuple(embeds.shape)}, "
            f"{tuple(labels.shape)}, {tuple(image_ids.shape)}."
        )
    if sets is not None and sets.shape != labels.shape:
        raise ValueError(f"Expected sets of the labels' shape {tuple(labels.shape)}; got {tuple(sets.shape)}.")
    if sides is not None and sides.shape != image_ids.shape:
        raise ValueError(f"Expected sides of shape {tuple(image_ids.shape)}; got {tuple(sides.shape)}.")
    if len(embeds) % 2:
        raise ValueError(f"Rows come in doublets, so their number is even; got {len(embeds)}.")


def comparable_rows(
    labels: torch.Tensor, image_ids: torch.Tensor, sets: torch.Tensor | None, sides: torch.Tensor | None = None
) -> torch.Tensor:
    """
    (A, N, N) bool: which rows meet which. Both have a value, show different images, are of one set and of two sides.

    Args:
        labels: (N, A), below 0: no value.
        image_ids: (N,).
        sets: (N, A), or None: all are of one.
        sides: (N,), or None: every row may meet every other one.
    """
    known = labels.T >= 0
    other_image = image_ids[:, None] != image_ids[None, :]
    comparable = known[:, :, None] & known[:, None, :] & other_image
    if sets is not None:
        comparable = comparable & (sets.T[:, :, None] == sets.T[:, None, :])
    if sides is not None:
        comparable = comparable & (sides[:, None] != sides[None, :])
    return comparable


def mean_over_attributes(per_anchor: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """
    The mean over attributes of the mean over anchors, of attributes that have any; 0 where none has.

    Args:
        per_anchor: (A, N), 0 for rows that are no anchors.
        anchors: (A, N) bool.
    """
    per_attribute = per_anchor.sum(dim=1) / anchors.sum(dim=1).clamp(min=1)
    return per_attribute.sum() / anchors.any(dim=1).sum().clamp(min=1)
