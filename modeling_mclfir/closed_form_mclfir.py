# SPDX-License-Identifier: Apache-2.0
"""Heads that are worked out in closed form, not learned by steps (floor 1; travels to the Hub with a checkpoint)."""

import torch
from torch import nn

from .attention_mclfir import IncrementHeads
from .baseline_heads_mclfir import unit_length


class ClosedFormHeads(IncrementHeads):
    """
    Scores of an attribute's values as its embedding: a linear map of features of the frozen trunk, F of them.

    The features φ are the unit-length pooled features (F = C), or, where `projection_dim` is above 0, relu(R · pooled)
    (F = projection_dim) with a random R that is drawn when the increment is added and kept (RanPAC, arXiv:2307.02251;
    its numbers have the spread C^-1/2 where the paper has 1, a factor that the search for the ridge takes up).
    Dimension v of an embedding is the score W_av · φ of value v; dimensions without a value are 0. With a
    `temperature` above 0 the scores are shares instead: softmax(W_a φ / temperature) over the values that have a row
    in W. Nothing here learns: `continual.SimpleCil` and `continual.RanPac` fill in `weight` and `temperature`. Until
    then every embedding is 0.

    Reads of the configuration: `embed_dim` (at least the number of an attribute's values), `projection_dim`.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__()
        dim, size = config.embed_dim, config.projection_dim
        # Persistent, all of them: a model built on the meta device would come back with garbage in one that is not.
        self.register_buffer("projection", torch.zeros(pooled_dim, size) if size else None)
        self.register_buffer("weight", torch.zeros(num_attributes, dim, size or pooled_dim))
        self.register_buffer("temperature", torch.zeros(num_attributes))

    @staticmethod
    def reads_pooled(config) -> bool:
        """As in `IncrementHeads`."""
        return True

    def reset(self) -> None:
        """Draw the random projection; no value has a score yet."""
        if self.projection is not None:
            nn.init.normal_(self.projection, std=len(self.projection) ** -0.5)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.temperature)

    def features(self, pooled: torch.Tensor) -> torch.Tensor:
        """pooled (N, C) → φ (N, F)."""
        if self.projection is None:
            return unit_length(pooled).to(self.weight.dtype)
        return torch.relu(pooled @ self.projection)

    def forward(self, feature_maps: list[torch.Tensor], pooled: torch.Tensor) -> tuple[torch.Tensor, None]:
        """As in `IncrementHeads`; the maps are not read."""
        scores = torch.einsum("nf,adf->nad", self.features(pooled), self.weight)
        temperature, known = self.temperature[:, None], self.weight.any(dim=-1)
        shares = (scores / temperature.clamp(min=torch.finfo(scores.dtype).tiny)).masked_fill(~known, float("-inf"))
        # Where no value is known the softmax of nothing is NaN, which the mask takes away.
        shares = shares.softmax(dim=-1).masked_fill(~known, 0)
        return unit_length(torch.where(temperature > 0, shares, scores)), None
