# SPDX-License-Identifier: Apache-2.0
"""Weights of several losses, learned with them."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from .gather import for_copies

MAX_WEIGHT = 100.0


class UncertaintyWeights(nn.Module):
    """
    The sum over losses of 0.5 * exp(-s) * L + 0.5 * s, with a learned s, the logarithm of a variance, for each
    (arXiv:1705.07115, equation 7 with s = log σ²). At rest a loss has the weight 1 / (2 L).

    That paper doubles the first term for losses of classes, which moves s by log 2 and the weight at rest not at all.
    AG-MAN's released code adds 0.5 * exp(p) * L + p and never hands p to its optimiser: its weights stay 0.5 * e.

    A loss that comes to 0 would drive its weight up without end, so `limit` keeps weights below `MAX_WEIGHT`.

    Args:
        start: loss → its weight at the start, 0.5 * exp(-s).
        num_copies: processes that work this same sum out and do not average the gradient of s; see `for_copies`.

    Raises:
        ValueError: fewer than two losses, a weight outside 0..`MAX_WEIGHT` (0 excluded).
    """

    def __init__(self, start: Mapping[str, float], num_copies: int = 1):
        super().__init__()
        wrong = {name: weight for name, weight in start.items() if not 0 < weight <= MAX_WEIGHT}
        if len(start) < 2 or wrong:
            raise ValueError(
                f"Learned weights need two losses at least, each with a weight above 0 and up to {MAX_WEIGHT:g}; got "
                f"{dict(start)}."
            )
        self.names, self.num_copies = tuple(start), num_copies
        self.log_variances = nn.Parameter(torch.tensor([-math.log(2 * weight) for weight in start.values()]))

    def forward(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the losses named when built. ValueError where others are given."""
        if set(losses) != set(self.names):
            raise ValueError(f"Expected the losses {sorted(self.names)}; got {sorted(losses)}.")
        log_variances = for_copies(self.log_variances, self.num_copies)
        values = torch.stack([losses[name] for name in self.names])
        return (0.5 * torch.exp(-log_variances) * values + 0.5 * log_variances).sum()

    def weights(self) -> dict[str, torch.Tensor]:
        """What each loss is multiplied by now, without gradient."""
        return dict(zip(self.names, 0.5 * torch.exp(-self.log_variances.detach()), strict=True))

    @torch.no_grad()
    def limit(self) -> None:
        """After an optimiser step: bring weights back below `MAX_WEIGHT`."""
        self.log_variances.clamp_(min=-math.log(2 * MAX_WEIGHT))
