# SPDX-License-Identifier: Apache-2.0
"""Attribute prompts from a frozen text encoder: used once an increment, then stored in the heads."""

import torch
from transformers import AutoModel, AutoTokenizer


class PromptEncoder:
    """
    Mean of a text model's last hidden states, of unit length.

    Args:
        source: Hub id or folder of any transformers text model; of a two-tower model its text tower is taken.
    """

    def __init__(self, source: str):
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        self.model = getattr(model, "text_model", model).eval()
        config = getattr(self.model.config, "text_config", self.model.config)
        self.dim = config.hidden_size

    @torch.no_grad()
    def encode(self, attributes: list[str]) -> torch.Tensor:
        """Names → (A, dim). "sleeve_length" is read as "sleeve length"."""
        texts = [name.replace("_", " ").replace("-", " ") for name in attributes]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        states = self.model(**tokens).last_hidden_state  # (A, T, dim)
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
