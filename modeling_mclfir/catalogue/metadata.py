# SPDX-License-Identifier: Apache-2.0
"""From the cells of a row to the metadata of an entry."""

import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from ..index.policies import MADE_BY
from ..index.store import Value

_AS_TEXT = (datetime, date, time, Decimal, UUID)


def metadata_of(row: Mapping[str, Any]) -> dict[str, Value]:
    """
    The scalar cells of a row: text, numbers and truth values as they are, dates and decimals as text, the fields of
    a dictionary as `COLUMN.FIELD`. Lists and bytes are left out, and so are None, NaN and infinity: nothing is known.

    Raises:
        ValueError: a column of a name that the index needs itself.
    """
    return dict(_flat(row, ""))


def _flat(row: Mapping[str, Any], before: str) -> Iterator[tuple[str, Value]]:
    for key, cell in row.items():
        name = f"{before}{key}"
        if isinstance(cell, Mapping):
            yield from _flat(cell, f"{name}.")
            continue
        value = _value(cell)
        if value is None or not name:
            continue
        if name == MADE_BY:
            raise ValueError(f"A column is called {MADE_BY!r}, which the index marks its entries with; rename it.")
        yield name, value


def _value(cell: Any) -> Value | None:
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, _AS_TEXT):
        return cell.isoformat() if isinstance(cell, datetime | date | time) else str(cell)
    if isinstance(cell, bool | str):
        return cell
    if isinstance(cell, int):
        return cell if -(2**63) <= cell < 2**63 else str(cell)
    return cell if isinstance(cell, float) and math.isfinite(cell) else None
