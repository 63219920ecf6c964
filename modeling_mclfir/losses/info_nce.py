# SPDX-License-Identifier: Apache-2.0
"""InfoNCE over doublets, several attributes at once."""

import torch
from torch import nn

SAME_VALUE = ("positives", "masked", "negatives")


class InfoNCE(nn.Module):
    """
    Contrastive loss of a batch of doublets (NT-Xent, arXiv:2002.05709; MCL-FIR, arXiv:2603.20648).

    Rows 2k and 2k+1 are a doublet. Of an anchor's other rows, the partner is its positive where it has the same
    value; `same_value` says what the remaining rows of that value are:

    - `"positives"` (default): positives too; the loss is the mean over all of them (SupCon, arXiv:2004.11362);
    - `"masked"`: left out of the denominator;
    - `"negatives"`: negatives, as in the released code of MCL-FIR, where 1/K of all negatives are false.

    Rows of the same image as the anchor are always left out: an image is not its own positive.

    Args:
        temperature: divides the cosine similarities.
        same_value: see above.

    Raises:
        ValueError: a temperature not above 0, an unknown `same_value`.
    """

    def __init__(self, temperature: float = 0.1, same_value: str = "positives"):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}.")
        if same_value not in SAME_VALUE:
            raise ValueError(f"same_value must be one of {SAME_VALUE}; got {same_value!r}.")
        self.temperature = temperature
        self.same_value = same_value

    def forward(self, embeds: torch.Tensor, labels: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
        """
        Args:
            embeds: unit-length (N, A, D), N even.
            labels: value of each row and attribute (N, A); below 0: no value, the row takes no part.
            image_ids: (N,), equal for rows that show the same image.

        Returns:
            the mean over attributes of the mean over anchors that have a positive; 0, with gradients of 0, where
            no anchor has one.

        Raises:
            ValueError: shapes that do not fit.
        """
        if embeds.ndim != 3 or labels.shape != embeds.shape[:2] or image_ids.shape != embeds.shape[:1]:
            raise ValueError(
                f"Expected embeds (N, A, D), labels (N, A), image_ids (N,); got {tuple(embeds.shape)}, "
                f"{tuple(labels.shape)}, {tuple(image_ids.shape)}."
            )
        if len(embeds) % 2:
            raise ValueError(f"Rows come in doublets, so their number is even; got {len(embeds)}.")
        embeds, labels = embeds.float().transpose(0, 1), labels.T  # (A, N, D), (A, N)
        logits = embeds @ embeds.transpose(1, 2) / self.temperature  # (A, N, N)
        positives, candidates = self._roles(labels, image_ids)
        logits = logits.masked_fill(~candidates, float("-inf"))
        log_probability = logits - logits.logsumexp(dim=2, keepdim=True)
        # Where nothing is a candidate the line above is -inf + inf; such anchors have no positive and drop out here.
        gained = torch.where(positives, log_probability, torch.zeros_like(log_probability)).sum(dim=2)
        num_positives = positives.sum(dim=2)
        anchors = num_positives > 0
        per_anchor = torch.where(anchors, -gained / num_positives.clamp(min=1), torch.zeros_like(gained))
        per_attribute = per_anchor.sum(dim=1) / anchors.sum(dim=1).clamp(min=1)
        active = anchors.any(dim=1)
        # The product with 0 keeps every embedding in the graph: distributed training wants a gradient for each.
        return per_attribute.sum() / active.sum().clamp(min=1) + 0.0 * embeds.sum()

    def _roles(self, labels: torch.Tensor, image_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_rows = len(image_ids)
        known = labels >= 0
        other_image = image_ids[:, None] != image_ids[None, :]
        comparable = known[:, :, None] & known[:, None, :] & other_image
        same = comparable & (labels[:, :, None] == labels[:, None, :])
        if self.same_value == "positives":
            return same, comparable
        rows = torch.arange(num_rows, device=labels.device)
        partner = rows[:, None] == (rows[None, :] ^ 1)
        positives = same & partner
        candidates = comparable if self.same_value == "negatives" else comparable & ~(same & ~partner)
        return positives, candidates
