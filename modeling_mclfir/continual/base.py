# SPDX-License-Identifier: Apache-2.0
"""What a continual method is to the training loop."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from ..losses import InfoNCE, PrototypeInfoNCE, gather_rows, world_size


class ContinualMethod(ABC):
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
        self.prototypes: PrototypeInfoNCE | None = None

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """
        `model` has just got its new heads and adapter and is set to train them.

        Args:
            num_values: values of each attribute of the increment; needed where `prototype_weight` is above 0.
        """
        self.prototypes = None
        if num_values is not None and self.settings.prototype_weight > 0:
            prototypes = PrototypeInfoNCE(num_values, model.config.embed_dim, self.settings.temperature)
            self.prototypes = prototypes.to(model.device)

    def parameters(self) -> list[nn.Parameter]:
        """What the method itself learns beside the model."""
        return [] if self.prototypes is None else list(self.prototypes.parameters())

    @abstractmethod
    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """
        One batch of this process → `{"loss": scalar to minimise, name: part, …}`.

        Args:
            model: the student, perhaps wrapped for distributed training.
            batch: `inputs` (keyword arguments of the model), `labels` (n, A), `image_ids` (n,) and, where
                `needs_teacher_view`, `teacher_inputs`.
        """

    def after_step(self, model: nn.Module) -> None:  # noqa: B027  most methods have nothing to do here
        """The optimiser has just moved the student (the bare model, not its wrapper)."""

    def end_increment(self, model: nn.Module) -> None:  # noqa: B027  nor here
        """The increment is learned; drop or keep what the next ones need."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that a run stopped here needs to go on exactly: flat names → tensors."""
        return {} if self.prototypes is None else {"prototypes": self.prototypes.prototypes.detach()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave; called after `begin_increment`."""
        if self.prototypes is not None:
            with torch.no_grad():
                self.prototypes.prototypes.copy_(state["prototypes"])

    def doublet_loss(self, embeds: torch.Tensor, batch: dict) -> dict[str, torch.Tensor]:
        """
        The contrastive loss of this process's embeds (n, A, D) against those of all processes, the same on each:
        `{"loss": …, "contrastive": …}` and, where `prototype_weight` is above 0, `"prototypes"`.
        """
        embeds, labels = gather_rows(embeds), gather_rows(batch["labels"])
        contrastive = self.loss(embeds, labels, gather_rows(batch["image_ids"]))
        if self.prototypes is None:
            return {"loss": contrastive, "contrastive": contrastive.detach()}
        prototypes = self.prototypes(embeds, labels, num_copies=world_size())
        loss = contrastive + self.settings.prototype_weight * prototypes
        return {"loss": loss, "contrastive": contrastive.detach(), "prototypes": prototypes.detach()}

    def for_average(self, loss: torch.Tensor) -> torch.Tensor:
        """Scale a loss over gathered rows so that averaged gradients are those of one process (see gather_rows)."""
        return loss * world_size()
