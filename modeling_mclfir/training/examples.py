# SPDX-License-Identifier: Apache-2.0
"""Examples for the report's pictures: what some queries find."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from ..data.increments import Increment, gallery_rows, select_rows
from ..data.table import ImageTable
from ..metrics.ranking import cosine_scores, unit_length

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
        known = [_labelled(increment, position, side.table, gallery=i == 1) for i, side in enumerate(sides)]
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
    embeds = complete_embeds(embeds, model, evaluator, sides, {increment.name for increment, _, _ in chosen})
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
        image = thumbnail(tables[1].image(int(rows[place])))
        results.append({"image": image, "value": values[found], "correct": found == label, "score": score})
    return {
        "increment": increment.name,
        "attribute": attribute,
        "value": tables[0].values(attribute)[label],
        "image": thumbnail(tables[0].image(row)),
        "num_relevant": int((candidates.gallery_labels == label).sum()) - int(candidates.same_side),
        "num_gallery": available,
        "results": results,
    }


def _turns(increments: Sequence[Increment]) -> list[tuple[Increment, int]]:
    """(increment, position of an attribute): the first attribute of each increment, then the second of each, …"""
    longest = max((len(increment.attributes) for increment in increments), default=0)
    return [
        (increment, position)
        for position in range(longest)
        for increment in increments
        if position < len(increment.attributes)
    ]


def complete_embeds(
    embeds: Mapping[str, tuple[torch.Tensor, torch.Tensor]], model, evaluator, sides: Sequence, names: Iterable[str]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The embeddings of both sides with those of the named increments, made where they are missing."""
    missing = [name for name in names if name not in embeds]
    ids = {name: list(model.config.increment_names).index(name) for name in missing}
    return dict(embeds) | {name: tuple(evaluator.embed(model, side, ids[name]) for side in sides) for name in missing}


def searched_labels(increment: Increment, attribute: str, table: ImageTable, gallery: bool) -> np.ndarray:
    """Labels of an attribute, int64 (N,): -1 also where a row is no query of the increment, or not in its gallery."""
    labels = np.full(len(table), -1)
    rows = gallery_rows(increment, table) if gallery else select_rows(increment, table)
    labels[rows] = table.labels(attribute)[rows]
    return labels


def _labelled(increment: Increment, position: int, table: ImageTable, gallery: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) that are searched for, or among, and have the attribute's label; the labels (n,)."""
    labels = searched_labels(increment, increment.attributes[position], table, gallery)
    rows = np.flatnonzero(labels >= 0)
    return rows, labels[rows]


def thumbnail(image: Image.Image) -> Image.Image:
    """A small RGB copy."""
    image = image.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image
