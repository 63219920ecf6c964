# SPDX-License-Identifier: Apache-2.0
"""Metrics of rankings by scores that are no cosines: fused spaces, shares of a vote."""

import torch
from torch import Tensor

from .ranking import row_blocks
from .retrieval import _average_precision


@torch.no_grad()
def average_precision_by_scores(scores: Tensor, relevant: Tensor, chunk_size: int = 256) -> Tensor:
    """
    Average precision of each query over the full ranking; equal scores are resolved by gallery order.

    Args:
        scores: (Q, G), the higher the better.
        relevant: (Q, G) bool.
        chunk_size: queries ranked at a time.

    Returns:
        (Q,) 0 to 1; NaN where a query has no relevant item.

    Raises:
        ValueError: shapes that differ, NaN among the scores.
        TypeError: `relevant` that is not bool.

        >>> average_precision_by_scores(torch.tensor([[0.1, 0.3, 0.2]]), torch.tensor([[True, True, False]])).item()
        0.8333333333333333
    """
    if relevant.dtype != torch.bool:
        raise TypeError(f"relevant is {relevant.dtype}, but must be bool: (queries, gallery).")
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(
            f"scores and relevant must both be (queries, gallery); got {tuple(scores.shape)}, {tuple(relevant.shape)}."
        )
    if scores.isnan().any():
        raise ValueError("scores holds NaN, which cannot be ranked; mend the scores first.")

    def ranked():
        for rows in row_blocks(len(scores), chunk_size):
            order = scores[rows].sort(dim=1, descending=True, stable=True).indices
            yield relevant[rows].gather(1, order)

    return _average_precision(ranked(), None, "relevant")
