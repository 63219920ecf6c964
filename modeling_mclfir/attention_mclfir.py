# SPDX-License-Identifier: Apache-2.0
"""Attribute-guided attention heads of one increment (floor 1; travels to the Hub with a checkpoint).

The attributes of an increment share the projections of the maps; an attribute owns its prompt, a gain and a projection
of the pooled features. All of them are computed at once, so a new attribute costs parameters, not passes.
"""

import math

import torch
from torch import nn
from torch.nn import functional

# What attention adds at first, beside the projected pooled features: attention drawn at random is noise, and from 1.0
# on it took more epochs to become of use than small sets give.
_FIRST_GAIN = 0.1


class AttributeSpatialAttention(nn.Module):
    """
    Where to look for an attribute: softmax over places of <prompt, tanh(map)> / sqrt(D), as in ASEN (arXiv:2002.02814)
    and MCL-FIR (arXiv:2603.20648), with a learned sharpness.
    """

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(4.0)))

    def forward(self, fused: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """fused (N, D, P) and prompts (A, D) → attended (N, A, D) and the attention (N, A, P), which sums to 1."""
        scores = torch.einsum("ad,ndp->nap", prompts, torch.tanh(fused)) / math.sqrt(fused.shape[1])
        attention = (scores * self.logit_scale.exp()).softmax(dim=-1)
        return torch.einsum("nap,ndp->nad", attention, fused), attention


class AttributeChannelAttention(nn.Module):
    """
    Which channels matter for an attribute: sigmoid(F2 relu(F1 [attended; prompt])), as in ASEN and MCL-FIR.

    Args:
        embed_dim: D, size of what is gated.
        gate_dim: hidden size.
        prompt_dim: K, size of a prompt; default: D.
    """

    def __init__(self, embed_dim: int, gate_dim: int, prompt_dim: int | None = None):
        super().__init__()
        self.reduce = nn.Linear(embed_dim + (embed_dim if prompt_dim is None else prompt_dim), gate_dim)
        self.expand = nn.Linear(gate_dim, embed_dim)

    def forward(self, attended: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """attended (N, A, D) and prompts (A, K) → gates (N, A, D) in 0..1."""
        pairs = torch.cat([attended, prompts.expand(len(attended), -1, -1)], dim=-1)  # (N, A, D + K)
        return torch.sigmoid(self.expand(torch.relu(self.reduce(pairs))))


class MultiLevelFusion(nn.Module):
    """Maps of several levels → one map: 1x1 projections, brought to the finest grid and added (after AG-MAN)."""

    def __init__(self, channels: list[int], embed_dim: int):
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(size, embed_dim, kernel_size=1) for size in channels)
        # Not batch normalisation: an embedding must not depend on the images that share its batch.
        self.norm = nn.GroupNorm(1, embed_dim)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps (N, C_l, H_l, W_l) → (N, D, H, W) with H, W of the first (finest) map."""
        size = feature_maps[0].shape[2:]
        fused = 0
        for projection, feature_map in zip(self.projections, feature_maps, strict=True):
            level = projection(feature_map)
            if level.shape[2:] != size:
                level = functional.interpolate(level, size=size, mode="nearest")
            fused = fused + level
        return self.norm(fused)


class IncrementHeads(nn.Module):
    """
    The heads of one increment, of whatever kind: feature maps and pooled features → one unit-length embedding an
    attribute. A kind adds `forward(feature_maps, pooled)`: maps (N, C_l, H_l, W_l), finest first, and pooled (N, C) →
    embeds (N, A, D) in float32 and attention (N, A, H, W), which sums to 1, or None.

    No kind keeps batch statistics: an embedding must not depend on the images that share its batch.

    Args:
        config: an `MclfirConfig`.
        num_attributes: A, the attributes (spaces) of this increment.
        map_channels: channels of each map, finest first.
        pooled_dim: C, size of the trunk's pooled features.
    """

    @staticmethod
    def reads_pooled(config) -> bool:
        """Whether the pooled features are read: if not, nothing above the last map can learn."""
        return False

    @staticmethod
    def num_maps(config) -> int:
        """How many maps of different levels are needed at least."""
        return 1

    @property
    def pooled_projection(self) -> nn.Linear | None:
        """From `pooled_norm` of the pooled features to all attributes' embeddings: (A·D, C); None: there is none."""
        return None

    def reset(self) -> None:
        """Draw what the modules' own constructors leave at zero; called once, when an increment is added."""

    def attended(self, feature_maps: list[torch.Tensor]) -> tuple[torch.Tensor | float, torch.Tensor | None]:
        """
        What an embedding is, before it gets its length, beside the projected pooled features: (N, A, D), or 0; and the
        attention as in `forward`. For kinds with a `pooled_projection`.
        """
        return 0.0, None

    def classify(self, feature_maps: list[torch.Tensor], pooled: torch.Tensor) -> torch.Tensor | None:
        """Logits (N, A) of which attribute an image was drawn for; None where there is no such branch."""
        return None


class AttributeHeads(IncrementHeads):
    """
    Our own heads: a projection of the pooled features for each attribute, plus text-guided spatial and channel
    attention over fused maps, which starts small and grows where it helps.

    Reads of the configuration: `embed_dim`, `gate_dim`, `use_pooled_features`, `use_spatial_attention`,
    `use_channel_attention`, `prompt_type`, `prompt_dim`.
    """

    def __init__(self, config, num_attributes: int, map_channels: list[int], pooled_dim: int):
        super().__init__()
        self.num_attributes, dim = num_attributes, config.embed_dim
        self.use_text = config.prompt_type == "text"
        self.fusion = self.spatial = self.channel = self.gain = self.projections = None
        # Without attention nothing reads a prompt, and distributed training refuses parameters that idle.
        attends = config.use_spatial_attention or config.use_channel_attention
        if self.use_text:
            # Persistent: a model built on the meta device would come back with garbage in a buffer that is not saved.
            self.register_buffer("prompts", torch.zeros(num_attributes, config.prompt_dim))
            self.prompt_projection = nn.Linear(config.prompt_dim, dim, bias=False) if attends else None
        else:
            self.prompts = nn.Parameter(torch.zeros(num_attributes, dim)) if attends else None
        if attends:
            self.fusion = MultiLevelFusion(map_channels, dim)
            self.gain = nn.Parameter(torch.full((num_attributes, dim), _FIRST_GAIN))
        if config.use_spatial_attention:
            self.spatial = AttributeSpatialAttention()
        if config.use_channel_attention:
            self.channel = AttributeChannelAttention(dim, config.gate_dim)
        if config.use_pooled_features:
            self.pooled_norm = nn.LayerNorm(pooled_dim, elementwise_affine=False)
            self.projections = nn.Linear(pooled_dim, num_attributes * dim)

    @staticmethod
    def reads_pooled(config) -> bool:
        """As in `IncrementHeads`."""
        return config.use_pooled_features

    @property
    def pooled_projection(self) -> nn.Linear | None:
        """As in `IncrementHeads`."""
        return self.projections

    def reset(self) -> None:
        """Draw the prompts."""
        if not self.use_text and self.prompts is not None:
            nn.init.normal_(self.prompts, std=0.5)

    def attribute_prompts(self) -> torch.Tensor:
        """Prompts in the space of the maps, (A, D)."""
        return self.prompt_projection(self.prompts) if self.use_text else self.prompts

    def attended(self, feature_maps: list[torch.Tensor]) -> tuple[torch.Tensor | float, torch.Tensor | None]:
        """As in `IncrementHeads`."""
        if self.fusion is None:
            return 0.0, None
        prompts, attention = self.attribute_prompts(), None
        fused = self.fusion(feature_maps)  # (N, D, H, W)
        if self.spatial is not None:
            attended, attention = self.spatial(fused.flatten(2), prompts)
            attention = attention.unflatten(2, fused.shape[2:])
        else:  # every place counts alike
            attended = fused.mean(dim=(2, 3))[:, None].expand(-1, len(prompts), -1)
        gates = self.channel(attended, prompts) if self.channel is not None else 1.0
        return attended * gates * self.gain, attention

    def forward(self, feature_maps: list[torch.Tensor], pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (N, C_l, H_l, W_l), pooled (N, C) → embeds (N, A, D) of unit length, attention (N, A, H, W) or None."""
        embeds, attention = self.attended(feature_maps)
        if self.projections is not None:
            embeds = self.projections(self.pooled_norm(pooled)).unflatten(1, (self.num_attributes, -1)) + embeds
        # Normalised in float32: in half precision the squared sum of a long vector overflows.
        return functional.normalize(embeds.float(), dim=-1), attention
