# SPDX-License-Identifier: Apache-2.0
"""Image files of a source → the bytes that a shard gets: read, checked, cut and made smaller, several at a time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import signal
import stat
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .annotations import SourceImage, image_path
from .images import MIN_SIDE, BadImage, decode_image

MAX_FILE_BYTES = 512 * 2**20
_ROWS_PER_TASK = 16
# A JPEG that must be written anew is kept close to what it was; everything else becomes a PNG, which loses nothing.
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}


@dataclass(frozen=True)
class ImageSettings:
    """What is done with each image.

    Attributes:
        read: False leaves every image out: only the annotations are of interest.
        check: decode it once, so that no bad image gets into a shard.
        max_size: longest side in pixels; a larger image is made smaller, None keeps all as they are.
    """

    read: bool = True
    check: bool = True
    max_size: int | None = None


class PreparedImage(NamedTuple):
    """An image ready to be written.

    Attributes:
        data: bytes of an image file; None where images are left out, or the image is bad and was not checked.
        path: its name inside the source, or the place of the row where it has none.
        cause: why it cannot be used; None where it can.
        digest: of the bytes as they were found; None without bytes.
    """

    data: bytes | None
    path: str
    cause: str | None
    digest: bytes | None


class ImagePool:
    """Prepares the images of rows ahead of their use, in order; memory is bounded by a window of rows.

    Args:
        settings: what is done with each image.
        num_proc: processes; with 1, a few threads of this process.
    """

    def __init__(self, settings: ImageSettings, num_proc: int = 1):
        self.settings, self.num_proc = settings, num_proc
        self._executor: Executor | None = None

    def __enter__(self) -> ImagePool:
        if self.num_proc > 1:
            # Not forked: Arrow's threads would be lost in the copy.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.num_proc, context, initializer=_start_worker)
            with _deaf_to_interrupts():  # a child that is only just starting would answer with a traceback
                for _ in range(self.num_proc):
                    self._executor.submit(os.getpid)
        else:
            self._executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def prepared(
        self, rows: Iterable[Mapping[str, Any]], split: str, first: int = 0
    ) -> Iterator[tuple[Mapping[str, Any], PreparedImage]]:
        """Yields every row with its image, in order; `first` is the number of the first row in its split.

        Raises:
            ValueError: a path leaves the source folder.
            ChildProcessError: a process died, most likely for want of memory.
        """
        iterator, waiting = iter(rows), deque()
        window = 2 * self.num_proc + 4
        while True:
            try:
                while len(waiting) < window and (chunk := list(islice(iterator, _ROWS_PER_TASK))):
                    tasks = [(row.get("image"), f"{split} row {first + i}") for i, row in enumerate(chunk)]
                    first += len(chunk)
                    waiting.append((chunk, self._executor.submit(_prepare_all, tasks, self.settings)))
                if not waiting:
                    return
                chunk, future = waiting.popleft()
                images = future.result()
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    f"one of {self.num_proc} processes was ended from outside, most likely for want of memory; run "
                    "the command again with a smaller --num-proc: it goes on where it stopped. (A script of your "
                    "own must call this under `if __name__ == '__main__':`, or the processes cannot start.)"
                ) from error
            yield from zip(chunk, images, strict=True)


def prepare_image(image: Any, where: str, settings: ImageSettings) -> PreparedImage:
    """Reads, checks, cuts and resizes one image as the settings say.

    Args:
        image: a `SourceImage`, the bytes or the path of a file, `{"bytes", "path"}`, or a PIL image (kept as PNG).
        where: the place of the row, for an image without a name.

    Raises:
        TypeError: another kind of image.
        ValueError: a `SourceImage` whose path leaves its folder.
    """
    if not settings.read:
        return PreparedImage(None, _name(image, where), None, None)
    try:
        data, path = _read(image, where)
    except BadImage as error:
        return PreparedImage(None, _name(image, where), error.cause, None)
    except OSError:
        return PreparedImage(None, _name(image, where), "unreadable", None)
    box = image.box if isinstance(image, SourceImage) else None
    digest = None if data is None else hashlib.blake2b(data + repr(box or "").encode(), digest_size=16).digest()
    if not (settings.check or settings.max_size or box):
        return PreparedImage(data, path, None, digest)
    try:
        picture = decode_image({"bytes": data})
        changed = _changed(picture, box, settings.max_size)
    except BadImage as error:
        return PreparedImage(None, path, error.cause, digest)
    return PreparedImage(data if changed is picture else _encode(changed, data), path, None, digest)


def _prepare_all(tasks: list[tuple[Any, str]], settings: ImageSettings) -> list[PreparedImage]:
    return [prepare_image(image, where, settings) for image, where in tasks]


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started within do not hear Ctrl-C; this one hears it again afterwards."""
    if threading.current_thread() is not threading.main_thread():  # which alone may change that
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()  # killed, it could not end us
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _name(image: Any, where: str) -> str:
    if isinstance(image, SourceImage):
        return str(image_path(image.listed))
    if isinstance(image, str | os.PathLike):
        return Path(image).name  # where the file lay on this machine is nobody's business
    if isinstance(image, Mapping):
        data, path = image.get("bytes"), image.get("path")
        return (path if data is not None else _name(path, where)) or where
    return where


def _read(image: Any, where: str) -> tuple[bytes | None, str]:
    """The bytes of the file (None: there is none) and its name."""
    name = _name(image, where)
    if isinstance(image, SourceImage):
        return _first_file(*image.paths), name
    if isinstance(image, str | os.PathLike):
        return _first_file(Path(image)), name
    if isinstance(image, Mapping):
        data, path = image.get("bytes"), image.get("path")
        if data is None and path is not None:
            return _first_file(Path(path)), name
        return None if data is None else bytes(data), name
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), name
    if image is None:
        return None, name
    if not hasattr(image, "save"):
        raise TypeError(
            f"{where}: an image of type {type(image).__name__} is given; expected the bytes or the path of a file, "
            "a SourceImage, a dict with 'bytes' and 'path', or a PIL image"
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), name


def _first_file(*paths: Path) -> bytes | None:
    for path in paths:
        try:
            # Without waiting: what looks like a file may be a pipe that nobody writes to, or a device without end.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:  # a name that no file system has
            raise OSError(str(error)) from error
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{path} is no file")
            if found.st_size > MAX_FILE_BYTES:
                raise BadImage("oversized", f"{path} has {found.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
            return file.read()
    return None


def _changed(picture: Image.Image, box: tuple[int, int, int, int] | None, max_size: int | None) -> Image.Image:
    """The picture cut and made smaller; the very same object where neither is called for."""
    if box is not None:
        left, top = max(0, box[0]), max(0, box[1])
        right, bottom = min(picture.width, box[2]), min(picture.height, box[3])
        if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
            raise BadImage("bad_box", f"box {box} leaves less than {MIN_SIDE} pixels of an image of {picture.size}")
        picture = picture.crop((left, top, right, bottom))
    if max_size is not None and max(picture.size) > max_size:
        scale = max_size / max(picture.size)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        if min(size) < MIN_SIDE:
            raise BadImage("too_small", f"made smaller to {size}, a side is shorter than {MIN_SIDE}")
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def _encode(picture: Image.Image, original: bytes) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **(_JPEG if original.startswith(_JPEG_SIGNATURE) else {"format": "PNG"}))
    return buffer.getvalue()
