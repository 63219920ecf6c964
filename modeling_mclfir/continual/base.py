# SPDX-License-Identifier: Apache-2.0
"""What a continual method is to the training loop."""

import torch
from torch import nn

from ..losses import InfoNCE, gather_rows, world_size


class ContinualMethod:
    """
    A continual algorithm. The loop calls, for each increment: `begin_increment`; for each step `compute_loss` and,
    after the optimiser, `after_step`; at last `end_increment`.

    Args:
        settings: an object with the method's settings as attributes (the training arguments).
    """

    needs_teacher_view = False

    def __init__(self, settings):
        self.settings = settings
        self.loss = InfoNCE(temperature=settings.temperature, same_value=settings.same_value)

    def begin_increment(self, model: nn.Module, increment_id: int) -> None:
        """`model` has just got its new heads and adapter and is set to train them."""

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """
        One batch of this process → `{"loss": scalar to minimise, name: part, …}`.

        Args:
            model: the student, perhaps wrapped for distributed training.
            batch: `inputs` (keyword arguments of the model), `labels` (n, A), `image_ids` (n,) and, where
                `needs_teacher_view`, `teacher_inputs`.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how its loss is computed.")

    def after_step(self, model: nn.Module) -> None:
        """The optimiser has just moved the student (the bare model, not its wrapper)."""

    def end_increment(self, model: nn.Module) -> None:
        """The increment is learned; drop or keep what the next ones need."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that a run stopped here needs to go on exactly: flat names → tensors."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave; called after `begin_increment`."""

    def contrastive(self, embeds: torch.Tensor, batch: dict) -> torch.Tensor:
        """InfoNCE of this process's embeds (n, A, D) against those of all processes; the same value on each."""
        return self.loss(gather_rows(embeds), gather_rows(batch["labels"]), gather_rows(batch["image_ids"]))

    def for_average(self, loss: torch.Tensor) -> torch.Tensor:
        """Scale a loss over gathered rows so that averaged gradients are those of one process (see gather_rows)."""
        return loss * world_size()
