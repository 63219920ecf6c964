# SPDX-License-Identifier: Apache-2.0
"""The contract of a vector store: entries (id, vector, metadata) that are searched by inner product."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Value = str | int | float | bool
# Column → a value, or any of several; all columns must hold.
Filter = Mapping[str, Value | Sequence[Value]]


@dataclass(frozen=True)
class SearchResult:
    """
    Attributes:
        ids: of each query, best first; fewer than k where fewer entries match.
        scores: of each query float32, as many as ids: inner products, descending.
    """

    ids: list[list[str]]
    scores: list[np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Entries:
    """
    Attributes:
        ids: n names.
        embeds: float32 (n, D).
        metadata: n dictionaries, without the columns that are None.
    """

    ids: list[str]
    embeds: np.ndarray = field(repr=False)
    metadata: list[dict[str, Value]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


class VectorStore(ABC):
    """
    Entries of an id, a vector and metadata. It knows nothing of models: what a vector means is its user's business.

    A column of metadata may hold text, numbers and truth values side by side. None is the same as no value, and no
    filter finds it. In a filter, text equals the same text only, True and False themselves only, and numbers compare
    by value, whole or not.

    What `add` and `remove` have done when they return is durable, and any call that starts later sees it, in this
    process at once; a backend says when other processes do.

    Attributes:
        dim: D, of every vector.
    """

    dim: int

    @abstractmethod
    def add(self, ids: Sequence[str], embeds: np.ndarray, metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """
        Add entries; one with an id that is there already takes the old one's place, vector and metadata.

        Args:
            ids: n different names, not empty.
            embeds: (n, D), finite; kept as float32.
            metadata: n mappings of column → str, int, float, bool or None; default: none.

        Raises:
            ValueError: other shapes, a vector that is not finite, an id given twice or not a text, metadata of
                another type.
        """

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> int:
        """Remove entries → how many of them were there. ValueError: an id given twice, or not a text."""

    @abstractmethod
    def search(
        self, embeds: np.ndarray, k: int, filter: Filter | None = None, exclude: Sequence[str] = ()
    ) -> SearchResult:
        """
        The k entries of the largest inner product with each query.

        Args:
            embeds: queries (N, D), finite.
            k: at least 1; it may be more than there are entries.
            filter: only entries of these values; default: all.
            exclude: ids never to be found, the query's own say; unknown ones do no harm.

        Raises:
            ValueError: another shape, a query that is not finite, k below 1, a filter that is none.
        """

    @abstractmethod
    def get(self, ids: Sequence[str]) -> Entries:
        """The entries of these ids, in this order. KeyError names those that are not there."""

    @abstractmethod
    def has(self, ids: Sequence[str]) -> list[bool]:
        """Of each id whether it is there, without a look at vectors and metadata."""

    @abstractmethod
    def scroll(self, batch_size: int = 1000, filter: Filter | None = None) -> Iterator[Entries]:
        """Every entry once, in batches of up to `batch_size`. ValueError: a size below 1, a filter that is none."""

    @abstractmethod
    def scroll_ids(self, batch_size: int = 10_000, filter: Filter | None = None) -> Iterator[list[str]]:
        """The ids of `scroll`, without vectors and metadata."""

    @abstractmethod
    def count(self, filter: Filter | None = None) -> int:
        """How many entries there are, or match."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write everything as a folder of its own, which `load` opens. ValueError where it holds something else."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path) -> "VectorStore":
        """Open what `save` wrote. FileNotFoundError where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files, connections and memory; the store is of no use afterwards. Twice does no harm."""

    def __enter__(self) -> "VectorStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def checked_number(name: str, value: Any) -> int:
    """A number of results, entries or dimensions. ValueError: not whole, or below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
    return int(value)


def checked_ids(ids: Sequence[str], unique: bool = True) -> list[str]:
    """Ids as a list. ValueError: not a text, empty, not to be written as UTF-8, or, where `unique`, given twice."""
    if isinstance(ids, str):
        raise ValueError(f"ids must be a sequence of texts; got one text, {ids!r}. Write [{ids!r}].")
    ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    for name in ids:
        if not isinstance(name, str) or not name:
            raise ValueError(f"An id must be a text that is not empty; got {name!r}.")
    if unique and len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))
        raise ValueError(f"Ids must differ within a call; {twice!r} was given twice.")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"Ids must be valid Unicode texts: {error}.") from None
    return ids


def checked_embeds(embeds: np.ndarray, dim: int, rows: int | None = None) -> np.ndarray:
    """Vectors as contiguous float32 (rows, dim). ValueError: another shape, values that are not finite numbers."""
    try:
        vectors = np.ascontiguousarray(embeds, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected embeds of numbers, ({'N' if rows is None else rows}, {dim}): {error}") from None
    if vectors.ndim != 2 or vectors.shape[1] != dim or rows not in (None, len(vectors)):
        raise ValueError(f"Expected embeds ({'N' if rows is None else rows}, {dim}); got {np.shape(embeds)}.")
    # The sum of squares is not finite where a value is not; it may also overflow, so that only then every value is
    # looked at. Of what NumPy has it is the quickest sum.
    if not math.isfinite(np.vdot(vectors, vectors)):
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise ValueError(f"Vectors must be finite; row {int(np.flatnonzero(~finite)[0])} of embeds is not.")
    return vectors


def checked_metadata(metadata: Sequence[Mapping[str, Any]] | None, rows: int) -> list[dict[str, Value]]:
    """
    Metadata as dictionaries of plain values, without those that are None; NumPy's scalars become Python's.

    Raises:
        ValueError: another number of mappings, a column that is no text, a value of another type, a number that is
            not finite or has more than 64 bits.
    """
    if metadata is None:
        return [{} for _ in range(rows)]
    if len(metadata) != rows:
        raise ValueError(f"Expected metadata of {rows} entries, one an id; got {len(metadata)}.")
    return [
        {_checked_column(name): _checked_value(name, value) for name, value in entry.items() if value is not None}
        for entry in metadata
    ]


def checked_filter(filter: Filter | None) -> dict[str, tuple[Value, ...]]:
    """
    A filter as column → values, any of which will do; {}: no filter. An empty sequence of values matches nothing.

    Raises:
        ValueError: no mapping, a column that is no text, a value of another type than str, int, float, bool.
    """
    if filter is None:
        return {}
    if not isinstance(filter, Mapping):
        raise ValueError(f"A filter maps columns to values; got {filter!r}.")
    found = {}
    for name, values in filter.items():
        if isinstance(values, (str, int, float, bool, np.generic)) or values is None:
            values = (values,)
        elif isinstance(values, Mapping) or not isinstance(values, (Sequence, set, frozenset, np.ndarray)):
            raise ValueError(f"A filter of {name!r} must be a value or a sequence of them; got {values!r}.")
        found[_checked_column(name)] = tuple(_checked_value(name, value) for value in values)
    return found


def matches(values: Mapping[str, Sequence[Value]], metadata: Mapping[str, Value]) -> bool:
    """Whether an entry passes a filter of `checked_filter`: the slow definition that every backend must meet."""
    return all(
        any(_kind(metadata.get(name)) == _kind(value) and metadata[name] == value for value in wanted)
        for name, wanted in values.items()
    )


def _kind(value: Value | None) -> str:
    """text, bool, number or none: values of different kinds are never equal (in Python True is 1)."""
    if isinstance(value, bool):
        return "bool"
    return "text" if isinstance(value, str) else "none" if value is None else "number"


def _checked_column(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"A column of metadata is named by a text that is not empty; got {name!r}.")
    return name


def _checked_value(name: str, value: Any) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (str, int, float)):  # a bool is an int
        raise ValueError(f"{name!r} must be a str, int, float or bool; got {value!r} ({type(value).__name__}).")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name!r} must be finite; got {value}. Leave the column out where nothing is known.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name!r} must fit 64 bits; got {value}. Write it as a text.")
    return value + 0.0 if isinstance(value, float) else value  # -0.0 becomes 0.0: they are equal
