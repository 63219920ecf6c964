# SPDX-License-Identifier: Apache-2.0
"""Why an increment is forgotten, in numbers: what became of its test pairs' vectors since it was learned.

Wang, Herranz and van de Weijer (arXiv:2104.06806) see forgetting as interference in the embedding spaces and in their
cross-modal alignment. Their abstract is all that was at hand: these definitions are this project's own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..metrics.cross_modal import Captions
from ..metrics.ranking import cosine_scores, row_blocks, unit_length

Vectors = tuple[Tensor, Tensor]
_CHUNK = 256


@torch.no_grad()
def diagnose_increment(
    before: Vectors,
    now: Vectors,
    captions: Tensor,
    owners: Tensor,
    others: Sequence[Vectors] | None = None,
    num_neighbours: int = 10,
    most: int = 5000,
    seed: int = 0,
) -> dict[str, float | None]:
    """
    Drift, alignment, neighbourhoods and overlap of one increment's test pairs; all vectors are taken at unit length.

    Args:
        before: texts (T, D) and images (G, D) by the model that learned the increment.
        now: the same by the model of today, in the same order and in the space that serves the increment today.
        captions: (T,) whole numbers, equal where texts are.
        owners: (T,) row of the image that each text belongs to.
        others: texts and images of other increments, by the model of today in that same space. None or empty:
            overlap is None.
        num_neighbours: nearest items looked at.
        most: items of a tower, drawn at random, that its neighbourhoods are worked out on, and whose overlap.
        seed: of the draw.

    Returns:
        A number a key; None where it has no meaning (a single item, no drift that could have a direction).

        * image_drift, text_drift: mean of 1 - cosine(before, now), 0 to 2.
        * image_mean_drift, text_mean_drift: length of the mean of now - before: the part that all items share.
        * drift_cosine: cosine of the two mean drifts; 1: the towers moved the same way.
        * drift_difference: length of the difference of the two mean drifts; what unequal drift takes from alignment,
          however far both moved.
        * alignment_before, alignment_now: mean cosine of matching pairs less that of the others; alignment_loss: the
          first minus the second.
        * image_neighbours_kept, text_neighbours_kept: mean share of an item's nearest neighbours in its own tower that
          are still among them, 0 to 1. Of equal captions one counts.
        * image_cka, text_cka: linear CKA of before and now (Kornblith et al. 2019), 0 to 1; blind to rotation.
        * text_overlap, image_overlap: share of a text's nearest images (an image's nearest texts), among those of all
          increments, that belong to others. overlap_by_chance: what a random order gives, the mean of both ways.
        * text_separation, image_separation: distance of the centroids of this increment and another over the root mean
          square distance to their own centroids, mean over the others; below 1 they lie within each other.

    Raises:
        ValueError: shapes that do not fit, vectors that are not finite, numbers below 1.
    """
    if num_neighbours < 1 or most < 1:
        raise ValueError(f"num_neighbours and most must be at least 1; got {num_neighbours} and {most}.")
    texts, images = (_pair(name, *sides) for name, sides in zip(("texts", "images"), _zip(before, now), strict=True))
    text_captions = Captions.of_texts(captions)
    image_captions = Captions(text_captions.codes, owners, len(images[0]))
    if text_captions.num_items != len(texts[0]):
        raise ValueError(f"There are {text_captions.num_items} captions, but {len(texts[0])} texts; give one a text.")
    aligned = [_alignment(*sides, text_captions, image_captions) for sides in zip(texts, images, strict=True)]
    loss = None if None in aligned else aligned[0] - aligned[1]
    found = _drift(texts, images)
    found |= {"alignment_before": aligned[0], "alignment_now": aligned[1], "alignment_loss": loss}
    random = np.random.default_rng(seed)
    rows = _first_rows(text_captions.codes), np.arange(len(images[0]))
    for name, tower, kept in zip(("text", "image"), (texts, images), rows, strict=True):
        one, other = (side[_some(kept, most, random)] for side in tower)
        found[f"{name}_neighbours_kept"] = _neighbours_kept(one, other, num_neighbours)
        found[f"{name}_cka"] = _linear_cka(one, other)
    asked = [_some(np.arange(len(tower[0])), most, random) for tower in (texts, images)]
    return found | _overlap((texts[1], images[1]), asked, list(others or ()), num_neighbours)


def average_drift(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Unweighted means of `diagnose_increment`'s numbers over increments; None where there are none, text left out."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, str))
    numbers = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: float(np.mean(values)) if values else None for name, values in numbers.items()}


def _zip(before: Vectors, now: Vectors) -> list[Vectors]:
    """Before and now of each side."""
    return [(before[side], now[side]) for side in (0, 1)]


def _pair(name: str, before: Tensor, now: Tensor) -> list[Tensor]:
    if before.shape != now.shape or before.ndim != 2 or not len(before):
        raise ValueError(
            f"Expected the same {name} (n, D) before and now, n at least 1; got {tuple(before.shape)} and "
            f"{tuple(now.shape)}."
        )
    return unit_length(**{f"{name}_before": before, f"{name}_now": now})


def _drift(texts: Sequence[Tensor], images: Sequence[Tensor]) -> dict[str, float | None]:
    found, means = {}, []
    for name, (before, now) in (("image", images), ("text", texts)):
        means.append((now - before).mean(dim=0))
        # Half the squared distance, which is 1 - cosine of unit vectors and exactly 0 for what did not move.
        found[f"{name}_drift"] = float((now - before).square().sum(dim=1).mean() / 2)
        found[f"{name}_mean_drift"] = float(means[-1].norm())
    lengths = float(means[0].norm() * means[1].norm())
    cosine = float(means[0] @ means[1]) / lengths if lengths > 0 else None
    return found | {"drift_cosine": cosine, "drift_difference": float((means[0] - means[1]).norm())}


def _alignment(texts: Tensor, images: Tensor, text_captions: Captions, image_captions: Captions) -> float | None:
    """Mean cosine of matching pairs less the mean of the others; None where there are none of either."""
    matching, number = 0.0, 0
    for rows in row_blocks(len(texts), _CHUNK):
        matches = text_captions.matches(rows, image_captions)
        matching += float((texts[rows] @ images.T)[matches].sum())
        number += int(matches.sum())
    others = len(texts) * len(images) - number
    if not number or not others:
        return None
    return matching / number - (float(texts.sum(dim=0) @ images.sum(dim=0)) - matching) / others


def _neighbours_kept(before: Tensor, now: Tensor, num_neighbours: int) -> float | None:
    num_neighbours = min(num_neighbours, len(before) - 1)
    if num_neighbours < 1:
        return None
    kept = 0
    for rows in row_blocks(len(before), _CHUNK):
        one, other = (_nearest(side[rows], side, num_neighbours, own=rows.start) for side in (before, now))
        kept += int((one[:, :, None] == other[:, None, :]).sum())
    return kept / (len(before) * num_neighbours)


def _nearest(queries: Tensor, gallery: Tensor, number: int, own: int | None = None) -> Tensor:
    """(C, number) rows of the gallery of the largest cosines; `own`: row of the first query, none is its own."""
    scores = cosine_scores(queries, gallery, None)
    if own is not None:
        places = torch.arange(len(queries), device=scores.device)
        scores[places, own + places] = -torch.inf
    # A stable sort, not topk: equal scores must be in the same order before and now.
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :number]


def _linear_cka(before: Tensor, now: Tensor) -> float | None:
    before, now = (side - side.mean(dim=0) for side in (before, now))
    sizes = (before.T @ before).norm() * (now.T @ now).norm()
    return float((now.T @ before).square().sum() / sizes) if sizes > 0 else None


def _overlap(
    own: Vectors, asked: Sequence[Tensor], others: Sequence[Vectors], num_neighbours: int
) -> dict[str, float | None]:
    """`asked`: rows of the texts and of the images whose nearest items are looked for, among all."""
    found: dict[str, float | None] = {"text_overlap": None, "image_overlap": None, "overlap_by_chance": None}
    found |= {"text_separation": None, "image_separation": None}
    if not others:
        return found
    sides = [
        unit_length(own=mine, **{f"others[{place}]": pair[side] for place, pair in enumerate(others)})
        for side, mine in enumerate(own)
    ]
    chances = []
    for name, side, gallery in (("text", 0, sides[1]), ("image", 1, sides[0])):
        queries, union, size = sides[side][0][asked[side]], torch.cat(gallery), len(gallery[0])
        number, elsewhere = min(num_neighbours, len(union)), 0
        for rows in row_blocks(len(queries), _CHUNK):
            elsewhere += int((_nearest(queries[rows], union, number) >= size).sum())
        found[f"{name}_overlap"] = elsewhere / (len(queries) * number)
        chances.append(1 - size / len(union))
    found["overlap_by_chance"] = float(np.mean(chances))
    for name, (mine, *theirs) in zip(("text", "image"), sides, strict=True):
        distances = [_separation(mine, rows) for rows in theirs]
        found[f"{name}_separation"] = None if None in distances else float(np.mean(distances))
    return found


def _separation(one: Tensor, other: Tensor) -> float | None:
    centres = one.mean(dim=0), other.mean(dim=0)
    spreads = [(rows - centre).square().sum(dim=1).mean() for rows, centre in zip((one, other), centres, strict=True)]
    spread = float((sum(spreads) / 2).sqrt())
    return float((centres[0] - centres[1]).norm()) / spread if spread > 0 else None


def _some(rows: np.ndarray, most: int, random: np.random.Generator) -> Tensor:
    """All rows or, in their order, so many of them."""
    return torch.from_numpy(rows if len(rows) <= most else np.sort(random.choice(rows, most, replace=False)))


def _first_rows(codes: Tensor) -> np.ndarray:
    """The first row of each code, rising."""
    return np.sort(np.unique(codes.cpu().numpy(), return_index=True)[1])
