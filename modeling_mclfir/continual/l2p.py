# SPDX-License-Identifier: Apache-2.0
"""Learning to Prompt (arXiv:2112.08654): a frozen trunk, and a pool of prompts that images choose from."""

import math

import torch
from torch import nn

from ..losses import gather_rows
from .fine_tuning import FineTuning


class LearningToPrompt(FineTuning):
    """
    All increments share one pool, which learns on (see `PromptPool` and `MclfirModel.increment_forward`); keys are
    drawn to the queries of the images that chose them: `key_weight` · mean of (1 - cosine), which has the gradient of
    the paper's - λ · similarity. Whatever different images chose stays apart, so that old prompts are disturbed less;
    old heads are frozen. For trunks of tokens only.

    Other than in the paper: prompts join at the first adapted unit, not at the input; the query is the mean of the
    places, not the class token; heads read the image's own tokens, not those of its prompts; and no prompt is put at a
    disadvantage for having been chosen often.

    Settings read, beside those of every method: `key_weight`; of the model, `prompt_pool_size`, `prompt_length` and
    `prompts_per_image`.
    """

    adapter_policies = ("prompts",)
    tasks = ("attribute",)

    def _check_settings(self) -> None:
        super()._check_settings()
        if not 0 <= self.settings.key_weight < math.inf:
            raise ValueError(f"key_weight must be at least 0; got {self.settings.key_weight}.")

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`; how far keys are from queries is told as `"key_distance"`."""
        output = model(**batch["inputs"])
        parts = self.doublet_loss(output.embeds, batch, output.attribute_logits)
        distance = (1 - gather_rows(output.prompt_similarity)).mean()
        loss = parts["loss"] + self.settings.key_weight * distance
        return parts | {"loss": self.for_average(loss), "key_distance": distance.detach()}
