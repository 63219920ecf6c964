# SPDX-License-Identifier: Apache-2.0
"""Rows → Parquet shards: images checked, values counted, memory bounded whatever the number of rows."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotations import Check, Rows, Table
from .images import BadRows
from .journal import Journal, SeenImages, SourceChangedError, SplitProgress, chain, flush
from .schema import row_features
from .source_images import ImagePool, PreparedImage

if TYPE_CHECKING:
    from datasets import Features

# Small groups keep a stream light: a reader holds one at a time. Both limits end a group.
ROWS_PER_GROUP = 100
BYTES_PER_GROUP = 32 * 2**20
BYTES_PER_SHARD = 512 * 2**20
TABLE_ROWS_PER_GROUP = 10_000


@dataclass
class DatasetSummary:
    """What was written.

    Attributes:
        path: the folder; None where nothing was written.
        attributes: names, in order.
        counts: split → rows.
        value_counts: attribute → value → rows, over all splits.
        null_counts: attribute → rows without a label.
        duplicates: split → byte-identical copies left out.
        shards: file inside the folder → sha256.
        tables: name → split → rows.
        dangling: table → rows of it that name an image that is not there.
        checks: counts that were published beside those found.
        notes: how the rows were made.
        bad_rows: what was skipped.
        resumed_at: rows of the source that an earlier, interrupted run had done.
    """

    path: Path | None
    attributes: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    value_counts: dict[str, Counter[str]] = field(default_factory=dict)
    null_counts: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    shards: dict[str, str] = field(default_factory=dict)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    dangling: dict[str, int] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    bad_rows: BadRows = field(default_factory=BadRows)
    resumed_at: int = 0

    def counted(self) -> dict[str, Any]:
        """What was counted so far, as plain data."""
        return {
            "counts": self.counts,
            "value_counts": self.value_counts,
            "null_counts": self.null_counts,
            "duplicates": self.duplicates,
            "bad_rows": self.bad_rows.state_dict(),
        }

    def take_up(self, counted: Mapping[str, Any]) -> None:
        """Goes on from what `counted` gave."""
        self.counts = dict(counted["counts"])
        self.value_counts = {name: Counter(values) for name, values in counted["value_counts"].items()}
        self.null_counts, self.duplicates = Counter(counted["null_counts"]), Counter(counted["duplicates"])
        self.bad_rows.load_state_dict(counted["bad_rows"])


class SplitWriter:
    """Writes the rows of a data set split by split, and notes each finished shard in the journal.

    Args:
        partial: the folder of the unfinished data set; shards go to `partial/set/data`.
        summary: counts of what is written, kept up here.
        columns: name → feature of the further columns.
        keep_duplicates: False leaves byte-identical copies of an image out.
        total_rows: expected rows of all splits; None: not known.
        max_bad_fraction: as soon as more than this share of them is bad, the run stops.
    """

    def __init__(
        self,
        partial: Path,
        summary: DatasetSummary,
        journal: Journal,
        pool: ImagePool,
        *,
        columns: Mapping[str, Any],
        keep_duplicates: bool,
        rows_per_shard: int,
        total_rows: int | None,
        max_bad_fraction: float,
    ):
        self.folder, self.summary, self.journal, self.pool = partial / "set" / "data", summary, journal, pool
        self.columns, self.rows_per_shard = tuple(columns), rows_per_shard
        self.total_rows, self.max_bad_fraction = total_rows, max_bad_fraction
        self.features = row_features(summary.attributes, columns)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.new"):  # what a killed run had in the making
            path.unlink()
        self.seen = None if keep_duplicates else SeenImages(partial / "images.sqlite")

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self.seen:
            self.seen.close()

    def write(self, split: str, rows: Rows) -> None:
        """Writes what is left of a split.

        Raises:
            ValueError: the rows are not those of the interrupted run; unknown attributes; too many bad rows.
        """
        state = self.journal.splits.setdefault(split, SplitProgress())
        self.summary.counts.setdefault(split, 0)
        if state.done:
            return
        iterator = self._skip(iter(rows), state, split)
        digest, place = state.digest, state.read
        shard: _Shard | None = None
        try:
            for row, image in self.pool.prepared(iterator, split, state.read):
                digest, place = chain(digest, row), place + 1
                written = self._row(row, image, split, place - 1)
                if place % ROWS_PER_GROUP == 0:
                    self._stop_early()
                if written is None:
                    continue
                if shard is None:
                    # A name that no pattern of the card matches until the shard is whole.
                    name = f"{split}-{len(state.shards):05d}.parquet"
                    shard = _Shard(self.folder / f".{name}.new", self.folder / name, self.features)
                shard.add(written)
                if shard.rows >= self.rows_per_shard or shard.size >= BYTES_PER_SHARD:
                    self._finish(shard, state, digest, place)
                    shard = None
            if shard is not None:
                self._finish(shard, state, digest, place)
                shard = None
        finally:
            if shard is not None:
                shard.give_up()
        state.read, state.digest, state.done = place, digest, True
        self._save()

    def name_shards(self) -> None:
        """Gives the shards of all splits the names that say how many there are, and notes their checksums."""
        for split, state in self.journal.splits.items():
            for i, (name, _, digest) in enumerate(state.shards):
                final = f"{split}-{i:05d}-of-{len(state.shards):05d}.parquet"
                if (self.folder / name).exists():  # else an interrupted run had come as far as this
                    (self.folder / name).rename(self.folder / final)
                self.summary.shards[f"{self.folder.name}/{final}"] = digest

    def image_ids(self) -> Iterator[str]:
        """Of all rows written, where they have any."""
        import pyarrow.parquet as pq

        if "image_id" in self.columns:
            for path in sorted(self.folder.glob("*.parquet")):
                yield from pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()

    def _skip(self, iterator: Iterator, state: SplitProgress, split: str) -> Iterator:
        """Passes over the rows that are done with, without their images."""
        digest = ""
        for row in islice(iterator, state.read):
            digest = chain(digest, row)
        if digest != state.digest:
            raise SourceChangedError(
                f"the {split} rows are not those of the interrupted run that {self.journal.folder} holds: the source "
                "has changed since. Remove that folder to begin anew."
            )
        return iterator

    def _row(self, row: Mapping[str, Any], image: PreparedImage, split: str, place: int) -> dict[str, Any] | None:
        """The row as it is written, its values counted; None where it is left out."""
        if image.cause is not None:
            self.summary.bad_rows.add(image.cause, image.path)
            return None
        if self.seen and image.digest and not self.seen.keeps(image.digest, f"{split} {place}"):
            self.summary.duplicates[split] += 1
            return None
        self.summary.counts[split] += 1
        cell = {"bytes": image.data, "path": image.path} if self.pool.settings.read else None
        labels = _labels(row, image.path, self.summary)
        texts = {name: _text(row.get(name), name, image.path) for name in ("caption", "product_id")}
        further = {name: row.get(name) for name in self.columns}
        return {"image": cell, **texts, **further, **({"attributes": labels} if labels else {})}

    def _stop_early(self) -> None:
        """Ends a run that is bound to fail: with more bad rows by now than all expected rows may have."""
        if self.total_rows:
            self.summary.bad_rows.check(self.total_rows, self.max_bad_fraction)

    def _finish(self, shard: _Shard, state: SplitProgress, digest: str, place: int) -> None:
        state.shards.append([shard.final.name, shard.rows, shard.finish()])
        state.read, state.digest = place, digest
        self._save()

    def _save(self) -> None:
        if self.seen:
            self.seen.save()
        self.journal.save(self.summary.counted())


class _Shard:
    """One Parquet file in the making."""

    def __init__(self, path: Path, final: Path, features: Features):
        import pyarrow.parquet as pq

        self.path, self.final = path, final
        self.rows = self.size = 0
        # The schema carries the features, so that every reader sees images where the file has structs.
        self._schema = features.arrow_schema
        labels = [f"attributes.{name}" for name in features.get("attributes", ())]
        labels += [name for name in features if name not in ("image", "attributes", "caption", "product_id")]
        # Neither a dictionary nor statistics of the images: both would only hold bytes twice.
        self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=labels, write_statistics=labels)
        self._group: list[dict] = []
        self._group_size = 0

    def add(self, row: dict) -> None:
        size = len((row["image"] or {}).get("bytes") or b"")
        self._group.append(row)
        self.rows, self.size, self._group_size = self.rows + 1, self.size + size, self._group_size + size
        if len(self._group) == ROWS_PER_GROUP or self._group_size >= BYTES_PER_GROUP:
            self._write_group()

    def finish(self) -> str:
        """Ends the file, gives it its name and returns its sha256."""
        self._write_group()
        self._writer.close()
        digest = sha256(self.path)
        flush(self.path)
        self.path.rename(self.final)
        return digest

    def give_up(self) -> None:
        """Leaves nothing of the file."""
        try:
            self._writer.close()
        except OSError:  # the disk is full, perhaps: that has been told already
            pass
        finally:
            self.path.unlink(missing_ok=True)

    def _write_group(self) -> None:
        import pyarrow as pa

        if self._group:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._group, schema=self._schema))
            self._group, self._group_size = [], 0


def write_tables(
    folder: Path, tables: Mapping[str, Table], summary: DatasetSummary, image_ids: Iterable[str] | None
) -> None:
    """Writes `folder/NAME/SPLIT-00000-of-00001.parquet` of each further table, and counts its rows.

    Args:
        image_ids: of all rows of the data set; rows of a table that name others are counted, and stay. None where
            the data set has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = None if image_ids is None else set(image_ids)
    for name, table in tables.items():
        shutil.rmtree(folder / name, ignore_errors=True)  # of an interrupted run
        (folder / name).mkdir()
        schema = table.features.arrow_schema
        summary.tables[name] = {}
        for split, rows in table.splits.items():
            path = folder / name / f"{split}-00000-of-00001.parquet"
            iterator, count = iter(rows), 0
            group = list(islice(iterator, TABLE_ROWS_PER_GROUP))
            if group:  # as with splits of images, an empty one has no file
                with pq.ParquetWriter(path, schema) as writer:
                    while group:
                        writer.write_batch(pa.RecordBatch.from_pylist(group, schema=schema))
                        count += len(group)
                        if known is not None:
                            absent = sum(1 for row in group if not known.issuperset(_images_named(row)))
                            summary.dangling[name] = summary.dangling.get(name, 0) + absent
                        group = list(islice(iterator, TABLE_ROWS_PER_GROUP))
                flush(path)
                summary.shards[f"{name}/{path.name}"] = sha256(path)
            summary.tables[name][split] = count


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _images_named(row: Mapping[str, Any]) -> Iterator[str]:
    for name in ("reference", "target", "anchor", "positive", "negative"):
        if row.get(name) is not None:
            yield row[name]


def _labels(row: Mapping[str, Any], path: str, summary: DatasetSummary) -> dict[str, str | None]:
    given = row.get("attributes") or {}
    extra = [name for name in given if name not in summary.value_counts]
    if extra:
        raise ValueError(
            f"{path}: unknown attributes {', '.join(map(repr, extra))}; known: {', '.join(summary.attributes)}"
        )
    labels = {name: _text(given.get(name), name, path) for name in summary.attributes}
    for name, value in labels.items():
        if value is None:
            summary.null_counts[name] += 1
        else:
            summary.value_counts[name][value] += 1
    return labels


def _text(value: Any, name: str, path: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{path}: {name} is {value!r}; expected a string or None")
    return value
