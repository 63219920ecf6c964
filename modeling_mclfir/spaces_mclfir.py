# SPDX-License-Identifier: Apache-2.0
"""Several spaces of one attribute, searched as one (floor 2; travels to the Hub with a checkpoint)."""

from collections.abc import Sequence

import torch

from .routing_mclfir import IncrementRouter, fuse_gallery, fuse_queries, space_weights


class FusedSpaces:
    """
    What `MclfirForImageRetrieval` can do with an attribute that several increments brought values of, each with a
    space of its own. `router` is None as long as no increment was described.
    """

    def _build_router(self) -> None:
        known = [increment["router"] for increment in self.config.increments if "router" in increment]
        counts = [entry["num_prototypes"] for entry in sorted(known, key=lambda entry: entry["place"])]
        # Only where it is of use: a checkpoint without further spaces of an attribute does not need one.
        self.router = IncrementRouter(self._pooled_dim, counts) if counts else None

    @property
    def _pooled_dim(self) -> int:
        return self.config.trunk_channels[self.mclfir.last_unit]

    def describe_increment(self, increment_id: int, prototypes: torch.Tensor, spreads: Sequence[float]) -> None:
        """
        Let `fused_queries` find this increment's spaces.

        Args:
            prototypes: (P, C), `value_prototypes` of pooled features of the bare trunk.
            spreads: of each space the standard deviation that `score_spread` gives.

        Raises:
            ValueError: no such increment, one that is described already, wrong shapes.
        """
        spaces, increment = self.config.attribute_range(increment_id), self.config.increments[increment_id]
        if "router" in increment:
            raise ValueError(f"Increment {increment['name']!r} is described already; that never changes.")
        if len(spreads) != len(spaces):
            raise ValueError(f"Expected {len(spaces)} spreads, one a space; got {len(spreads)}.")
        if self.router is None:
            self.router = IncrementRouter(self._pooled_dim).to(next(self.parameters()))
        self.router.add_increment(prototypes)
        increment["router"] = {
            "place": len(self.router.counts) - 1,
            "num_prototypes": len(prototypes),
            "spreads": [float(spread) for spread in spreads],
        }

    @torch.no_grad()
    def fused_queries(
        self,
        attribute: str,
        pixel_values: torch.Tensor | None = None,
        shared_features: torch.Tensor | None = None,
        temperature: float = 0.02,
        top: int | None = 2,
    ) -> torch.Tensor:
        """
        Queries for an attribute of several spaces, where nobody says which increment an image's value came with: the
        scores of the spaces, added up as far as the image looks like what each was learned from; see `fuse_queries`.

        Args:
            temperature, top: see `space_weights`.

        Returns:
            (N, S·D), to search a gallery of `fused_gallery` with.

        Raises:
            ValueError: an unknown attribute, or a space of it that `describe_increment` has not described.
        """
        ids = self.attribute_ids([attribute])
        output = self(pixel_values, attribute_ids=ids, shared_features=shared_features)
        pooled = self.mclfir(shared_features=output.shared_features).pooled
        return self.fuse_queries(ids, list(output.embeds.unbind(1)), pooled, temperature, top)

    def fuse_queries(
        self,
        attribute_ids: list[int],
        embeds: list[torch.Tensor],
        pooled: torch.Tensor,
        temperature: float = 0.02,
        top: int | None = 2,
    ) -> torch.Tensor:
        """`fused_queries` of what is known already: (N, D) of each of these spaces, (N, C) of the bare trunk."""
        places, spreads = [], []
        for attribute_id in attribute_ids:
            owner = self.config.increment_of(attribute_id)
            increment = self.config.increments[owner]
            if "router" not in increment:
                raise ValueError(
                    f"Nothing tells the space of increment {increment['name']!r} from others; call describe_increment "
                    "for it, or name a space in attribute_ids."
                )
            places.append(increment["router"]["place"])
            spreads.append(increment["router"]["spreads"][attribute_id - self.config.attribute_range(owner).start])
        similarities = self.router(pooled.to(self.router.prototypes))[:, places].to(embeds[0].device)
        return fuse_queries(embeds, space_weights(similarities, temperature, top), spreads)

    @torch.no_grad()
    def fused_gallery(
        self,
        attribute: str,
        pixel_values: torch.Tensor | None = None,
        shared_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Vectors of all spaces of an attribute side by side, (N, S·D), for `fused_queries` to search."""
        ids = self.attribute_ids([attribute])
        return fuse_gallery(self(pixel_values, attribute_ids=ids, shared_features=shared_features).embeds.unbind(1))
