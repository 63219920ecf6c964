# SPDX-License-Identifier: Apache-2.0
"""Heads of the attribute papers, to compare ours with (floor 1; travels to the Hub with a checkpoint).

Linear, CSN (arXiv:1603.07810), ASEN and its second version (arXiv:2002.02814), MCL-FIR (arXiv:2603.20648); AG-MAN has
a file of its own. Sizes come from the configuration: the papers' recipes are settings. Wherever a paper normalises by
batch, these heads take one group over the channels and places of each image (`GroupNorm(1, D)`, as many parameters):
an embedding must not move with the images that happen to share its batch.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from .attention_mclfir import AttributeChannelAttention, IncrementHeads


def unit_length(embeds: torch.Tensor) -> torch.Tensor:
    """Divided by their norms, in float32: in half precision the squared sum of a long vector overflows."""
    return functional.normalize(embeds.float(), dim=-1)


def sum_places(feature_map: torch.Tensor, weights: torch.Tensor | None, num_attributes: int) -> torch.Tensor:
    """Map (N, C, H, W) under weights (N, A, H, W), or with every place alike where they are None → (N, A, C)."""
    if weights is None:
        return feature_map.mean(dim=(2, 3))[:, None].expand(-1, num_attributes, -1)
    return torch.einsum("nahw,nchw->nac", weights, feature_map)


class PlaceAttention(nn.Module):
    """Where to look for an attribute: softmax over places of <query, tanh(norm(map))> / sqrt(D); ASEN V2 and later."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)

    def forward(self, projected: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """projected (N, D, H, W), queries (A, D) → attention (N, A, H, W), which sums to 1."""
        keys = torch.tanh(self.norm(projected)).flatten(2)
        scores = torch.einsum("ad,ndp->nap", queries, keys) / math.sqrt(projected.shape[1])
        return scores.softmax(dim=-1).unflatten(2, projected.shape[2:])


class AsenPlaceAttention(nn.Module):
    """Where to look, first version: softmax over places of tanh(w · (tanh(W_a code) * tanh(W_x map)) + b)."""

    def __init__(self, channels: int, dim: int, code_dim: int):
        super().__init__()
        self.map_projection = nn.Conv2d(channels, dim, kernel_size=1)
        self.code_projection = nn.Linear(code_dim, dim, bias=False)
        self.score = nn.Linear(dim, 1)

    def forward(self, feature_map: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """feature_map (N, C, H, W), codes (A, K) → attention (N, A, H, W), which sums to 1."""
        keys = torch.tanh(self.map_projection(feature_map)).flatten(2)
        queries = torch.tanh(self.code_projection(codes)) * self.score.weight
        scores = torch.tanh(torch.einsum("ad,ndp->nap", queries, keys) + self.score.bias)
        return scores.softmax(dim=-1).unflatten(2, feature_map.shape[2:])


class AttributeMasks(nn.Module):
    """
    A mask an attribute over the dimensions of a shared embedding: e * relu(mask), as in CSN.

    Args:
        num_attributes: A.
        dim: D. An attribute's own block is D // A long; what is left over belongs to nobody.
        mask_type: `"blocks"`, `"random"` or `"fixed"`, see `MclfirConfig`.
    """

    def __init__(self, num_attributes: int, dim: int, mask_type: str):
        super().__init__()
        self.mask_type = mask_type
        if mask_type == "fixed":
            self.register_buffer("weight", torch.zeros(num_attributes, dim))
        else:
            self.weight = nn.Parameter(torch.zeros(num_attributes, dim))

    @torch.no_grad()
    def reset(self) -> None:
        """Fill in the blocks, or draw."""
        if self.mask_type == "random":
            nn.init.normal_(self.weight, mean=0.9, std=0.7)
            return
        nn.init.constant_(self.weight, 0.0 if self.mask_type == "fixed" else 0.1)
        num_attributes, dim = self.weight.shape
        size = max(1, dim // num_attributes)
        for index in range(num_attributes):
            start = index * size % dim  # round again where there are more attributes than dimensions
            self.weight[index, start : start + size] = 1.0

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """(N, 1, D) or (N, A, D) → (N, A, D)."""
        return embeds * torch.relu(self.weight)


class LinearHeads(IncrementHeads):
    """
    A full linear projection of the normalised pooled features an attribute: what any attention has to beat.

    Reads of the configuration: `embed_dim`.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__()
        self.num_attributes = num_attributes
        self.pooled_norm = nn.LayerNorm(pooled_dim, elementwise_affine=False)
        self.projection = nn.Linear(pooled_dim, num_attributes * config.embed_dim)

    @staticmethod
    def reads_pooled(config) -> bool:
        """As in `IncrementHeads`."""
        return True

    @property
    def pooled_projection(self) -> nn.Linear | None:
        """As in `IncrementHeads`."""
        return self.projection

    def forward(self, feature_maps: list[torch.Tensor], pooled: torch.Tensor) -> tuple[torch.Tensor, None]:
        """As in `IncrementHeads`; the maps are not read."""
        return unit_length(self.projection(self.pooled_norm(pooled)).unflatten(1, (self.num_attributes, -1))), None


class CsnHeads(IncrementHeads):
    """
    Conditional similarity network: one linear projection of the pooled features, and a mask of it an attribute.

    Reads of the configuration: `embed_dim`, `use_masks`, `mask_type`. Without masks it is a plain triplet network, the
    same embedding for every attribute.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__()
        self.num_attributes = num_attributes
        self.projection = nn.Linear(pooled_dim, config.embed_dim)
        self.masks = AttributeMasks(num_attributes, config.embed_dim, config.mask_type) if config.use_masks else None

    @staticmethod
    def reads_pooled(config) -> bool:
        """As in `IncrementHeads`."""
        return True

    def reset(self) -> None:
        """Fill or draw the masks."""
        if self.masks is not None:
            self.masks.reset()

    def forward(self, feature_maps: list[torch.Tensor], pooled: torch.Tensor) -> tuple[torch.Tensor, None]:
        """As in `IncrementHeads`; the maps are not read."""
        embeds = self.projection(pooled)[:, None]
        if self.masks is not None:
            embeds = self.masks(embeds)
        return unit_length(embeds.expand(-1, self.num_attributes, -1)), None


class AsenHeads(IncrementHeads):
    """
    ASEN, first version: spatial attention over the highest map itself, channel attention, a last projection.

    An attribute is a one-hot code (or its stored text embedding), which each attention projects for itself.
    Reads of the configuration: `embed_dim` (1024 in the paper), `attribute_dim` (512), `gate_dim` (512),
    `use_spatial_attention`, `use_channel_attention`, `prompt_type`, `prompt_dim`.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__()
        channels = map_channels[-1]
        text = config.prompt_type == "text"
        codes = torch.zeros(num_attributes, config.prompt_dim) if text else torch.eye(num_attributes)
        self.register_buffer("prompts", codes)  # saved: a model built on the meta device would come back with garbage
        self.spatial = self.channel = None
        if config.use_spatial_attention:
            self.spatial = AsenPlaceAttention(channels, config.attribute_dim, codes.shape[1])
        if config.use_channel_attention:
            self.channel_prompts = nn.Linear(codes.shape[1], channels, bias=False)
            self.channel = AttributeChannelAttention(channels, config.gate_dim)
        self.projection = nn.Linear(channels, config.embed_dim)

    def forward(
        self, feature_maps: list[torch.Tensor], pooled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `IncrementHeads`; the highest map alone is read."""
        feature_map = feature_maps[-1]
        attention = None if self.spatial is None else self.spatial(feature_map, self.prompts)
        attended = sum_places(feature_map, attention, len(self.prompts))
        if self.channel is not None:
            attended = attended * self.channel(attended, torch.relu(self.channel_prompts(self.prompts)))
        return unit_length(self.projection(attended)), attention


class PromptedHeads(IncrementHeads):
    """
    Heads with an embedding an attribute, `prompts`: learned (A, attribute_dim), or stored of a text (A, prompt_dim).

    Args:
        config: an `MclfirConfig`.
        num_attributes: A.
    """

    def __init__(self, config, num_attributes: int):
        super().__init__()
        self.num_attributes = num_attributes
        if config.prompt_type == "text":
            # Persistent: a model built on the meta device would come back with garbage in a buffer that is not saved.
            self.register_buffer("prompts", torch.zeros(num_attributes, config.prompt_dim))
        elif config.use_spatial_attention or config.use_channel_attention:
            self.prompts = nn.Parameter(torch.zeros(num_attributes, config.attribute_dim))
        else:  # nothing reads a prompt, and distributed training refuses parameters that idle
            self.prompts = None

    @staticmethod
    def prompt_size(config) -> int:
        """Size of a prompt."""
        return config.prompt_dim if config.prompt_type == "text" else config.attribute_dim

    def reset(self) -> None:
        """Draw the prompts."""
        if isinstance(self.prompts, nn.Parameter):
            nn.init.normal_(self.prompts)


class AsenV2Heads(PromptedHeads):
    """
    ASEN, second version: an embedding an attribute, scores as scaled products, the gate fed with 512 numbers of it.

    Reads of the configuration: `embed_dim` (1024 in the authors' code), `attribute_dim` (512), `gate_dim` (512),
    `use_spatial_attention`, `use_channel_attention`, `prompt_type`, `prompt_dim`.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__(config, num_attributes)
        channels, dim, size = map_channels[-1], config.attribute_dim, self.prompt_size(config)
        self.spatial = self.channel = None
        if config.use_spatial_attention:
            self.map_projection = nn.Conv2d(channels, dim, kernel_size=1)
            self.spatial_prompts = nn.Linear(size, dim)
            self.spatial = PlaceAttention(dim)
        if config.use_channel_attention:
            self.channel_prompts = nn.Linear(size, dim)
            self.channel = AttributeChannelAttention(channels, config.gate_dim, dim)
        self.projection = nn.Linear(channels, config.embed_dim)

    def forward(
        self, feature_maps: list[torch.Tensor], pooled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `IncrementHeads`; the highest map alone is read."""
        feature_map, attention = feature_maps[-1], None
        if self.spatial is not None:
            queries = torch.tanh(self.spatial_prompts(self.prompts))
            attention = self.spatial(self.map_projection(feature_map), queries)
        attended = sum_places(feature_map, attention, self.num_attributes)
        if self.channel is not None:
            attended = attended * self.channel(attended, torch.relu(self.channel_prompts(self.prompts)))
        return unit_length(self.projection(attended)), attention


class MclfirPublishedHeads(PromptedHeads):
    """
    MCL-FIR as published: the map is projected first and attended then; both attentions share one projection of the
    prompt. The published head also carries a second one (`attr_transform2`, 65,664 of its 312,192 parameters), which
    no attention reads and no gradient reaches; it is left out here.

    Reads of the configuration: `embed_dim` (128 in the authors' code), `gate_dim` (128), `prompt_dim` (512, text) or
    `attribute_dim`, `use_spatial_attention`, `use_channel_attention`, `prompt_type`.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__(config, num_attributes)
        dim = config.embed_dim
        self.map_projection = nn.Conv2d(map_channels[-1], dim, kernel_size=1)
        self.spatial = self.channel = None
        if config.use_spatial_attention or config.use_channel_attention:
            self.prompt_projection = nn.Linear(self.prompt_size(config), dim)
        if config.use_spatial_attention:
            self.spatial = PlaceAttention(dim)
        if config.use_channel_attention:
            self.channel = AttributeChannelAttention(dim, config.gate_dim)

    def forward(
        self, feature_maps: list[torch.Tensor], pooled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `IncrementHeads`; the highest map alone is read."""
        projected, attention, queries = self.map_projection(feature_maps[-1]), None, None
        if self.spatial is not None or self.channel is not None:
            queries = self.prompt_projection(self.prompts)
        if self.spatial is not None:
            attention = self.spatial(projected, queries)
        embeds = sum_places(projected, attention, self.num_attributes)
        if self.channel is not None:
            embeds = embeds * self.channel(embeds, queries)
        return unit_length(embeds), attention
