# SPDX-License-Identifier: Apache-2.0
"""Rows → Parquet shards: images checked, values counted, memory bounded whatever the number of rows."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .images import BadImage, BadRows, decode_image
from .schema import row_features

# Small groups keep a stream light: a reader holds one at a time. Both limits end a group.
ROWS_PER_GROUP = 100
BYTES_PER_GROUP = 32 * 2**20
BYTES_PER_SHARD = 512 * 2**20


@dataclass
class DatasetSummary:
    """What was written.

    Attributes:
        path: the folder.
        attributes: names, in order.
        counts: split → rows.
        value_counts: attribute → value → rows, over all splits.
        null_counts: attribute → rows without a label.
        shards: file inside the folder → sha256.
        bad_rows: what was skipped.
    """

    path: Path
    attributes: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    value_counts: dict[str, Counter[str]] = field(default_factory=dict)
    null_counts: Counter[str] = field(default_factory=Counter)
    shards: dict[str, str] = field(default_factory=dict)
    bad_rows: BadRows = field(default_factory=BadRows)


def write_shards(
    folder: Path, split: str, groups: Iterator[list[dict]], summary: DatasetSummary, rows_per_shard: int
) -> None:
    """Writes the groups of a split to `folder/split-00000-of-00001.parquet` and on, and notes them in `summary`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The schema carries the features, so that every reader sees images where the file has structs.
    schema = row_features(summary.attributes).arrow_schema
    labels = [f"attributes.{name}" for name in summary.attributes]
    paths: list[Path] = []
    summary.counts[split] = 0
    group = next(groups, [])
    while group:  # a split without rows has no file: `load_dataset` takes an empty one for an error
        paths.append(folder / f"{split}-{len(paths):05d}.parquet")
        rows = size = 0
        # Neither a dictionary nor statistics of the images: both would only hold bytes twice.
        with pq.ParquetWriter(paths[-1], schema, use_dictionary=labels, write_statistics=labels) as writer:
            while group and rows < rows_per_shard and size < BYTES_PER_SHARD:
                part, group = group[: rows_per_shard - rows], group[rows_per_shard - rows :]
                writer.write_batch(pa.RecordBatch.from_pylist(part, schema=schema))
                rows += len(part)
                size += sum(len(row["image"]["bytes"] or b"") for row in part)
                group = group or next(groups, [])
        summary.counts[split] += rows
    for i, path in enumerate(paths):  # how many there are is only known now
        final = path.rename(path.with_name(f"{split}-{i:05d}-of-{len(paths):05d}.parquet"))
        summary.shards[f"{folder.name}/{final.name}"] = _sha256(final)
        flush(final)


def checked_groups(
    rows: Iterable[Mapping[str, Any]], split: str, summary: DatasetSummary, check_images: bool
) -> Iterator[list[dict]]:
    """Groups of rows ready to be written: images as bytes, bad ones counted and left out, values counted."""
    iterator, seen = iter(rows), 0
    group: list[dict] = []
    size = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(iterator, ROWS_PER_GROUP)):
            cells = [_image_cell(row.get("image"), f"{split} row {seen + i}") for i, row in enumerate(chunk)]
            seen += len(chunk)
            causes = pool.map(_cause, cells) if check_images else [None] * len(cells)
            for row, cell, cause in zip(chunk, cells, causes, strict=True):
                if cause is not None:
                    summary.bad_rows.add(cause, cell["path"])
                    continue
                group.append(_row(row, cell, summary))
                size += len(cell["bytes"] or b"")
                if len(group) == ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
                    yield group
                    group, size = [], 0
    if group:
        yield group


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _image_cell(image: Any, where: str) -> dict[str, Any]:
    """The image as {"bytes", "path"}; the path is its name, or the place of the row where it has none."""
    if isinstance(image, Mapping):
        data, path = image.get("bytes"), image.get("path")
        if data is None and path is not None:
            return _image_cell(path, where)
        return {"bytes": None if data is None else bytes(data), "path": path or where}
    if isinstance(image, bytes | bytearray | memoryview):
        return {"bytes": bytes(image), "path": where}
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        # Only the name is kept: where the file lay on this machine is nobody's business.
        return {"bytes": path.read_bytes() if path.is_file() else None, "path": path.name}
    if image is None:
        return {"bytes": None, "path": where}
    if not hasattr(image, "save"):
        raise TypeError(
            f"{where}: an image of type {type(image).__name__} is given; expected the bytes or the path of a file, "
            "a dict with 'bytes' and 'path', or a PIL image"
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": where}


def _cause(cell: Mapping[str, Any]) -> str | None:
    """Why the image cannot be used; None where it can."""
    try:
        decode_image({"bytes": cell["bytes"]})
    except BadImage as error:
        return error.cause
    return None


def _row(row: Mapping[str, Any], cell: dict[str, Any], summary: DatasetSummary) -> dict[str, Any]:
    """The row as it is written; its values are counted."""
    given = row.get("attributes") or {}
    extra = [name for name in given if name not in summary.value_counts]
    if extra:
        raise ValueError(
            f"{cell['path']}: unknown attributes {', '.join(map(repr, extra))}; known: {', '.join(summary.attributes)}"
        )
    labels = {name: given.get(name) for name in summary.attributes}
    texts = {name: row.get(name) for name in ("caption", "product_id")}
    for name, value in {**texts, **labels}.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{cell['path']}: {name} is {value!r}; expected a string or None")
    for name, value in labels.items():
        if value is None:
            summary.null_counts[name] += 1
        else:
            summary.value_counts[name][value] += 1
    return {"image": cell, **texts, **({"attributes": labels} if labels else {})}
