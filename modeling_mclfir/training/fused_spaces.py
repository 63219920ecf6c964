# SPDX-License-Identifier: Apache-2.0
"""New values of an attribute in spaces of their own: what tells the spaces apart, and scores where none is named."""

from collections.abc import Mapping, Sequence

import torch

from ..data.increments import Increment
from ..evaluation import Evaluator, Side, mean_score
from ..modeling_mclfir import MclfirForImageRetrieval
from ..routing_mclfir import fuse_gallery, score_spread, value_prototypes
from .batches import IncrementBatches

_MOST_ROWS = 10_000  # of an increment: means of values need no more


@torch.no_grad()
def describe_increment(model: MclfirForImageRetrieval, increment_id: int, batches: IncrementBatches) -> None:
    """`model.describe_increment` with prototypes and spreads of the rows that the increment was learned from."""
    model.eval()
    pooled, embeds, labels = [], [], []
    for batch in batches.chunks(most=_MOST_ROWS):
        inputs = {name: value for name, value in batch["inputs"].items() if name != "increment_id"}
        pooled.append(model.mclfir(**inputs).pooled.float().cpu())
        embeds.append(model(**inputs, increment_id=increment_id).embeds.cpu())
        labels.append(batch["labels"].cpu())
    pooled, embeds, labels = torch.cat(pooled), torch.cat(embeds), torch.cat(labels)
    prototypes = [value_prototypes(pooled, codes) for codes in labels.T]
    spreads = [score_spread(embeds[codes >= 0, place])[1] for place, codes in enumerate(labels.T)]
    model.describe_increment(increment_id, torch.cat(prototypes), spreads)


def unknown_scores(
    model: MclfirForImageRetrieval,
    evaluator: Evaluator,
    sides: Sequence[Side],
    embeds: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    learned: Sequence[Increment],
    known: Sequence[float],
) -> list[float]:
    """
    Scores of the increments where a query's attribute is told, but not the increment that its value came with.

    Args:
        embeds: increment's name → embeddings of both sides in its space.
        learned: increments so far; where several have a space of the same attribute, all of them are searched.
        known: their scores where the increment is told: those of the others.
    """
    config, found, pooled = model.config, [], None
    for increment, score in zip(learned, known, strict=True):
        alike = [other.name for other in learned if other.name in shared_attributes(model, increment)]
        if len(alike) < 2:
            found.append(score)
            continue
        if pooled is None:
            pooled = evaluator.embed(model, sides[0], None, pooled=True)[:, 0]
        spaces = [config.attribute_range(config.increment_names.index(name)).start for name in alike]
        queries, gallery = ([embeds[name][side][:, 0] for name in alike] for side in (0, 1))
        fused = [model.fuse_queries(spaces, queries, pooled)[:, None], fuse_gallery(gallery)[:, None]]
        found.append(mean_score(evaluator.score(sides, fused, increment)))
    return found


def shared_attributes(model: MclfirForImageRetrieval, increment: Increment) -> list[str]:
    """Increments of the model that have a space of the attribute that this one has; none where it has several."""
    if len(increment.attributes) > 1:
        return []
    return [entry["name"] for entry in model.config.increments if entry["attributes"] == list(increment.attributes)]
