# SPDX-License-Identifier: Apache-2.0
"""Orthogonal low-rank adapters (O-LoRA, arXiv:2310.14152)."""

import math

import torch
from torch import nn

from ..adapters_mclfir import adapter_layers
from ..losses import for_copies, world_size
from .base import IncrementRows
from .fine_tuning import FineTuning


class OrthogonalLora(FineTuning):
    """
    Each increment adds an adapter to those before it, which are frozen; all run together, their sum. The new one is
    penalised where its rows of A lie in the directions that earlier adapters read:
    `orthogonality_weight` · Σ over layers and earlier adapters of ‖A_old A_newᵀ‖², squared entries summed. A is
    (r, features in); that of a convolution, (r, C, k, k), is flattened to (r, C·k·k).

    The trunk's features change with each increment, and old heads, which are frozen, see them drift. The first
    adapter has nothing to be orthogonal to. With a weight of 0 it is `fine_tuning` with adapter_policy "stacked", step
    for step. New values of a known attribute get a further space, as with an adapter an increment.

    Settings read, beside those of every method: `orthogonality_weight`.
    """

    adapter_policies = ("stacked",)

    def __init__(self, settings):
        super().__init__(settings)
        # Of each layer: A of all earlier adapters, one below the other, (rows, F); A of the new one, (r, …).
        self._layers: list[tuple[torch.Tensor, nn.Parameter]] = []

    def _check_settings(self) -> None:
        super()._check_settings()
        weight = self.settings.orthogonality_weight
        if not 0 <= weight < math.inf:
            raise ValueError(f"orthogonality_weight must be at least 0; got {weight}.")

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """See `ContinualMethod.begin_increment`."""
        super().begin_increment(model, increment_id, num_values)
        *earlier, new = model.config.adapter_names() or [None]
        self._layers = []
        if not earlier or self.settings.orthogonality_weight == 0:
            return
        for layer in (layer for tower in model.towers for layer in adapter_layers(tower.trunk)):
            old = [layer.lora_A[name].weight.detach().flatten(1) for name in earlier]
            self._layers.append((torch.cat(old), layer.lora_A[new].weight))

    def penalty(self) -> torch.Tensor:
        """Σ ‖A_old A_newᵀ‖² of the model that the increment began with, as it is now: a scalar, not yet weighted."""
        # Not in half precision: products of hundreds of numbers that are to come to nothing.
        with torch.autocast(self._layers[0][0].device.type, enabled=False):
            return torch.stack([(old @ new.flatten(1).T).square().sum() for old, new in self._layers]).sum()

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`; the weighted penalty is told as `"orthogonality"`."""
        parts = super().compute_loss(model, batch)
        if not self._layers:
            return parts
        penalty = self.settings.orthogonality_weight * self.penalty()
        # Each process has all of it, and distributed training averages: unlike the rows', its gradient counts once.
        loss = parts["loss"] + self.for_average(for_copies(penalty, world_size()))
        return parts | {"loss": loss, "orthogonality": penalty.detach()}

    def end_increment(self, model: nn.Module, rows: IncrementRows) -> None:
        """The adapter is frozen from here on: the next increment reads it from the model."""
        self._layers = []
