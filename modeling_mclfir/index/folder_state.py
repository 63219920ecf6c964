# SPDX-License-Identifier: Apache-2.0
"""What a FAISS store is at one moment, and how it comes from its folder and goes back there."""

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from . import approximate
from .approximate import ApproximateIndex
from .columns import concat
from .durable import flush_folder, write_file
from .rows import Rows
from .segments import (
    Batch,
    IndexFile,
    Manifest,
    Segment,
    read_segment,
    segment_name,
    write_manifest,
    write_segment,
)

logger = logging.getLogger(__name__)
_BASE_LEVEL = 99  # of what `optimize` writes: never put together with others
_MERGED = 8
_MERGED_BYTES = 2**30
_COPIED_ROWS = 65_536


@dataclass(frozen=True)
class Settings:
    """How a process searches; see FaissStore."""

    device: str
    mmap: bool
    ef_search: int | None
    nprobe: int | None
    rescore: int

    def index(self, index, exact: bool) -> ApproximateIndex:
        """An index that is searched in this way."""
        return ApproximateIndex(index, exact, self.device, self.ef_search, self.nprobe, self.rescore)


@dataclass
class State:
    """The manifest that was read last, the rows that it names, and the index of the first of them."""

    manifest: Manifest
    rows: Rows
    index: ApproximateIndex | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> "State":
        """Of a store without rows."""
        return cls(manifest, Rows(manifest.dim))

    def is_optimal(self, settings: Settings) -> bool:
        """Whether `optimize` would change nothing."""
        covered = self.index.num_rows if self.index else 0
        indexed = covered == self.rows.num_rows or not _needs_index(self.manifest.factory, settings)
        return indexed and not self.rows.num_ended and len(self.manifest.segments) <= 1


def refreshed(state: State | None, folder: Path, text: bytes, settings: Settings) -> State:
    """
    The state of another manifest. Within a generation the rows are the same object, and only what is new is read.

    Raises:
        FileNotFoundError: a file that the manifest names is not there (any more); `state` is then as it was.
        ValueError: a manifest of another format, a file that does not hold what the manifest says.
    """
    manifest = Manifest.from_json(text)
    fresh = state is None or state.manifest.generation != manifest.generation
    seen = -1 if fresh else state.manifest.last
    new = [segment for segment in manifest.segments if segment.last > seen]
    batches = [(segment, read_segment(folder, segment, manifest.dim)) for segment in new]
    rows = Rows(manifest.dim) if fresh else state.rows
    index = _read_index(folder, manifest, settings) if fresh else state.index
    for segment, batch in batches:
        known = rows.num_rows - segment.row  # more than 0 where batches were put together since
        batch = replace(batch, ids=batch.ids[known:], embeds=batch.embeds[known:], columns=batch.columns[known:])
        rows.append(batch, mapped=True)
    return State(manifest, rows, index)


def write_batch(folder: Path, manifest: Manifest, batch: Batch) -> Manifest:
    """Write a batch as the next segment → the manifest that names it, which is not written yet."""
    number = manifest.last + 1
    name = segment_name(manifest.generation, number, number)
    segment = Segment(name, number, number, manifest.rows, len(batch.ids))
    write_segment(folder, segment, batch)
    return manifest.with_segment(segment)


def merge_small(folder: Path, manifest: Manifest) -> Manifest:
    """
    Put the newest segments together while there are many of one level, so that there are few files, and each row is
    copied few times. Rows keep their numbers. The manifest that comes back is not written yet.
    """
    while True:
        parts = manifest.segments[-_MERGED:]
        size = 4 * manifest.dim * sum(part.rows for part in parts)
        if len(parts) < _MERGED or len({part.level for part in parts}) > 1 or size > _MERGED_BYTES:
            return manifest
        batches = [read_segment(folder, part, manifest.dim) for part in parts]
        first, last = parts[0].first, parts[-1].last
        name, rows = segment_name(manifest.generation, first, last), sum(part.rows for part in parts)
        merged = Segment(name, first, last, parts[0].row, rows, parts[0].level + 1)
        batch = Batch(
            pa.concat_arrays([batch.ids for batch in batches]),
            batches[0].embeds,
            concat([batch.columns for batch in batches]),
            np.concatenate([batch.ended for batch in batches]),
        )
        write_segment(folder, merged, batch, [batch.embeds for batch in batches])
        manifest = replace(manifest, segments=(*manifest.segments[:-_MERGED], merged))


def optimized(state: State, folder: Path | None, settings: Settings) -> State:
    """
    The living rows alone and the index of all of them, in a new generation; its manifest is not written yet.

    Raises:
        ValueError: there are too few to build the index from.
    """
    manifest = replace(state.manifest, generation=state.manifest.generation + 1, segments=(), index=None)
    if folder is not None:
        manifest = _write_rows(folder, manifest, state.rows)
        return refreshed(None, folder, _with_index(folder, manifest, settings).to_json(), settings)
    rows = state.rows
    if rows.num_ended:
        living = np.flatnonzero(rows.alive())
        rows = Rows(manifest.dim)
        if len(living):
            embeds = state.rows.embeds(living)
            rows.append(_batch(state.rows, living, embeds))
    index = None
    if rows.num_rows and _needs_index(manifest.factory, settings):
        built = approximate.build(manifest.factory, rows.blocks(), manifest.dim)
        index = settings.index(built, approximate.gives_inner_products(built, rows.blocks(), manifest.dim))
    return State(manifest, rows, index)


def save(state: State, folder: Path, settings: Settings) -> None:
    """The living rows and their index as a folder. ValueError where it is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty; a copy of a store needs a folder of its own.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        manifest = _write_rows(partial, Manifest(state.manifest.dim, state.manifest.factory), state.rows)
        if state.index is not None:
            built = None if state.rows.num_ended else state.index
            manifest = _with_index(partial, manifest, settings, built)
        write_manifest(partial, manifest)
        partial.rename(folder)
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _needs_index(factory: str, settings: Settings) -> bool:
    return settings.device == "gpu" or not approximate.is_flat(factory)


def _batch(rows: Rows, living: np.ndarray, embeds: np.ndarray) -> Batch:
    ids = rows.names().array.take(pa.array(living))
    return Batch(ids, embeds, rows.columns.take_table(living), np.zeros(0, dtype=np.int64))


def _write_rows(folder: Path, manifest: Manifest, rows: Rows) -> Manifest:
    """All living rows as one segment; there is none where no row lives."""
    living = np.flatnonzero(rows.alive())
    if not len(living):
        return manifest
    segment = Segment(segment_name(manifest.generation, 0, 0), 0, 0, 0, len(living), _BASE_LEVEL)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(living), _COPIED_ROWS):
            yield rows.embeds(living[start : start + _COPIED_ROWS])

    write_segment(folder, segment, _batch(rows, living, np.zeros((0, manifest.dim), dtype=np.float32)), blocks())
    return manifest.with_segment(segment)


def _with_index(folder: Path, manifest: Manifest, settings: Settings, built: ApproximateIndex | None = None):
    """Write the index of the segment that `_write_rows` has written, one that is there already or a new one."""
    if not manifest.segments or approximate.is_flat(manifest.factory):
        return manifest
    (segment,) = manifest.segments
    if built is None:
        blocks = [(0, read_segment(folder, segment, manifest.dim).embeds)]
        index = approximate.build(manifest.factory, blocks, manifest.dim)
        exact = approximate.gives_inner_products(index, blocks, manifest.dim)
    else:
        index, exact = built.on_cpu(), built.exact
    write_file(folder / f"{segment.name}.faiss", lambda file: approximate.write(index, file))
    return replace(manifest, index=IndexFile(segment.name, index.ntotal, exact))


def _read_index(folder: Path, manifest: Manifest, settings: Settings) -> ApproximateIndex | None:
    if manifest.index is not None:
        path = folder / f"{manifest.index.name}.faiss"
        # While the vectors are there, an index is no more than a quicker way to them.
        try:
            index = approximate.read(path, settings.mmap)
            if index.ntotal == manifest.index.rows:
                return settings.index(index, manifest.index.exact)
            reason = f"it holds {index.ntotal} rows instead of {manifest.index.rows}"
        except ValueError as error:
            reason = str(error)
        logger.warning("%s is damaged (%s): searched exactly, until optimize() builds it anew", path, reason)
        return None
    base = [segment for segment in manifest.segments if segment.level == _BASE_LEVEL]
    if not base or not _needs_index(manifest.factory, settings) or not approximate.is_flat(manifest.factory):
        return None
    blocks = [(0, read_segment(folder, base[0], manifest.dim).embeds)]
    return settings.index(approximate.build("Flat", blocks, manifest.dim), exact=True)
