# SPDX-License-Identifier: Apache-2.0
"""What heads that learned the attributes score on the photos that text names: the vote of a gallery, and retrieval."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..data.increments import Increment
from ..evaluation import Evaluator
from ..metrics import recall_at_k
from ..metrics.ranking import place_of
from ..routing_mclfir import fuse_gallery
from ..voting_mclfir import vote


@torch.no_grad()
def heads_figures(
    model, evaluator: Evaluator, attributes: Sequence[str], k: int = 20, temperature: float = 0.1
) -> dict[str, dict[str, float | None]]:
    """
    Figures of those of the attributes that the model has heads for.

    Args:
        model: `MclfirForImageRetrieval`.
        evaluator: its tables are both sides; where they are one, no photo votes on itself or is found by itself.
        k, temperature: of the vote, as in `predict_values`.

    Returns:
        attribute → accuracy_at_1 and accuracy_at_5 (None with no more than five values) of the vote; and of images
        that look for images of the same value mean_average_precision, random_ranking, as the evaluator scores them.
        Several spaces of an attribute are fused.

    Raises:
        ValueError: several spaces that nothing tells apart, an attribute without labels on one of the sides.
    """
    sides = evaluator.prepare(model)
    embeds, pooled, found = None, None, {}
    for attribute in attributes:
        spaces = [space for space, name in enumerate(model.config.attributes) if name == attribute]
        if not spaces:
            continue
        if embeds is None:
            embeds = _both(evaluator, model, sides)
        parts = [side[:, spaces[0]] for side in embeds]
        if len(spaces) > 1:
            if pooled is None:
                pooled = evaluator.embed(model, sides[0], None, pooled=True)[:, 0]
            parts = [
                model.fuse_queries(spaces, [embeds[0][:, space] for space in spaces], pooled),
                fuse_gallery([embeds[1][:, space] for space in spaces]),
            ]
        labels = [torch.from_numpy(side.table.labels(attribute)) for side in sides]
        num_values = len(sides[0].table.values(attribute))
        row = evaluator.score(sides, [part[:, None] for part in parts], Increment("heads", (attribute,)))[0]
        shares = vote_shares(*parts, labels[1], num_values, k, temperature, evaluator.same_side)
        found[attribute] = _vote_figures(shares[labels[0] >= 0], labels[0][labels[0] >= 0])
        found[attribute] |= {name: row[name] for name in ("mean_average_precision", "random_ranking")}
    return found


def vote_shares(
    queries: Tensor, gallery: Tensor, labels: Tensor, num_values: int, k: int, temperature: float, same_side: bool
) -> Tensor:
    """`vote` (N, num_values), of vectors of any length; with `same_side` the queries are the gallery, and none votes
    on itself."""
    queries, gallery = (functional.normalize(side.float(), dim=-1) for side in (queries, gallery))
    if not same_side:
        return vote(queries, gallery, labels, num_values, k, temperature)
    rows = []
    for row, query in enumerate(queries):
        others = labels.clone()
        others[row] = -1
        rows.append(vote(query[None], gallery, others, num_values, k, temperature))
    return torch.cat(rows)


def _both(evaluator: Evaluator, model, sides: Sequence) -> list[Tensor]:
    first = evaluator.embed(model, sides[0], None)
    return [first, first if evaluator.same_side else evaluator.embed(model, sides[1], None)]


def _vote_figures(shares: Tensor, labels: Tensor) -> dict[str, float | None]:
    # A value that nobody votes for is not named, whatever its place among the others like it.
    ranks = place_of(shares, labels).masked_fill(shares.gather(1, labels[:, None])[:, 0] == 0, 0)
    return {
        "accuracy_at_1": recall_at_k(ranks, 1, "zero"),
        "accuracy_at_5": recall_at_k(ranks, 5, "zero") if shares.shape[1] > 5 else None,
    }
