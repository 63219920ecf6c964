# SPDX-License-Identifier: Apache-2.0
"""Which space of captions and images answers a query (floor 2; travels to the Hub with a checkpoint)."""

from collections.abc import Sequence

import torch

from .routing_mclfir import IncrementRouter, space_weights

_SIDES = ("image", "text")
ROUTE_TEMPERATURE = 0.02  # of `route`


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
        self,
        pooled: torch.Tensor,
        side: str,
        temperature: float = ROUTE_TEMPERATURE,
        top: int | None = None,
        increment_ids: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """
        What each space counts for each query.

        Args:
            pooled: (N, C) or (N, H), pooled features of the bare tower (increment_id None) of that side.
            side: "image" or "text".
            temperature, top: see `space_weights`.
            increment_ids: whose spaces; default: all.

        Returns:
            (N, S), rows that sum to 1, columns in the order of the spaces.

        Raises:
            ValueError: an unknown side, an increment that `describe_increment` has not described, wrong shapes.
        """
        return space_weights(self.similarities(pooled, side, increment_ids), temperature, top).to(pooled.device)

    @torch.no_grad()
    def similarities(
        self, pooled: torch.Tensor, side: str, increment_ids: Sequence[int] | None = None
    ) -> torch.Tensor:
        """What `route` goes by: how near each query is to each increment, -1..1, (N, S). A column never changes."""
        if side not in _SIDES:
            raise ValueError(f"side must be one of {_SIDES}; got {side!r}.")
        places = []
        chosen = range(len(self.config.increments)) if increment_ids is None else increment_ids
        for increment in (self.config.increments[increment_id] for increment_id in chosen):
            if "router" not in increment:
                raise ValueError(
                    f"Nothing tells the space of increment {increment['name']!r} from others; call describe_increment "
                    "for it, or name an increment_id."
                )
            places.append(increment["router"]["place"])
        if not places:
            raise ValueError("This model has no increment yet; call add_increment(name) first.")
        router = self.router if side == "image" else self.text_router
        return router(pooled.to(router.prototypes))[:, places]

    @torch.no_grad()
    def fusion(
        self,
        pooled: torch.Tensor,
        side: str,
        increment_ids: Sequence[int] | None = None,
        temperature: float = ROUTE_TEMPERATURE,
        top: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        How cosines of several spaces become one score, where nobody says which increment a query belongs to and every
        item is in all of these spaces: scale_s * cos + offset_s, of an item the largest of its spaces'.

        It is log w_s + log of how much likelier than another item the space holds this one for: the evaluation's
        mixture of spaces, whose sum over the gallery is replaced by what it is where cosines lie around 0 with the
        spread that they had in training, (scale_s * spread_s)² / 2. So no gallery needs to be looked through, and a
        score does not change with what else is in it.

        Args:
            pooled, side, temperature, top: see `route`.
            increment_ids: whose spaces; default: all.

        Returns:
            scales (S,) and offsets (N, S).

        Raises:
            ValueError: see `route`.
        """
        weights = self.route(pooled, side, temperature, top, increment_ids)
        ids = range(len(self.config.increments)) if increment_ids is None else increment_ids
        scales = torch.stack([self.heads[index].logit_scale.exp() for index in ids]).to(weights)
        # Spreads are kept in the order of the searches: by texts, by images.
        spreads = [self.config.increments[index]["router"]["spreads"][side == "image"] for index in ids]
        return scales, weights.log() - (scales * scales.new_tensor(spreads)).square() / 2
