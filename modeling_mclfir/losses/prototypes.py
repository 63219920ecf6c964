# SPDX-License-Identifier: Apache-2.0
"""InfoNCE against a learned prototype of each value."""

import torch
from torch import nn
from torch.nn import functional

from .gather import for_copies


class PrototypeInfoNCE(nn.Module):
    """
    An anchor's positive is its value's prototype, its negatives are the prototypes of the attribute's other values
    (normalised softmax, arXiv:1811.12649). Beside doublets it tells apart values that seldom meet in one batch.

    The prototypes serve training alone; a checkpoint does not hold them.

    Args:
        num_values: values of each attribute.
        embed_dim: D.
        temperature: divides the cosine similarities.

    Raises:
        ValueError: a temperature not above 0, an attribute without values.
    """

    def __init__(self, num_values: list[int], embed_dim: int, temperature: float = 0.1):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}.")
        if not num_values or min(num_values) < 1:
            raise ValueError(f"Each attribute needs at least one value; got {list(num_values)}.")
        self.temperature = temperature
        most = max(num_values)
        self.prototypes = nn.Parameter(torch.randn(len(num_values), most, embed_dim) * 0.1)
        places = torch.arange(most)[None, :] >= torch.tensor(num_values)[:, None]
        self.register_buffer("padding", places)  # (A, V)

    def forward(self, embeds: torch.Tensor, labels: torch.Tensor, num_copies: int = 1) -> torch.Tensor:
        """
        Args:
            embeds: unit-length (N, A, D).
            labels: (N, A), below 0: no value, the row takes no part.
            num_copies: processes that work this same loss out and do not average the gradient of the prototypes; see
                `for_copies`.

        Returns:
            the mean over attributes of the mean over labelled rows; 0 where there is none.
        """
        prototypes = for_copies(functional.normalize(self.prototypes, dim=-1), num_copies)
        with torch.autocast(embeds.device.type, enabled=False):  # as in InfoNCE
            logits = torch.einsum("nad,avd->nav", embeds.float(), prototypes) / self.temperature
        logits = logits.masked_fill(self.padding, torch.finfo(logits.dtype).min)
        known = labels >= 0
        per_row = functional.cross_entropy(logits.flatten(0, 1), labels.clamp(min=0).flatten(), reduction="none")
        per_attribute = (per_row.unflatten(0, labels.shape) * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
        return per_attribute.sum() / known.any(dim=0).sum().clamp(min=1)
