# SPDX-License-Identifier: Apache-2.0
"""Learning without Forgetting (arXiv:1606.09282): the model as it stood teaches its old attributes on new images."""

import torch
from torch import nn

from .base import IncrementRows
from .distillation import Distillation
from .fine_tuning import FineTuning


class LearningWithoutForgetting(FineTuning):
    """
    The adapter that all increments share learns on, and old embeddings would drift. So from the second increment on, a
    frozen copy of the model as it stood tells, of the new batch's images in the student's own view, the embeddings for
    all attributes known before; the student, its old heads included, is to keep them. No old row is looked at.

    One pass of the student serves old and new attributes. With a weight of 0 it is `fine_tuning`, step for step.

    Settings read, beside those of every method: `distillation_weight` and `distill_on`: "similarities" (also if None;
    see `SimilarityDistillation`) or "embeds".
    """

    adapter_policies = ("shared",)

    def __init__(self, settings):
        super().__init__(settings)
        self.distillation = Distillation(settings, ("similarities", "embeds"))
        self.learns_old_heads = self.distillation.weight > 0
        self.num_known = 0  # attributes of all increments that are learned
        self.teacher: nn.Module | None = None

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """The teacher is the model as it stands; what is frozen in the student is shared, not copied."""
        super().begin_increment(model, increment_id, num_values)
        if self.num_known and self.distillation.weight > 0:
            self.teacher = model.copy_trainable().requires_grad_(False).eval()

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`."""
        if self.teacher is None:
            return super().compute_loss(model, batch)
        old = range(self.num_known)
        # New values of a known attribute may be learned in its old space: that one is then both.
        new = self.teacher.config.attribute_range(batch["inputs"]["increment_id"])
        student = model(**batch["inputs"], attribute_ids=list(range(max(old.stop, new.stop))))
        with torch.no_grad():
            teacher = self.teacher(**batch["inputs"], attribute_ids=list(old))
        logits = student.attribute_logits
        new_logits = None if logits is None else logits[:, new.start : new.stop]
        parts = self.doublet_loss(student.embeds[:, new.start : new.stop], batch, new_logits)
        distillation = self.distillation(student.embeds[:, : old.stop], teacher.embeds, batch)
        loss = parts["loss"] + self.distillation.weight * distillation
        return parts | {"loss": self.for_average(loss), "distillation": distillation.detach()}

    def end_increment(self, model: nn.Module, rows: IncrementRows) -> None:
        """The teacher has done its work."""
        self.teacher, self.num_known = None, len(model.config.attributes)

    def kept_state_dict(self) -> dict[str, torch.Tensor]:
        """How many attributes are known: the model has new heads by the time the next increment begins."""
        return {"num_known": torch.tensor(self.num_known)}

    def load_kept_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `kept_state_dict` gave."""
        self.num_known = int(state.get("num_known", 0))
