# SPDX-License-Identifier: Apache-2.0
"""Where heads begin: at the ridge regression from pooled features to values, instead of at random numbers."""

from collections.abc import Sequence

import torch
from torch import distributed, nn
from torch.nn import functional

from ..losses import world_size
from ..modeling_mclfir import MclfirForImageRetrieval
from .batches import IncrementBatches

# So many rows tell where to begin, and so many directions of their features; further ones change nothing to speak of.
_MOST_ROWS, _NUM_DIRECTIONS = 10_000, 256
# Ridges as multiples of the features' mean variance (of a direction) times rows.
_RIDGES = tuple(10.0 ** (power / 2) for power in range(-8, 5))
# What is drawn at random stays at this share of its size: dimensions that no value needs can still learn.
_NOISE = 0.1


@torch.no_grad()
def start_heads(
    model: MclfirForImageRetrieval, increment_ids: Sequence[int], batches: IncrementBatches, seed: int
) -> None:
    """
    Begin heads at scores of values: an embedding is at first the (turned) vector of the ridge regression's scores of
    the attribute's values, so that images with like scores lie close together before any step.

    Of labelled rows (10,000 at most, one pass without augmentation) the features are taken in their 256 main
    directions; each attribute is solved over its own labelled rows, with the ridge that has the smallest
    leave-one-out error. Heads of attributes that no such row has a label of stay as they are (they are learned from
    triplets, or very rare).

    Args:
        increment_ids: of the model, whose heads are new and have a `pooled_projection`.
        batches: what they learn from; attributes as in those increments, in their order.
        seed: of what is drawn.
    """
    runs: dict[str | None, tuple | None] = {}  # increments that share an adapter share its run
    first = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for increment_id in increment_ids:
            heads, count = model.heads[increment_id], len(model.config.attribute_range(increment_id))
            adapter = model.config.adapter_name(increment_id)
            if adapter not in runs:
                runs[adapter] = _collect(model, increment_id, batches)
            if runs[adapter] is None:  # all is learned from triplets
                return
            pooled, labels = runs[adapter]
            _start(heads.pooled_projection, heads.pooled_norm(pooled), labels[:, first : first + count])
            if world_size() > 1:  # on GPUs features may differ in their last bits: all take the first one's
                for parameter in heads.pooled_projection.parameters():
                    distributed.broadcast(parameter.data, src=0)
            first += count


def _collect(model: MclfirForImageRetrieval, increment_id: int, batches: IncrementBatches) -> tuple | None:
    """Pooled features (n, C) and labels (n, A) on the CPU; None without a labelled row."""
    training = model.training
    model.eval()
    pooled, labels = [], []
    for batch in batches.chunks(most=_MOST_ROWS) if (batches.labels >= 0).any() else ():
        inputs = batch["inputs"] | {"increment_id": increment_id}
        pooled.append(model.mclfir(**inputs).pooled.float().cpu())
        labels.append(batch["labels"].cpu())
    model.train(training)
    return (torch.cat(pooled), torch.cat(labels)) if pooled else None


def _start(layer: nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Weights of (A·D, C) from features (n, C) and labels (n, A), -1 for none."""
    dim = layer.out_features // labels.shape[1]
    mean = features.mean(dim=0)
    directions = torch.svd_lowrank(features - mean, q=min(_NUM_DIRECTIONS, *features.shape))[2].double()
    turned = (features - mean).double() @ directions
    for place, codes in enumerate(labels.T):
        known = codes >= 0
        if not known.any():
            continue
        weight, bias = leave_one_out_ridge(turned[known], functional.one_hot(codes[known]).double())
        spread = _spread(turned[known] @ weight + bias, dim)
        weight, bias = weight @ spread, bias @ spread
        part = slice(place * dim, (place + 1) * dim)
        layer.weight[part] = _NOISE * layer.weight[part] + (directions @ weight).T.to(layer.weight)
        layer.bias[part] = _NOISE * layer.bias[part] + (bias - mean.double() @ directions @ weight).to(layer.bias)


def _spread(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """
    Scores (n, V) → the map (V, D) that turns them into D numbers: a random turn that keeps all lengths, or where there
    are more values than dimensions only the scores' main directions. Their mean length becomes that of D numbers
    drawn as a linear layer draws its own, so that the rate of learning suits both.
    """
    count = scores.shape[1]
    if count > dim:
        directions = torch.linalg.eigh(scores.T @ scores)[1][:, -dim:]  # (V, D)
    else:
        directions = torch.eye(count, dtype=scores.dtype)
    turn = torch.linalg.qr(torch.randn(dim, directions.shape[1], dtype=scores.dtype))[0]  # (D, min(V, D))
    spread = directions @ turn.T
    length = (scores @ spread).norm(dim=1).mean().clamp(min=1e-6)
    return spread * ((dim / 3) ** 0.5 / length)


def leave_one_out_ridge(features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Ridge regression with an intercept, (n, K) and (n, V) → weight (K, V) and bias (V,); the ridge is the one of
    `_RIDGES` whose predictions of each row from all others are best, which one decomposition tells for all of them.
    """
    mean, middle = features.mean(dim=0), targets.mean(dim=0)
    centred = features - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values = values.clamp(min=0)
    scale = float(values.mean().clamp(min=1e-12))
    turned = centred @ vectors
    products = turned.T @ (targets - middle)
    best, weight = float("inf"), torch.zeros(features.shape[1], targets.shape[1], dtype=features.dtype)
    for ridge in _RIDGES:
        shrunk = values + ridge * scale
        found = products / shrunk[:, None]
        # What a row has to say about itself; 1 / n is the intercept's part.
        leverage = 1 / len(features) + (turned.square() / shrunk).sum(dim=1)
        error = float(((targets - middle - turned @ found) / (1 - leverage).clamp(min=1e-6)[:, None]).square().sum())
        if error < best:
            best, weight = error, vectors @ found
    return weight, middle - mean @ weight
