# SPDX-License-Identifier: Apache-2.0
"""Which attributes an image is labelled for."""

import torch
from torch import nn
from torch.nn import functional


class AttributeClassification(nn.Module):
    """
    Binary cross-entropy of the attributes that a row is labelled for (the second loss of AG-MAN, arXiv:2301.13014):
    images with the same attribute are one class, whatever their values.

    Where each image has a label of one attribute only (FashionAI), the target is one-hot, as published. Where all
    images have labels of all attributes there is nothing to tell apart, and the loss goes to 0.
    """

    def forward(self, attribute_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            attribute_logits: (N, A).
            labels: (N, A), below 0: no label. A row without any takes no part.

        Returns:
            the mean over rows of the mean over attributes; 0, with gradients of 0, where no row has a label.

        Raises:
            ValueError: unequal shapes.
        """
        if attribute_logits.shape != labels.shape:
            raise ValueError(
                f"attribute_logits must have the labels' shape {tuple(labels.shape)}; got "
                f"{tuple(attribute_logits.shape)}."
            )
        target = labels >= 0
        logits = attribute_logits.float()
        losses = functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        known = target.any(dim=1)
        return (losses.mean(dim=1) * known).sum() / known.sum().clamp(min=1)
