# SPDX-License-Identifier: Apache-2.0
"""Rows → Parquet shards: images checked, values counted, memory bounded whatever the number of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotations import BadLines, Check, Rows
from .images import BadRows, TooManyBadRowsError
from .journal import Journal, SeenImages, SourceChangedError, SplitProgress, chain, final_name, flush, sha256, storable
from .schema import row_features
from .source_images import ImagePool, PreparedImage

if TYPE_CHECKING:
    from datasets import Features

# Small groups keep a stream light: a reader holds one at a time. Both limits end a group.
ROWS_PER_GROUP = 100
BYTES_PER_GROUP = 32 * 2**20
BYTES_PER_SHARD = 512 * 2**20


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
        bad_lines: kind of line → those that make no row and were skipped.
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
    bad_lines: dict[str, BadLines] = field(default_factory=dict)
    resumed_at: int = 0

    @property
    def written(self) -> int:
        """Rows of all splits."""
        return sum(self.counts.values())

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
        bad_before: rows that the reader has left out already, which are none of these.
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
        bad_before: int,
        max_bad_fraction: float,
    ):
        self.folder, self.summary, self.journal, self.pool = partial / "set" / "data", summary, journal, pool
        self.columns, self.rows_per_shard = tuple(columns), rows_per_shard
        self.total_rows, self.max_bad_fraction = total_rows, max_bad_fraction
        self.bad_before = bad_before
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
        iterator = self._skip(iter(rows), state, split)
        if state.done:
            return
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
            for place, (_, _, digest, _) in enumerate(state.shards):
                path = self.journal.shard_path(split, place)
                if path is None:
                    raise FileNotFoundError(
                        f"shard {place} of {split} is gone; remove {self.journal.folder} to begin anew"
                    )
                final = final_name(split, place, len(state.shards))
                path.rename(self.folder / final)
                self.summary.shards[f"{self.folder.name}/{final}"] = digest

    def image_ids(self) -> Iterator[str] | None:
        """Of all rows written; None where they have none."""
        import pyarrow.parquet as pq

        if "image_id" not in self.columns:
            return None
        paths = sorted(self.folder.glob("*.parquet"))
        return (name for path in paths for name in pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())

    def _skip(self, iterator: Iterator, state: SplitProgress, split: str) -> Iterator:
        """Passes over the rows that are done with, without their images."""
        digest, read = "", 0
        for row in islice(iterator, state.read):
            digest, read = chain(digest, row), read + 1
        ended = object()
        if digest != state.digest or read < state.read or (state.done and next(iterator, ended) is not ended):
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
        further = {name: storable(row.get(name)) for name in self.columns}
        return {"image": cell, **texts, **further, **({"attributes": labels} if labels else {})}

    def _stop_early(self) -> None:
        """Ends a run that is bound to fail: with more bad rows by now than all expected rows may have."""
        if not self.total_rows:
            return
        bad = self.summary.bad_rows
        try:
            bad.check(self.total_rows + self.bad_before, self.max_bad_fraction)
        except TooManyBadRowsError:
            if self.summary.written or bad.counts["missing"] + self.bad_before < bad.total:
                raise
            raise TooManyBadRowsError(
                f"none of the first {bad.counts['missing']} images is there (such as {bad.examples['missing'][0]}). "
                "Are the images in the folder that --help describes? --annotations-only needs none."
            ) from None

    def _finish(self, shard: _Shard, state: SplitProgress, digest: str, place: int) -> None:
        state.shards.append([shard.final.name, shard.rows, *shard.finish()])
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

    def finish(self) -> tuple[str, int]:
        """Ends the file, gives it its name and returns its sha256 and its size in bytes."""
        self._write_group()
        self._writer.close()
        digest, size = sha256(self.path), self.path.stat().st_size
        flush(self.path)
        self.path.rename(self.final)
        return digest, size

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
    return storable(value)
