# SPDX-License-Identifier: Apache-2.0
"""Annotation files as they are found: with or without gzip, byte order mark, Windows line ends, last newline."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_UNREADABLE = (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError)
_MAX_DIGITS = 18


def exists(source: Path, name: str) -> bool:
    """Whether `name` is inside `source`, a file or a folder, or the file's gzipped copy, `name` + ".gz"."""
    return (source / name).exists() or (source / f"{name}.gz").is_file()


def find(source: Path, name: str) -> Path:
    """The file `name` inside `source`, or its gzipped copy, `name` + ".gz".

    Raises:
        FileNotFoundError: neither is there.
    """
    for path in (source / name, source / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{source / name}: no such file; expected it, or {name}.gz")


def open_text(path: Path) -> TextIO:
    """Opens a text file, gzipped where its name ends in .gz, as UTF-8 with or without BOM; line ends become \\n."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, text without the line end) for every line that is not blank.

    Raises:
        ValueError: the file is not UTF-8, or not gzip though its name says so.
    """
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                line = line.rstrip("\n")
                if line.strip():
                    yield number, line
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as text ({error}); obtain the file anew") from error


def whole_number(text: str) -> int | None:
    """The number that decimal digits stand for; None for another text, and for one too long to count anything."""
    return int(text) if len(text) <= _MAX_DIGITS and text.isdecimal() else None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        with open_text(path) as file:
            return json.load(file)
    except (ValueError, RecursionError, *_UNREADABLE) as error:
        raise ValueError(f"{path} is not JSON ({error}); obtain the file anew") from error
