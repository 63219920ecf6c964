# SPDX-License-Identifier: Apache-2.0
"""Filters as users write them: `line` where the catalogue has `attributes.line`, and columns that no item has."""

from collections.abc import Sequence
from itertools import islice

from ..index.store import Filter, Value, VectorStore, checked_filter
from .versions import MARKS

PREFIX = "attributes."  # of the labels of a photo, in data sets of data_scripts
_BATCH, _MOST_BATCHES = 1000, 10
_MOST_NAMED = 20


def resolved(store: VectorStore, where: Filter, known: dict[str, str]) -> dict[str, tuple[Value, ...]]:
    """
    A filter with its columns as a store has them: as they are written where it does, else with `attributes.` before
    them. What a column is, the first 10,000 items say; one that they lack is looked for by the values that are wanted.

    Args:
        known: column as it is written (and values, where it was found by them) → as the store has it, of earlier
            calls; what is found out is added.

    Raises:
        ValueError: a filter that is none, a column that is named twice; a column that no item has, or, of more than
            10,000 items, that none of these has, nor any item with one of the values.
    """
    found: dict[str, tuple[Value, ...]] = {}
    for name, values in checked_filter(where).items():
        by_values = f"{name}={values!r}"
        column = known.get(name) or known.get(by_values)
        if column is None:
            column, is_sure = _column(store, name, values)
            if is_sure is not None:
                known[name if is_sure else by_values] = column
        if column in found:
            raise ValueError(f"{name!r} and {column!r} are the same column; name it once.")
        found[column] = values
    return found


def _column(store: VectorStore, name: str, values: Sequence[Value]) -> tuple[str, bool | None]:
    """The column, and whether it is the same for all values; None: the store is empty, nothing is known yet."""
    choices, seen, num_seen = (name, PREFIX + name), set(), 0
    for entries in islice(store.scroll(_BATCH), _MOST_BATCHES):
        seen.update(*entries.metadata)
        num_seen += len(entries)
        if seen & set(choices):
            break
    if name in seen or not num_seen:
        return name, True if num_seen else None
    num_items = store.count()
    for choice in choices if num_seen < num_items else ():
        if store.count({choice: values}):
            return choice, False
    if choices[1] in seen:
        return choices[1], num_seen >= num_items
    columns = sorted(seen - set(MARKS))
    more = f" and {len(columns) - _MOST_NAMED} more" if len(columns) > _MOST_NAMED else ""
    there = f"{', '.join(columns[:_MOST_NAMED]) or 'none'}{more}"
    if num_seen >= num_items:
        raise ValueError(f"No item of the catalogue has a column {name!r}; they have: {there}.")
    raise ValueError(
        f"No item of the catalogue has {name}={' or '.join(map(str, values))}, and none of the {num_seen:,} whose "
        f"columns were looked at has a column {name!r}; they have: {there}."
    )
