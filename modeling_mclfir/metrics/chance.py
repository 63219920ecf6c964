"""What a ranking without any knowledge scores: the figures to print beside an average precision or a recall."""

import torch
from torch import Tensor

from .ranking import Relevance, check_integers, check_k, row_blocks


@torch.no_grad()
def count_relevant(
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """Number of relevant items and of all items in each query's ranking, less those left out by their id.

    Labels and ids as in `average_precision`, (Q,) and (G,). Returns two (Q,) int64 tensors.
    """
    relevance = Relevance(query_labels, gallery_labels, query_ids, gallery_ids)
    num_relevant, num_gallery = [], []
    for rows in row_blocks(len(relevance.query_labels), chunk_size):
        relevant, left_out = relevance.block(rows)
        num_relevant.append(relevant.sum(1))
        in_ranking = torch.ones_like(relevant) if left_out is None else ~left_out
        num_gallery.append(in_ranking.sum(1))
    return torch.cat(num_relevant), torch.cat(num_gallery)


def label_prior(
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    query_ids: Tensor | None = None,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Share of relevant items in each query's ranking: the expected precision at any place of a random ranking.

    Papers print it as "random", but a random ranking's average precision is a little higher:
    `expected_average_precision`. Labels and ids as in `average_precision`.

    Returns (Q,) float64 on the CPU, 0 to 1; NaN where a query has no relevant item, so that `mean_over_queries` treats
    it as it treats the average precision.

        >>> import torch
        >>> label_prior(torch.tensor([0, 1]), torch.tensor([0, 0, 0, 1])).tolist()
        [0.75, 0.25]
    """
    options = {"query_ids": query_ids, "gallery_ids": gallery_ids, "chunk_size": chunk_size}
    num_relevant, num_gallery = count_relevant(query_labels, gallery_labels, **options)
    prior = num_relevant.cpu().double() / num_gallery.cpu()
    return prior.masked_fill(num_relevant.cpu() == 0, torch.nan)


def expected_average_precision(num_relevant: Tensor, num_gallery: Tensor) -> Tensor:
    """Exact expected average precision of a uniformly random full ranking.

    With R relevant among N items, place i is a hit with probability R/N, and a hit at i has (i-1)(R-1)/(N-1) hits
    before it on average, so

        E[AP] = 1/N * sum_{i=1..N} (1 + (i-1) (R-1)/(N-1)) / i = (H + (N - H) (R-1)/(N-1)) / N,  H = sum_{i=1..N} 1/i,

    and 1 for N = R = 1.

    Args:
        num_relevant: (Q,) integers, R of each query; see `count_relevant`, which also serves leave-one-out.
        num_gallery: (Q,) integers, N of each query.

    Returns:
        (Q,) float64 on the CPU, 0 to 1; NaN where a query has no relevant item.

    Raises:
        ValueError: shapes that differ, a negative number, more relevant items than items.
        TypeError: numbers that are not integers.

    Example, one relevant item of two, so places 1 and 2 with equal chance:

        >>> import torch
        >>> expected_average_precision(torch.tensor([1]), torch.tensor([2])).item()
        0.75
    """
    num_relevant, num_gallery = _checked_counts(num_relevant, num_gallery)
    most = int(num_gallery.max()) if len(num_gallery) else 0
    harmonic = torch.cat([torch.zeros(1).double(), (1 / torch.arange(1, most + 1).double()).cumsum(0)])[num_gallery]
    # N = 1 leaves R - 1 = 0 above the line; the clamp below it only avoids 0 / 0.
    others = (num_relevant - 1) / (num_gallery - 1).clamp(min=1).double()
    expected = (harmonic + (num_gallery - harmonic) * others) / num_gallery
    return expected.masked_fill(num_relevant == 0, torch.nan)


def expected_recall_at_k(num_relevant: Tensor, num_gallery: Tensor, k: int) -> Tensor:
    """Exact chance that one of a query's relevant items is among the first k of a uniformly random ranking.

    With R relevant among N items the k places hold none of them in C(N-R, k) of C(N, k) cases, so

        P = 1 - prod_{i=0..k-1} (N - R - i) / (N - i),  and 1 where N - R < k.

    Args:
        num_relevant: (Q,) integers, R of each query.
        num_gallery: (Q,) integers, N of each query.
        k: places looked at, at least 1.

    Returns:
        (Q,) float64 on the CPU, 0 to 1; NaN where a query has no relevant item.

    Raises:
        ValueError: as `expected_average_precision`; a k below 1.
        TypeError: numbers that are not integers.

    Example, one of four is relevant, two places:

        >>> import torch
        >>> expected_recall_at_k(torch.tensor([1]), torch.tensor([4]), 2).item()
        0.5
    """
    check_k(k)
    num_relevant, num_gallery = _checked_counts(num_relevant, num_gallery)
    others, missed = (num_gallery - num_relevant).double(), torch.ones(len(num_gallery)).double()
    for i in range(min(k, int(num_gallery.max()) if len(num_gallery) else 0)):
        missed *= (others - i).clamp(min=0) / (num_gallery - i).clamp(min=1)
    return (1 - missed).masked_fill(num_relevant == 0, torch.nan)


def _checked_counts(num_relevant: Tensor, num_gallery: Tensor) -> tuple[Tensor, Tensor]:
    num_relevant = check_integers("num_relevant", num_relevant, device=torch.device("cpu"))
    num_gallery = check_integers("num_gallery", num_gallery, len(num_relevant), torch.device("cpu"))
    wrong = ((num_relevant < 0) | (num_relevant > num_gallery)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"Query {row} has {int(num_relevant[row])} relevant items of {int(num_gallery[row])}, but must have from "
            "0 to all of them; take both numbers from `count_relevant`."
        )
    return num_relevant, num_gallery
