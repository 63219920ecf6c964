# SPDX-License-Identifier: Apache-2.0
"""Replay of herded exemplars (after iCaRL, arXiv:1611.07725)."""

import math

import numpy as np
import torch
from torch import distributed, nn

from ..losses import gather_rows, world_size
from .base import IncrementRows
from .fine_tuning import FineTuning
from .herding import herd

EXEMPLARS_PER = ("total", "value")
_LEAST = 2  # different images of a value, so that there is a doublet


class Replay(FineTuning):
    """
    Beside each batch of the new increment a batch of exemplars of an earlier one (by turns), with the contrastive loss
    of its doublets: so old heads follow the adapter that all increments share.

    Exemplars are rows of the training table. At the end of an increment those of each attribute and value are herded
    in the space of that attribute; a list is in order, so that it can be cut. A value shown by a single image makes no
    doublet, and none of it is kept. An image that stands in several lists is kept once.

    Settings read, beside those of every method: `exemplars` and `exemplars_per` (`"total"`: over all increments, an
    equal quota for each attribute and value; where that falls below two, as many of them as the total gives two
    exemplars each, by turns of attributes and increments, are kept and the others dropped; `"value"`: for each
    attribute and value, however many come), `replay_weight`. Without exemplars or weight this is `FineTuning`.
    """

    adapter_policies = ("shared",)
    needs_rows = True

    def __init__(self, settings):
        super().__init__(settings)
        self.replays = settings.exemplars > 0 and settings.replay_weight > 0
        self.learns_old_heads = self.replays
        # (increment_id, place of the attribute in the increment, value) → rows of the table, the best first
        self.lists: dict[tuple[int, int, int], np.ndarray] = {}
        self.student: nn.Module | None = None
        self.increment_id = 0

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self.settings
        if settings.exemplars_per not in EXEMPLARS_PER:
            raise ValueError(f"exemplars_per must be one of {EXEMPLARS_PER}; got {settings.exemplars_per!r}.")
        if settings.exemplars < 0 or 0 < settings.exemplars < _LEAST:
            raise ValueError(f"exemplars must be 0, or at least {_LEAST} for a doublet; got {settings.exemplars}.")
        if not 0 <= settings.replay_weight < math.inf:
            raise ValueError(f"replay_weight must be at least 0; got {settings.replay_weight}.")

    @property
    def exemplars(self) -> dict[int, np.ndarray]:
        """As in `ContinualMethod`; sorted, each row once."""
        rows: dict[int, list[np.ndarray]] = {}
        for (increment_id, _, _), best in self.lists.items():
            rows.setdefault(increment_id, []).append(best)
        return {increment_id: np.unique(np.concatenate(parts)) for increment_id, parts in rows.items()}

    def begin_increment(self, model: nn.Module, increment_id: int, num_values: list[int] | None = None) -> None:
        """See `ContinualMethod.begin_increment`."""
        super().begin_increment(model, increment_id, num_values)
        self.student, self.increment_id = model, increment_id

    def compute_loss(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """See `ContinualMethod.compute_loss`; the part of the exemplars is told as `"replay"`."""
        parts = super().compute_loss(model, batch)
        if not self.replays:
            return parts
        # The heads of the increments whose turn it is not: distributed training wants a gradient for each parameter.
        idle = 0.0 * sum(parameter.sum() for parameter in self.student.heads.parameters())
        if "replay" not in batch:
            return parts | {"loss": parts["loss"] + idle}
        replay = batch["replay"]
        embeds = gather_rows(model(**replay["inputs"]).embeds)
        replayed = self.contrast(embeds, replay, gather_rows(replay["labels"]))
        loss = parts["loss"] + idle + self.for_average(self.settings.replay_weight * replayed)
        return parts | {"loss": loss, "replay": replayed.detach()}

    def end_increment(self, model: nn.Module, rows: IncrementRows) -> None:
        """Choose the increment's exemplars, and cut the lists of earlier ones."""
        self.student = None
        if not self.replays:
            return
        groups = self._groups(model, rows)
        quotas = self._quotas([*self.lists, *groups])
        self.lists = {key: best[: quotas[key]] for key, best in self.lists.items() if key in quotas}
        for key, (candidates, embeds) in groups.items():
            if key in quotas:
                best = torch.from_numpy(candidates[herd(embeds, quotas[key])]).to(model.device)
                if world_size() > 1:  # on GPUs embeddings may differ in their last bits: all take the first one's
                    distributed.broadcast(best, src=0)
                self.lists[key] = best.cpu().numpy()

    @torch.no_grad()
    def _groups(self, model: nn.Module, rows: IncrementRows) -> dict[tuple[int, int, int], tuple]:
        """Of each attribute and value with a doublet: rows (n,) that show different images, embeds (n, D)."""
        model.eval()
        numbers, labels, image_ids, embeds = [], [], [], []
        for batch in rows.chunks():
            embeds.append(model(**batch["inputs"]).embeds.cpu())
            numbers.append(batch["rows"].cpu())
            labels.append(batch["labels"].cpu())
            image_ids.append(batch["image_ids"].cpu())
        if not numbers:  # all is learned from triplets
            return {}
        numbers, labels, image_ids, embeds = (torch.cat(part).numpy() for part in (numbers, labels, image_ids, embeds))
        groups = {}
        for place, codes in enumerate(labels.T):
            for value in np.unique(codes[codes >= 0]):
                inside = np.flatnonzero(codes == value)
                inside = inside[np.sort(np.unique(image_ids[inside], return_index=True)[1])]
                if len(inside) >= _LEAST:
                    groups[self.increment_id, place, int(value)] = numbers[inside], embeds[inside, place]
        return groups

    def _quotas(self, keys: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], int]:
        """How many exemplars each list may hold; those that are not named, none."""
        settings = self.settings
        quota = settings.exemplars
        if settings.exemplars_per == "total":
            quota = settings.exemplars // max(1, len(keys))
        if quota >= _LEAST:
            return dict.fromkeys(keys, quota)
        ranks, counts = {}, {}
        for key in sorted(keys):  # a value's place among those of its attribute
            ranks[key] = counts[key[:2]] = counts.get(key[:2], -1) + 1
        by_turns = sorted(keys, key=lambda key: (ranks[key], key))
        return dict.fromkeys(by_turns[: settings.exemplars // _LEAST], _LEAST)

    def kept_state_dict(self) -> dict[str, torch.Tensor]:
        """The lists, under `exemplars.INCREMENT_ID.PLACE.VALUE`."""
        return {
            ".".join(map(str, ("exemplars", *key))): torch.from_numpy(best.copy()) for key, best in self.lists.items()
        }

    def load_kept_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `kept_state_dict` gave."""
        self.lists = {tuple(map(int, name.split(".")[1:])): best.cpu().numpy() for name, best in state.items()}
