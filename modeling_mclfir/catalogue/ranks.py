# SPDX-License-Identifier: Apache-2.0
"""The processes that fill a catalogue together; one, unless a launcher started more."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

_PATIENCE = timedelta(days=2)  # the slowest rank may still embed when the others are done


@dataclass(frozen=True)
class Ranks:
    """
    Attributes:
        rank: of this process.
        num_ranks: how many there are.
        device: of this process.
    """

    rank: int = 0
    num_ranks: int = 1
    device: torch.device | None = None

    @property
    def is_first(self) -> bool:
        """Whether it does what is to be done once."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.num_ranks > 1:
            torch.distributed.barrier()

    def gather(self, value: Any) -> Sequence[Any]:
        """What each rank has, on every rank."""
        found: list[Any] = [value] * self.num_ranks
        if self.num_ranks > 1:
            torch.distributed.all_gather_object(found, value)
        return found


def join_ranks() -> Ranks:
    """The processes that `accelerate launch` or `torchrun` started, this one among them."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return Ranks()
    from accelerate import PartialState

    # accelerate takes a process of torchrun on a machine without a GPU for a run of its own, unless it is told.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    return Ranks(state.process_index, state.num_processes, state.device)
