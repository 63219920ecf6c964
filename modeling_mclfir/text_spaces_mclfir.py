# SPDX-License-Identifier: Apache-2.0
"""Which space of captions and images answers a query (floor 2; travels to the Hub with a checkpoint)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .routing_mclfir import IncrementRouter, space_weights

_SIDES = ("image", "text")
ROUTE_TEMPERATURE = 0.02  # of `route`


@dataclass
class RoutedEmbeds(ModelOutput):
    """
    Captions or photos as `fused_scores` compares them; parts of a large gallery are joined by `torch.cat` of each.

    Args:
        embeds (`(n, S, D)`): unit-length, in each space.
        similarities (`(n, S)`): how near each is to each increment (`similarities`); None where there is one space.
    """

    embeds: torch.Tensor | None = None
    similarities: torch.Tensor | None = None


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
        increment_ids: Sequence[int | str] | None = None,
    ) -> torch.Tensor:
        """
        What each space counts for each query.

        Args:
            pooled: (N, C) or (N, H), pooled features of the bare tower (increment_id None) of that side.
            side: "image" or "text".
            temperature, top: see `space_weights`.
            increment_ids: whose spaces, by number or name; default: all.

        Returns:
            (N, S), rows that sum to 1, columns in the order of the spaces.

        Raises:
            ValueError: an unknown side, an increment that `describe_increment` has not described, wrong shapes.
        """
        return space_weights(self.similarities(pooled, side, increment_ids), temperature, top).to(pooled.device)

    @torch.no_grad()
    def similarities(
        self, pooled: torch.Tensor, side: str, increment_ids: Sequence[int | str] | None = None
    ) -> torch.Tensor:
        """What `route` goes by: how near each query is to each increment, -1..1, (N, S). A column never changes."""
        _check_side("side", side)
        places = []
        for increment in (self.config.increments[place] for place in self._places(increment_ids)):
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
        increment_ids: Sequence[int | str] | None = None,
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
            increment_ids: whose spaces, by number or name; default: all.

        Returns:
            scales (S,) and offsets (N, S).

        Raises:
            ValueError: see `route`.
        """
        similarities = self.similarities(pooled, side, increment_ids)
        weights = space_weights(similarities, temperature, top).to(pooled.device)
        return self._fused(weights, side, self._places(increment_ids))

    def _fused(self, weights: torch.Tensor, side: str, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """`fusion` of weights (N, S)."""
        scales = torch.stack([self.heads[index].logit_scale.exp() for index in ids]).to(weights)
        # Spreads are kept in the order of the searches: by texts, by images.
        spreads = [self.config.increments[index]["router"]["spreads"][side == "image"] for index in ids]
        return scales, weights.log() - (scales * scales.new_tensor(spreads)).square() / 2

    @torch.no_grad()
    def routed_embeds(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        output: ModelOutput | None = None,
        increment_ids: Sequence[int | str] | None = None,
    ) -> RoutedEmbeds:
        """
        Photos, or else captions, for `fused_scores`: worked out once, searched as often as need be.

        Args:
            pixel_values: photos (N, 3, H, W).
            input_ids, attention_mask: or captions (M, T).
            output: what a call of the model in all of these spaces returned for them; only what tells the spaces apart
                is worked out then. Of photos it is enough alone, captions need their `input_ids` as well.
            increment_ids: whose spaces, by number or name; default: all.

        Raises:
            ValueError: photos and captions, or neither; an output of other spaces or of another side; an unknown
                increment; several spaces of which `describe_increment` has not described each.
        """
        side, ids = "image" if input_ids is None else "text", self._places(increment_ids)
        if (pixel_values is None and output is None) if side == "image" else pixel_values is not None:
            raise ValueError("Pass photos (pixel_values, or output) or else captions (input_ids), not both.")
        if output is None:
            output = self(pixel_values, input_ids, attention_mask, attribute_ids=ids)
        embeds = output.image_embeds if side == "image" else output.text_embeds
        if embeds is None or embeds.shape[1] != len(ids):
            raise ValueError(
                f"Expected an output of {side}s in {len(ids)} spaces, of "
                f"{[self.config.increment_names[place] for place in ids]}; it has "
                f"{0 if embeds is None else embeds.shape[1]}. Leave increment_id out of the call, or name the same "
                "increments."
            )
        if len(ids) == 1:
            return RoutedEmbeds(embeds=embeds)
        if side == "image":
            pooled = self.mclfir(shared_features=output.shared_features).pooled
        else:
            pooled = self.text.increment_forward(output.shared_text, input_ids, attention_mask, None)
        return RoutedEmbeds(embeds=embeds, similarities=self.similarities(pooled.float(), side, ids).to(embeds.device))

    @torch.no_grad()
    def fused_scores(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        by: str = "text",
        images: ModelOutput | None = None,
        texts: ModelOutput | None = None,
        increment_ids: Sequence[int | str] | None = None,
        temperature: float = ROUTE_TEMPERATURE,
    ) -> torch.Tensor:
        """
        How well captions and photos match where nobody says which increment either belongs to, as a catalogue ranks:
        the largest over spaces s of scale_s * cos + offset_s of the query (see `fusion`) + log p(s | item), the
        latter from the item's own router. A score depends on its caption and its photo alone.

        Args:
            pixel_values: photos (N, 3, H, W).
            input_ids, attention_mask: captions (M, T).
            by: "text": captions are the queries and photos the items; "image": the other way round.
            images, texts: either side as `routed_embeds` gives it, instead of its inputs; or as an output of the model
                in all of these spaces (of captions beside `input_ids`, which their router needs).
            increment_ids: whose spaces, by number or name; default: all.
            temperature: of both routers, see `space_weights`.

        Returns:
            float32 (M, N), captions by photos, the larger the better: of several spaces the logarithm of how much
            likelier than another one the item is what was looked for, of one space scale * cosine.

        Raises:
            ValueError: another `by`, a side that is missing or given twice; see `routed_embeds`.
        """
        _check_side("by", by)
        ids = self._places(increment_ids)
        if (pixel_values is None) == (images is None):
            raise ValueError("Pass photos once: as pixel_values, or as images (of routed_embeds, or an output).")
        if texts is None and input_ids is None or isinstance(texts, RoutedEmbeds) and input_ids is not None:
            raise ValueError("Pass captions once: as input_ids, or as texts (of routed_embeds).")
        if not isinstance(images, RoutedEmbeds):
            images = self.routed_embeds(pixel_values, output=images, increment_ids=ids)
        if not isinstance(texts, RoutedEmbeds):
            texts = self.routed_embeds(None, input_ids, attention_mask, output=texts, increment_ids=ids)
        _check_spaces(len(ids), texts=texts, images=images)
        scores = self._best_space(*((texts, images) if by == "text" else (images, texts)), by, ids, temperature)
        return scores if by == "text" else scores.T

    def _best_space(
        self, queries: RoutedEmbeds, items: RoutedEmbeds, by: str, ids: Sequence[int], temperature: float
    ) -> torch.Tensor:
        """Scores of `fused_scores`, queries by items."""
        device = queries.embeds.device
        cosines = [queries.embeds[:, s].float() @ items.embeds[:, s].float().to(device).T for s in range(len(ids))]
        if len(ids) == 1:
            return self.heads[ids[0]].logit_scale.exp().float() * cosines[0]
        scales, offsets = self._fused(space_weights(queries.similarities.float(), temperature), by, ids)
        shares = space_weights(items.similarities.float().to(device), temperature).log()
        parts = [scales[s] * cosine + offsets[:, s, None] + shares[:, s] for s, cosine in enumerate(cosines)]
        return torch.stack(parts).amax(dim=0)

    def _place(self, increment: int | str) -> int:
        """Number of an increment that is given by number or name. ValueError: there is none."""
        names = self.config.increment_names
        if not isinstance(increment, str):
            self.config.check_increment_id(increment)
            return increment
        if increment not in names:
            raise ValueError(f"There is no increment {increment!r}; this model has {list(names)}.")
        return list(names).index(increment)

    def _places(self, increment_ids: Sequence[int | str] | None) -> list[int]:
        """Numbers of increments that are given by number or name; None: all."""
        if increment_ids is None:
            return list(range(len(self.config.increments)))
        if isinstance(increment_ids, str):
            raise ValueError(f"increment_ids must be a list of numbers or names; got {increment_ids!r} alone.")
        return [self._place(increment) for increment in increment_ids]


def _check_side(name: str, side: str) -> None:
    if side not in _SIDES:
        raise ValueError(f"{name} must be one of {_SIDES}; got {side!r}.")


def _check_spaces(count: int, **sides: RoutedEmbeds) -> None:
    for name, side in sides.items():
        if side.embeds.shape[1] != count or side.similarities is None and count > 1:
            raise ValueError(
                f"{name} are of {side.embeds.shape[1]} spaces; the search is over {count}. Take them from "
                "routed_embeds with the same increments."
            )
