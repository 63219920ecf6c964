# SPDX-License-Identifier: Apache-2.0
"""What models that grow by increments have in common (floor 2; travels to the Hub with a checkpoint)."""

import copy
from collections.abc import Sequence

import torch

from .adapters_mclfir import adapter_parameters, add_adapter


class GrowingModel:
    """
    Increments of a model of one tower or several: opened, frozen, counted and copied alike.

    A class that mixes this in has `heads`, one a increment, and `towers`; a tower has `trunk` (the model that adapters
    go into), `adapter_settings()` (None: it has no layer to adapt), `trunk_trains` and `free_trunk()`. The first one,
    `mclfir`, is the vision tower.
    """

    # Ends of the names of buffers that training writes, which a copy must have for itself.
    _learned_buffers: tuple[str, ...] = ()

    @property
    def towers(self) -> tuple:
        """The towers that carry adapters."""
        return (self.mclfir,)

    def _open_increment(self, name: str, attributes: Sequence[str], new_values: bool) -> None:
        """
        Record an increment and put its adapters into every tower. A new adapter starts from the previous one
        ("stacked": at no effect of its own, since it runs on top of those before it).
        """
        before = self.config.adapter_names()
        self.config.append_increment(name, attributes, new_values=new_values)
        for adapter in self.config.adapter_names():
            if adapter in before:
                continue
            previous = before[-1] if before and self.config.adapter_policy != "stacked" else None
            for tower in self.towers:
                settings = tower.adapter_settings()
                if settings is not None:
                    add_adapter(tower.trunk, settings, adapter, start_from=previous)

    def _append_heads(self, heads: torch.nn.Module) -> int:
        reference = next(self.mclfir.trunk.parameters())
        self.heads.append(heads.to(device=reference.device, dtype=reference.dtype))
        self.heads[-1].train(self.training)
        self.set_trainable(None)
        return len(self.heads) - 1

    def set_trainable(
        self, increment_id: int | Sequence[int] | None, old_heads: bool = False, trunk: bool = True
    ) -> list[str]:
        """
        Freeze everything but what this increment learns; returns the names that learn.

        With `base_training="first_increment"` all of every tower learns in increment 0.

        Args:
            increment_id: whose heads and adapter learn; several: all of theirs; None: nothing learns.
            old_heads: the heads of all other increments learn on.
            trunk: whether a trunk that is to learn in increment 0 does so; not where its space only gets new values.

        Raises:
            ValueError: no such increment.
        """
        ids = [] if increment_id is None else [increment_id] if isinstance(increment_id, int) else list(increment_id)
        for index in ids:
            self.config.check_increment_id(index)
        self.requires_grad_(False)
        adapters = {self.config.adapter_name(index) for index in ids} - {None}
        for tower in self.towers:
            tower._trunk_trains = trunk and self.config.base_training == "first_increment" and 0 in ids
            tower.train(tower.training)  # batch normalisation and dropout follow the trunk
            if tower.trunk_trains:
                tower.free_trunk()
            for adapter in adapters:
                for parameter in adapter_parameters(tower.trunk, adapter).values():
                    parameter.requires_grad_(True)
        for index in range(len(self.heads)) if old_heads else ids:
            self.heads[index].requires_grad_(True)
        if ids and self.mclfir.prompt_pool is not None:
            self.mclfir.prompt_pool.requires_grad_(True)
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def attribute_ids(self, names: list[str]) -> list[int]:
        """Ids of attributes by name (of an attribute with several spaces: all of them). ValueError if unknown."""
        known = self.config.attributes
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"Unknown attributes {unknown}; this model knows {known}.")
        return [index for name in names for index, other in enumerate(known) if other == name]

    def _wanted(self, attribute_ids: list[int] | None, increment_id: int | None) -> list[int]:
        known = len(self.config.attributes)
        if increment_id is not None and not 0 <= increment_id < len(self.heads):
            raise ValueError(f"increment_id {increment_id} is not in 0..{len(self.heads) - 1}.")
        if attribute_ids is None:
            return list(range(known) if increment_id is None else self.config.attribute_range(increment_id))
        if any(isinstance(index, bool) or not isinstance(index, int) for index in attribute_ids):
            raise ValueError(f"attribute_ids must be whole numbers; got {list(attribute_ids)}.")
        wanted = list(attribute_ids)
        wrong = [index for index in wanted if not 0 <= index < known]
        if wrong or not wanted:
            raise ValueError(f"attribute_ids must lie in 0..{known - 1} ({self.config.attributes}); got {wanted}.")
        return wanted

    def num_added_parameters(self) -> dict[str, int]:
        """Parameters that each increment brought: its heads, its adapters; the first one also a pool of prompts."""
        counts, seen = {}, set()
        pool = self.mclfir.prompt_pool
        for increment_id, increment in enumerate(self.config.increments):
            count = sum(parameter.numel() for parameter in self.heads[increment_id].parameters())
            adapter = self.config.adapter_name(increment_id)
            if adapter is not None and adapter not in seen:
                seen.add(adapter)
                for tower in self.towers:
                    parameters = adapter_parameters(tower.trunk, adapter).values()
                    count += sum(parameter.numel() for parameter in parameters)
            if pool is not None and increment_id == 0:
                count += sum(parameter.numel() for parameter in pool.parameters())
            counts[increment["name"]] = count
        return counts

    def copy_trainable(self):
        """A deep copy that shares every frozen tensor with this model: what an EMA teacher needs."""
        frozen = [parameter for parameter in self.parameters() if not parameter.requires_grad]
        if not self.mclfir.trunk_trains:
            frozen += [
                buffer for name, buffer in self.named_buffers() if not name.endswith(tuple(self._learned_buffers))
            ]
        return copy.deepcopy(self, memo={id(tensor): tensor for tensor in frozen})
