"""Retrieval metrics as pure functions: embeddings and labels in, one number a query (or one mean) out.

Conventions, the same in every function:

* Similarity is the cosine: embeddings are brought to unit length inside (a zero vector scores 0 with everything).
* Scores are computed in float64 and compared on a grid of 2**-24, the step of float32 just below 1. In float32 alone,
  two gallery images with the same vector can differ in the last bit, and a query's scores change with the size of the
  block it is computed in; this way equal vectors tie, and a result depends neither on `chunk_size` nor on autocast or
  TF32. (MPS has no float64: there it is float32 throughout.)
* Equal scores are resolved by gallery order (a stable sort, descending).
* Labels are integers from 0; two images are relevant to each other when their labels are equal. A label below 0 means
  "no label" and is refused: leave such images out first.
* `query_ids` and `gallery_ids`: a gallery item with the query's own id is left out of that query's ranking. This is
  leave-one-out where one split serves as query and gallery, and the reference image in composed retrieval.
* A query with no relevant item in its ranking is NaN (rank 0 in the rank functions); `mean_over_queries` then leaves
  it out (`no_positives="skip"`, the default) or counts it as 0 (`"zero"`, what the code of ASEN and MCL-FIR does).
* Every result is a share, 0 to 1. Memory grows with `chunk_size` times the gallery, at about 80 bytes an entry.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .aggregation import mean_over_queries
from .ranking import (
    Exclusion,
    Relevance,
    check_integers,
    check_k,
    check_rows,
    cosine_scores,
    membership,
    place_of,
    ranked_relevance,
    row_blocks,
    to_grid,
    unit_length,
    working_dtype,
)

NORMALIZERS = ("min_k_relevant", "relevant", "hits")


@torch.no_grad()
def average_precision(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    k: int | None = None,
    normalizer: str = "min_k_relevant",
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Average precision of each query: the sum of the precisions at the hits, divided as `normalizer` says.

    With `k=None` the whole gallery is ranked, every relevant item is a hit and the three normalisers agree: the
    average precision of ASEN, MCL-FIR and trec_eval. With a `k` only the first k places count and they differ:
    `"min_k_relevant"` divides by min(k, number relevant) (1 is reachable; sentence-transformers), `"relevant"` by the
    number relevant (trec_eval, pytorch-metric-learning), `"hits"` by the hits found in the first k (torchmetrics,
    open-metric-learning; 0 where there is none).

    Args:
        query_embeds: (Q, D) floating-point.
        gallery_embeds: (G, D) floating-point, on the same device.
        query_labels: (Q,) integers from 0.
        gallery_labels: (G,) integers from 0.
        k: places looked at, or None for the full ranking.
        normalizer: see above.
        query_ids: (Q,) integers; with `gallery_ids`, leaves the query's own id out of its ranking.
        gallery_ids: (G,) integers.
        chunk_size: queries ranked at a time.

    Returns:
        (Q,) average precision, 0 to 1; NaN where a query has no relevant item.

    Raises:
        ValueError: shapes that do not fit, a label below 0, an embedding that is not finite, an unknown normaliser.
        TypeError: embeddings that are not floating-point, labels or ids that are not integers.

    Example, five relevant items and hits at places 1 and 3:

        >>> import torch
        >>> angles = torch.arange(8) * 0.1
        >>> gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> query, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1, 0, 1, 1, 0, 0, 0])
        >>> sides = query, gallery, torch.tensor([0]), labels
        >>> [round(average_precision(*sides, k=3, normalizer=name).item(), 3) for name in NORMALIZERS]
        [0.556, 0.333, 0.833]
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer is {normalizer!r}, but must be one of {', '.join(NORMALIZERS)}.")
    if k is not None:
        check_k(k)
    sides = query_embeds, gallery_embeds, query_labels, gallery_labels, query_ids, gallery_ids
    return _average_precision(ranked_relevance(*sides, chunk_size), k, normalizer)


@torch.no_grad()
def average_precision_by_relevance(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    relevant: Tensor,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Average precision of each query over the full ranking, where images have several labels at once.

    Args:
        relevant: (Q, G) bool: whether a gallery item is relevant to a query.
        others: as for `average_precision`.

    Returns:
        (Q,) average precision, 0 to 1; NaN where a query has no relevant item.

    Raises:
        ValueError: shapes that do not fit, an embedding that is not finite.
        TypeError: embeddings that are not floating-point, ids that are not integers, `relevant` that is not bool.

        >>> import torch
        >>> gallery = torch.eye(3)
        >>> average_precision_by_relevance(gallery[:1], gallery, torch.tensor([[True, False, True]])).item()
        0.8333333333333333
    """
    query, gallery = unit_length(query_embeds=query_embeds, gallery_embeds=gallery_embeds)
    if relevant.dtype != torch.bool:
        raise TypeError(f"relevant is {relevant.dtype}, but must be bool: (queries, gallery).")
    if relevant.shape != (len(query), len(gallery)):
        raise ValueError(f"relevant has shape {tuple(relevant.shape)}, but must be ({len(query)}, {len(gallery)}).")
    exclusion = Exclusion(query_ids, gallery_ids, len(query), len(gallery), query.device)

    def ranked() -> Iterator[Tensor]:
        for rows in row_blocks(len(query), chunk_size):
            left_out = exclusion.block(rows)
            order = cosine_scores(query[rows], gallery, left_out).sort(dim=1, descending=True, stable=True).indices
            block = relevant[rows] if left_out is None else relevant[rows] & ~left_out
            yield block.gather(1, order)

    return _average_precision(ranked(), None, "relevant")


def _average_precision(blocks: Iterable[Tensor], k: int | None, normalizer: str) -> Tensor:
    """From relevance in ranking order, (C, G) a block, to the average precision of each query."""
    results = []
    for ranked in blocks:
        num_relevant = ranked.sum(1)
        ranked = ranked[:, :k].to(working_dtype(ranked.device))
        hits = ranked.cumsum(1)
        places = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
        precision_sum = (ranked * hits / places).sum(1)
        if normalizer == "hits":
            divisor = ranked.sum(1).clamp(min=1)
        elif normalizer == "min_k_relevant":
            divisor = num_relevant if k is None else num_relevant.clamp(max=k)
        else:
            divisor = num_relevant
        results.append((precision_sum / divisor).masked_fill(num_relevant == 0, torch.nan))
    return torch.cat(results)


@torch.no_grad()
def precision_at_k(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    k: int,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Share of relevant items among the first k places of each query; always divided by k, as trec_eval does.

    Arguments and errors as in `average_precision`. Returns (Q,), 0 to 1; NaN where a query has no relevant item.
    """
    check_k(k)
    results = []
    sides = query_embeds, gallery_embeds, query_labels, gallery_labels, query_ids, gallery_ids
    for ranked in ranked_relevance(*sides, chunk_size):
        precision = ranked[:, :k].sum(1).to(working_dtype(ranked.device)) / k
        results.append(precision.masked_fill(~ranked.any(1), torch.nan))
    return torch.cat(results)


@torch.no_grad()
def first_relevant_rank(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Place of each query's best-ranked relevant item; `recall_at_k` turns it into recall for any number of k.

    Arguments and errors as in `average_precision`. Returns (Q,) int64 from 1; 0 where a query has no relevant item.
    """
    query, gallery = unit_length(query_embeds=query_embeds, gallery_embeds=gallery_embeds)
    relevance = Relevance(query_labels, gallery_labels, query_ids, gallery_ids, (query, gallery))
    if len(gallery) == 0:
        return relevance.query_labels.new_zeros(len(query))
    results = []
    for rows in row_blocks(len(query), chunk_size):
        relevant, left_out = relevance.block(rows)
        block = cosine_scores(query[rows], gallery, left_out)
        # Of several equal maxima argmax gives the first, which is the one that gallery order places first.
        best = block.masked_fill(~relevant, -torch.inf).argmax(1)
        results.append(place_of(block, best).masked_fill(~relevant.any(1), 0))
    return torch.cat(results)


@torch.no_grad()
def target_rank(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    target_indices: Tensor,
    *,
    subset_indices: Tensor | None = None,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Place of each query's one target, in the whole gallery or among the query's own subset of it (CIRR).

    Args:
        query_embeds: (Q, D) floating-point.
        gallery_embeds: (G, D) floating-point.
        target_indices: (Q,) row of the target in `gallery_embeds`.
        subset_indices: (Q, S) rows of the gallery that are ranked for each query, -1 where a subset is shorter.
        query_ids: (Q,) integers; with `gallery_ids`, leaves out the item of that id (the reference image, say).
        gallery_ids: (G,) integers.
        chunk_size: queries ranked at a time.

    Returns:
        (Q,) int64 from 1.

    Raises:
        ValueError: as `average_precision`, and where a target is not in the gallery, not in its subset or left out.

    Example:

        >>> import torch
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
        >>> target_rank(query, gallery, torch.tensor([2])).item()
        3
        >>> target_rank(query, gallery, torch.tensor([2]), subset_indices=torch.tensor([[1, 2]])).item()
        2
    """
    query, gallery = unit_length(query_embeds=query_embeds, gallery_embeds=gallery_embeds)
    targets = check_integers("target_indices", target_indices, len(query), query.device)
    check_rows("target_indices", targets, lowest=0, num_gallery=len(gallery))
    if subset_indices is not None:
        subset_indices = check_integers("subset_indices", subset_indices, len(query), query.device, ndim=2)
        check_rows("subset_indices", subset_indices, lowest=-1, num_gallery=len(gallery))
    exclusion = Exclusion(query_ids, gallery_ids, len(query), len(gallery), query.device)
    results = []
    for rows in row_blocks(len(query), chunk_size):
        left_out = exclusion.block(rows)
        if subset_indices is not None:
            outside = ~membership(subset_indices[rows], len(gallery))
            left_out = outside if left_out is None else outside | left_out
        lost = [] if left_out is None else left_out.gather(1, targets[rows, None])[:, 0].nonzero()
        if len(lost):
            row = rows.start + int(lost[0])
            raise ValueError(
                f"The target of query {row}, gallery item {int(targets[row])}, is not in its ranking: it is not in "
                "the query's subset or carries the query's own id; put it there, or leave the query out."
            )
        results.append(place_of(cosine_scores(query[rows], gallery, left_out), targets[rows]))
    return torch.cat(results)


def recall_at_k(ranks: Tensor, k: int, no_positives: str = "skip") -> float:
    """Share of queries whose target is in the first k places (FashionIQ, CIRR, Fashion200K), 0 to 1.

    Args:
        ranks: (Q,) integers: `target_rank` where a query has one target, `first_relevant_rank` where any item of its
            label will do. 0 stands for a query with no relevant item.
        k: places looked at.
        no_positives: as in `mean_over_queries`.

    Raises:
        ValueError: a k below 1, a negative rank, no queries, an unknown `no_positives`.
        TypeError: ranks that are not integers.

    Example:

        >>> import torch
        >>> recall_at_k(torch.tensor([1, 3, 12, 2]), k=3)
        0.75
    """
    check_k(k)
    ranks = check_integers("ranks", ranks)
    if (ranks < 0).any():
        raise ValueError(f"ranks holds {int(ranks.min())}, but a rank is a place from 1, or 0 for no relevant item.")
    found = (ranks <= k).float().masked_fill(ranks == 0, torch.nan)
    return mean_over_queries(found, no_positives)


def recall_subset_at_k(
    query_embeds: Tensor,
    gallery_embeds: Tensor,
    target_indices: Tensor,
    subset_indices: Tensor,
    k: int,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> float:
    """Share of queries whose target is in the first k places of the query's own subset (CIRR), 0 to 1.

    Arguments and errors as in `target_rank`. CIRR's subset holds the reference image, which is not a candidate: leave
    it out of `subset_indices`, or name it by `query_ids` and `gallery_ids`.
    """
    options = {"query_ids": query_ids, "gallery_ids": gallery_ids, "chunk_size": chunk_size}
    ranks = target_rank(query_embeds, gallery_embeds, target_indices, subset_indices=subset_indices, **options)
    return recall_at_k(ranks, k)


@torch.no_grad()
def triplet_accuracy(anchor: Tensor, positive: Tensor, negative: Tensor) -> float:
    """Share of triplets in which the anchor is strictly more similar to the positive than to the negative, 0 to 1.

    All three are (N, D). Zappos50k is scored so: all triplets of all attributes pooled. Raises ValueError and
    TypeError as `average_precision`, and where the three differ in length or hold no triplet.

        >>> import torch
        >>> anchor, near, far = torch.eye(3)[:1], torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> triplet_accuracy(anchor, near, far), triplet_accuracy(anchor, near, near)
        (1.0, 0.0)
    """
    anchor, positive, negative = unit_length(anchor=anchor, positive=positive, negative=negative)
    lengths = len(anchor), len(positive), len(negative)
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise ValueError(f"anchor, positive and negative hold {lengths} items, but need the same number, at least 1.")
    closer = to_grid((anchor * positive).sum(1)) > to_grid((anchor * negative).sum(1))
    return int(closer.sum()) / len(closer)
