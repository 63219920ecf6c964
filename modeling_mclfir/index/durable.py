# SPDX-License-Identifier: Apache-2.0
"""Files that are wholly there or not at all, folders that outlive a power cut, and the lock of those who write."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

LOCK = ".lock"
_PARTIAL = ".partial"


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is wholly there or not at all. Its name is durable after `flush_folder`."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as far as they are not there; when it returns, their names are durable."""
    new = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, timeout: float) -> Iterator[None]:
    """Keep other writers out. TimeoutError where one of them does not finish within `timeout` seconds."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise TimeoutError(
            f"Another process has been writing to {folder} for {timeout} s. Try again later, or give a larger "
            "lock_timeout."
        ) from None
    try:
        yield
    finally:
        lock.release()
