# SPDX-License-Identifier: Apache-2.0
"""Learned tokens, chosen for each image by keys (floor 1; travels to the Hub with a checkpoint)."""

import torch
from torch import nn
from torch.nn import functional


class PromptPool(nn.Module):
    """
    Prompts that are put before an image's own tokens: those whose keys lie nearest to the image's query by cosine
    (L2P, arXiv:2112.08654). They have nothing to do with the prompts of heads, which stand for attributes.

    Args:
        pool_size: M prompts, each with a key.
        length: L tokens a prompt.
        per_image: how many prompts, K, an image gets.
        token_dim: C of the tokens.
        query_dim: Q of the queries.
    """

    def __init__(self, pool_size: int, length: int, per_image: int, token_dim: int, query_dim: int):
        super().__init__()
        self.per_image = per_image
        self.prompts = nn.Parameter(torch.empty(pool_size, length, token_dim))
        self.keys = nn.Parameter(torch.empty(pool_size, query_dim))
        self.reset()

    def reset(self) -> None:
        """Draw prompts as a ViT draws its class token; keys in all directions alike."""
        nn.init.normal_(self.prompts, std=0.02)
        nn.init.normal_(self.keys, std=0.02)

    def forward(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (N, Q) → tokens of the chosen prompts (N, K·L, C), and their keys' cosines (N, K), highest first."""
        # In full precision: in half, an image might get other prompts in training than it has later.
        with torch.autocast(query.device.type, enabled=False):
            directions = functional.normalize(query.float(), dim=-1)
            cosines = directions @ functional.normalize(self.keys.float(), dim=-1).T
        nearest, chosen = cosines.topk(self.per_image, dim=-1)
        return self.prompts[chosen].flatten(1, 2), nearest
