# SPDX-License-Identifier: Apache-2.0
"""Learn the increment, and nothing else."""

import torch
from torch import nn

from .base import ContinualMethod


class FineTuning(ContinualMethod):
    """
    The loss of the doublets alone. With one adapter an increment that is all there is to do: old ones are frozen.
    With a shared adapter it is the lower bound that other methods are measured against.
    """

    adapter_policies = (*ContinualMethod.adapter_policies, "stacked")

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`."""
        output = model(**batch["inputs"])
        parts = self.doublet_loss(output.embeds, batch, output.attribute_logits)
        return parts | {"loss": self.for_average(parts["loss"])}
