# SPDX-License-Identifier: Apache-2.0
"""Distillation from an exponential moving average of the student (MCL-FIR, arXiv:2603.20648, as intended)."""

import torch
from torch import nn

from .base import ContinualMethod, IncrementRows
from .distillation import Distillation

TEACHER_VIEWS = ("other", "same")


class EmaDistillation(ContinualMethod):
    """
    The student is drawn towards what its own moving average says of another view of the same images.

    The teacher is outside the optimiser, in eval mode, its buffers averaged too, updated after every step and fed
    another view. (The released code of MCL-FIR never updates its teacher and feeds it the student's own view:
    `teacher_update=False`, `teacher_view="same"`, with `distill_on="pooled"`, where the paper's figure has embeddings.
    The teacher is then what the increment started from, and the term a weak pull back to it.)

    Settings read, beside those of every method: `distill_on` ("embeds" if None), `distillation_weight`, `ema_decay`,
    `teacher_update`, `teacher_view`.
    """

    def __init__(self, settings):
        super().__init__(settings)
        self.distillation = Distillation(settings, ("embeds", "pooled", "similarities"))
        self.needs_teacher_view = settings.teacher_view == "other"
        self.teacher: nn.Module | None = None
        self.own: dict[str, torch.Tensor] = {}
        self.num_updates = 0

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self.settings
        if not 0 <= settings.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in 0..1 (1 excluded); got {settings.ema_decay}.")
        if settings.teacher_view not in TEACHER_VIEWS:
            raise ValueError(f"teacher_view must be one of {TEACHER_VIEWS}; got {settings.teacher_view!r}.")

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """The teacher starts as the student; what is frozen in the student is shared, not copied."""
        super().begin_increment(model, increment_id, num_values)
        self.teacher = model.copy_trainable().requires_grad_(False).eval()
        student = _tensors(model)
        self.own = {name: tensor for name, tensor in _tensors(self.teacher).items() if tensor is not student[name]}
        self.num_updates = 0

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`."""
        student = model(**batch["inputs"])
        parts = self.doublet_loss(student.embeds, batch, student.attribute_logits)
        with torch.no_grad():
            teacher = self.teacher(**batch["teacher_inputs" if self.needs_teacher_view else "inputs"])
        output = self.distillation.output
        distillation = self.distillation(student[output], teacher[output], batch)
        if output == "pooled" and "pooled_text" in student:  # two towers, two features
            distillation = distillation + self.distillation(student["pooled_text"], teacher["pooled_text"], batch)
        loss = parts["loss"] + self.distillation.weight * distillation
        return parts | {"loss": self.for_average(loss), "distillation": distillation.detach()}

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """teacher ← decay * teacher + (1 - decay) * student."""
        super().after_step(model)
        if not self.settings.teacher_update:
            return
        self.num_updates += 1
        # A short run would otherwise never leave its random start: the decay grows to its value.
        decay = min(self.settings.ema_decay, (1 + self.num_updates) / (10 + self.num_updates))
        student = _tensors(model)
        for name, tensor in self.own.items():
            if tensor.is_floating_point():
                tensor.lerp_(student[name].to(tensor.dtype), 1 - decay)
            else:
                tensor.copy_(student[name])

    def end_increment(self, model: nn.Module, rows: IncrementRows) -> None:
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
