# SPDX-License-Identifier: Apache-2.0
"""Examples for the report's pictures: what some queries find, and where the model looks in some photos."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from ..data.augmentation import Augmentation
from ..data.increments import Increment, select_rows
from ..data.table import ImageTable
from ..metrics.ranking import cosine_scores, unit_length
from .feature_cache import load_pixels

_THUMBNAIL = 256  # longest side, pixels
_GOLDEN = 0.618034  # multiples of it, modulo 1, spread evenly however many are taken


def retrieval_examples(
    model,
    evaluator,
    sides: Sequence,
    embeds: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    increments: Sequence[Increment],
    num_queries: int = 8,
    k: int = 5,
) -> list[dict]:
    """
    Some queries and the `k` gallery images ranked first for each, by the same ranking as the metrics.

    Queries are taken by turns over increments, attributes and values, never by how well they fare.

    Args:
        model: embeds the increments that `embeds` lacks.
        evaluator: its `same_side` says that query and gallery are one: then a query is left out of its own ranking.
        sides: query and gallery (`Side`).
        embeds: increment → embeddings of every row of query (Nq, A, D) and gallery (Ng, A, D).
        increments: those learned so far, in order.
        num_queries: at most so many examples; fewer where the data has no more.
        k: results an example.

    Returns:
        `{"increment", "attribute", "value", "image", "num_relevant", "num_gallery", "results"}` in the order of the
        increments; a result is `{"image", "value", "correct", "score"}`; images are small RGB pictures.
    """
    turns = _turns(increments)
    candidates = {}
    for increment, position in turns:
        known = [_labelled(increment, position, side.table) for side in sides]
        candidates[increment.name, position] = _Candidates(*known[0], *known[1], same_side=evaluator.same_side)
    chosen, used, rounds = [], set(), 0
    while len(chosen) < num_queries:
        before = len(chosen)
        for place, (increment, position) in enumerate(turns):
            row = candidates[increment.name, position].query(place + rounds, used)
            if row is not None and len(chosen) < num_queries:
                used.add(row)
                chosen.append((increment, position, row))
        rounds += 1
        if len(chosen) == before:
            break
    order = [increment.name for increment in increments]
    chosen.sort(key=lambda pick: (order.index(pick[0].name), pick[1]))
    embeds = dict(embeds)
    for name in {increment.name for increment, _, _ in chosen} - set(embeds):
        increment_id = list(model.config.increment_names).index(name)
        embeds[name] = tuple(evaluator.embed(model, side, increment_id) for side in sides)
    return [
        _retrieve(candidates[increment.name, position], sides, embeds[increment.name], increment, position, row, k)
        for increment, position, row in chosen
    ]


class _Candidates:
    """The labelled rows of one attribute: `query_rows`, `gallery_rows` (n,) of the tables, and their labels."""

    def __init__(self, query_rows, query_labels, gallery_rows, gallery_labels, same_side: bool):
        self.query_rows, self.query_labels = query_rows, query_labels
        self.gallery_rows, self.gallery_labels = gallery_rows, gallery_labels
        self.same_side = same_side
        counts = np.bincount(gallery_labels, minlength=query_labels.max(initial=-1) + 1)
        self.num_relevant = counts[query_labels] - int(same_side)

    def query(self, turn: int, used: set[int]) -> int | None:
        """A row of the query table whose value's turn it is and that something matches; None: no such row is left."""
        eligible = (self.num_relevant > 0) & ~np.isin(self.query_rows, list(used))
        values = np.unique(self.query_labels[eligible])
        if not len(values):
            return None
        rows = self.query_rows[eligible & (self.query_labels == values[turn % len(values)])]
        return int(rows[int(len(rows) * ((turn + 1) * _GOLDEN % 1))])


def _retrieve(candidates, sides, embeds, increment: Increment, position: int, row: int, k: int) -> dict:
    tables, attribute = [side.table for side in sides], increment.attributes[position]
    values = tables[1].values(attribute)
    label = int(tables[0].labels(attribute)[row])
    rows = candidates.gallery_rows
    # One vector an image where A is 1: it serves all attributes, as in the evaluator.
    vectors = [some[:, min(position, some.shape[1] - 1)] for some in embeds]
    query, gallery = unit_length(query=vectors[0][row][None], gallery=vectors[1][torch.from_numpy(rows)])
    left_out = torch.from_numpy(rows == row)[None].to(query.device) if candidates.same_side else None
    ranked = cosine_scores(query, gallery, left_out)[0].sort(descending=True, stable=True)
    available = len(rows) - int(candidates.same_side)
    results = []
    for score, place in zip(ranked.values[: min(k, available)].tolist(), ranked.indices.tolist(), strict=False):
        found = int(candidates.gallery_labels[place])
        image = _thumbnail(tables[1].image(int(rows[place])))
        results.append({"image": image, "value": values[found], "correct": found == label, "score": score})
    return {
        "increment": increment.name,
        "attribute": attribute,
        "value": tables[0].values(attribute)[label],
        "image": _thumbnail(tables[0].image(row)),
        "num_relevant": int((candidates.gallery_labels == label).sum()) - int(candidates.same_side),
        "num_gallery": available,
        "results": results,
    }


@torch.no_grad()
def attention_examples(
    model,
    evaluator,
    side,
    increments: Sequence[Increment],
    num_images: int = 4,
    max_attributes: int = 6,
) -> list[dict]:
    """
    Where the model looks in a few photos for a few attributes (by turns over the increments).

    Photos are those with labels of most of the attributes. Increments that the model does not know take no part.

    Args:
        model: `MclfirForImageRetrieval`.
        evaluator: for its processor and device.
        side: where the photos come from (`Side`).
        increments: those learned so far, in order.
        num_images: photos, at most.
        max_attributes: attributes, at most.

    Returns:
        `{"image", "maps"}` a photo; a map is `{"increment", "attribute", "value", "attention"}` with the attention a
        float32 (H, W) array that sums to 1 and covers the whole photo, and the value None where there is no label.
        Empty where the heads have no spatial attention.
    """
    names = list(model.config.increment_names)
    turns = _turns([increment for increment in increments if increment.name in names])[:max_attributes]
    turns.sort(key=lambda turn: (names.index(turn[0].name), turn[1]))
    table = side.table
    if not turns or not len(table):
        return []
    labels = np.stack([table.labels(increment.attributes[position]) for increment, position in turns])  # (A, N)
    rows = _best_labelled(labels, num_images)
    model.eval()
    pixels = load_pixels(table, rows, 0, evaluator.processor, Augmentation(), 0).to(evaluator.accelerator.device)
    ids = [model.config.attribute_range(names.index(increment.name))[position] for increment, position in turns]
    attentions = model(pixel_values=pixels, attribute_ids=ids, output_attentions=True).attentions
    if attentions is None:
        return []
    attentions = attentions.float().cpu().numpy()  # (n, A, H, W)
    examples = []
    for i, row in enumerate(rows):
        maps = []
        for j, (increment, position) in enumerate(turns):
            attribute, label = increment.attributes[position], labels[j, row]
            value = table.values(attribute)[label] if label >= 0 else None
            entry = {"increment": increment.name, "attribute": attribute, "value": value}
            maps.append({**entry, "attention": attentions[i, j]})
        examples.append({"image": _thumbnail(table.image(row)), "maps": maps})
    return examples


def _turns(increments: Sequence[Increment]) -> list[tuple[Increment, int]]:
    """(increment, position of an attribute): the first attribute of each increment, then the second of each, …"""
    longest = max((len(increment.attributes) for increment in increments), default=0)
    return [
        (increment, position)
        for position in range(longest)
        for increment in increments
        if position < len(increment.attributes)
    ]


def _labelled(increment: Increment, position: int, table: ImageTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of the increment that have the attribute's label, and the labels (n,)."""
    rows = select_rows(increment, table)
    labels = table.labels(increment.attributes[position])[rows]
    return rows[labels >= 0], labels[labels >= 0]


def _best_labelled(labels: np.ndarray, num_images: int) -> list[int]:
    """labels (A, N), -1 for none → rows, spread over those with the most labels."""
    counts = (labels >= 0).sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    enough = max(num_images, int((counts == counts.max()).sum()))
    pool = np.sort(order[:enough])
    places = np.linspace(0, len(pool) - 1, min(num_images, len(pool))).round().astype(int)
    return [int(row) for row in pool[places]]


def _thumbnail(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image
