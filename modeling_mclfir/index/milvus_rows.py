# SPDX-License-Identifier: Apache-2.0
"""How entries and filters are written in Milvus: rows, and expressions into which nothing can be smuggled."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from .store import Value

ID, VECTOR, METADATA, TAGS = "id", "vector", "metadata", "tags"
# Bytes, by Milvus: of an id as written here, of the metadata of an entry.
MAX_ID, _MAX_METADATA = 4096, 65_536
MAX_COLUMNS = 4096
_LONGEST_TAG = 200
# With letters, digits and -._~ these need no escape in a text of an expression.
_SAFE = "/: @"


def encoded_id(name: str) -> str:
    """An id in signs that need no escape: other ones as %XX of UTF-8."""
    return quote(name, safe=_SAFE)


def decoded_id(key: str) -> str:
    """What `encoded_id` was given."""
    return unquote(key)


def tag(column: str, value: Value) -> str:
    """
    A value of a column as one text. Two are the same where the values are equal as the contract says: text and truth
    values only to their own kind, numbers by value. A long one is a digest.
    """
    if isinstance(value, bool):
        written = f"b={value}"
    elif isinstance(value, str):
        written = f"t={quote(value, safe=_SAFE)}"
    else:
        whole = isinstance(value, int) or value.is_integer()
        written = f"n={int(value) if whole else repr(value)}"
    found = f"{quote(column, safe=_SAFE)}={written}"
    return found if len(found) <= _LONGEST_TAG else f"#{blake2b(found.encode(), digest_size=32).hexdigest()}"


def in_list(field: str, texts: Iterable[str]) -> str:
    """`field in [...]` of texts without quotes and backslashes, which are `encoded_id`'s and `tag`'s."""
    return f"{field} in [{_listed(texts)}]"


def expression(values: Mapping[str, Sequence[Value]]) -> str | None:
    """A filter of `checked_filter` as Milvus's expression; "": all entries; None: none can match."""
    if not all(values.values()):
        return None
    wanted = (list(dict.fromkeys(tag(column, value) for value in several)) for column, several in values.items())
    return " and ".join(
        f'array_contains({TAGS}, "{tags[0]}")' if len(tags) == 1 else f"array_contains_any({TAGS}, [{_listed(tags)}])"
        for tags in wanted
    )


def rows_of(ids: Sequence[str], vectors: np.ndarray, metadata: Sequence[Mapping[str, Value]]) -> list[dict[str, Any]]:
    """
    Entries as rows of Milvus.

    Raises:
        ValueError: an id, a metadata or a number of columns that is too long for Milvus.
    """
    rows = []
    for name, vector, columns in zip(ids, vectors, metadata, strict=True):
        key, tags = encoded_id(name), [tag(column, value) for column, value in columns.items()]
        size = len(json.dumps(columns, ensure_ascii=False).encode(errors="surrogatepass"))
        if len(key) > MAX_ID:
            raise ValueError(f"An id takes at most {MAX_ID} bytes in Milvus; {name[:50]!r}... takes {len(key)}.")
        if size > _MAX_METADATA or len(tags) > MAX_COLUMNS:
            raise ValueError(
                f"The metadata of {name!r} takes {size} bytes in {len(tags)} columns; Milvus takes {_MAX_METADATA} "
                f"bytes in {MAX_COLUMNS} columns at most. Keep long texts elsewhere, by the id."
            )
        rows.append({ID: key, VECTOR: vector, METADATA: dict(columns), TAGS: tags})
    return rows


def chunks(rows: Sequence[dict[str, Any]], max_rows: int, max_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in parts of bounded number and size; a row alone may be larger."""
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        row_size = len(row[ID]) + row[VECTOR].nbytes + sum(map(len, row[TAGS])) + len(json.dumps(row[METADATA]))
        if part and (len(part) == max_rows or size + row_size > max_bytes):
            yield part
            part, size = [], 0
        part.append(row)
        size += row_size
    if part:
        yield part


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)
