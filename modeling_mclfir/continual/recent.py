# SPDX-License-Identifier: Apache-2.0
"""The embeddings that an increment's last steps gave: what its spaces are refined by, without a pass for it."""

from collections import deque

import torch

# Further rows change means and covariances of a few dozen numbers nowhere to speak of.
_MOST_ROWS = 10_000


class RecentRows:
    """
    The rows of the last batches: embeddings and labels, of all processes, as they were when they were learned from.

    Rows of the first half of all steps are not given: their embeddings are too old.

    Args:
        most: rows that are kept.
    """

    def __init__(self, most: int = _MOST_ROWS):
        self.most, self.num_added = most, 0
        self._batches: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def limit(self, most: int) -> None:
        """Keep so many rows, if that is fewer: those of an epoch, say."""
        self.most = min(self.most, most)

    def watch(self, embeds: torch.Tensor, labels: torch.Tensor) -> None:
        """A batch (n, A, D), (n, A) that counts once `keep` is called."""
        self._waiting.append((embeds.detach().float(), labels))

    def keep(self) -> None:
        """The step was taken: what was watched since the last call is kept, and what is too much dropped."""
        for batch in self._waiting:
            self._batches.append(batch)
            self.num_added += len(batch[0])
        self._waiting = []
        while len(self._batches) > 1 and self._num_rows() - len(self._batches[0][0]) >= self.most:
            self._batches.popleft()

    def _num_rows(self) -> int:
        return sum(len(embeds) for embeds, _ in self._batches)

    def rows(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Embeddings (n, A, D) and labels (n, A) on the CPU; None where there was no step."""
        if not self._batches:
            return None
        embeds, labels = self._joined()
        last = min(self.most, -(-self.num_added // 2))
        return embeds[-last:], labels[-last:]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Flat names → tensors; empty before the first step."""
        if not self._batches:
            return {}
        embeds, labels = self._joined()
        sizes = torch.tensor([len(embeds) for embeds, _ in self._batches])
        count = torch.tensor(self.num_added)
        return {"recent.embeds": embeds, "recent.labels": labels, "recent.sizes": sizes, "recent.num_added": count}

    def _joined(self) -> list[torch.Tensor]:
        return [torch.cat([part.cpu() for part in parts]) for parts in zip(*self._batches, strict=True)]

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self._batches.clear()
        if "recent.sizes" not in state:
            return
        sizes = state["recent.sizes"].tolist()
        parts = (state[f"recent.{name}"].split(sizes) for name in ("embeds", "labels"))
        self._batches.extend(zip(*parts, strict=True))
        self.num_added = int(state["recent.num_added"])
