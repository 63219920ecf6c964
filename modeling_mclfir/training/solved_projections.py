# SPDX-License-Identifier: Apache-2.0
"""Projections of captions and images to one space, solved at once: regularised canonical correlation analysis."""

from collections.abc import Sequence

import torch
from torch import distributed, nn

from ..losses import world_size
from .pair_batches import PairBatches

# Chosen on val of Myntra's product lines: ridges as shares of a feature's mean variance, and the power of a canonical
# correlation that a direction is weighed with.
_IMAGE_RIDGE, _TEXT_RIDGE, _POWER = 0.3, 0.3, 2.0
_LEAST = 1e-3  # of a block's mean deviation: features that hardly vary are not blown up further than that


@torch.no_grad()
def solve_projections(model, increment_id: int, batches: PairBatches) -> None:
    """
    Let the increment's projections be those directions of the towers' features in which captions and their images
    agree most: canonical correlations (Hotelling 1936), with a ridge on both sides (Vinod 1976), each weighed by a
    power of its correlation (as for photos and tags by Gong et al., arXiv:1212.4522). Each image comes with its first
    caption; the features are those of the increment's own adapters as they are now. They are standardised, and each
    block of them (pooled features, means of the low level, …) has the same variance in all, however many it has.

    A direction less than the embedding has room for is 0. Both projections are brought to the size that they would be
    drawn with, so that steps may follow.
    """
    model.eval()
    sums = _Sums()
    for batch in batches.chunks():
        inputs = {name: value for name, value in batch["inputs"].items() if name != "increment_id"}
        output = model(**inputs, **batch["text_inputs"], increment_id=increment_id)
        sums.add(output.image_inputs, output.text_inputs)
    heads = model.heads[increment_id]
    parts = heads.image_projection, heads.text_projection
    for part, found in zip(parts, sums.solve(parts[0].out_features, model.projection_blocks()), strict=True):
        weight, mean, scale = found
        part.weight.copy_(weight * (part.in_features**-0.5 / weight.square().mean().sqrt().clamp(min=1e-12)) / 3**0.5)
        part.bias.zero_()
        part.mean.copy_(mean)
        part.scale.copy_(scale)
    if world_size() > 1:  # on GPUs sums may differ in their last bits: all take the first one's
        for tensor in nn.ModuleList(parts).state_dict().values():
            distributed.broadcast(tensor, src=0)


class _Sums:
    """Means and covariances of pairs (x, y) that come in parts, in double precision."""

    def __init__(self):
        self.count, self.first, self.second = 0, None, None

    def add(self, images: torch.Tensor, texts: torch.Tensor) -> None:
        self.sizes = images.shape[1], texts.shape[1]
        rows = torch.cat([images, texts], dim=1).double().cpu()
        first, second = rows.sum(dim=0), rows.T @ rows
        self.count += len(rows)
        self.first = first if self.first is None else self.first + first
        self.second = second if self.second is None else self.second + second

    def solve(self, num_directions: int, blocks: Sequence[Sequence[int]]) -> list[tuple[torch.Tensor, ...]]:
        """Of either side weight (D, C), mean (C,), scale (C,)."""
        mean = self.first / self.count
        covariance = self.second / self.count - mean[:, None] * mean[None, :]
        scale = _scales(covariance.diagonal().clamp(min=0).sqrt(), [size for side in blocks for size in side])
        covariance = covariance * scale[:, None] * scale[None, :]
        (images, cross), (_, texts) = (part.split(self.sizes, dim=1) for part in covariance.split(self.sizes))
        whiten = _inverse_root(images, _IMAGE_RIDGE), _inverse_root(texts, _TEXT_RIDGE)
        left, correlations, right = torch.linalg.svd(whiten[0] @ cross @ whiten[1], full_matrices=False)
        weights = correlations[:num_directions].clamp(min=0) ** _POWER
        missing = (0, 0, 0, num_directions - len(weights))
        found = []
        for side, sides_mean, sides_scale, root in zip(
            (left.T, right), mean.split(self.sizes), scale.split(self.sizes), whiten, strict=True
        ):
            weight = weights[:, None] * side[:num_directions] @ root
            found.append((nn.functional.pad(weight, missing), sides_mean, sides_scale))
        return found


def _scales(deviations: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
    """1 / deviation, and less the more features a block has: the mean over features of both sides' variance is 1."""
    found = []
    for block in deviations.split(list(blocks)):
        least = (_LEAST * block.mean()).clamp(min=1e-12)
        found.append((len(deviations) / len(blocks) / len(block)) ** 0.5 / block.clamp(min=least))
    return torch.cat(found)


def _inverse_root(covariance: torch.Tensor, ridge: float) -> torch.Tensor:
    """(covariance + ridge · mean variance · 1) ^ -1/2."""
    size = len(covariance)
    values, vectors = torch.linalg.eigh(covariance + ridge * covariance.trace() / size * torch.eye(size).double())
    return vectors @ torch.diag(values.clamp(min=1e-12).rsqrt()) @ vectors.T
