# SPDX-License-Identifier: Apache-2.0
"""New values of an attribute in spaces of their own: what tells the spaces apart, and scores where none is named."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..data.increments import Increment
from ..evaluation import Evaluator, Side, mean_score
from ..modeling_mclfir import MclfirForImageRetrieval
from ..routing_mclfir import fuse_gallery, score_spread, value_prototypes
from .batches import IncrementBatches

# Of an increment, at even distances: enough for means of values; one that none of these rows shows has no prototype.
_MOST_ROWS = 10_000


@torch.no_grad()
def describe_increment(model: MclfirForImageRetrieval, increment_id: int, batches: IncrementBatches) -> None:
    """`model.describe_increment` with prototypes and spreads of the rows that the increment was learned from."""
    model.eval()
    pooled, embeds, labels = [], [], []
    for batch in batches.chunks(most=_MOST_ROWS):
        inputs = {name: value for name, value in batch["inputs"].items() if name != "increment_id"}
        output = model(**inputs, increment_id=increment_id)
        pooled.append(model.mclfir(shared_features=output.shared_features).pooled.float().cpu())
        embeds.append(output.embeds.cpu())
        labels.append(batch["labels"].cpu())
    pooled, embeds, labels = torch.cat(pooled), torch.cat(embeds), torch.cat(labels)
    prototypes = [value_prototypes(pooled, codes) for codes in labels.T]
    spreads = [score_spread(embeds[codes >= 0, place])[1] for place, codes in enumerate(labels.T)]
    if model.config.adapter_policy == "stacked":  # every later adapter moves the space, and its spread with it
        spreads = [1.0] * len(spreads)
    model.describe_increment(increment_id, torch.cat(prototypes), spreads)


def not_described(model: MclfirForImageRetrieval) -> list[int]:
    """Increments with a space of an attribute that others have a space of too, and that nothing tells apart yet."""
    names = model.config.attributes
    return [
        increment_id
        for increment_id, increment in enumerate(model.config.increments)
        if "router" not in increment and any(names.count(attribute) > 1 for attribute in increment["attributes"])
    ]


def unknown_scores(
    model: MclfirForImageRetrieval,
    evaluator: Evaluator,
    sides: Sequence[Side],
    embeds: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    learned: Sequence[Increment],
    known: Sequence[float],
) -> list[float]:
    """
    Scores of the increments where a query's attribute is told, but not the increment that its value came with: it is
    searched in all spaces of the attribute, among the gallery of all values.

    Args:
        embeds: increment's name → embeddings of both sides for its attributes, (N, A, D).
        learned: increments so far.
        known: their scores where the increment is told: those of increments whose attributes have one space each.
    """
    found, names, pooled = [], model.config.attributes, None
    for increment, score in zip(learned, known, strict=True):
        if all(names.count(attribute) < 2 for attribute in increment.attributes):
            found.append(score)
            continue
        if pooled is None:
            pooled = evaluator.embed(model, sides[0], None, pooled=True)[:, 0]
        rows = []
        for place, attribute in enumerate(increment.attributes):
            alone = replace(increment, attributes=(attribute,))
            spaces = [space for space, name in enumerate(names) if name == attribute]
            if len(spaces) < 2:
                parts = [side[:, place : place + 1] for side in embeds[increment.name]]
                rows += evaluator.score(sides, parts, alone)
                continue
            queries, gallery = ([_of_space(model, embeds, space, side) for space in spaces] for side in (0, 1))
            fused = [model.fuse_queries(spaces, queries, pooled)[:, None], fuse_gallery(gallery)[:, None]]
            # Searched among all values, also where the attribute's first values came as an attribute's.
            rows += evaluator.score(sides, fused, replace(alone, new_values=True))
        found.append(mean_score(rows))
    return found


def _of_space(model: MclfirForImageRetrieval, embeds: Mapping, space: int, side: int) -> torch.Tensor:
    owner = model.config.increment_of(space)
    place = space - model.config.attribute_range(owner).start
    return embeds[model.config.increment_names[owner]][side][:, place]
