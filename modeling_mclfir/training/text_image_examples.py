# SPDX-License-Identifier: Apache-2.0
"""Examples for the pictures of a text-image run: what some captions and photos of an increment find."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.table import ImageTable
from ..metrics.cross_modal import Captions, cosines_of
from ..metrics.ranking import unit_length
from .examples import thumbnail
from .text_image_pairs import TestPairs


def pair_examples(
    test: TestPairs,
    tables: Sequence[ImageTable],
    texts: Tensor,
    images: Tensor,
    num_captions: int = 5,
    num_photos: int = 4,
    k: int = 5,
    seed: int = 0,
) -> dict:
    """
    Some captions with the `k` photos ranked first for each, and some photos with their first `k` captions, by the same
    ranking as the metrics, among the increment's own.

    Queries are drawn, one of each of so many equal stretches of the increment, never by how well they fare: the same
    ones whatever model embeds them. No two have the same caption.

    Args:
        test: of the increment.
        tables: of the test, in the order of its rows.
        texts, images: vectors of all of them (T, D), (G, D).
        num_captions, num_photos: at most so many queries; fewer where the increment has no more.
        k: results a query; of equal captions the first counts.
        seed: of the draw.

    Returns:
        num_captions, num_photos: how many are searched. captions: `{"caption", "place", "results"}` each, photos:
        `{"image", "captions", "place", "results"}`; place: of the first right one, from 1. Results of captions are
        `{"image", "caption", "correct", "score"}`, of photos the same without image; images are small RGB pictures.
    """
    sides = test.sides
    units = unit_length(texts=texts, images=images)
    firsts = torch.from_numpy(np.searchsorted(test.owners.numpy(), np.arange(test.num_images)))
    used: set[int] = set()
    asked = _spread(test.codes.tolist(), num_captions, seed, used)
    keys = test.codes[firsts].tolist()
    # Other pairs than those above, where there are any.
    shown = _spread(keys, num_photos, seed + 1, used) or _spread(keys, num_photos, seed + 1, set())
    photo, caption = _Photos(test, tables), [" ".join(text.split()) for text in test.texts]
    captions, photos = [], []
    for row in asked:
        place, ranked = _ranked(row, units, sides)
        results = [
            {"image": photo(item), "caption": caption[firsts[item]], "correct": correct, "score": score}
            for item, correct, score in ranked[:k]
        ]
        captions.append({"caption": caption[row], "place": place, "results": results})
    for row in shown:
        place, ranked = _ranked(row, units[::-1], sides[::-1])
        best = {caption[item]: (correct, score) for item, correct, score in reversed(ranked)}  # the first one counts
        order = dict.fromkeys(caption[item] for item, _, _ in ranked)
        results = [{"caption": text, "correct": best[text][0], "score": best[text][1]} for text in list(order)[:k]]
        own = [caption[item] for item in np.flatnonzero(test.owners.numpy() == row)]
        photos.append({"image": photo(row), "captions": own, "place": place, "results": results})
    counts = {"num_captions": len(caption), "num_photos": test.num_images}
    return counts | {"captions": captions, "photos": photos}


def _ranked(row: int, units: Sequence[Tensor], sides: Sequence[Captions]) -> tuple[int, list[tuple[int, bool, float]]]:
    """Place of a query's first match, and all items, best first, each with whether it matches and its cosine."""
    rows = slice(row, row + 1)
    # Float32 and a stable sort, as `first_match_rank` compares.
    scores, order = cosines_of(*units)(rows)[0].float().cpu().sort(descending=True, stable=True)
    correct = sides[0].matches(rows, sides[1])[0][order]
    return int(correct.int().argmax()) + 1, list(zip(order.tolist(), correct.tolist(), scores.tolist(), strict=True))


def _spread(keys: Sequence[int], count: int, seed: int, used: set[int]) -> list[int]:
    """A place of each of `count` equal stretches, drawn of those whose key is not used yet; uses them."""
    random, chosen = np.random.default_rng(seed), []
    for stretch in np.array_split(np.arange(len(keys)), min(count, len(keys))):
        free = [place for place in random.permutation(stretch).tolist() if keys[place] not in used]
        if free:
            chosen.append(free[0])
            used.add(keys[free[0]])
    return chosen


class _Photos:
    """Place of an image among an increment's → a small RGB picture."""

    def __init__(self, test: TestPairs, tables: Sequence[ImageTable]):
        self.rows = [(table, int(row)) for table, part in zip(tables, test.rows, strict=True) for row in part]

    def __call__(self, place: int) -> Image.Image:
        table, row = self.rows[place]
        return thumbnail(table.image(row))
