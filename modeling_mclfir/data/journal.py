# SPDX-License-Identifier: Apache-2.0
"""What a preparation has done so far, kept beside its shards, so that one that was interrupted can go on."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .annotations import SourceImage

logger = logging.getLogger(__name__)

_FILE = "progress.json"
_LOCK = ".lock"


class SourceChangedError(ValueError):
    """The rows are not those that an interrupted preparation began with."""


@dataclass
class SplitProgress:
    """How far a split is.

    Attributes:
        read: rows of the source that are done with.
        digest: of those rows, chained, in hexadecimal.
        shards: [name, rows, sha256, bytes] of each finished shard.
        done: the split has no more rows.
    """

    read: int = 0
    digest: str = ""
    shards: list[list] = field(default_factory=list)
    done: bool = False


class Journal:
    """The state of a preparation in `folder`; it is saved after each shard, and taken up where the settings agree and
    all shards are there.

    Args:
        folder: of the unfinished preparation, made where it is not there. Only one process may work in it. The shards
            are in `folder/set/data`.
        identity: everything that the bytes depend on beside the rows, as plain data.

    Attributes:
        splits: split → how far it is.
        counted: what the writer has counted, as plain data; None in a fresh folder.

    Raises:
        BlockingIOError: another process is at work in the folder.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = folder
        self.identity = json.dumps(identity, sort_keys=True, default=str)
        self.splits: dict[str, SplitProgress] = {}
        self.counted: dict | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            content = {}
        if content.get("identity") == self.identity:
            self.splits = {split: SplitProgress(**state) for split, state in content["splits"].items()}
            self.counted = content["counted"]
        if self.counted is None or not self._whole():
            # Of another command, without a word on how far it is, or of one that came to its end and was stopped
            # before it could tidy up.
            self.splits, self.counted = {}, None
            for path in sorted(folder.iterdir(), key=lambda path: path.name != _FILE):  # the word goes first
                if path.name != _LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def rows(self) -> int:
        """Rows of the source that are done with, over all splits."""
        return sum(split.read for split in self.splits.values())

    @property
    def has_shards(self) -> bool:
        """Whether there is anything to go on with."""
        return any(split.shards for split in self.splits.values())

    def shard_path(self, split: str, place: int) -> Path | None:
        """Where a finished shard is: under its first name, or the last one, which says how many there are."""
        shards = self.splits[split].shards
        names = shards[place][0], final_name(split, place, len(shards))
        return next((path for name in names if (path := self.folder / "set" / "data" / name).is_file()), None)

    def _whole(self) -> bool:
        for split, state in self.splits.items():
            for place, (_, _, _, size) in enumerate(state.shards):
                path = self.shard_path(split, place)
                if path is None or path.stat().st_size != size:
                    return False
        return True

    def save(self, counted: dict) -> None:
        """Puts the state on the disk, at once or not at all."""
        self.counted = counted
        content = {
            "identity": self.identity,
            "splits": {split: asdict(state) for split, state in self.splits.items()},
            "counted": counted,
        }
        partial = self.folder / f"{_FILE}.new"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / _FILE)
        flush(self.folder)

    def close(self) -> None:
        """Lets another process work in the folder."""
        os.close(self._lock)

    def remove(self) -> None:
        """Leaves nothing of the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


class SeenImages:
    """Which row keeps an image of which there are copies; on disk, so that memory does not grow with the rows."""

    def __init__(self, path: Path):
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._run("CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._run("BEGIN")

    def keeps(self, digest: bytes, place: str) -> bool:
        """Whether the row at `place` is the first one with this image; asked again, the answer is the same."""
        if self._run("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, place)).rowcount:
            return True
        (first,) = self._run("SELECT place FROM seen WHERE digest = ?", (digest,)).fetchone()
        return first == place

    def save(self) -> None:
        """Puts what is known on the disk."""
        self._run("COMMIT")
        self._run("BEGIN")

    def _run(self, statement: str, values: tuple = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:  # a full disk, mostly; callers know what to do with an OSError
            raise OSError(f"the list of images seen cannot be kept: {error}") from error

    def close(self) -> None:
        """Forgets what was not saved."""
        self._connection.close()


def final_name(split: str, place: int, count: int) -> str:
    """Of a shard in the finished data set."""
    return f"{split}-{place:05d}-of-{count:05d}.parquet"


def chain(digest: str, row: Mapping[str, Any]) -> str:
    """The digest of all rows so far and this one, in hexadecimal."""
    image = row.get("image")
    if isinstance(image, SourceImage):
        image = (_absolute(str(image.root)), image.listed, image.box)
    elif isinstance(image, bytes | bytearray | memoryview):
        image = hashlib.blake2b(image, digest_size=16).hexdigest()
    elif isinstance(image, Mapping):
        image = (str(image.get("path")), hashlib.blake2b(image.get("bytes") or b"", digest_size=16).hexdigest())
    elif hasattr(image, "tobytes"):
        image = (image.mode, image.size, hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest())
    rest = {name: value for name, value in row.items() if name != "image"}
    return hashlib.blake2b(f"{digest}{image}{rest}".encode(errors="replace"), digest_size=16).hexdigest()


@cache
def _absolute(path: str) -> str:
    return os.path.abspath(path)


def storable(value: Any) -> Any:
    """Text, or lists of text, that UTF-8 can hold: half of a surrogate pair, which JSON may bring, becomes "?"."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    return [storable(item) for item in value] if isinstance(value, list | tuple) else value


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; two processes at once are the user's own care there
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            logger.warning("%s: this file system has no locks; see to it that no other process works there", folder)
            return descriptor
        os.close(descriptor)
        raise BlockingIOError(
            f"another process is preparing the same data set (it works in {folder}); wait for it, or choose another "
            "--output"
        ) from None
    return descriptor
