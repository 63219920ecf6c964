# SPDX-License-Identifier: Apache-2.0
"""Margin triplet loss over doublets, several attributes at once."""

import torch
from torch import nn

from .doublets import check_doublets, comparable_rows, mean_over_attributes

MINING = ("random", "all", "semi_hard")


class TripletLoss(nn.Module):
    """
    max(0, margin - cos(anchor, positive) + cos(anchor, negative)): the loss of CSN (arXiv:1603.07810), ASEN
    (arXiv:2002.02814) and AG-MAN (arXiv:2301.13014).

    Rows 2k and 2k+1 are a doublet; each is an anchor and the other its positive where both have the same value.
    Negatives are rows of another value, never of the same one; `mining` says which:

    - `"random"` (default): one of them, as published; drawn from torch's own generator, which the training loop
      seeds at each step, so that every process and a resumed run draw the same;
    - `"all"`: every one; an anchor's loss is the mean over them;
    - `"semi_hard"`: the nearest of those farther away than the positive; where there is none, the farthest of all
      (arXiv:1503.03832).

    Rows of the same image as the anchor are always left out.

    Args:
        margin: how much nearer than a negative, in cosine, the positive has to be.
        mining: see above.

    Raises:
        ValueError: a margin not above 0, an unknown `mining`.
    """

    def __init__(self, margin: float = 0.2, mining: str = "random"):
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin must be above 0; got {margin}.")
        if mining not in MINING:
            raise ValueError(f"mining must be one of {MINING}; got {mining!r}.")
        self.margin = margin
        self.mining = mining

    def forward(
        self,
        embeds: torch.Tensor,
        labels: torch.Tensor,
        image_ids: torch.Tensor,
        sets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            embeds: unit-length (N, A, D), N even.
            labels: value of each row and attribute (N, A); below 0: no value, the row takes no part.
            image_ids: (N,), equal for rows that show the same image.
            sets: (N, A) integers: rows meet only rows of the same set, so an anchor of an explicit triplet has that
                triplet's negative and no other.

        Returns:
            the mean over attributes of the mean over anchors that have a positive and a negative; 0, with gradients
            of 0, where no anchor has both.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_doublets(embeds, labels, image_ids, sets)
        comparable = comparable_rows(labels, image_ids, sets)  # (A, N, N)
        embeds, labels = embeds.float().transpose(0, 1), labels.T  # (A, N, D), (A, N)
        with torch.autocast(embeds.device.type, enabled=False):  # bfloat16 is as coarse as what margins compare
            similarity = embeds @ embeds.transpose(1, 2)  # (A, N, N)
        same = labels[:, :, None] == labels[:, None, :]
        rows = torch.arange(len(image_ids), device=labels.device)
        positive = similarity[:, rows, rows ^ 1, None]  # (A, N, 1)
        negatives = comparable & ~same
        anchors = (comparable & same)[:, rows, rows ^ 1] & negatives.any(dim=2)
        chosen = self._choose(similarity.detach(), positive.detach(), negatives) & anchors[:, :, None]
        losses = (self.margin - positive + similarity).clamp(min=0)
        losses = torch.where(chosen, losses, torch.zeros_like(losses))
        per_anchor = losses.sum(dim=2) / chosen.sum(dim=2).clamp(min=1)
        # The product with 0 keeps every embedding in the graph: distributed training wants a gradient for each.
        return mean_over_attributes(per_anchor, anchors) + 0.0 * embeds.sum()

    def _choose(self, similarity: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """Which negatives count: (A, N, N) bool."""
        if self.mining == "all":
            return negatives
        if self.mining == "random":
            score = torch.rand(similarity.shape, device=similarity.device)
        else:
            farther = negatives & (similarity < positive)
            # The second line is below the first wherever the first has anything to say: cosines end at -1 and 1.
            score = torch.where(farther, similarity, -4.0 - similarity)
        best = score.masked_fill(~negatives, float("-inf")).argmax(dim=2, keepdim=True)
        return torch.zeros_like(negatives).scatter(2, best, True) & negatives
