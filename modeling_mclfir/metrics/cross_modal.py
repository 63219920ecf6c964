# SPDX-License-Identifier: Apache-2.0
"""Recall between texts and images, as pure functions: vectors or scores and captions in, figures out.

A text and an image match where the image has that very caption: the text counts, not the row. So identical captions
match each other's images. Cosines, ties (gallery order) and queries that nothing matches as in `retrieval`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .aggregation import mean_over_queries
from .ranking import check_integers, cosine_scores, row_blocks, unit_length
from .retrieval import recall_at_k

RECALLS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")


def caption_codes(captions: Sequence[str]) -> Tensor:
    """
    Texts as numbers, (T,) int64: equal texts, equal numbers. White space counts as one blank, letters as they are.

    Numbers are given in order of first appearance: give the captions of all increments that are searched together at
    once, or their numbers mean different texts.

        >>> caption_codes(["red shirt", "blue shirt", " red  shirt"]).tolist()
        [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(" ".join(text.split()), len(numbers)) for text in captions]).long()


@dataclass(frozen=True, eq=False)
class Captions:
    """
    Which captions the items of a side have. Two items match where they share one.

    Attributes:
        codes: (P,) whole numbers, one a caption.
        items: (P,) the item, from 0, that has it.
        num_items: of the side.

    Raises:
        ValueError: lengths that differ, an item outside 0..num_items - 1.
        TypeError: numbers that are not whole.
    """

    codes: Tensor
    items: Tensor
    num_items: int

    def __post_init__(self):
        codes = check_integers("codes", self.codes)
        items = check_integers("items", self.items, len(codes), codes.device)
        outside = items[(items < 0) | (items >= self.num_items)]
        if len(outside):
            raise ValueError(f"A caption's item is {int(outside[0])}, but items are 0 to {self.num_items - 1}.")
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "items", items)

    @classmethod
    def of_texts(cls, codes: Tensor) -> "Captions":
        """Each text is its own only caption."""
        codes = torch.as_tensor(codes)
        return cls(codes, torch.arange(len(codes), device=codes.device), len(codes))

    @classmethod
    def joined(cls, sides: Sequence["Captions"]) -> "Captions":
        """Items of several sides, one after the other; codes must mean the same texts. ValueError: no side."""
        if not len(sides):
            raise ValueError("There are no captions to join; give those of one side at least.")
        starts = torch.tensor([0, *(side.num_items for side in sides)]).cumsum(0).tolist()
        items = torch.cat([side.items + start for side, start in zip(sides, starts, strict=False)])
        return cls(torch.cat([side.codes for side in sides]), items, starts[-1])

    def matches(self, rows: slice, gallery: "Captions") -> Tensor:
        """(C, G) True where an item of these rows and one of the gallery share a caption."""
        rows = range(*rows.indices(self.num_items))
        own = (self.items >= rows.start) & (self.items < rows.stop)
        codes, places = self.codes[own].unique(return_inverse=True)
        found = torch.zeros(len(rows), gallery.num_items, dtype=torch.bool, device=codes.device)
        if not len(codes):
            return found
        # Of the gallery's captions those that these rows have, by their place in `codes`.
        theirs = torch.searchsorted(codes, gallery.codes).clamp(max=len(codes) - 1)
        shared = codes[theirs] == gallery.codes
        having = torch.zeros(len(codes), gallery.num_items, dtype=torch.bool, device=codes.device)
        having[theirs[shared], gallery.items[shared]] = True
        counts = found.to(torch.int32)
        return counts.index_add_(0, self.items[own] - rows.start, having[places].to(torch.int32)) > 0


@torch.no_grad()
def first_match_rank(
    scores: Tensor | Callable[[slice], Tensor], queries: Captions, gallery: Captions, *, chunk_size: int = 256
) -> Tensor:
    """
    Place of each query's best match.

    Args:
        scores: (Q, G), or what gives the rows of a slice of it, (C, G): for matrices too large to be held. Larger is
            better, minus infinity is last; compared in float32, equal ones in the order of the gallery.
        queries, gallery: captions of both sides, Q and G items.
        chunk_size: queries ranked at a time.

    Returns:
        (Q,) int64 from 1; 0 where nothing matches.

    Raises:
        ValueError: scores of another shape, NaN.
    """
    if isinstance(scores, Tensor) and tuple(scores.shape) != (queries.num_items, gallery.num_items):
        raise ValueError(f"Expected scores ({queries.num_items}, {gallery.num_items}); got {tuple(scores.shape)}.")
    ranks = []
    for rows in row_blocks(queries.num_items, chunk_size):
        block = (scores[rows] if isinstance(scores, Tensor) else scores(rows)).float()
        matches = queries.matches(rows, gallery).to(block.device)
        if block.shape != matches.shape:
            raise ValueError(f"Expected scores {tuple(matches.shape)} of {rows}; got {tuple(block.shape)}.")
        if block.isnan().any():
            raise ValueError(f"Scores of the queries {rows.start} to {rows.stop - 1} hold NaN, which has no rank.")
        ranks.append(_first_rank(block, matches))
    return torch.cat(ranks)


def recall_figures(ranks: Tensor, no_positives: str = "skip") -> dict[str, float]:
    """
    Recall at 1, 5 and 10 (0 to 1) and the median rank, of the ranks of `first_match_rank`.

    The median of an even number of ranks is the mean of the two in the middle. Queries that nothing matches count as
    `recall_at_k` says, and not in the median; NaN where no query has a match. ValueError: no queries.

        >>> recall_figures(torch.tensor([1, 3, 12, 2]))
        {'recall_at_1': 0.25, 'recall_at_5': 0.75, 'recall_at_10': 0.75, 'median_rank': 2.5}
    """
    figures = {f"recall_at_{k}": recall_at_k(ranks, k, no_positives) for k in RECALLS}
    matched = ranks[ranks > 0].double()
    return figures | {"median_rank": float(matched.quantile(0.5)) if len(matched) else float("nan")}


def mean_recall(figures: dict[str, dict[str, float]]) -> float:
    """The headline: mean of the recalls at 1, 5 and 10 of both directions, unweighted."""
    values = [figures[direction][f"recall_at_{k}"] for direction in DIRECTIONS for k in RECALLS]
    return mean_over_queries(torch.tensor(values, dtype=torch.float64), "skip")


@torch.no_grad()
def cross_modal_recall(
    text_embeds: Tensor | None,
    image_embeds: Tensor | None,
    captions: Tensor,
    owners: Tensor,
    *,
    scores: Tensor | None = None,
    no_positives: str = "skip",
    chunk_size: int = 256,
) -> dict[str, dict[str, float] | float]:
    """
    Texts searched among images and images among texts, by cosine or by scores that are given.

    Args:
        text_embeds: (T, D) floating-point.
        image_embeds: (G, D).
        captions: (T,) whole numbers, equal where the texts are (`caption_codes`).
        owners: (T,) row of the image that each text belongs to.
        scores: (T, G) in place of both embeddings, which are None then; for both directions.
        no_positives: of images without a caption, as in `recall_at_k`.
        chunk_size: queries ranked at a time.

    Returns:
        text_to_image and image_to_text: recall_at_1, recall_at_5, recall_at_10 (0 to 1), median_rank (1 is best);
        mean_recall: the mean of the six recalls.

    Raises:
        ValueError: embeddings and scores, or neither; shapes that do not fit, values that are not finite.
        TypeError: embeddings that are not floating-point, captions or owners that are not whole numbers.

    Example, two images with the same caption: either is right for it:

        >>> found = cross_modal_recall(torch.eye(2), torch.eye(2).flip(0), torch.tensor([7, 7]), torch.tensor([0, 1]))
        >>> found["text_to_image"]["recall_at_1"], found["mean_recall"]
        (1.0, 1.0)
    """
    if (scores is None) == (text_embeds is None) or (text_embeds is None) != (image_embeds is None):
        raise ValueError("Give text_embeds and image_embeds, or else scores alone (embeddings None).")
    if scores is None:
        texts, images = unit_length(text_embeds=text_embeds, image_embeds=image_embeds)
        shape, ways = (len(texts), len(images)), (cosines_of(texts, images), cosines_of(images, texts))
    else:
        shape, ways = tuple(scores.shape), (scores, scores.T)
    captions = check_integers("captions", captions, shape[0])
    sides = Captions.of_texts(captions), Captions(captions, owners, shape[1])
    ranks = [
        first_match_rank(way, *pair, chunk_size=chunk_size)
        for way, pair in zip(ways, (sides, sides[::-1]), strict=True)
    ]
    return both_directions(*(recall_figures(part, no_positives) for part in ranks))


def both_directions(
    text_to_image: dict[str, float], image_to_text: dict[str, float]
) -> dict[str, dict[str, float] | float]:
    """The figures of both directions with their `mean_recall`."""
    figures = dict(zip(DIRECTIONS, (text_to_image, image_to_text), strict=True))
    return figures | {"mean_recall": mean_recall(figures)}


def cosines_of(queries: Tensor, gallery: Tensor) -> Callable[[slice], Tensor]:
    """For `first_match_rank`: cosines of unit-length rows (Q, D) and (G, D), block by block, on the grid of
    `ranking.to_grid`."""
    return lambda rows: cosine_scores(queries[rows], gallery, None)


def _first_rank(scores: Tensor, matches: Tensor) -> Tensor:
    if not scores.shape[1]:
        return torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    best = scores.masked_fill(~matches, -torch.inf).amax(dim=1, keepdim=True)
    # The first match of that score: minus infinity may be a match's own score as well.
    place = (matches & (scores == best)).int().argmax(dim=1, keepdim=True)
    earlier = torch.arange(scores.shape[1], device=scores.device) < place
    ranks = 1 + ((scores > best) | ((scores == best) & earlier)).sum(dim=1)
    return ranks.masked_fill(~matches.any(dim=1), 0)
