# SPDX-License-Identifier: Apache-2.0
"""Elastic weight consolidation (arXiv:1612.00796), and its online variant (arXiv:1805.06370)."""

import math

import torch
from torch import distributed, nn

from ..losses import for_copies, world_size
from .base import IncrementRows
from .fine_tuning import FineTuning

# Of one increment, parameter's name → its diagonal Fisher information and its value when the increment was learned.
_Term = dict[str, tuple[torch.Tensor, torch.Tensor]]


class ElasticWeightConsolidation(FineTuning):
    """
    What learns on from increment to increment is pulled back to where the earlier ones left it, each weight as hard as
    they depended on it: `ewc_weight` / 2 · Σ F (θ - θ*)², a sum over increments as well; or, with `ewc_online`, one
    term, F ← `ewc_decay` · F + F_new around the last θ*.

    F is the diagonal of the empirical Fisher information at the end of an increment: the mean, over `ewc_batches`
    further batches of it, of the squared gradient of the batch's loss. A contrastive loss has no samples of its own
    (each row is judged by the others), so this is the gradient of the batch, not of a sample; much of what single rows
    would ask for averages out before it is squared. Hence the large `ewc_weight`.

    It covers the shared adapter, and heads, which learn on where an increment brings new values of their attribute; a
    head that does not is dropped when the next increment begins. Weights of the trunk itself, which learn in the first
    increment at most, are not covered. With a weight of 0 it is `fine_tuning`, step for step.

    Settings read, beside those of every method: `ewc_weight`, `ewc_online`, `ewc_decay`, `ewc_batches`.
    """

    adapter_policies = ("shared",)

    def __init__(self, settings):
        super().__init__(settings)
        self.terms: list[_Term] = []
        self._pulled: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]] = []

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self.settings
        if not 0 <= settings.ewc_weight < math.inf:
            raise ValueError(f"ewc_weight must be at least 0; got {settings.ewc_weight}.")
        if not 0 <= settings.ewc_decay <= 1:
            raise ValueError(f"ewc_decay must lie in 0..1; got {settings.ewc_decay}.")
        if settings.ewc_batches < 1:
            raise ValueError(f"ewc_batches must be at least 1; got {settings.ewc_batches}.")

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """See `ContinualMethod.begin_increment`."""
        super().begin_increment(model, increment_id, num_values)
        learns = {name: value for name, value in model.named_parameters() if value.requires_grad}
        # In the order of the model, whatever that of a file: a sum in another order is another one in its last bits.
        self.terms = [
            {name: tuple(part.to(model.device) for part in term[name]) for name in learns if name in term}
            for term in self.terms
        ]
        self._pulled = [(learns[name], *pair) for term in self.terms for name, pair in term.items()]

    def penalty(self) -> torch.Tensor:
        """`ewc_weight` / 2 · Σ F (θ - θ*)² of the model that the increment began with, as it is now: a scalar."""
        pulls = [(fisher * (value - anchor).square()).sum() for value, fisher, anchor in self._pulled]
        return 0.5 * self.settings.ewc_weight * torch.stack(pulls).sum()

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`."""
        parts = super().compute_loss(model, batch)
        if not self._pulled:
            return parts
        penalty = self.penalty()
        # Each process has all of it, and distributed training averages: unlike the rows', its gradient counts once.
        loss = parts["loss"] + self.for_average(for_copies(penalty, world_size()))
        return parts | {"loss": loss, "penalty": penalty.detach()}

    def end_increment(self, model: nn.Module, rows: IncrementRows) -> None:
        """Work out what the increment depends on. Nothing of the model changes."""
        self._pulled = []
        if self.settings.ewc_weight == 0:
            return
        learned = _covered(model)
        fisher = self._fisher(model, learned, rows)
        if self.settings.ewc_online and self.terms:
            for name, (before, _) in self.terms.pop().items():
                fisher[name] += self.settings.ewc_decay * before
        self.terms.append({name: (fisher[name], value.detach().clone()) for name, value in learned.items()})

    def _fisher(self, model: nn.Module, learned: dict[str, nn.Parameter], rows: IncrementRows) -> dict:
        sums = [torch.zeros_like(value) for value in learned.values()]
        was_training = model.training
        model.eval()
        for batch in rows.batches(self.settings.ewc_batches):
            # In training the heads' classification branch is asked by itself.
            output = model(**batch["inputs"], output_attribute_logits=True)
            loss = self.doublet_loss(output.embeds, batch, output.attribute_logits)["loss"]
            loss.backward(inputs=list(learned.values()))
            for total, value in zip(sums, learned.values(), strict=True):
                if world_size() > 1:  # each process has the part that flows through its own rows
                    distributed.all_reduce(value.grad)
                total += value.grad.square()
                value.grad = None
        model.train(was_training)
        return {name: total / self.settings.ewc_batches for name, total in zip(learned, sums, strict=True)}

    def kept_state_dict(self) -> dict[str, torch.Tensor]:
        """`INDEX.fisher.NAME` and `INDEX.anchor.NAME` of each term."""
        return {
            f"{index}.{kind}.{name}": part
            for index, term in enumerate(self.terms)
            for name, pair in term.items()
            for kind, part in zip(("fisher", "anchor"), pair, strict=True)
        }

    def load_kept_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `kept_state_dict` gave."""
        terms: dict[int, _Term] = {}
        for key, fisher in state.items():
            index, kind, name = key.split(".", 2)
            if kind == "fisher":
                terms.setdefault(int(index), {})[name] = fisher, state[f"{index}.anchor.{name}"]
        self.terms = [terms[index] for index in sorted(terms)]


def _covered(model: nn.Module) -> dict[str, nn.Parameter]:
    # Where the trunk itself learns, its adapter does not.
    left_out = "mclfir.trunk." if model.mclfir.trunk_trains else ()
    return {
        name: value
        for name, value in model.named_parameters()
        if value.requires_grad and not name.startswith(left_out)
    }
