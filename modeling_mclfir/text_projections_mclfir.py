# SPDX-License-Identifier: Apache-2.0
"""From two towers to one space (floor 2; travels to the Hub with a checkpoint)."""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .baseline_heads_mclfir import unit_length

_TEMPERATURE = 0.07  # where CLIP's begins


class SharedLayer(nn.Module):
    """A residual layer that both sides' vectors pass; it starts where it changes nothing."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """(N, D) → (N, D)."""
        return embeds + self.outer(functional.gelu(self.inner(self.norm(embeds))))


class StandardisedLinear(nn.Linear):
    """
    A linear layer that sees (x - mean) * scale: two buffers, 0 and 1 until whatever trains the model writes them, so
    that features of different size weigh alike and steps move them alike.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, in) → (N, out). Not in half precision: what is left of a feature without its mean may be little."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward((features.to(self.mean.dtype) - self.mean) * self.scale)


class TextImageProjections(nn.Module):
    """
    From both towers' features to one space: a projection each, and layers that both share.

    `logit_scale` is the logarithm of what cosines are multiplied with: a buffer, which whatever trains the model
    writes.
    """

    def __init__(self, image_dim: int, text_dim: int, embed_dim: int, num_shared_layers: int = 0):
        super().__init__()
        self.image_projection = StandardisedLinear(image_dim, embed_dim)
        self.text_projection = StandardisedLinear(text_dim, embed_dim)
        self.shared = nn.ModuleList(SharedLayer(embed_dim) for _ in range(num_shared_layers))
        self.register_buffer("logit_scale", torch.tensor(-math.log(_TEMPERATURE)))

    def image(self, pooled: torch.Tensor) -> torch.Tensor:
        """Features of images (N, C) → unit-length (N, D)."""
        return self._finish(self.image_projection(pooled))

    def text(self, pooled: torch.Tensor) -> torch.Tensor:
        """Features of captions (N, H) → unit-length (N, D)."""
        return self._finish(self.text_projection(pooled))

    def _finish(self, embeds: torch.Tensor) -> torch.Tensor:
        for layer in self.shared:
            embeds = layer(embeds)
        return unit_length(embeds)


def map_statistics(maps: torch.Tensor) -> torch.Tensor:
    """
    (N, C, H, W) → (N, 4C): each channel's mean, its mean over the inner half of rows and columns, its standard
    deviation and its maximum over places. What a photo's middle shows is mostly the product.
    """
    rows, columns = maps.shape[2] // 4, maps.shape[3] // 4
    inner = maps[:, :, rows : maps.shape[2] - rows, columns : maps.shape[3] - columns]
    deviation, mean = torch.std_mean(maps, dim=(2, 3), correction=0)
    return torch.cat([mean, inner.mean(dim=(2, 3)), deviation, maps.amax(dim=(2, 3))], dim=1)


def load_pair(source: str | PreTrainedConfig | dict, pretrained: bool) -> PreTrainedModel:
    """A model with a vision tower and a text tower; sources as of `load_trunk`. ValueError: it lacks one of them."""
    if isinstance(source, dict):
        source = AutoConfig.for_model(**source)
    if isinstance(source, str) and not pretrained:
        source = AutoConfig.from_pretrained(source)
    if isinstance(source, PreTrainedConfig):
        model = AutoModel.from_config(source)
    else:
        model = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    if not (hasattr(model, "vision_model") and hasattr(model, "text_model")):
        raise ValueError(
            f"{type(model).__name__} has no text tower beside its vision tower; name a text_encoder, such as "
            "sentence-transformers/all-MiniLM-L6-v2, or a model of two towers, such as openai/clip-vit-base-patch16."
        )
    return model


def pair_dim(pair: PreTrainedModel) -> int:
    """Size of the space that a model of two towers has: of its projections, or of what its towers give."""
    projection = getattr(pair, "text_projection", None)
    if projection is not None:
        return projection.weight.shape[0]
    return getattr(pair.config.text_config, "projection_size", pair.config.text_config.hidden_size)


@torch.no_grad()
def take_projections(projections: TextImageProjections, pair: PreTrainedModel) -> None:
    """Set projections to those of a pair (the towers' outputs as they are where it has none), and its scale."""
    for name, side in (("visual_projection", "image_projection"), ("text_projection", "text_projection")):
        own, target = getattr(pair, name, None), getattr(projections, side).weight
        weight = torch.eye(len(target)) if own is None else own.weight
        if weight.shape != target.shape:
            raise ValueError(
                f"The towers of {type(pair).__name__} give {target.shape[1]} numbers for a space of "
                f"{target.shape[0]}, without a projection between; name a text_encoder to begin with a random one."
            )
        target.copy_(weight)
        getattr(projections, side).bias.zero_()
    if hasattr(pair, "logit_scale"):
        projections.logit_scale.copy_(pair.logit_scale.reshape(()))
