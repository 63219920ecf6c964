# SPDX-License-Identifier: Apache-2.0
"""From plain data to a source."""

from collections.abc import Mapping
from typing import Any

from .sources import FolderSource, Source


def open_source(description: Mapping[str, Any]) -> Source:
    """
    The source that described itself so.

    Raises:
        FileNotFoundError: it is not where it was.
        ValueError: another kind of description.
    """
    settings = {key: value for key, value in description.items() if key != "kind"}
    kind = description.get("kind")
    if kind == "folder":
        return FolderSource(**settings)
    if kind == "parquet":
        from .parquet_source import ParquetSource

        return ParquetSource(**settings)
    if kind == "stream":
        from .stream_source import StreamSource

        return StreamSource(**settings)
    raise ValueError(f"There is no kind of source {kind!r}; expected folder, parquet or stream.")
