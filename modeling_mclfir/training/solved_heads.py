# SPDX-License-Identifier: Apache-2.0
"""Heads solved in closed form: the ridge regression from pooled features to values, where they begin or end."""

from collections.abc import Sequence

import torch
from torch import distributed, nn
from torch.nn import functional

from ..losses import world_size
from ..modeling_mclfir import MclfirForImageRetrieval
from .batches import IncrementBatches

# So many rows tell where to begin; further ones change nothing to speak of. All directions of their features count:
# by the 256 main ones alone Myntra's articleType had 75.2 instead of 79.2 (`val`, before any step).
_MOST_ROWS = 10_000
# Ridges as multiples of the features' mean variance (of a direction) times rows.
_RIDGES = tuple(10.0 ** (power / 2) for power in range(-8, 5))
# What is drawn at random stays at this share of its size: dimensions that no value needs can still learn.
_NOISE = 0.1
# What was learned stays at this share of the length of what is solved.
_LEARNED = 0.1


def start_heads(
    model: MclfirForImageRetrieval, increment_ids: Sequence[int], batches: IncrementBatches, seed: int
) -> None:
    """
    Begin heads at scores of values: an embedding is at first the (turned) vector of the ridge regression's scores of
    the attribute's values, so that images with like scores lie close together before any step.

    Of labelled rows (10,000 at most, one pass without augmentation) each attribute is solved over its own, with the
    ridge that has the smallest leave-one-out error. Heads of attributes that no such row has a label of stay as they
    are (they are learned from triplets, or very rare).

    Args:
        increment_ids: of the model, whose heads are new and have a `pooled_projection`.
        batches: what they learn from; attributes as in those increments, in their order.
        seed: of what is drawn.
    """
    _solve(model, increment_ids, batches, seed, learned=False)


def finish_heads(
    model: MclfirForImageRetrieval, increment_ids: Sequence[int], batches: IncrementBatches, seed: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """
    Solve heads anew from the features that learning has led to, as `start_heads` does: steps move an adapter to
    features that tell values apart, and of these the regression makes more than few steps of a projection do. What
    was learned of the projection stays as a tenth of it, attention as it is.

    Returns:
        Unit-length embeddings of those rows, not refined, float32 (n, A, D), and their labels (n, A), on the CPU; None
        where no row has a label.
    """
    return _solve(model, increment_ids, batches, seed, learned=True)


@torch.no_grad()
def _solve(model, increment_ids, batches, seed: int, learned: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    runs: dict[str | None, tuple | None] = {}  # increments that share an adapter share its run
    first, embeds, labels = 0, [], None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for increment_id in increment_ids:
            heads, count = model.heads[increment_id], len(model.config.attribute_range(increment_id))
            adapter = model.config.adapter_name(increment_id)
            if adapter not in runs:
                served = [index for index in increment_ids if model.config.adapter_name(index) == adapter]
                runs[adapter] = _collect(model, served, batches, attended=learned)
            if runs[adapter] is None:  # all is learned from triplets
                return None
            pooled, labels, attended = runs[adapter]
            projection, features = heads.pooled_projection, heads.pooled_norm(pooled)
            _solve_projection(projection, features, labels[:, first : first + count], learned)
            if world_size() > 1:  # on GPUs features may differ in their last bits: all take the first one's
                for parameter in projection.parameters():
                    distributed.broadcast(parameter.data, src=0)
            if learned:
                weight, bias = projection.weight.float().cpu(), projection.bias.float().cpu()
                projected = functional.linear(features, weight, bias).unflatten(1, (count, -1))
                embeds.append(functional.normalize(projected + attended[increment_id], dim=-1))
            first += count
    return (torch.cat(embeds, dim=1), labels) if embeds else None


def _collect(model, increment_ids: Sequence[int], batches, attended: bool) -> tuple | None:
    """
    Of increments that share an adapter pooled features (n, C), labels (n, A) and, where asked for, what attention adds
    to the embeddings of each (n, A_i, D), all on the CPU; None without a labelled row.
    """
    training = model.training
    model.eval()
    pooled, labels, beside = [], [], {index: [] for index in increment_ids}
    for batch in batches.chunks(most=_MOST_ROWS) if (batches.labels >= 0).any() else ():
        features = model.mclfir(**batch["inputs"] | {"increment_id": increment_ids[0]})
        pooled.append(features.pooled.float().cpu())
        labels.append(batch["labels"].cpu())
        for index in increment_ids if attended else ():
            added, _ = model.heads[index].attended(features.feature_maps)
            beside[index].append(torch.as_tensor(added).float().cpu())
    model.train(training)
    if not pooled:
        return None
    joined = {index: torch.cat(parts) if parts and parts[0].ndim else 0.0 for index, parts in beside.items()}
    return torch.cat(pooled), torch.cat(labels), joined


def _solve_projection(layer: nn.Linear, features: torch.Tensor, labels: torch.Tensor, learned: bool) -> None:
    """Weights of (A·D, C) from features (n, C) and labels (n, A), -1 for none."""
    dim = layer.out_features // labels.shape[1]
    solvers: dict[bytes, LeaveOneOutRidge] = {}  # attributes with the same labelled rows share a decomposition
    for place, codes in enumerate(labels.T):
        known = codes >= 0
        if not known.any():
            continue
        rows = known.numpy().tobytes()
        if rows not in solvers:
            solvers[rows] = LeaveOneOutRidge(features[known].double())
        weight, bias = solvers[rows].solve(functional.one_hot(codes[known]).double())
        spread = _spread(features[known].double() @ weight + bias, dim)
        weight, bias = weight @ spread, bias @ spread
        part = slice(place * dim, (place + 1) * dim)
        share = _NOISE
        if learned:
            before = functional.linear(features[known].to(layer.weight), layer.weight[part], layer.bias[part])
            share = _LEARNED * float(_length(dim) / before.norm(dim=1).mean().clamp(min=1e-6))
        layer.weight[part] = share * layer.weight[part] + weight.T.to(layer.weight)
        layer.bias[part] = share * layer.bias[part] + bias.to(layer.bias)


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
    return spread * (_length(dim) / length)


def _length(dim: int) -> float:
    """Of D numbers as a linear layer draws its own from normalised features."""
    return (dim / 3) ** 0.5


class LeaveOneOutRidge:
    """
    Ridge regression with an intercept; the ridge is the one of `_RIDGES` whose predictions of each row from all others
    are best, which one decomposition tells for all of them.

    Args:
        features: (n, K), float64.
    """

    def __init__(self, features: torch.Tensor):
        self._mean = features.mean(dim=0)
        centred = features - self._mean
        values, self._vectors = torch.linalg.eigh(centred.T @ centred)
        self._values = values.clamp(min=0)
        self._turned = centred @ self._vectors
        self._squares = self._turned.square()

    def solve(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets (n, V) → weight (K, V) and bias (V,)."""
        middle = targets.mean(dim=0)
        products = self._turned.T @ (targets - middle)
        scale = float(self._values.mean().clamp(min=1e-12))
        best, weight = float("inf"), torch.zeros_like(products)
        for ridge in _RIDGES:
            shrunk = self._values + ridge * scale
            found = products / shrunk[:, None]
            # What a row has to say about itself; 1 / n is the intercept's part.
            leverage = 1 / len(targets) + (self._squares / shrunk).sum(dim=1)
            wrong = (targets - middle - self._turned @ found) / (1 - leverage).clamp(min=1e-6)[:, None]
            error = float(wrong.square().sum())
            if error < best:
                best, weight = error, self._vectors @ found
        return weight, middle - self._mean @ weight
