# SPDX-License-Identifier: Apache-2.0
"""Gathering across processes for contrastive losses; everything works without a process group too."""

import torch
from torch import distributed


def world_size() -> int:
    """Number of processes of this run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """
    The rows (n, …) of every process, in order of rank: (n * world_size, …). All processes must hold equally many.

    The own slice keeps its gradient. So where each process works out the same loss over all rows and multiplies it
    by `world_size()`, the average that distributed training takes of the gradients is the gradient of that loss in
    one process: every row is an anchor on its own process and a negative on all, exactly once.
    """
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(gathered, rows.detach().contiguous())
    gathered[distributed.get_rank()] = rows
    return torch.cat(gathered)


def for_copies(value: torch.Tensor, num_copies: int) -> torch.Tensor:
    """
    The value, with its gradient divided by `num_copies`: for what a loss itself learns.

    Embeddings learn from `world_size()` times the loss, which distributed training averages (see `gather_rows`);
    parameters of the loss lie outside that, and are to learn from the loss once.
    """
    share = 1.0 / num_copies
    return share * value + (1 - share) * value.detach()
