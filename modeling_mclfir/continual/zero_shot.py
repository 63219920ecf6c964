# SPDX-License-Identifier: Apache-2.0
"""Learn nothing: the lower bound."""

import torch
from torch import nn

from .base import ContinualMethod


class ZeroShot(ContinualMethod):
    """The trunk's pooled features, as they are, serve every attribute. It costs nothing and forgets nothing."""

    trains = False
    tasks = ("attribute",)
    by_pooled_features = True

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """Raises TypeError: there is nothing to minimise."""
        raise TypeError("zero_shot has no loss: nothing is trained.")
