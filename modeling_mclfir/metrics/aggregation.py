"""From numbers a query to one number: means over queries and over attributes."""

from collections.abc import Mapping

import torch
from torch import Tensor

NO_POSITIVES = ("skip", "zero")


def mean_over_queries(values: Tensor, no_positives: str = "skip") -> float:
    """Mean of numbers a query, where NaN stands for a query with no relevant item.

    Args:
        values: (Q,) floating-point.
        no_positives: `"skip"` leaves such queries out (NaN if none is left), `"zero"` counts them as 0.

    Raises:
        ValueError: no queries at all, or an unknown `no_positives`.
    """
    if no_positives not in NO_POSITIVES:
        raise ValueError(
            f"no_positives is {no_positives!r}, but must be 'skip' (leave queries without a relevant item out of the "
            "mean) or 'zero' (count them as 0)."
        )
    values = torch.as_tensor(values).detach().cpu().double()
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"The values have shape {tuple(values.shape)}, but must be (number of queries,) with at least one query."
        )
    return float(values.nanmean() if no_positives == "skip" else values.nan_to_num(nan=0.0).mean())


def mean_average_precision(average_precisions: Tensor, no_positives: str = "skip") -> float:
    """Mean of `average_precision` over queries, 0 to 1.

    Arguments and errors as in `mean_over_queries`.

        >>> import torch
        >>> mean_average_precision(torch.tensor([0.5, 1.0, torch.nan]))
        0.75
        >>> mean_average_precision(torch.tensor([0.5, 1.0, torch.nan]), no_positives="zero")
        0.5
    """
    return mean_over_queries(average_precisions, no_positives)


def aggregate_attributes(
    per_attribute: Mapping[str, Tensor], no_positives: str = "skip"
) -> dict[str, float | int | dict[str, float]]:
    """Both means over attributes, from numbers a query for each attribute.

    The unweighted mean over attributes is this project's headline; the query-weighted one is what ASEN, AG-MAN and
    MCL-FIR report. With `"skip"` an attribute none of whose queries has a relevant item is NaN and counts in neither.

    Args:
        per_attribute: attribute to (Q,) floating-point values, NaN where a query has no relevant item: average
            precision, or its baselines `label_prior` and `expected_average_precision`.
        no_positives: as in `mean_over_queries`.

    Returns:
        `mean_over_attributes`, `mean_over_queries` (0 to 1), `per_attribute` (attribute to mean), `num_queries` and
        `num_without_positives`.

    Raises:
        ValueError: no attributes, an attribute without queries, an unknown `no_positives`.

    Example:

        >>> import torch
        >>> values = {"sleeve": torch.tensor([0.2, 0.4, 0.6]), "neck": torch.tensor([1.0])}
        >>> result = aggregate_attributes(values)
        >>> round(result["mean_over_attributes"], 3), round(result["mean_over_queries"], 3)
        (0.7, 0.55)
    """
    if not per_attribute:
        raise ValueError("per_attribute is empty, but needs at least one attribute with its values a query.")
    means = {}
    for attribute, values in per_attribute.items():
        try:
            means[attribute] = mean_over_queries(values, no_positives)
        except ValueError as error:
            raise ValueError(f"Attribute {attribute!r}: {error}") from error
    pooled = torch.cat([torch.as_tensor(values).detach().cpu().double() for values in per_attribute.values()])
    return {
        "mean_over_attributes": mean_over_queries(torch.tensor(list(means.values())), no_positives),
        "mean_over_queries": mean_over_queries(pooled, no_positives),
        "per_attribute": means,
        "num_queries": len(pooled),
        "num_without_positives": int(pooled.isnan().sum()),
    }
