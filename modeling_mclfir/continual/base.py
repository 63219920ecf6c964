# SPDX-License-Identifier: Apache-2.0
"""What a continual method is to the training loop."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import nn

from ..losses import (
    AttributeClassification,
    InfoNCE,
    PrototypeInfoNCE,
    TripletLoss,
    UncertaintyWeights,
    gather_rows,
    world_size,
)
from .recent import RecentRows

LOSSES = ("infonce", "triplet")


class IncrementRows(Protocol):
    """The training rows of an increment that has just been learned."""

    def chunks(self) -> Iterator[dict]:
        """Every row that has a label, once and as it is (not augmented), as batches with `rows` (n,) of the table."""

    def batches(self, num_batches: int) -> Iterator[dict]:
        """Further batches as the increment was learned from, of this process."""


class ContinualMethod(ABC):
    """
    A continual algorithm. The loop calls, for each increment: `begin_increment`; for each step `compute_loss` and,
    after the optimiser, `after_step`; at last `end_increment`.

    Attributes:
        adapter_policies: those that the method makes sense with.
        needs_teacher_view: batches bring a second view of each row.
        trains: whether there are steps at all; False: what is learned is worked out in `end_increment`.
        needs_rows: `end_increment` reads single rows, or earlier ones come up again: a table, not a stream.
        retrains: every increment begins with a new model and learns all increments so far at once.
        learns_old_heads: the heads of earlier increments learn on (of use where a loss reaches them).
        recent: the embeddings of the last steps, which the increment's spaces are refined by.
        tasks: what it can learn: "attribute", "text-image".
        by_pooled_features: the trunk's pooled features are the embedding of every attribute; heads are not read.

    Args:
        settings: an object with the method's settings as attributes (the training arguments).

    Raises:
        ValueError: settings that no loss takes, or that do not go together.
    """

    adapter_policies: tuple[str, ...] = ("per_increment", "shared", "frozen")
    needs_teacher_view = False
    trains = True
    needs_rows = False
    retrains = False
    learns_old_heads = False
    tasks: tuple[str, ...] = ("attribute", "text-image")
    by_pooled_features = False

    def __init__(self, settings):
        self.settings = settings
        self._check_settings()
        self.loss = self._build_loss()
        self.classification = AttributeClassification()
        self.prototypes: PrototypeInfoNCE | None = None
        self.recent = RecentRows()
        self.loss_weights: UncertaintyWeights | None = None

    def _check_settings(self) -> None:
        settings = self.settings
        if settings.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}; got {settings.loss!r}.")
        if settings.learn_temperature and settings.loss != "infonce":
            raise ValueError(
                f"learn_temperature needs loss 'infonce'; got {settings.loss!r}, which has no temperature."
            )
        if settings.exemplar_means and not (settings.method == "replay" and settings.refine_spaces):
            raise ValueError(
                "exemplar_means keeps the means of refined spaces up by replay's exemplars; got method "
                f"{settings.method!r} and refine_spaces {settings.refine_spaces}. Leave it out, or take method replay."
            )
        for name in ("prototype_weight", "classification_weight"):
            if not 0 <= getattr(settings, name) < math.inf:
                raise ValueError(f"{name} must be at least 0; got {getattr(settings, name)}.")
        if settings.learn_loss_weights and settings.prototype_weight == settings.classification_weight == 0:
            raise ValueError(
                "learn_loss_weights weighs several losses against each other, but there is one only; got "
                "prototype_weight 0 and classification_weight 0."
            )

    def check_model(self, config) -> None:
        """Raises ValueError where the method cannot work on a model of this configuration."""
        if config.adapter_policy not in self.adapter_policies:
            wanted = " or ".join(map(repr, self.adapter_policies))
            raise ValueError(
                f"method {self.settings.method!r} needs adapter_policy {wanted}; got {config.adapter_policy!r}."
            )
        if self.trains and config.head_type == "closed_form":
            raise ValueError(
                f"method {self.settings.method!r} learns by steps, and heads of head_type 'closed_form' have nothing "
                "that learns; take another head_type, or method simplecil or ranpac."
            )

    @property
    def exemplars(self) -> dict[int, np.ndarray]:
        """Rows of the training table that are kept of each earlier increment: increment_id → (n,)."""
        return {}

    def _build_loss(self) -> InfoNCE | TripletLoss:
        settings = self.settings
        if settings.loss == "triplet":
            return TripletLoss(settings.margin, settings.mining)
        return InfoNCE(settings.temperature, settings.same_value, settings.learn_temperature, num_copies=world_size())

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """
        `model` has just got its new heads and adapter and is set to train them. What the method itself learns begins
        anew, so that an increment does not depend on whether the run was stopped before it.

        Args:
            num_values: values of each attribute of the increment; needed where `prototype_weight` is above 0.
        """
        settings = self.settings
        self.recent = RecentRows()
        self.loss = self._build_loss().to(model.device)
        self.prototypes = self.loss_weights = None
        start = {self.doublets_part: 1.0}
        if num_values is not None and settings.prototype_weight > 0:
            prototypes = PrototypeInfoNCE(num_values, model.config.embed_dim, settings.temperature)
            self.prototypes = prototypes.to(model.device)
            start["prototypes"] = settings.prototype_weight
        if settings.classification_weight > 0:
            start["classification"] = settings.classification_weight
        if settings.learn_loss_weights:
            self.loss_weights = UncertaintyWeights(start, num_copies=world_size()).to(model.device)

    @property
    def doublets_part(self) -> str:
        """The name under which the loss of the doublets is told."""
        return "triplet" if self.settings.loss == "triplet" else "contrastive"

    def _learned(self) -> dict[str, nn.Parameter]:
        learned = {}
        if self.prototypes is not None:
            learned["prototypes"] = self.prototypes.prototypes
        if isinstance(self.loss, InfoNCE) and self.loss.logit_scale is not None:
            learned["logit_scale"] = self.loss.logit_scale
        if self.loss_weights is not None:
            learned["log_variances"] = self.loss_weights.log_variances
        return learned

    def parameters(self) -> list[nn.Parameter]:
        """What the method itself learns beside the model."""
        return list(self._learned().values())

    @abstractmethod
    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """
        One batch of this process → `{"loss": scalar to minimise, name: part, …}`.

        Args:
            model: the student, perhaps wrapped for distributed training.
            batch: `inputs` (keyword arguments of the model), `labels` (n, A), `image_ids` (n,); where there are
                triplets `sets` (n, A), and of captions and images `sides` (n,), see `InfoNCE`; where
                `needs_teacher_view`, `teacher_inputs`; where there are exemplars `replay`, such a batch of theirs, of
                one of the earlier increments.
        """

    def after_step(self, model: nn.Module) -> None:
        """The optimiser has just moved the student (the bare model, not its wrapper) and what the method learns."""
        self.recent.keep()
        for part in (self.loss, self.loss_weights):
            if isinstance(part, InfoNCE | UncertaintyWeights):
                part.limit()

    def end_increment(self, model: nn.Module, rows: IncrementRows) -> None:  # noqa: B027  most have nothing to do
        """The increment is learned, `rows` are what it was learned from; drop or keep what the next ones need."""

    def kept_state_dict(self) -> dict[str, torch.Tensor]:
        """What outlives an increment (Fisher terms, exemplars): flat names → tensors, saved with its checkpoint."""
        return {}

    def load_kept_state_dict(self, state: dict[str, torch.Tensor]) -> None:  # noqa: B027
        """Take back what `kept_state_dict` gave; called before the next `begin_increment`."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a run stopped within an increment needs beside that, to go on exactly: flat names → tensors."""
        return {name: value.detach() for name, value in self._learned().items()} | self.recent.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave; called after `begin_increment`."""
        with torch.no_grad():
            for name, value in self._learned().items():
                value.copy_(state[name])
        self.recent.load_state_dict(state)

    def doublet_loss(
        self, embeds: torch.Tensor, batch: dict, attribute_logits: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """
        The loss of this process's doublets against those of all processes, the same on each.

        Args:
            embeds: (n, A, D).
            batch: see `compute_loss`.
            attribute_logits: (n, A), where the model's heads tell which attributes an image is labelled for.

        Returns:
            `"loss"` and its parts: `"contrastive"` or `"triplet"`; where their weights are above 0, `"prototypes"` and
            `"classification"`; where they are learned, `"temperature"` and the weight of each part, `"PART_weight"`.

        Raises:
            ValueError: `classification_weight` is above 0 and there are no `attribute_logits`.
        """
        embeds, labels = gather_rows(embeds), gather_rows(batch["labels"])
        sets = gather_rows(batch["sets"]) if "sets" in batch else None
        parts = {self.doublets_part: self.contrast(embeds, batch, labels, sets)}
        # A triplet's labels are no values.
        values = labels if sets is None else labels.masked_fill(sets >= 0, -1)
        self.recent.watch(embeds, values)
        if self.prototypes is not None:
            parts["prototypes"] = self.prototypes(embeds, values, num_copies=world_size())
        if self.settings.classification_weight > 0:
            if attribute_logits is None:
                raise ValueError(
                    f"classification_weight is {self.settings.classification_weight}, but this model's heads give no "
                    "attribute_logits; take heads that classify attributes, or a weight of 0."
                )
            parts["classification"] = self.classification(gather_rows(attribute_logits), labels)
        loss = self._weigh(parts)
        if attribute_logits is not None and "classification" not in parts:
            loss = loss + 0.0 * attribute_logits.sum()  # distributed training wants a gradient for each parameter
        return {"loss": loss} | {name: part.detach() for name, part in (parts | self._told()).items()}

    def contrast(
        self, embeds: torch.Tensor, batch: dict, labels: torch.Tensor, sets: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of doublets whose `embeds`, `labels` and `sets` are gathered; a scalar."""
        # Captions and images are two sides; a batch of images alone has none.
        sides = {"sides": gather_rows(batch["sides"])} if "sides" in batch else {}
        return self.loss(embeds, labels, gather_rows(batch["image_ids"]), sets, **sides)

    def _weigh(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.loss_weights is not None:
            return self.loss_weights(parts)
        loss = parts[self.doublets_part]
        for name, weight in (
            ("prototypes", self.settings.prototype_weight),
            ("classification", self.settings.classification_weight),
        ):
            if name in parts:
                loss = loss + weight * parts[name]
        return loss

    def _told(self) -> dict[str, torch.Tensor]:
        """Learned settings as they are now."""
        told = {}
        if isinstance(self.loss, InfoNCE) and self.loss.logit_scale is not None:
            told["temperature"] = torch.exp(-self.loss.logit_scale)
        if self.loss_weights is not None:
            told |= {f"{name}_weight": weight for name, weight in self.loss_weights.weights().items()}
        return told

    def for_average(self, loss: torch.Tensor) -> torch.Tensor:
        """Scale a loss over gathered rows so that averaged gradients are those of one process (see gather_rows)."""
        return loss * world_size()
