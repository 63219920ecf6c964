# SPDX-License-Identifier: Apache-2.0
"""Heads of AG-MAN (arXiv:2301.13014), to compare ours with (floor 1; travels to the Hub with a checkpoint).

`GroupNorm` instead of batch normalisation, for the reason that `baseline_heads_mclfir.py` gives.
"""

import torch
from torch import nn
from torch.nn import functional

from .attention_mclfir import AttributeChannelAttention
from .baseline_heads_mclfir import AttributeMasks, PlaceAttention, PromptedHeads, sum_places, unit_length


class LowLevelBranch(nn.Module):
    """A lower map added to the highest one: max-pooled to its grid, 1x1 convolution to its channels."""

    def __init__(self, low_channels: int, high_channels: int):
        super().__init__()
        self.projection = nn.Conv2d(low_channels, high_channels, kernel_size=1)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """low (N, C_l, H_l, W_l), high (N, C, H, W) → (N, C, H, W)."""
        size = high.shape[2:]
        while low.shape[2:] != size and (low.shape[2] + 1) // 2 >= size[0] and (low.shape[3] + 1) // 2 >= size[1]:
            low = functional.max_pool2d(low, kernel_size=3, stride=2, padding=1)
        if low.shape[2:] != size:  # a trunk whose levels are not halves, rounded up, of each other
            low = functional.adaptive_max_pool2d(low, size)
        return high + self.projection(low)


class SpatialGate(nn.Module):
    """
    Which places to let through: sigmoid of a 7x7 convolution over the mean and the maximum of the channels (CBAM,
    arXiv:1807.06521), here of the map after an attribute's attention.
    """

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, feature_map: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """feature_map (N, D, H, W), weights (N, A, H, W) that it is multiplied with → gates (N, A, H, W) in 0..1."""
        # The mean and maximum of weight * map from those of the map: no tensor of (N, A, D, H, W).
        means = weights * feature_map.mean(dim=1, keepdim=True)
        highest = weights * feature_map.amax(dim=1, keepdim=True)
        lowest = weights * feature_map.amin(dim=1, keepdim=True)  # the maximum where a weight is negative
        planes = torch.stack([means, torch.maximum(highest, lowest)], dim=2)  # (N, A, 2, H, W)
        return torch.sigmoid(self.convolution(planes.flatten(0, 1))).view_as(weights)


class AgManHeads(PromptedHeads):
    """
    Low and high maps fused, attribute-guided attention over places with a gate after it, a channel gate, a mask.

    The learned factors of the map and of the attention are the authors'; their third one, on the channel gates, is
    left out: the last normalisation takes it out again, so it cannot learn. Their classification branch runs ResNet's
    last stage over the fused map; not every trunk has such a stage to lend, so here the branch reads the trunk's
    pooled features (the same stage over the high map alone) beside the mean of the fused map.

    Reads of the configuration: `embed_dim` (512 in the authors' code), `attribute_dim` (512), `gate_dim` (512),
    `prompt_type`, `prompt_dim` and every switch: `use_low_level_branch`, `use_spatial_attention`, `use_self_gate`,
    `use_spatial_gate`, `use_channel_attention`, `use_masks` with `mask_type`, `use_attribute_classification`.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__(config, num_attributes)
        dim, size, channels = config.embed_dim, self.prompt_size(config), map_channels[-1]
        self.use_self_gate = config.use_self_gate
        self.low_level = self.spatial = self.spatial_gate = self.channel = self.masks = self.classifier = None
        if config.use_low_level_branch:
            self.low_level = LowLevelBranch(map_channels[0], channels)
        self.map_scale = nn.Parameter(torch.ones(()))
        self.map_projection = nn.Conv2d((2 if self.low_level else 1) * channels, dim, kernel_size=1)
        if config.use_spatial_attention:
            self.spatial_prompts = nn.Linear(size, dim)
            self.spatial = PlaceAttention(dim)
            self.attention_scale = nn.Parameter(torch.ones(()))
        if config.use_spatial_gate:
            self.spatial_gate = SpatialGate()
        if config.use_channel_attention:
            self.channel_prompts = nn.Linear(size, dim)
            self.channel = AttributeChannelAttention(dim, config.gate_dim)
        if config.use_masks:
            self.masks = AttributeMasks(num_attributes, dim, config.mask_type)
        if config.use_attribute_classification:
            self.classifier = nn.Linear(pooled_dim + (channels if self.low_level else 0), num_attributes)

    @staticmethod
    def reads_pooled(config) -> bool:
        """As in `IncrementHeads`."""
        return config.use_attribute_classification

    @staticmethod
    def num_maps(config) -> int:
        """As in `IncrementHeads`."""
        return 2 if config.use_low_level_branch else 1

    def reset(self) -> None:
        """Draw the prompts; fill or draw the masks."""
        super().reset()
        if self.masks is not None:
            self.masks.reset()

    def queries(self, projection: nn.Linear) -> torch.Tensor:
        """Prompts as one of the attentions takes them: W a, times sigmoid(W a) with the self-gate; (A, D)."""
        projected = projection(self.prompts)
        return projected * torch.sigmoid(projected) if self.use_self_gate else projected

    def forward(
        self, feature_maps: list[torch.Tensor], pooled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `IncrementHeads`; the lowest and the highest map are read. The attention is that before the gate."""
        fused, attention = feature_maps[-1], None
        if self.low_level is not None:
            fused = torch.cat([fused, self.low_level(feature_maps[0], fused)], dim=1)
        projected = self.map_projection(self.map_scale * fused)
        weights = self._even_weights(projected)
        if self.spatial is not None:
            attention = self.spatial(projected, self.queries(self.spatial_prompts))
            weights = self.attention_scale * attention
        if self.spatial_gate is not None:
            weights = weights * self.spatial_gate(projected, weights)
        embeds = sum_places(projected, weights, self.num_attributes)
        if self.channel is not None:
            embeds = embeds * self.channel(embeds, self.queries(self.channel_prompts))
        if self.masks is not None:
            embeds = self.masks(embeds)
        return unit_length(embeds), attention

    def _even_weights(self, projected: torch.Tensor) -> torch.Tensor:
        images, _, height, width = projected.shape
        return projected.new_full((images, self.num_attributes, height, width), 1 / (height * width))

    def classify(self, feature_maps: list[torch.Tensor], pooled: torch.Tensor) -> torch.Tensor | None:
        """Logits (N, A) of which attribute an image was drawn for; None without the branch."""
        if self.classifier is None:
            return None
        if self.low_level is not None:
            means = self.low_level(feature_maps[0], feature_maps[-1]).mean(dim=(2, 3))
            pooled = torch.cat([pooled, means], dim=1)
        return self.classifier(pooled)
