# SPDX-License-Identifier: Apache-2.0
"""Which space of captions and images answers a query (floor 2; travels to the Hub with a checkpoint)."""

from collections.abc import Sequence

import torch

from .routing_mclfir import IncrementRouter, space_weights

_SIDES = ("image", "text")


class TextImageSpaces:
    """
    What `MclfirForTextImageRetrieval` can do where nobody says which increment a query belongs to: `router` looks at
    images, `text_router` at captions, each by prototypes of its own side. None as long as no increment was described.
    """

    def _build_routers(self) -> None:
        known = [increment["router"] for increment in self.config.increments if "router" in increment]
        known = sorted(known, key=lambda entry: entry["place"])
        self.router = self.text_router = None
        if known:
            image_dim, text_dim = self._pooled_dims()
            self.router = IncrementRouter(image_dim, [entry["num_prototypes"] for entry in known])
            self.text_router = IncrementRouter(text_dim, [entry["num_text_prototypes"] for entry in known])

    def _pooled_dims(self) -> tuple[int, int]:
        return self.config.trunk_channels[self.mclfir.last_unit], self.config.text_dim

    def describe_increment(
        self,
        increment_id: int,
        image_prototypes: torch.Tensor,
        text_prototypes: torch.Tensor,
        spreads: Sequence[float],
    ) -> None:
        """
        Let `route` find this increment's space.

        Args:
            image_prototypes: unit-length (P, C), of pooled features of the bare image tower.
            text_prototypes: unit-length (Q, H), of those of the bare text tower.
            spreads: standard deviations of the cosines of a caption to other pairs' images, and of an image to other
                pairs' captions; kept in the configuration.

        Raises:
            ValueError: no such increment, one that is described already, wrong shapes.
        """
        self.config.check_increment_id(increment_id)
        increment = self.config.increments[increment_id]
        if "router" in increment:
            raise ValueError(f"Increment {increment['name']!r} is described already; that never changes.")
        if len(spreads) != 2:
            raise ValueError(f"Expected two spreads, text to images and image to texts; got {len(spreads)}.")
        prototypes = image_prototypes, text_prototypes
        routers = self.router, self.text_router
        if self.router is None:
            reference = next(self.parameters())
            routers = tuple(IncrementRouter(dim).to(reference) for dim in self._pooled_dims())
        dims = self._pooled_dims()
        for side, rows, dim in zip(_SIDES, prototypes, dims, strict=True):
            if rows.ndim != 2 or rows.shape[1] != dim:
                raise ValueError(f"Expected {side}_prototypes (P, {dim}); got {tuple(rows.shape)}.")
        for router, rows in zip(routers, prototypes, strict=True):
            router.add_increment(rows)
        self.router, self.text_router = routers
        increment["router"] = {
            "place": len(self.router.counts) - 1,
            "num_prototypes": len(image_prototypes),
            "num_text_prototypes": len(text_prototypes),
            "spreads": [float(spread) for spread in spreads],
        }

    @torch.no_grad()
    def route(
        self, pooled: torch.Tensor, side: str, temperature: float = 0.02, top: int | None = None
    ) -> torch.Tensor:
        """
        What each space counts for each query.

        Args:
            pooled: (N, C) or (N, H), pooled features of the bare tower (increment_id None) of that side.
            side: "image" or "text".
            temperature, top: see `space_weights`.

        Returns:
            (N, S), rows that sum to 1, columns in the order of the spaces.

        Raises:
            ValueError: an unknown side, an increment that `describe_increment` has not described, wrong shapes.
        """
        if side not in _SIDES:
            raise ValueError(f"side must be one of {_SIDES}; got {side!r}.")
        places = []
        for increment in self.config.increments:
            if "router" not in increment:
                raise ValueError(
                    f"Nothing tells the space of increment {increment['name']!r} from others; call describe_increment "
                    "for it, or name an increment_id."
                )
            places.append(increment["router"]["place"])
        if not places:
            raise ValueError("This model has no increment yet; call add_increment(name) first.")
        router = self.router if side == "image" else self.text_router
        similarities = router(pooled.to(router.prototypes))[:, places]
        return space_weights(similarities, temperature, top).to(pooled.device)
