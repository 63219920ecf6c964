# SPDX-License-Identifier: Apache-2.0
"""The term that draws a student to its teacher, as `distill_on` names it."""

import math

import torch

from ..losses import EmbeddingDistillation, FeatureDistillation, SimilarityDistillation, gather_rows


class Distillation:
    """
    A distance of the student to the teacher over the rows of all processes.

    Args:
        settings: `distill_on`, `distillation_weight` and `temperature` are read.
        choices: what the method can distil; the first one where `distill_on` is None.

    Attributes:
        output: the field of the model's output that is compared.
        weight: of the term.

    Raises:
        ValueError: `distill_on` is not among the choices, or the weight is below 0.
    """

    def __init__(self, settings, choices: tuple[str, ...]):
        on = choices[0] if settings.distill_on is None else settings.distill_on
        if on not in choices:
            raise ValueError(f"distill_on must be one of {choices}; got {on!r}.")
        if not 0 <= settings.distillation_weight < math.inf:
            raise ValueError(f"distillation_weight must be at least 0; got {settings.distillation_weight}.")
        self.weight = settings.distillation_weight
        self.output = "pooled" if on == "pooled" else "embeds"
        self._compares_rows = on == "similarities"
        if on == "similarities":
            self.loss = SimilarityDistillation(settings.temperature)
        else:
            self.loss = EmbeddingDistillation() if on == "embeds" else FeatureDistillation()

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, batch: dict) -> torch.Tensor:
        """The `output` of both for the rows of this process, (n, …), and their batch → scalar."""
        rows = [student, teacher]
        if self._compares_rows:
            rows += [batch[name] for name in ("image_ids", "sides") if name in batch]
        return self.loss(*(gather_rows(part) for part in rows))
