# SPDX-License-Identifier: Apache-2.0
"""Where the model looks in photos for each attribute, and the value that the nearest gallery items vote for."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from ..data.augmentation import Augmentation
from ..data.increments import Increment
from ..voting_mclfir import vote
from .examples import complete_embeds, searched_labels, thumbnail
from .feature_cache import load_pixels


class Voters(NamedTuple):
    """
    The gallery as one attribute of one increment sees it.

    Attributes:
        increment: its name.
        attribute: its name.
        attribute_id: as the model knows it.
        embeds: (G, D), of any length.
        labels: (G,) places in `values`; below 0: no vote.
        values: names.
    """

    increment: str
    attribute: str
    attribute_id: int
    embeds: torch.Tensor
    labels: torch.Tensor
    values: Sequence[str]


def has_spatial_attention(model) -> bool:
    """Whether the model's heads look at some places more than at others, so that there is something to draw."""
    return all(getattr(heads, "spatial", None) is not None for heads in model.heads)


def photo_maps(
    attentions: torch.Tensor,
    queries: Sequence[torch.Tensor],
    voters: Sequence[Voters],
    own_rows: Sequence[int] | None = None,
    k: int = 20,
    temperature: float = 0.1,
) -> list[list[dict]]:
    """
    One map a photo and attribute: what the model looked at, and the value that the gallery votes for.

    Args:
        attentions: (N, A, H, W), as the model gives them.
        queries: for each attribute the photos' embeddings (N, D), of any length.
        voters: for each attribute.
        own_rows: where the photos are items of the gallery, which ones: none votes on itself.
        k, temperature: of the vote, as in `MclfirForImageRetrieval.predict_values`.

    Returns:
        `{"increment", "attribute", "attention", "predicted", "confidence", "chance"}` a map: the attention a float32
        (H, W) array that sums to 1 and covers the whole photo; the value with the most votes (None: nobody has one)
        and its share of them; its share of all labelled items, 0–1.
    """
    arrays = attentions.float().cpu().numpy()
    found: list[list[dict]] = [[] for _ in arrays]
    for place, (some, vectors) in enumerate(zip(voters, queries, strict=True)):
        names = {"increment": some.increment, "attribute": some.attribute}
        vectors, some = _unit(vectors), some._replace(embeds=_unit(some.embeds))
        for photo, maps in enumerate(found):
            own_row = None if own_rows is None else own_rows[photo]
            prediction = _predict(vectors[photo], some, own_row, k, temperature)
            maps.append({**names, "attention": arrays[photo, place], **prediction})
    return found


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return functional.normalize(vectors.detach().float().cpu(), dim=-1)


def _predict(query: torch.Tensor, voters: Voters, own_row: int | None, k: int, temperature: float) -> dict:
    labels = voters.labels
    if own_row is not None:
        labels = labels.clone()
        labels[own_row] = -1
    known = labels[labels >= 0]
    if not len(known):
        return {"predicted": None, "confidence": 0.0, "chance": 0.0}
    shares = vote(query[None], voters.embeds, labels, len(voters.values), k, temperature)[0]
    place = int(shares.argmax())
    return {
        "predicted": voters.values[place],
        "confidence": min(float(shares[place]), 1.0),
        "chance": float((known == place).float().mean()),
    }


@torch.no_grad()
def attention_examples(
    model,
    evaluator,
    sides: Sequence,
    embeds: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    increments: Sequence[Increment],
    num_images: int = 4,
) -> list[dict]:
    """
    Where the model looks in a few queries for every attribute, and what the gallery takes them for.

    Photos are those with labels of most of the attributes; on an increment of new values only its own rows count as
    labelled, and the whole gallery votes. Where query and gallery are one, no photo votes on itself.

    Args:
        model: `MclfirForImageRetrieval`.
        evaluator: for its processor and device; its `same_side` says that query and gallery are one.
        sides: query and gallery (`Side`).
        embeds: as in `retrieval_examples`.
        increments: those learned so far, in order.
        num_images: photos, at most.

    Returns:
        `{"image", "maps"}` a photo; the maps are those of `photo_maps` with "value", the label (None: there is none),
        and "correct", whether that is the predicted one (None: one of them is missing). Empty where the heads have no
        spatial attention.
    """
    known, table = list(model.config.increment_names), sides[0].table
    increments = [increment for increment in increments if increment.name in known and increment.attributes]
    if not increments or not len(table) or not has_spatial_attention(model):
        return []
    embeds = complete_embeds(embeds, model, evaluator, sides, [increment.name for increment in increments])
    queries, voters, labels = _spaces(model, sides, embeds, increments)
    rows = _best_labelled(np.stack(labels), num_images)
    model.eval()
    pixels = load_pixels(table, rows, 0, evaluator.processor, Augmentation(), 0).to(evaluator.accelerator.device)
    ids = [some.attribute_id for some in voters]
    attentions = model(pixel_values=pixels, attribute_ids=ids, output_attentions=True).attentions
    own_rows = rows if evaluator.same_side else None
    found = photo_maps(attentions, [query[rows] for query in queries], voters, own_rows)
    for row, maps in zip(rows, found, strict=True):
        for entry, some, codes in zip(maps, voters, labels, strict=True):
            value = some.values[codes[row]] if codes[row] >= 0 else None
            judged = value is not None and entry["predicted"] is not None
            entry |= {"value": value, "correct": entry["predicted"] == value if judged else None}
    return [{"image": thumbnail(table.image(row)), "maps": maps} for row, maps in zip(rows, found, strict=True)]


def _spaces(model, sides: Sequence, embeds: Mapping, increments: Sequence[Increment]) -> tuple[list, list, list]:
    """Of each attribute of the increments: every query's embedding (Nq, D), the gallery, the queries' labels (Nq,)."""
    queries, voters, labels = [], [], []
    for increment in increments:
        ids = model.config.attribute_range(list(model.config.increment_names).index(increment.name))
        for attribute, attribute_id, position in zip(increment.attributes, ids, range(len(ids)), strict=True):
            # One vector an image where A is 1: it serves all attributes, as in the evaluator.
            query, gallery = (some[:, min(position, some.shape[1] - 1)] for some in embeds[increment.name])
            codes = [
                torch.from_numpy(searched_labels(increment, attribute, side.table, gallery=i == 1))
                for i, side in enumerate(sides)
            ]
            values = sides[1].table.values(attribute)
            voters.append(Voters(increment.name, attribute, attribute_id, gallery, codes[1], values))
            queries.append(query)
            labels.append(codes[0].numpy())
    return queries, voters, labels


def _best_labelled(labels: np.ndarray, num_images: int) -> list[int]:
    """labels (A, N), -1 for none → rows, spread over those with the most labels."""
    counts = (labels >= 0).sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    enough = max(num_images, int((counts == counts.max()).sum()))
    pool = np.sort(order[:enough])
    places = np.linspace(0, len(pool) - 1, min(num_images, len(pool))).round().astype(int)
    return [int(row) for row in pool[places]]
