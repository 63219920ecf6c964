# SPDX-License-Identifier: Apache-2.0
"""InfoNCE over doublets, several attributes at once."""

import math

import torch
from torch import nn

from .doublets import check_doublets, comparable_rows, mean_over_attributes
from .gather import for_copies

SAME_VALUE = ("positives", "masked", "negatives")
MAX_LOGIT_SCALE = 100.0  # of CLIP (arXiv:2103.00020)


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
        learn_temperature: multiply by exp(`logit_scale`) instead, a parameter that starts at that temperature;
            `limit` keeps the temperature within 0.01..1, as CLIP's training does.
        num_copies: processes that work this same loss out and do not average the gradient of `logit_scale`; see
            `for_copies`.

    Raises:
        ValueError: a temperature not above 0 (outside 0.01..1 where it is learned), an unknown `same_value`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        same_value: str = "positives",
        learn_temperature: bool = False,
        num_copies: int = 1,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}.")
        if learn_temperature and not 1 / MAX_LOGIT_SCALE <= temperature <= 1:
            raise ValueError(
                f"A learned temperature starts and stays within {1 / MAX_LOGIT_SCALE:g}..1; got {temperature}."
            )
        if same_value not in SAME_VALUE:
            raise ValueError(f"same_value must be one of {SAME_VALUE}; got {same_value!r}.")
        self.temperature = temperature
        self.same_value = same_value
        self.num_copies = num_copies
        start = torch.tensor(-math.log(temperature))
        self.register_parameter("logit_scale", nn.Parameter(start) if learn_temperature else None)

    def forward(
        self,
        embeds: torch.Tensor,
        labels: torch.Tensor,
        image_ids: torch.Tensor,
        sets: torch.Tensor | None = None,
        sides: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            embeds: unit-length (N, A, D), N even.
            labels: value of each row and attribute (N, A); below 0: no value, the row takes no part.
            image_ids: (N,), equal for rows that show the same image.
            sets: (N, A) integers: rows meet only rows of the same set. So a triplet's anchor has the triplet's own
                negative and no other: what the other triplets of the batch show is not known.
            sides: (N,) integers: rows meet only rows of another side. So captions meet images and images captions:
                the symmetric loss of CLIP (arXiv:2103.00020).

        Returns:
            the mean over attributes of the mean over anchors that have a positive; 0, with gradients of 0, where
            no anchor has one.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_doublets(embeds, labels, image_ids, sets, sides)
        positives, candidates = self._roles(labels, comparable_rows(labels, image_ids, sets, sides))
        embeds = embeds.float().transpose(0, 1)  # (A, N, D)
        with torch.autocast(embeds.device.type, enabled=False):  # a low temperature makes bfloat16's steps large
            similarity = embeds @ embeds.transpose(1, 2)  # (A, N, N)
        if self.logit_scale is None:
            logits = similarity / self.temperature
        else:
            logits = similarity * for_copies(self.logit_scale, self.num_copies).exp()
        logits = logits.masked_fill(~candidates, float("-inf"))
        log_probability = logits - logits.logsumexp(dim=2, keepdim=True)
        # Where nothing is a candidate the line above is -inf + inf; such anchors have no positive and drop out here.
        gained = torch.where(positives, log_probability, torch.zeros_like(log_probability)).sum(dim=2)
        num_positives = positives.sum(dim=2)
        anchors = num_positives > 0
        per_anchor = torch.where(anchors, -gained / num_positives.clamp(min=1), torch.zeros_like(gained))
        # The product with 0 keeps every embedding in the graph: distributed training wants a gradient for each.
        return mean_over_attributes(per_anchor, anchors) + 0.0 * embeds.sum()

    @torch.no_grad()
    def limit(self) -> None:
        """After an optimiser step: bring a learned temperature back into its bounds."""
        if self.logit_scale is not None:
            self.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))

    def _roles(self, labels: torch.Tensor, comparable: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        same = comparable & (labels.T[:, :, None] == labels.T[:, None, :])
        if self.same_value == "positives":
            return same, comparable
        rows = torch.arange(len(labels), device=labels.device)
        partner = rows[:, None] == (rows[None, :] ^ 1)
        positives = same & partner
        candidates = comparable if self.same_value == "negatives" else comparable & ~(same & ~partner)
        return positives, candidates
