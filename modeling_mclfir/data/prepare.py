"""Writes a data set: Parquet shards that `load_dataset` reads, increments.json and the card, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from modeling_mclfir.data.card import dataset_card
from modeling_mclfir.data.images import BadImage, BadRows, decode_image
from modeling_mclfir.data.increments import increments_keys, load_increments, read_increments_json
from modeling_mclfir.data.schema import SPLITS, row_features

# Small groups keep a stream light: a reader holds one at a time. Both limits end a group.
ROWS_PER_GROUP = 100
BYTES_PER_GROUP = 32 * 2**20
BYTES_PER_SHARD = 512 * 2**20


@dataclass
class DatasetSummary:
    """What was written.

    Attributes:
        path: the folder.
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


def write_dataset(
    output_dir: str | os.PathLike,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    attributes: Sequence[str],
    increments: Any,
    *,
    name: str,
    licence: str,
    citation: str = "",
    description: str = "",
    rows_per_shard: int = 10_000,
    max_bad_fraction: float = 0.01,
    check_images: bool = True,
    num_rows: Mapping[str, int] | None = None,
    bad_rows: BadRows | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DatasetSummary:
    """Writes `output_dir/{data/*.parquet, increments.json, README.md}`; memory does not grow with the rows.

    Everything goes to a hidden folder beside `output_dir` first, is flushed, and gets its name last: a folder of that
    name is always whole. Equal rows give equal bytes.

    Args:
        output_dir: where to; must not exist, or be empty, unless `overwrite`.
        splits: split → rows `{"image", "attributes", "caption", "product_id"}`. An image is the bytes of a file, its
            path, `{"bytes", "path"}`, or a PIL image (kept as PNG); bytes are kept as they are.
        attributes: names, in order; a row that lacks one has no label for it.
        increments: path or content of an increments.json, kept whole.
        name: of the data set, in the card.
        licence: an SPDX-like id ("apache-2.0") or words.
        citation: BibTeX or words, in the card.
        description: a paragraph, in the card.
        rows_per_shard: rows a Parquet file.
        max_bad_fraction: a larger share of bad rows stops the run with the list.
        check_images: decode every image; those that fail are bad rows. Else only read them.
        num_rows: split → expected rows, for the progress bar.
        bad_rows: counter to go on with (the reader's).
        overwrite: replace a data set that was written before.
        progress: show progress bars on a terminal.

    Raises:
        FileExistsError: `output_dir` holds something and `overwrite` is False, or holds something else than a data set.
        ValueError: unknown splits or attributes, wrong increments, no rows at all, or too many bad rows.
    """
    output = Path(output_dir)
    _check_output(output, overwrite)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"unknown splits {', '.join(map(repr, unknown))}; expected some of {', '.join(SPLITS)}")
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}; expected 1 or more")
    content = read_increments_json(increments)
    for key in increments_keys(content) if content else ():
        load_increments(content, attributes, key=key)

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f".{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    summary = DatasetSummary(output, tuple(attributes), bad_rows=BadRows() if bad_rows is None else bad_rows)
    summary.value_counts = {attribute: Counter() for attribute in attributes}
    try:
        (partial / "data").mkdir(parents=True)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for split in SPLITS:
                rows = _progress(splits.get(split, ()), split, (num_rows or {}).get(split), progress)
                groups = _checked_groups(rows, split, summary, pool if check_images else None)
                _write_split(partial, split, groups, summary, rows_per_shard)
        written = sum(summary.counts.values())
        summary.bad_rows.check(written + summary.bad_rows.total, max_bad_fraction)
        if not written:
            raise ValueError(f"no rows at all for {output}; expected rows in at least one of {', '.join(SPLITS)}")
        _write_text(partial / "increments.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        card = dataset_card(summary, content, name=name, licence=licence, citation=citation, description=description)
        _write_text(partial / "README.md", card)
        _put_in_place(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return summary


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists and is not empty; give another folder, or --overwrite")
    if not (output.is_dir() and (output / "data").is_dir() and {p.name for p in output.iterdir()} <= _FILES):
        raise FileExistsError(
            f"{output} is not a data set written before (expected only {', '.join(sorted(_FILES))}): "
            "it is not overwritten. Give another folder, or remove it yourself."
        )


_FILES = {"data", "increments.json", "README.md"}


def _progress(rows: Iterable, split: str, total: int | None, show: bool) -> Iterable:
    from tqdm import tqdm

    # None: only where the standard error is a terminal.
    return tqdm(rows, desc=split, total=total, unit="row", disable=None if show else True)


def _checked_groups(
    rows: Iterable[Mapping[str, Any]], split: str, summary: DatasetSummary, pool: ThreadPoolExecutor | None
) -> Iterator[list[dict]]:
    """Groups of rows ready to be written: images as bytes, bad ones counted and left out, values counted."""
    iterator, seen = iter(rows), 0
    group: list[dict] = []
    size = 0
    while chunk := list(islice(iterator, ROWS_PER_GROUP)):
        cells = [_image_cell(row.get("image"), f"{split} row {seen + i}") for i, row in enumerate(chunk)]
        seen += len(chunk)
        causes = map(_cause, cells) if pool is None else pool.map(_check, cells)
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
    return {"bytes": _png(image), "path": where}


def _png(image: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _cause(cell: Mapping[str, Any]) -> str | None:
    return None


def _check(cell: Mapping[str, Any]) -> str | None:
    if cell["bytes"] is None:
        return "missing"
    try:
        decode_image(cell["bytes"])
    except BadImage as error:
        return error.cause
    return None


def _row(row: Mapping[str, Any], cell: dict[str, Any], summary: DatasetSummary) -> dict[str, Any]:
    given = row.get("attributes") or {}
    extra = [name for name in given if name not in summary.value_counts]
    if extra:
        raise ValueError(
            f"{cell['path']}: unknown attributes {', '.join(map(repr, extra))}; known: {', '.join(summary.attributes)}"
        )
    labels = {name: given.get(name) for name in summary.attributes}
    for name, value in labels.items():
        if value is None:
            summary.null_counts[name] += 1
        elif isinstance(value, str):
            summary.value_counts[name][value] += 1
        else:
            raise TypeError(f"{cell['path']}: {name} is {value!r}; expected a string or None")
    result = {"image": cell, "caption": row.get("caption"), "product_id": row.get("product_id")}
    return {**result, "attributes": labels} if labels else result


def _write_split(
    folder: Path, split: str, groups: Iterator[list[dict]], summary: DatasetSummary, rows_per_shard: int
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The schema carries the features, so that every reader sees images where the file has structs.
    schema = row_features(summary.attributes).arrow_schema
    labels = [f"attributes.{name}" for name in summary.attributes]
    shards: list[Path] = []
    summary.counts[split] = 0
    group = next(groups, [])
    while group or not shards:  # a split without rows is a file without rows
        path = folder / "data" / f"{split}-{len(shards):05d}.parquet"
        shards.append(path)
        rows = size = 0
        with pq.ParquetWriter(path, schema, use_dictionary=labels, write_statistics=labels) as writer:
            while group and rows < rows_per_shard and size < BYTES_PER_SHARD:
                part, group = group[: rows_per_shard - rows], group[rows_per_shard - rows :]
                writer.write_batch(pa.RecordBatch.from_pylist(part, schema=schema))
                rows += len(part)
                size += sum(len(row["image"]["bytes"] or b"") for row in part)
                group = group or next(groups, [])
        summary.counts[split] += rows
    for i, path in enumerate(shards):
        final = path.with_name(f"{split}-{i:05d}-of-{len(shards):05d}.parquet")
        path.rename(final)
        summary.shards[f"data/{final.name}"] = _sha256(final)
        _flush(final)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(partial: Path, output: Path) -> None:
    for folder in (partial / "data", partial):
        _flush(folder)
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    _flush(output.parent)
    shutil.rmtree(old, ignore_errors=True)
