# SPDX-License-Identifier: Apache-2.0
"""What texts and images find after an increment: under each reindex policy, increment known or not.

Training, indexing and querying are apart (Wang, Herranz and van de Weijer, arXiv:2104.06806): a gallery may be as it
was embedded when its increment was learned, while queries come from the newest model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..index.policies import MAPS, fit_map
from ..metrics.cross_modal import (
    DIRECTIONS,
    Captions,
    both_directions,
    cosines_of,
    first_match_rank,
    recall_figures,
)
from ..metrics.ranking import unit_length

POLICIES = ("full", "none", "drift_compensated")
KNOWLEDGE = ("known", "unknown")
FUSIONS = ("mixture", "weighted")
SIDES = ("texts", "images")
Pairs = tuple[Tensor, Tensor]
# text_to_image | image_to_text → figures, and mean_recall.
Figures = dict[str, dict[str, float] | float]


@dataclass(frozen=True, eq=False)
class LearnedPairs:
    """
    Test pairs of one increment, seen after a later one (or itself). Its texts and images are queries, and the gallery
    of each other.

    Attributes:
        captions: (T,) whole numbers, equal where texts are, over all increments (`metrics.caption_codes`).
        owners: (T,) row of the image that each text belongs to.
        texts, images: by the model of today, of each space (T, D), (G, D). One space that serves all increments, or
            as many as increments so far, in their order: increment j's gallery is in space j.
        indexed_texts, indexed_images: by the model that learned this increment, in its space.
        calibration: direction → (old, new), both (K, D): stored items of this increment's gallery that were embedded
            again today (images for text_to_image, texts for image_to_text). None: nothing changed.
        weights: direction → (Q, S): what each space counts for each query; None with one space.
    """

    captions: Tensor
    owners: Tensor
    texts: Sequence[Tensor]
    images: Sequence[Tensor]
    indexed_texts: Tensor
    indexed_images: Tensor
    calibration: Mapping[str, Pairs] | None = None
    weights: Mapping[str, Tensor] | None = None


def policy_scores(
    learned: Sequence[LearnedPairs],
    *,
    policies: Sequence[str] = POLICIES,
    drift_map: str = "procrustes",
    mix: float = 1.0,
    fusion: str = "mixture",
    scales: Sequence[float] | None = None,
    spreads: Sequence[Sequence[float]] | None = None,
    chunk_size: int = 256,
) -> list[dict[str, dict[str, Figures]]]:
    """
    How well each increment's queries find their matches.

    * full: queries and galleries by the model of today; none: galleries as indexed when their increment was learned;
      drift_compensated: the same, and for each part of the gallery the query is mapped to the age of that part
      (`index.policies.fit_map`, learned from the calibration of the gallery's side). Further names: mean_drift and
      procrustes, which are drift_compensated with that map.
    * known: the query's increment is known, and its gallery alone is searched. unknown: all galleries so far, with one
      space by cosine, with several by the scores of `fusion`.

    Args:
        learned: of increments 0 to i, after i.
        drift_map: of drift_compensated: mean_drift or procrustes.
        mix: as in `fit_map`.
        fusion: "mixture" (`mixture_scores`) or "weighted" (`weighted_scores`).
        scales: (S,) exp(logit_scale) of each space, for "mixture".
        spreads: (S, 2) of each space the standard deviation of the cosines of a text to other images and of an image
            to other texts, for "weighted".
        chunk_size: queries ranked at a time.

    Returns:
        Of each increment policy → known | unknown → text_to_image | image_to_text → recall_at_1, recall_at_5,
        recall_at_10, median_rank; beside the directions mean_recall. `average_policies` makes one table of them.

    Raises:
        ValueError: no increments, an unknown name, numbers of spaces, shapes that do not fit, weights, scales, spreads
            or a calibration that are needed and not there.
    """
    search = _Search(learned, drift_map, mix, fusion, scales, spreads, chunk_size)
    unknown = [name for name in policies if name not in (*POLICIES, *MAPS)]
    if unknown:
        raise ValueError(f"There is no policy {unknown[0]!r}; choose of {', '.join((*POLICIES, *MAPS))}.")
    return [
        {policy: {kind: search.figures(place, policy, kind) for kind in KNOWLEDGE} for policy in policies}
        for place in range(len(learned))
    ]


def average_policies(per_increment: Sequence[Mapping]) -> dict[str, dict[str, Figures]]:
    """
    Unweighted means over increments of what `policy_scores` gave, mean_recall and median_rank as well; entries that
    are no tables (an increment's name) are left out. ValueError: no increments.
    """
    if not len(per_increment):
        raise ValueError("There are no increments to average over; give the figures of one at least.")
    first = per_increment[0]
    if not isinstance(first, Mapping):
        return float(np.mean([np.nan if value is None else value for value in per_increment]))
    return {
        name: average_policies([one[name] for one in per_increment])
        for name, part in first.items()
        if not isinstance(part, str)
    }


def mixture_scores(cosines: Sequence[Tensor], weights: Tensor, scales: Sequence[float]) -> Tensor:
    """
    Spaces as parts of a mixture: log w_s + log-softmax over the gallery of s of scale_s * cosine.

    It is the logarithm of p(space | query) p(item | query, space), the latter what the contrastive loss trains: spaces
    whose cosines differ in size, and galleries of different length, are comparable. A weight of 0 puts a space last.

    Args:
        cosines: of each space (Q, G_s): of queries and the items that are in that space.
        weights: (Q, S), rows that sum to 1.
        scales: (S,), exp(logit_scale): 1 over the temperature.

    Returns:
        (Q, Σ G_s), spaces one after the other.
    """
    parts = [
        weights[:, s : s + 1].to(part).log() + (scale * part).log_softmax(dim=1)
        for s, (part, scale) in enumerate(zip(cosines, scales, strict=True))
    ]
    return torch.cat(parts, dim=1)


def weighted_scores(cosines: Sequence[Tensor], weights: Tensor, spreads: Sequence[float]) -> Tensor:
    """
    w_s * cosine / spread_s, as `routing_mclfir.fuse_queries` adds up spaces; here each item is in one space.

    Args and result as of `mixture_scores`; spreads: (S,) standard deviations of cosines, above 0.
    """
    parts = [
        weights[:, s : s + 1].to(part) * part / spread
        for s, (part, spread) in enumerate(zip(cosines, spreads, strict=True))
    ]
    return torch.cat(parts, dim=1)


class _Search:
    """The searches of `policy_scores`, each done once."""

    def __init__(self, learned, drift_map, mix, fusion, scales, spreads, chunk_size):
        if fusion not in FUSIONS:
            raise ValueError(f"There is no fusion {fusion!r}; choose one of {', '.join(FUSIONS)}.")
        if drift_map not in MAPS:
            raise ValueError(f"There is no drift map {drift_map!r}; choose one of {', '.join(MAPS)}.")
        self.num_spaces = _check_learned(learned)
        self.learned, self.drift_map, self.mix = learned, drift_map, mix
        self.fusion, self.scales, self.spreads, self.chunk_size = fusion, scales, spreads, chunk_size
        # Of each increment both sides' captions, today's unit vectors of each space, and the indexed ones.
        self.captions = [_captions(one) for one in learned]
        self.today = [{"texts": _units(one.texts), "images": _units(one.images)} for one in learned]
        self.indexed = [
            dict(zip(SIDES, _units([one.indexed_texts, one.indexed_images]), strict=True)) for one in learned
        ]
        self.found: dict[tuple, Figures] = {}

    def figures(self, place: int, policy: str, kind: str) -> Figures:
        parts = [place] if kind == "known" else list(range(len(self.learned)))
        if policy != "full" and not any(self.changed(part) for part in parts):
            policy = "full"
        elif policy == "drift_compensated":
            policy = self.drift_map
        key = place, policy, tuple(parts)
        if key not in self.found:
            ways = (self.direction(place, policy, parts, direction) for direction in DIRECTIONS)
            self.found[key] = both_directions(*ways)
        return self.found[key]

    def direction(self, place: int, policy: str, parts: Sequence[int], direction: str) -> dict[str, float]:
        side, other = ("texts", "images") if direction == "text_to_image" else ("images", "texts")
        pairs = [
            (self.queries(place, part, side, direction, policy), self.gallery(part, other, policy)) for part in parts
        ]
        cosines = [cosines_of(*pair) for pair in pairs]
        fuse = None if self.num_spaces == 1 or len(parts) == 1 else self.fuser(place, direction)

        def scores(rows: slice) -> Tensor:
            blocks = [block(rows) for block in cosines]
            return torch.cat(blocks, dim=1) if fuse is None else fuse([block.double() for block in blocks], rows)

        gallery = Captions.joined([self.captions[part][other] for part in parts])
        return recall_figures(
            first_match_rank(scores, self.captions[place][side], gallery, chunk_size=self.chunk_size)
        )

    def queries(self, place: int, part: int, side: str, direction: str, policy: str) -> Tensor:
        """An increment's queries, for the gallery of `part`."""
        vectors = self.today[place][side][self.space(part)]
        if policy not in MAPS or not self.changed(part):
            return vectors
        calibration = (self.learned[part].calibration or {}).get(direction)
        if calibration is None:
            raise ValueError(
                f"The vectors of increment {part} changed since it was indexed, but there is no calibration to map "
                f"queries of {direction} to them; give old and new vectors of some of its stored items."
            )
        old, new = (np.asarray(torch.as_tensor(rows).detach().cpu(), dtype=np.float64) for rows in calibration)
        mapped = fit_map(policy, old, new, self.mix)[0].apply(vectors.cpu().numpy())
        return unit_length(queries=torch.from_numpy(mapped).to(vectors.device))[0]

    def gallery(self, part: int, side: str, policy: str) -> Tensor:
        return self.today[part][side][self.space(part)] if policy == "full" else self.indexed[part][side]

    def space(self, part: int) -> int:
        return part if self.num_spaces > 1 else 0

    def changed(self, part: int) -> bool:
        """Whether an increment's own vectors are others today than when it was indexed, be it by a bit."""
        return any(not torch.equal(self.gallery(part, side, "full"), self.indexed[part][side]) for side in SIDES)

    def fuser(self, place: int, direction: str) -> Callable[[Sequence[Tensor], slice], Tensor]:
        """Cosines of each space for some rows of an increment's queries → one score an item."""
        weights = (self.learned[place].weights or {}).get(direction)
        num_queries = len(self.today[place]["texts" if direction == "text_to_image" else "images"][0])
        if weights is None or tuple(weights.shape) != (num_queries, self.num_spaces):
            raise ValueError(
                f"With several spaces the queries of increment {place}, {direction}, need weights "
                f"({num_queries}, {self.num_spaces}); got {None if weights is None else tuple(weights.shape)}."
            )
        if self.fusion == "mixture":
            scales = _per_space("scales", self.scales, self.num_spaces)
            return lambda cosines, rows: mixture_scores(cosines, weights[rows], scales)
        spreads = self.spreads
        if spreads is not None:
            spreads = [pair[DIRECTIONS.index(direction)] for pair in spreads]
        spreads = _per_space("spreads", spreads, self.num_spaces)
        return lambda cosines, rows: weighted_scores(cosines, weights[rows], spreads)


def _check_learned(learned: Sequence[LearnedPairs]) -> int:
    """The number of spaces."""
    counts = {len(vectors) for one in learned for vectors in (one.texts, one.images)}
    if not len(learned) or len(counts) > 1 or not counts <= {1, len(learned)}:
        raise ValueError(
            f"Expected texts and images of one space, or of as many as increments ({len(learned)}, at least 1), the "
            f"same for all; got {sorted(counts)} spaces."
        )
    return counts.pop()


def _captions(one: LearnedPairs) -> dict[str, Captions]:
    texts = Captions.of_texts(one.captions)
    return {"texts": texts, "images": Captions(texts.codes, one.owners, len(one.indexed_images))}


def _units(vectors: Sequence[Tensor]) -> list[Tensor]:
    return [unit_length(embeds=rows)[0] for rows in vectors]


def _per_space(name: str, values: Sequence[float] | None, num_spaces: int) -> list[float]:
    found = [] if values is None else [float(value) for value in values]
    if len(found) != num_spaces or not all(np.isfinite(value) and value > 0 for value in found):
        raise ValueError(f"Expected {num_spaces} {name}, one a space, finite and above 0; got {values}.")
    return found
