# SPDX-License-Identifier: Apache-2.0
"""What makes a learned space tell values apart better, worked out once it is learned (floor 1; travels to the Hub).

The first two steps are what speaker verification does with its embeddings, for the same task (vectors of unseen pairs
are compared by cosine): what differs between images of one value counts for less, and the middle between values is the
origin. Then a vector leans towards the values that it is likely to show.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from .baseline_heads_mclfir import unit_length

# Settings, the same for every data set; chosen on Stanford Clothing's `val`, where results hardly depend on them.
_SHRINKAGE = 1.0  # of the variance within values, as a multiple of its mean over directions
_TEMPERATURE = 0.2  # of the shares of values that a vector leans towards


class SpaceRefinement(nn.Module):
    """
    The last step of an increment's heads, a map of its own for each attribute. Of a unit-length embedding z:

    1. t = z W / |z W| with W = (S_w + λ I)^(-1/2), S_w the covariance within values: within-class covariance
       normalisation (Hatch, Kajarekar, Stolcke 2006);
    2. c = (t - m) / |t - m| with m the mean of the values' means;
    3. (c + p) / |c + p| with p the direction of Σ_v s_v μ_v: the values' mean directions μ under the shares
       s = softmax(c · μ / temperature), one step of soft k-means.

    An attribute that nothing was worked out for keeps its embeddings (W = I, m = 0, no μ).

    Args:
        num_attributes: A.
        embed_dim: D.
        num_values: V, of the attribute that has most.
    """

    def __init__(self, num_attributes: int, embed_dim: int, num_values: int):
        super().__init__()
        # Persistent: a model built on the meta device would come back with garbage in a buffer that is not saved.
        self.register_buffer("whitening", torch.eye(embed_dim).repeat(num_attributes, 1, 1))
        self.register_buffer("centre", torch.zeros(num_attributes, embed_dim))
        self.register_buffer("means", torch.zeros(num_attributes, num_values, embed_dim))  # 0: no row of that value

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """Unit-length embeds (N, A, D) → the same in float32, refined."""
        with torch.autocast(embeds.device.type, enabled=False):
            turned = unit_length(torch.einsum("nad,ade->nae", embeds.float(), self.whitening.float()))
            centred, means = unit_length(turned - self.centre.float()), self.means.float()
            known = means.any(dim=-1)
            scores = torch.einsum("nad,avd->nav", centred, means) / _TEMPERATURE
            # Where no value is known the softmax of nothing is NaN, which the mask takes away.
            shares = scores.masked_fill(~known, float("-inf")).softmax(dim=-1).masked_fill(~known, 0)
            return unit_length(centred + unit_length(torch.einsum("nav,avd->nad", shares, means)))

    @torch.no_grad()
    def fit(self, embeds: torch.Tensor, labels: torch.Tensor) -> None:
        """
        Work the maps out of the increment's training rows. Attributes with labels of fewer than two values keep
        theirs. Called again with rows of further values, it adds their means to the map that is there.

        Args:
            embeds: unit-length (n, A, D), not refined.
            labels: (n, A), 0..V-1, below 0: none.
        """
        for place, codes in enumerate(labels.cpu().T):
            rows, codes = embeds[:, place].cpu()[codes >= 0].double(), codes[codes >= 0]
            begun, values = bool(self.means[place].any()), codes.unique()
            if not begun and len(values) < 2:
                continue
            if not begun:
                self.whitening[place] = _whitening(rows, codes).to(self.whitening)
            turned = functional.normalize(rows @ self.whitening[place].cpu().double(), dim=-1)
            if not begun:
                self.centre[place] = _means(turned, codes).mean(dim=0).to(self.centre)
            centred = functional.normalize(turned - self.centre[place].cpu(), dim=-1)
            means = functional.normalize(_means(centred, codes), dim=-1)
            self.means[place, values.to(self.means.device)] = means.to(self.means)


def _means(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Of each value that occurs, in rising order: (n, D), (n,) → (V, D)."""
    return torch.stack([rows[codes == value].mean(dim=0) for value in codes.unique()])


def _whitening(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(n, D), (n,) → W (D, D); every value counts alike, however many rows it has."""
    within = torch.zeros(rows.shape[1], rows.shape[1], dtype=rows.dtype)
    for value in codes.unique():
        centred = rows[codes == value] - rows[codes == value].mean(dim=0)
        within += centred.T @ centred / len(centred)
    # Times a number it is the same map, as what follows divides by the length.
    sizes, directions = torch.linalg.eigh(within / within.diagonal().mean().clamp(min=torch.finfo(rows.dtype).tiny))
    return directions @ torch.diag((sizes.clamp(min=0) + _SHRINKAGE).rsqrt()) @ directions.T


class RefinedSpaces:
    """What `MclfirForImageRetrieval` has to do with it: each of its `heads` has a `refinement`, or None."""

    def refine_increment(
        self, increment_id: int, embeds: torch.Tensor, labels: torch.Tensor, num_values: int | None = None
    ) -> None:
        """
        Refine the spaces of an increment that is learned, as `SpaceRefinement` says: every embedding for them changes,
        so this belongs between learning and indexing, and before `describe_increment`. Called again, it adds the means
        of further values, and renews those of the values shown, where whitening and centre stay as they are.

        Args:
            embeds: unit-length (n, A, D) of training images for the increment's attributes, from within
                `with model.unrefined():`. Training hands in those of its last steps, in training mode.
            labels: (n, A), below 0: none.
            num_values: V, room for so many values; default: as many as `labels` show.

        Raises:
            ValueError: no such increment or one that is described already, wrong shapes, labels for which there is no
                room.
        """
        spaces, increment = self.config.attribute_range(increment_id), self.config.increments[increment_id]
        shape = len(spaces), self.config.embed_dim
        if embeds.shape[1:] != shape or labels.shape != embeds.shape[:2] or not len(embeds):
            raise ValueError(
                f"Expected embeds (n, {shape[0]}, {shape[1]}) and labels (n, {shape[0]}) for increment "
                f"{increment['name']!r}; got {tuple(embeds.shape)} and {tuple(labels.shape)}."
            )
        if "router" in increment:
            raise ValueError(
                f"Increment {increment['name']!r} is described already, by the scores of its spaces as they are; "
                "refine it before describe_increment."
            )
        most = int(labels.max()) + 1
        room = increment.get("refined_values") or max(num_values or most, 1)
        if most > room:
            raise ValueError(
                f"labels go up to {most - 1}, but there is room for {room} values, which the first call settles: give "
                "num_values there."
            )
        heads = self.heads[increment_id]
        refinement = heads.refinement
        if refinement is None:
            refinement = SpaceRefinement(*shape, room).to(next(self.parameters()).device)
        refinement.fit(embeds, labels)
        heads.refinement, increment["refined_values"] = refinement, room

    @contextmanager
    def unrefined(self) -> Iterator[None]:
        """Within it all spaces are as they were learned."""
        kept = [heads.refinement for heads in self.heads]
        try:
            for heads in self.heads:
                heads.refinement = None
            yield
        finally:
            for heads, refinement in zip(self.heads, kept, strict=True):
                heads.refinement = refinement
