# SPDX-License-Identifier: Apache-2.0
"""Methods that work their heads out of the frozen trunk's features, without a step."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .base import ContinualMethod, IncrementRows

RIDGES = tuple(10.0**power for power in range(-8, 9))
_HELD_OUT = 5  # each fifth labelled row of an attribute tells which ridge is best


class ClosedForm(ContinualMethod):
    """
    What these methods have in common: heads of `ClosedFormHeads`, filled in when an increment ends.

    The papers take the value of the highest score. Retrieval compares whole vectors of scores, and those of the values
    that an image does not show say little that two images should agree on: so they pass a softmax first. The usual
    temperatures are round numbers that did well on Stanford Clothing's `val` with MobileNetV2's features, where MAP
    went from 80.3 to 81.8 (SimpleCIL) and from 82.3 to 83.3 (RanPAC without a projection).

    Settings read, beside those of every method: `score_temperature` (None: `usual_temperature`; 0: no softmax).
    """

    adapter_policies = ("frozen",)
    tasks = ("attribute",)
    trains = False
    needs_rows = True
    usual_temperature: float

    @property
    def temperature(self) -> float:
        """Of the softmax over the scores; 0: there is none."""
        given = self.settings.score_temperature
        return self.usual_temperature if given is None else given

    def _check_settings(self) -> None:
        super()._check_settings()
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"score_temperature must be at least 0; got {self.temperature}.")

    def check_model(self, config) -> None:
        """See `ContinualMethod.check_model`; heads of another type are refused too."""
        super().check_model(config)
        if config.head_type != "closed_form":
            raise ValueError(
                f"method {self.settings.method!r} needs head_type 'closed_form', whose weights are worked out; got "
                f"{config.head_type!r}."
            )

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """As in `ContinualMethod`. ValueError where an embedding has no room for the scores of all values."""
        most = max(num_values or [0])
        if most > model.config.embed_dim:
            raise ValueError(
                f"With head_type 'closed_form' an embedding holds one score a value, but an attribute of increment "
                f"{increment_id} has {most} values and embed_dim is {model.config.embed_dim}; set --embed_dim to at "
                f"least {most}."
            )
        super().begin_increment(model, increment_id, num_values)

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """Raises TypeError: there is nothing to minimise by steps."""
        raise TypeError(f"{self.settings.method} has no loss: its heads are worked out when the increment ends.")

    @torch.no_grad()
    def end_increment(self, model: nn.Module, rows: IncrementRows) -> None:
        """Work the increment's heads out. ValueError where an attribute has no labelled row."""
        model.eval()
        sums, heads, counts = None, None, torch.zeros(1)
        for batch in rows.chunks():
            heads = model.heads[batch["inputs"]["increment_id"]]
            features = heads.features(model(**batch["inputs"]).pooled).double().cpu()
            labels = batch["labels"].cpu()
            targets = functional.one_hot(labels.clamp(min=0), model.config.embed_dim) * (labels >= 0)[..., None]
            sums = self._add(sums, features, targets.double())
            counts = counts + (labels >= 0).sum(dim=0)
        if not counts.all():
            raise ValueError(
                f"method {self.settings.method!r} works an attribute out of rows with labels; of an increment's "
                f"attributes these many rows have one: {counts.long().tolist()}. Leave those without out."
            )
        self._fill(heads, sums)
        heads.temperature.fill_(self.temperature)

    @abstractmethod
    def _add(self, sums: Any, features: torch.Tensor, targets: torch.Tensor) -> Any:
        """Further rows put to the sums (None at first): features (n, F), one-hot values (n, A, D), all 0 for none."""

    @abstractmethod
    def _fill(self, heads: nn.Module, sums: Any) -> None:
        """Put the weights into the heads."""


class SimpleCil(ClosedForm):
    """
    SimpleCIL (arXiv:2303.07338): the weights of a value are the mean of its rows' features, so its score is their
    cosine. Means and features have unit length. Cosines of a trunk's features lie close together, mostly far above 0:
    hence the low temperature.
    """

    usual_temperature = 0.01

    def check_model(self, config) -> None:
        """See `ContinualMethod.check_model`; a random projection is refused too."""
        super().check_model(config)
        if config.projection_dim:
            raise ValueError(
                "method 'simplecil' compares the trunk's own features and needs projection_dim 0; got "
                f"{config.projection_dim}. Method 'ranpac' takes a random projection."
            )

    def _add(self, sums: torch.Tensor | None, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        part = torch.einsum("nad,nf->adf", targets, features)
        return part if sums is None else sums + part

    def _fill(self, heads: nn.Module, sums: torch.Tensor) -> None:
        seen = sums.any(dim=-1)  # values of earlier increments of the same space keep their means
        heads.weight[seen] = functional.normalize(sums[seen], dim=-1).to(heads.weight)


class RanPac(ClosedForm):
    """
    RanPAC (arXiv:2307.02251): ridge regression from (randomly projected) features Φ to one-hot values Y,
    W = (ΦᵀΦ + λ)⁻¹ ΦᵀY, of an attribute's labelled rows; λ is that of `RIDGES` whose solution on four fifths of them
    has the smallest squared error on the other fifth. Rows come and go: ΦᵀΦ (F, F) and ΦᵀY are all that is summed up.

    Without `projection_dim` it is the regression from the unit-length pooled features. The work grows with F³ for each
    attribute, and torch's counter of FLOPs does not see the eigenvectors.
    """

    usual_temperature = 0.1

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """As in `ClosedForm`. ValueError where the increment has no space of its own."""
        if len(model.heads) <= increment_id:
            raise ValueError(
                f"method 'ranpac' solves a space once, but increment {increment_id} brings new values to a space that "
                "is there already; use method 'simplecil', or increments of attributes."
            )
        super().begin_increment(model, increment_id, num_values)

    def _add(self, sums: list["_Sums"] | None, features: torch.Tensor, targets: torch.Tensor) -> list["_Sums"]:
        sums = sums or [_Sums(features.shape[1], targets.shape[2]) for _ in range(targets.shape[1])]
        for place, part in enumerate(sums):
            known = targets[:, place].any(dim=1)
            part.add(features[known], targets[known, place])
        return sums

    def _fill(self, heads: nn.Module, sums: list["_Sums"]) -> None:
        for place, part in enumerate(sums):
            heads.weight[place] = part.solve().T.to(heads.weight)


class _Sums:
    """ΦᵀΦ and ΦᵀY of an attribute, of the rows to learn from [0] and of those held out [1]."""

    def __init__(self, num_features: int, num_targets: int):
        self.gram = torch.zeros(2, num_features, num_features, dtype=torch.float64)
        self.products = torch.zeros(2, num_features, num_targets, dtype=torch.float64)
        self.num_rows = 0

    def add(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Further labelled rows: (n, F), (n, D)."""
        held_out = torch.arange(self.num_rows, self.num_rows + len(features)) % _HELD_OUT == _HELD_OUT - 1
        for side, mask in enumerate((~held_out, held_out)):
            self.gram[side] += features[mask].T @ features[mask]
            self.products[side] += features[mask].T @ targets[mask]
        self.num_rows += len(features)

    def solve(self) -> torch.Tensor:
        """The weights (F, D) of all rows, by the ridge that is best for those held out."""
        errors = [
            # |Y - ΦW|², less |Y|²: the features themselves are not needed.
            float((weights * (self.gram[1] @ weights - 2 * self.products[1])).sum())
            for weights in ridge_solutions(self.gram[0], self.products[0], RIDGES)
        ]
        ridge = RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]
        return next(ridge_solutions(self.gram.sum(dim=0), self.products.sum(dim=0), (ridge,)))


def ridge_solutions(gram: torch.Tensor, products: torch.Tensor, ridges: tuple[float, ...]) -> Iterator[torch.Tensor]:
    """
    (ΦᵀΦ + λ)⁻¹ ΦᵀY for each ridge λ above 0, all from one eigendecomposition.

    Args:
        gram: ΦᵀΦ, (F, F).
        products: ΦᵀY, (F, D).

    Returns:
        (F, D) each.
    """
    values, vectors = torch.linalg.eigh(gram)
    turned = vectors.T @ products
    for ridge in ridges:
        # A Gram matrix has no eigenvalue below 0 but by rounding, and a small ridge must not cancel that.
        yield vectors @ (turned / (values.clamp(min=0) + ridge)[:, None])
