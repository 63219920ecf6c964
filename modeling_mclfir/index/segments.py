# SPDX-License-Identifier: Apache-2.0
"""The files of a FAISS store: one segment a batch, and the manifest that says which of them count.

A segment is NAME.arrow (ids, metadata, and the rows that the batch ended) and, where it has rows, NAME.npy (vectors).
A file is written under a temporary name, flushed and renamed, and it counts from the moment at which a manifest that
names it has taken the old one's place: whatever a kill leaves behind is named by no manifest.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from .durable import flush_folder, write_file

MANIFEST = "store.json"
_FORMAT = 1
_OURS = re.compile(r"(\d+-\d+-\d+)\.(arrow|npy|faiss)(\.partial)?")


@dataclass(frozen=True)
class Segment:
    """
    Attributes:
        first, last: numbers of the batches in it.
        row: number of its first row; rows are counted through all segments.
        rows: how many it has, those that have ended since among them.
        level: how often segments were put together for it.
    """

    name: str
    first: int
    last: int
    row: int
    rows: int
    level: int = 0


def segment_name(generation: int, first: int, last: int) -> str:
    """Of the batches from `first` to `last`."""
    return f"{generation:06d}-{first:08d}-{last:08d}"


@dataclass(frozen=True)
class IndexFile:
    """A FAISS index of the rows before `rows`; `exact`: whether its scores are inner products, not guesses of them."""

    name: str
    rows: int
    exact: bool


@dataclass(frozen=True)
class Manifest:
    """What a store holds. Rows keep their numbers within a generation; `optimize` begins a new one."""

    dim: int
    factory: str
    generation: int = 0
    segments: tuple[Segment, ...] = ()
    index: IndexFile | None = None

    @property
    def last(self) -> int:
        """Number of the newest batch; -1: none yet."""
        return self.segments[-1].last if self.segments else -1

    @property
    def rows(self) -> int:
        """How many rows all segments have together."""
        return self.segments[-1].row + self.segments[-1].rows if self.segments else 0

    def with_segment(self, segment: Segment) -> "Manifest":
        """The same and one batch more."""
        return replace(self, segments=(*self.segments, segment))

    def to_json(self) -> bytes:
        """As `from_json` reads it."""
        return (json.dumps({"format": _FORMAT, **asdict(self)}) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Manifest":
        """ValueError: a format that is not ours, or no manifest at all."""
        try:
            values = json.loads(text)
            form = values.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{MANIFEST} is no manifest of a store; something else changed it.") from None
        if form != _FORMAT:
            raise ValueError(f"{MANIFEST} has format {form}, not {_FORMAT}: it needs another release of mclfir.")
        try:
            segments, index = tuple(Segment(**segment) for segment in values.pop("segments")), values.pop("index")
            return cls(**values, segments=segments, index=IndexFile(**index) if index else None)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{MANIFEST} is damaged ({error!r}). Take a copy.") from None


@dataclass(frozen=True)
class Batch:
    """
    Attributes:
        ids: large_string (n,).
        embeds: float32 (n, D), perhaps memory-mapped.
        columns: table of n rows, metadata as `columns.py` writes it.
        ended: int64, numbers of older rows that the batch removes or replaces.
    """

    ids: pa.Array
    embeds: np.ndarray = field(repr=False)
    columns: pa.Table = field(repr=False)
    ended: np.ndarray = field(repr=False)


def read_manifest(folder: Path) -> bytes | None:
    """The manifest as it stands, None where there is none."""
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None


class ManifestFile:
    """
    The file of the manifest that was read last, held open. Manifests are never written to, only replaced, and while a
    file is open no other one can have its number: as long as the number is the same, so is the content.
    """

    def __init__(self, folder: Path):
        self._path = f"{folder}/{MANIFEST}"
        self._file: BinaryIO | None = None
        self._mark: tuple[int, ...] = ()
        self._text: bytes | None = None

    def is_still(self, text: bytes | None) -> bool:
        """Whether the manifest is the file that was read last, and this was its text. It reads nothing."""
        if text is None or text != self._text:
            return False
        try:
            # Opened, not asked for by its name: a network file system answers that from memory.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return _mark_of(descriptor) == self._mark
        finally:
            os.close(descriptor)

    def read(self) -> bytes | None:
        """The manifest as it stands, None where there is none."""
        self.close()
        try:
            # Not through a Path and a buffer, which take longer than the reading.
            self._file = open(self._path, "rb", buffering=0)
        except FileNotFoundError:
            return None
        self._mark, self._text = _mark_of(self._file.fileno()), self._file.readall()
        return self._text

    def close(self) -> None:
        """Let go of the file. Twice does no harm."""
        if self._file is not None:
            self._file.close()
        self._file = self._text = None


def _mark_of(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return found.st_ino, found.st_dev, found.st_mtime_ns, found.st_size


def write_manifest(folder: Path, manifest: Manifest) -> bytes:
    """Put a manifest in the old one's place → its bytes. When it returns, what it names is durable."""
    text = manifest.to_json()
    flush_folder(folder)  # the files that it names first
    write_file(folder / MANIFEST, lambda file: file.write(text))
    flush_folder(folder)
    return text


def write_segment(folder: Path, segment: Segment, batch: Batch, blocks: Iterable[np.ndarray] | None = None) -> None:
    """
    Args:
        blocks: the batch's vectors in parts, where they are too large for one; default: `batch.embeds`.
    """
    if segment.rows:
        shape = (segment.rows, batch.embeds.shape[1])
        write_file(
            folder / f"{segment.name}.npy",
            lambda file: _write_npy(file, shape, [batch.embeds] if blocks is None else blocks),
        )
    table = batch.columns.add_column(0, "id", batch.ids)
    table = table.replace_schema_metadata({b"ended": batch.ended.astype("<i8").tobytes()})

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    write_file(folder / f"{segment.name}.arrow", write)


def read_segment(folder: Path, segment: Segment, dim: int) -> Batch:
    """
    A segment, memory-mapped.

    Raises:
        FileNotFoundError: it is not there (any more).
        ValueError: the files do not hold what the manifest says.
    """
    embeds, name = np.zeros((0, dim), dtype=np.float32), f"{segment.name}.arrow"
    try:
        with pa.memory_map(str(folder / name)) as source:
            table = pa.ipc.open_file(source).read_all()
        if segment.rows:
            name = f"{segment.name}.npy"
            embeds = np.load(folder / name, mmap_mode="r")
    except (ValueError, EOFError) as error:  # Arrow's errors are ValueErrors
        raise ValueError(
            f"{folder / name} is damaged, cut short perhaps ({error}). Take a copy of the folder; without one, fill "
            "the store anew."
        ) from error
    ended = np.frombuffer((table.schema.metadata or {}).get(b"ended", b""), dtype="<i8")
    if len(table) != segment.rows or embeds.shape != (segment.rows, dim):
        raise ValueError(
            f"Segment {segment.name} of {folder} should hold {segment.rows} vectors of {dim}; its files hold "
            f"{len(table)} ids and vectors {embeds.shape}. The folder was changed by something else; take a copy."
        )
    ids = table["id"].combine_chunks()
    ids = ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks)
    return Batch(ids, np.asarray(embeds), table.drop_columns(["id"]).replace_schema_metadata(None), ended)


def clean(folder: Path) -> None:
    """
    Delete what the manifest does not name: files of a write that was cut off, or of segments put together since. Only
    under the lock. It is asked of the disk what the manifest is: a process that was interrupted may not know it.
    """
    text = read_manifest(folder)
    if text is None:
        return
    manifest = Manifest.from_json(text)
    kept = {segment.name for segment in manifest.segments} | ({manifest.index.name} if manifest.index else set())
    for path in folder.iterdir():
        ours = _OURS.fullmatch(path.name)
        if ours and (ours[3] or ours[1] not in kept):
            path.unlink(missing_ok=True)


def _write_npy(file: BinaryIO, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype="<f4").data)
