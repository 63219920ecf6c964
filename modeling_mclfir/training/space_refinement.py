# SPDX-License-Identifier: Apache-2.0
"""Spaces refined once they are learned, and means of old values kept up with a trunk that moves."""

from collections.abc import Sequence

import torch
from torch import distributed, nn

from ..losses import world_size
from ..modeling_mclfir import MclfirForImageRetrieval
from .batches import IncrementBatches


def refine_spaces(
    model: MclfirForImageRetrieval,
    increment_ids: Sequence[int],
    rows: tuple[torch.Tensor, torch.Tensor],
    num_values: Sequence[int],
) -> None:
    """
    `model.refine_increment` of each.

    Args:
        increment_ids: whose attributes the rows are of, in their order.
        rows: embeddings (n, A, D) and labels (n, A) of `RecentRows`, or of `finish_heads`.
        num_values: of each of these A attributes.
    """
    first = 0
    for increment_id in increment_ids:
        part = slice(first, first + len(model.config.attribute_range(increment_id)))
        model.refine_increment(increment_id, rows[0][:, part], rows[1][:, part], max(num_values[part]))
        _agree(model.heads[increment_id].refinement)
        first = part.stop


@torch.no_grad()
def refresh_means(model: MclfirForImageRetrieval, increment_id: int, exemplars: IncrementBatches) -> None:
    """
    The means of an increment's values from its exemplars as the model embeds them now, as in iCaRL
    (arXiv:1611.07725); its whitening and its centre stay, and so do spaces without a map and values without exemplars.
    """
    model.eval()
    refinement = model.heads[increment_id].refinement
    if refinement is None:
        return
    with model.unrefined():
        parts = [(model(**batch["inputs"]).embeds.float(), batch["labels"]) for batch in exemplars.chunks()]
    if parts:
        embeds, labels = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        mapped = refinement.means.flatten(1).any(dim=1).cpu()
        model.refine_increment(increment_id, embeds, labels.masked_fill(~mapped, -1))
        _agree(refinement)


def _agree(refinement: nn.Module) -> None:
    """On GPUs embeddings may differ in their last bits from process to process: all take the first one's maps."""
    if world_size() > 1:
        for buffer in refinement.buffers():
            distributed.broadcast(buffer, src=0)
