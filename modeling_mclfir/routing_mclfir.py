# SPDX-License-Identifier: Apache-2.0
"""Which space of an attribute answers a query, where nobody says so (floor 1; travels to the Hub with a checkpoint).

Increments that bring new values of a known attribute each have a space of their own. Vectors of different spaces are
never compared: a router gives each space a weight for a query, and the scores within the spaces are added up under
these weights. Written as longer vectors, so that any index serves the sum.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .baseline_heads_mclfir import unit_length


class IncrementRouter(nn.Module):
    """
    How near an image is to each increment: its largest cosine with the mean directions of the increment's values.

    Prototypes of features of the frozen, bare trunk choose the adapter in DAR (arXiv:2605.31229); here from the image
    alone, as a query has nothing else. Features are not centred: around a centre that must never move again, the
    first increment's own mean, the first increment has no direction left that tells it from later ones. Features in a
    narrow cone have cosines that differ little, which the temperature of `space_weights` makes up for. The largest of
    many cosines is larger than the largest of few: an increment of many values is favoured a little.

    An increment's cosines are worked out apart from the others': its column stays the same bit for bit whatever is
    added later (same batch shape, dtype, device and threads).

    Args:
        pooled_dim: C, of the trunk's pooled features.
        counts: prototypes of each increment, as `counts` of a filled router says: places, all zero, for
            `load_state_dict`.

    Raises:
        ValueError: a count below 0 or not whole.
    """

    def __init__(self, pooled_dim: int, counts: Sequence[int] = ()):
        super().__init__()
        if any(not isinstance(count, int) or count < 0 for count in counts):
            raise ValueError(f"counts must be whole numbers of at least 0, one an increment; got {list(counts)}.")
        self.counts = list(counts)
        # Persistent: a model built on the meta device would come back with garbage in a buffer that is not saved.
        self.register_buffer("prototypes", torch.zeros(sum(self.counts), pooled_dim))

    @torch.no_grad()
    def add_increment(self, prototypes: torch.Tensor) -> None:
        """
        Append an increment.

        Args:
            prototypes: unit-length (P, C) of `value_prototypes`, kept as they are; P may be 0.

        Raises:
            ValueError: another shape, rows not of unit length.
        """
        dim = self.prototypes.shape[1]
        if prototypes.ndim != 2 or prototypes.shape[1] != dim:
            raise ValueError(f"Expected prototypes (P, {dim}); got {tuple(prototypes.shape)}.")
        _check_unit_rows("prototypes", prototypes)
        self.prototypes = torch.cat([self.prototypes, prototypes.to(self.prototypes)])
        self.counts.append(len(prototypes))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """
        Pooled features (N, C) of the bare trunk → similarities (N, S), -1..1; -inf where there are no prototypes.

        Raises:
            ValueError: another shape.
        """
        dim = self.prototypes.shape[1]
        if pooled.ndim != 2 or pooled.shape[1] != dim:
            raise ValueError(f"Expected pooled features (N, {dim}); got {tuple(pooled.shape)}.")
        directions = unit_length(pooled)
        columns = []
        for prototypes in self.prototypes.split(self.counts) if self.counts else ():
            if not len(prototypes):
                columns.append(directions.new_full((len(pooled),), float("-inf")))
                continue
            # A product of its own for each increment, on a fresh copy: in one product over all, or at another place
            # in memory, the bits of a column could move with what was added.
            columns.append((directions @ unit_length(prototypes).T).amax(dim=1))
        return torch.stack(columns, dim=1) if columns else directions.new_zeros(len(pooled), 0)


def value_prototypes(pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    The mean direction of each value: the mean of its unit-length features, brought to unit length again.

    Args:
        pooled: (n, C), features of the bare trunk.
        labels: (n,), whole numbers; below 0: no value, left out.

    Returns:
        (V, C) of the V values that occur, in rising order.

    Raises:
        ValueError: shapes that do not fit.
    """
    if pooled.ndim != 2 or labels.shape != pooled.shape[:1]:
        raise ValueError(f"Expected pooled (n, C), labels (n,); got {tuple(pooled.shape)}, {tuple(labels.shape)}.")
    labels = labels.to(pooled.device)
    features, labels = unit_length(pooled[labels >= 0]), labels[labels >= 0]
    values, places = labels.unique(return_inverse=True)
    return unit_length(features.new_zeros(len(values), pooled.shape[1]).index_add_(0, places, features))


def space_weights(similarities: torch.Tensor, temperature: float, top: int | None = None) -> torch.Tensor:
    """
    What each space counts for each query: softmax(similarities / temperature).

    Args:
        similarities: (N, S), of `IncrementRouter`; -inf: weight 0. A row of nothing else gets equal weights.
        temperature: above 0; the higher, the more alike the weights.
        top: only so many of the largest count (of equals: the older). 1 is hard routing, 2 what DAR merges where it
            is in doubt; None: all.

    Returns:
        (N, S), rows that sum to 1.

    Raises:
        ValueError: another shape, a temperature not above 0, a top below 1.
    """
    if similarities.ndim != 2:
        raise ValueError(f"Expected similarities (N, S); got {tuple(similarities.shape)}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}.")
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, or None for all spaces; got {top}.")
    order = similarities.argsort(dim=1, descending=True, stable=True)
    dropped = torch.ones_like(similarities, dtype=torch.bool).scatter(1, order[:, :top], False)
    unknown = similarities.isneginf().all(dim=1, keepdim=True)
    logits = (similarities / temperature).masked_fill(dropped, float("-inf"))
    return logits.masked_fill(unknown, 0).softmax(dim=1)


def score_spread(embeds: torch.Tensor, num_pairs: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """
    Mean and standard deviation of the cosines between vectors of different images of one space.

    They tell what a cosine means there: in a sharp space 0.8 is a matter of course, in another one it is rare. In the
    fused score Σ_s w_s (cos_s - mean_s) / std_s the means add the same to all items of a query, so that `fuse_queries`
    asks for the standard deviations only; the means are for comparing the scores of different queries.

    Args:
        embeds: unit-length (n, D), n at least 2.
        num_pairs: so many pairs of two different rows are drawn; at least 2.
        seed: the same seed, the same pairs.

    Raises:
        ValueError: another shape, vectors not of unit length, fewer than two vectors or pairs.
    """
    _check_unit_rows("embeds", embeds)
    if len(embeds) < 2 or num_pairs < 2:
        raise ValueError(f"Two vectors and two pairs at least are needed; got {len(embeds)} and {num_pairs}.")
    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(len(embeds), (num_pairs,), generator=generator)
    other = (one + torch.randint(1, len(embeds), (num_pairs,), generator=generator)) % len(embeds)
    embeds = embeds.detach().cpu().double()
    std, mean = torch.std_mean((embeds[one] * embeds[other]).sum(dim=1), correction=0)
    return float(mean), float(std)


def fuse_queries(
    embeds: Sequence[torch.Tensor], weights: torch.Tensor, spreads: torch.Tensor | Sequence[float]
) -> torch.Tensor:
    """
    Queries for a gallery of `fuse_gallery`: their dot product with its rows is Σ_s w_s / σ_s · <q_s, g_s>.

    Rows of the gallery are all of the length √S, and a query's own length scales all of its scores alike: ranking by
    cosine gives the same order as ranking by dot product.

    Args:
        embeds: of each space the queries' unit-length vectors (N, D_s).
        weights: (N, S), of `space_weights`.
        spreads: (S,), σ: standard deviations of `score_spread`, above 0. All 1: scores as they are.

    Returns:
        float32 (N, Σ D_s).

    Raises:
        ValueError: no space, shapes or numbers of rows that do not fit, vectors not of unit length, a spread not
            above 0.
    """
    _check_spaces(embeds)
    expected = (len(embeds[0]), len(embeds))
    if tuple(weights.shape) != expected:
        raise ValueError(f"Expected weights (N, S) = {expected} for these embeds; got {tuple(weights.shape)}.")
    spreads = torch.as_tensor(spreads, dtype=torch.float32, device=weights.device)
    if spreads.shape != (len(embeds),):
        raise ValueError(f"Expected spreads ({len(embeds)},), one a space; got {tuple(spreads.shape)}.")
    if not ((spreads > 0) & spreads.isfinite()).all():
        raise ValueError(
            f"spreads must be above 0 and finite; got {spreads.tolist()}. 0: the vectors of a space are all the same."
        )
    factors = weights.float() / spreads
    return torch.cat([factors[:, s, None].to(rows.device) * rows.float() for s, rows in enumerate(embeds)], dim=1)


def fuse_gallery(embeds: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Vectors of every space side by side, which queries of `fuse_queries` search by dot product or cosine.

    Args:
        embeds: of each space the gallery's unit-length vectors (G, D_s), spaces in the order of the queries'.

    Returns:
        float32 (G, Σ D_s), rows of the length √S. A further space is further columns at the end.

    Raises:
        ValueError: no space, shapes or numbers of rows that do not fit, vectors not of unit length.
    """
    _check_spaces(embeds)
    return torch.cat([rows.float() for rows in embeds], dim=1)


def _check_spaces(embeds: Sequence[torch.Tensor]) -> None:
    if not len(embeds):
        raise ValueError("There is no space to fuse; give the vectors of one at least.")
    for space, rows in enumerate(embeds):
        _check_unit_rows(f"embeds[{space}]", rows)
    if len({len(rows) for rows in embeds}) > 1:
        raise ValueError(f"Every space needs a vector of every image; got {[len(rows) for rows in embeds]} vectors.")


def _check_unit_rows(name: str, rows: torch.Tensor) -> None:
    if rows.ndim != 2:
        raise ValueError(f"Expected {name} of two dimensions, images by D; got {tuple(rows.shape)}.")
    lengths = rows.float().norm(dim=1)
    wrong = ~((lengths - 1).abs() < 1e-2)  # room for bfloat16; the negation finds NaN, too
    if wrong.any():
        raise ValueError(
            f"{name} must be of unit length; row {int(wrong.nonzero()[0])} has the length "
            f"{float(lengths[wrong][0]):.3g}. Divide by the norms, as the model does."
        )
