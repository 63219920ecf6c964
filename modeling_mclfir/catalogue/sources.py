# SPDX-License-Identifier: Apache-2.0
"""Where a catalogue's photos come from: one after the other, never all of them in memory."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..index.store import Value

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Item:
    """
    Attributes:
        id: its name in the catalogue; None where its row has none.
        where: file, or file and row, for messages.
        load: gives what `decode_image` takes; nothing of the image is read before.
        metadata: column → value.
    """

    id: str | None
    where: str
    load: Callable[[], Any] = field(repr=False)
    metadata: dict[str, Value] = field(default_factory=dict, repr=False)


class Source(ABC):
    """Photos with ids and metadata, in an order that is the same each time."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain data of which `open_source` makes the same source again."""

    @abstractmethod
    def count(self) -> int | None:
        """How many items there are; None where only a whole pass would tell."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Every item."""

    def check_not_empty(self) -> None:
        """FileNotFoundError: there is no item. Where only a whole pass would tell, nothing is said."""
        if self.count() == 0:
            there = self.describe()
            raise FileNotFoundError(f"No photo found in {there.get('path', there.get('name'))}: it has no row.")

    def batches(self, size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[list[Item]]:
        """
        Items in batches of `size`, every `num_ranks`-th of them: whatever is embedded lies in the same batch, however
        many processes share the work.
        """
        yield from islice(batched(self.items(), size), rank, None, num_ranks)

    def find(self, ids: Collection[str]) -> dict[str, Item]:
        """Those of some items that are here, by id."""
        wanted, found = set(ids), {}
        for item in self.items() if wanted else ():
            if item.id in wanted:
                found[item.id] = item
                if len(found) == len(wanted):
                    break
        return found


class FolderSource(Source):
    """
    The image files of a folder, searched through; an id is the path inside the folder, with "/".

    The names of one folder at a time are held, sorted.

    Raises:
        FileNotFoundError: no such folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        if not self.path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder of images.")

    def describe(self) -> dict[str, Any]:
        """Its path."""
        return {"kind": "folder", "path": str(self.path)}

    def count(self) -> int | None:
        """A walk through the names."""
        return sum(1 for _ in self._files(self.path))

    def items(self) -> Iterator[Item]:
        """In the order of names, folder by folder."""
        for file in self._files(self.path):
            yield self._item(file)

    def check_not_empty(self) -> None:
        """As far as the first photo."""
        if next(self._files(self.path), None) is None:
            raise FileNotFoundError(f"No photo found in {self.path} or its folders ({', '.join(SUFFIXES)}).")

    def find(self, ids: Collection[str]) -> dict[str, Item]:
        """By their paths."""
        found = {}
        for name in ids:
            file = self.path / name
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            if inside and file.suffix.lower() in SUFFIXES and file.is_file():
                found[name] = self._item(file)
        return found

    def _item(self, file: Path) -> Item:
        return Item(file.relative_to(self.path).as_posix(), str(file), lambda: file)

    def _files(self, folder: Path) -> Iterator[Path]:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        for name, is_folder in found:
            if is_folder:
                yield from self._files(folder / name)
            elif name.lower().endswith(SUFFIXES):
                yield folder / name


def batched(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Items in lists of `size`; the last may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
