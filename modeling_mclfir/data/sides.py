# SPDX-License-Identifier: Apache-2.0
"""Who is searched for among whom: the two sides of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .table import ImageTable


def search_sides(tables: Mapping[str, ImageTable], evaluate_on: str) -> tuple[ImageTable, ImageTable]:
    """The queries and the gallery; one and the same table where each image is searched for among the others.

    "query": the split query against the split gallery; against itself the gallery, where there are no queries (in sets
    for composed or text-image retrieval). "val": the split against itself; where its rows name galleries, those that
    are in none against the others (ASEN's lists).

    Raises:
        ValueError: another `evaluate_on`.
    """
    if evaluate_on not in ("query", "val"):
        raise ValueError(f"evaluate_on must be 'query' or 'val'; got {evaluate_on!r}.")
    if evaluate_on == "query":
        queries, gallery = tables["query"], tables["gallery"]
        return (queries, gallery) if len(queries) or not len(gallery) else (gallery, gallery)
    val = tables["val"]
    asked = np.array([not names for names in val.galleries or ()], dtype=bool)
    if not asked.any() or asked.all():
        return val, val
    return val.select(np.flatnonzero(asked)), val.select(np.flatnonzero(~asked))
