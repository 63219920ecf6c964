# SPDX-License-Identifier: Apache-2.0
"""Distillation from an exponential moving average of the student (MCL-FIR, arXiv:2603.20648, as intended)."""

import torch
from torch import nn

from ..losses import EmbeddingDistillation, gather_rows
from .base import ContinualMethod


class EmaDistillation(ContinualMethod):
    """
    The student is drawn towards what its own moving average says of another view of the same images.

    The teacher is outside the optimiser, in eval mode, its buffers averaged too, updated after every step and fed
    the augmented view. (The released code of MCL-FIR never updates its teacher and never feeds it that view.)

    Settings read: `temperature`, `same_value`, `ema_decay`, `distillation_weight`.
    """

    needs_teacher_view = True

    def __init__(self, settings):
        super().__init__(settings)
        if not 0 <= settings.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in 0..1 (1 excluded); got {settings.ema_decay}.")
        self.distillation = EmbeddingDistillation()
        self.teacher: nn.Module | None = None
        self.own: dict[str, torch.Tensor] = {}
        self.num_updates = 0

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """The teacher starts as the student; what is frozen in the student is shared, not copied."""
        super().begin_increment(model, increment_id, num_values)
        self.teacher = model.copy_trainable().requires_grad_(False).eval()
        student = _tensors(model)
        self.own = {name: tensor for name, tensor in _tensors(self.teacher).items() if tensor is not student[name]}
        self.num_updates = 0

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`."""
        embeds = model(**batch["inputs"]).embeds
        parts = self.doublet_loss(embeds, batch)
        with torch.no_grad():
            teacher_embeds = self.teacher(**batch["teacher_inputs"]).embeds
        distillation = self.distillation(gather_rows(embeds), gather_rows(teacher_embeds))
        loss = parts["loss"] + self.settings.distillation_weight * distillation
        return parts | {"loss": self.for_average(loss), "distillation": distillation.detach()}

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """teacher ← decay * teacher + (1 - decay) * student."""
        self.num_updates += 1
        # A short run would otherwise never leave its random start: the decay grows to its value.
        decay = min(self.settings.ema_decay, (1 + self.num_updates) / (10 + self.num_updates))
        student = _tensors(model)
        for name, tensor in self.own.items():
            if tensor.is_floating_point():
                tensor.lerp_(student[name].to(tensor.dtype), 1 - decay)
            else:
                tensor.copy_(student[name])

    def end_increment(self, model: nn.Module) -> None:
        """The teacher has done its work."""
        self.teacher, self.own = None, {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The teacher's own tensors and how often it was updated."""
        return super().state_dict() | self.own | {"num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.num_updates = int(state["num_updates"])
        for name, tensor in self.own.items():
            tensor.copy_(state[name])


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
