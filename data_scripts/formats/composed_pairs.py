# SPDX-License-Identifier: Apache-2.0
"""Pairs of composed retrieval as the data sets share them: a reference image, a text, a target; and their table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_scripts.formats.text_files import read_json
from modeling_mclfir.data.annotations import Again, Table
from modeling_mclfir.data.schema import COMPOSED, table_features


class Pair(NamedTuple):
    """One row of the table; the fields are the columns of `COMPOSED` in `schema`, None where a data set has none."""

    query_id: str
    reference: str
    target: str | None
    modification_texts: Sequence[str]
    gallery: str
    subset: Sequence[str] | None = None
    soft_targets: Sequence[str] | None = None
    soft_scores: Sequence[float] | None = None
    wanted: Sequence[str] | None = None
    hit: str = "target"


def composed_table(splits: Mapping[str, Sequence[Pair]]) -> Table:
    """The table of the pairs of each split."""
    return Table(table_features(COMPOSED), {split: Again(_rows, pairs) for split, pairs in splits.items()})


def count_blank(pairs: Sequence[Pair]) -> int:
    """Number of modification texts without a word."""
    return sum(not text for pair in pairs for text in pair.modification_texts)


def read_json_of(path: Path, kind: type[list] | type[dict]) -> Any:
    """The content of a JSON file that must be a list, or an object.

    Raises:
        ValueError: it is not JSON, or of another kind.
    """
    content = read_json(path)
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "an object"
        raise ValueError(f"{path} holds {type(content).__name__}; expected {expected}. Obtain the file anew")
    return content


def _rows(pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        yield pair._asdict()
