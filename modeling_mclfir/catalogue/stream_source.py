# SPDX-License-Identifier: Apache-2.0
"""Photos of a data set of the Hub, or of any that `datasets` reads, streamed."""

from collections.abc import Iterator
from typing import Any

from .metadata import metadata_of
from .parquet_source import ID_COLUMNS, IMAGE_COLUMNS
from .sources import Item, Source, batched


class StreamSource(Source):
    """
    Rows of `load_dataset(name, config, split=split, streaming=True)`.

    Images come with their rows: one that was interrupted is read through again up to where it stopped. Several
    processes read a share each.

    Args:
        name: Hub id, or folder.
        split, config: as `load_dataset` takes them.
        id_column: default: id, item_id or image_id.
        image_column: default: image, image_path, path or file.

    Raises:
        ValueError: no such column.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        config: str | None = None,
        id_column: str | None = None,
        image_column: str | None = None,
    ):
        from datasets import Image, load_dataset

        self.name, self.split, self.config = name, split, config
        self._dataset = load_dataset(name, config, split=split, streaming=True)
        features = self._dataset.features or next(iter(self._dataset), {})
        self.image_column = _column(features, image_column, IMAGE_COLUMNS, "images", "--image_column", name)
        self.id_column = _column(features, id_column, ID_COLUMNS, "ids", "--id_column", name)
        if isinstance((self._dataset.features or {}).get(self.image_column), Image):
            self._dataset = self._dataset.cast_column(self.image_column, Image(decode=False))

    def describe(self) -> dict[str, Any]:
        """What `load_dataset` was given, and the columns."""
        return {
            "kind": "stream",
            "name": self.name,
            "split": self.split,
            "config": self.config,
            "id_column": self.id_column,
            "image_column": self.image_column,
        }

    def count(self) -> int | None:
        """Where the data set says so."""
        known = (self._dataset.info.splits or {}).get(self.split)
        return known.num_examples if known is not None else None

    def items(self) -> Iterator[Item]:
        """In the order of the stream."""
        yield from self._items(self._dataset)

    def batches(self, size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[list[Item]]:
        """Of the rows of a rank: shards are shared out where there are enough of them, otherwise rows."""
        from datasets.distributed import split_dataset_by_node

        mine = self._dataset if num_ranks == 1 else split_dataset_by_node(self._dataset, rank, num_ranks)
        yield from batched(self._items(mine), size)

    def _items(self, dataset) -> Iterator[Item]:
        rows = iter(dataset)
        try:
            for number, row in enumerate(rows):
                name, image = row.get(self.id_column), row.get(self.image_column)
                columns = {key: cell for key, cell in row.items() if key not in (self.image_column, self.id_column)}
                where = f"{self.name} {self.split} row {number}"
                yield Item(None if name is None else str(name), where, lambda image=image: image, metadata_of(columns))
        finally:
            rows.close()  # while Arrow can still do so


def _column(there, given: str | None, defaults: tuple[str, ...], what: str, flag: str, name: str) -> str:
    found = [column for column in (defaults if given is None else (given,)) if column in there]
    if found:
        return found[0]
    missing = f"column {given!r}" if given is not None else f"column of {what} ({', '.join(defaults)})"
    raise ValueError(f"{name} has no {missing}; it has {', '.join(there) or 'no rows'}. Name one with {flag}.")
