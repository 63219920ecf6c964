# SPDX-License-Identifier: Apache-2.0
"""Tables: the labels of a prepared data set in memory, its image bytes memory-mapped by Arrow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .images import BadImage, BadRows, decode_image
from .schema import COLUMNS, SPLITS, attribute_names, check_data_dir, check_splits

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageTable:
    """The rows of one split. A table never changes: `select` and `drop` give a new one over the same files.

    Attributes:
        split: its name.
        dataset: the memory-mapped rows of the whole split.
        rows: int64 (N,), the rows of `dataset` that this table has, in order.
        codes: attribute → int32 (N,): place of the row's value in `vocabulary`, -1 for no label.
        vocabulary: attribute → names of its values, the same for all splits.
    """

    split: str
    dataset: Dataset = field(repr=False)
    rows: np.ndarray = field(repr=False)
    codes: dict[str, np.ndarray] = field(repr=False)
    vocabulary: dict[str, tuple[str, ...]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names, in the order of the data set."""
        return tuple(self.vocabulary)

    def labels(self, attribute: str) -> np.ndarray:
        """Places of the rows' values in `values(attribute)`: int64 (N,), -1 where a row has no label."""
        self._check_attribute(attribute)
        return self.codes[attribute].astype(np.int64)

    def values(self, attribute: str) -> tuple[str, ...]:
        """Names of the attribute's values, sorted, the same for all splits of the data set."""
        self._check_attribute(attribute)
        return self.vocabulary[attribute]

    @property
    def has_images(self) -> bool:
        """Whether the first row has an image; a set that was prepared from annotations only has none at all."""
        return not len(self) or self.dataset.data.column("image")[int(self.rows[0])].is_valid

    def image_bytes(self, index: int) -> dict:
        """The image file of a row as `{"bytes", "path"}`."""
        return self._column("image")[int(self.rows[index])]["image"] or {"bytes": None, "path": None}

    def image(self, index: int) -> Image:
        """The image of a row, decoded to RGB.

        Raises:
            BadImage: it cannot be used.
        """
        return decode_image(self.image_bytes(index))

    @cached_property
    def image_ids(self) -> np.ndarray:
        """int64 (N,): the same number for byte-identical images, in all splits. Reads every image once."""
        import xxhash

        ids = []
        for chunk in self.dataset.data.column("image").chunks:
            paths = chunk.field("path")
            for i, value in enumerate(chunk.field("bytes")):
                data = value.as_buffer()  # no copy of the mapped bytes
                ids.append(xxhash.xxh3_64_intdigest(str(paths[i]).encode() if data is None else data))
        return np.array(ids, dtype=np.uint64).view(np.int64)[self.rows]

    @cached_property
    def captions(self) -> list[str | None]:
        """One a row."""
        return self._strings("caption")

    @cached_property
    def all_captions(self) -> list[list[str]]:
        """Of each row all its captions, as `captions` says them or else the one; empty ones are left out."""
        several = "captions" in self.dataset.column_names
        found = self._strings("captions") if several else [[caption] for caption in self.captions]
        return [[text.strip() for text in texts or () if text and text.strip()] for texts in found]

    @cached_property
    def product_ids(self) -> list[str | None]:
        """One a row."""
        return self._strings("product_id")

    @cached_property
    def image_names(self) -> list[str] | None:
        """The `image_id` of each row, by which other tables name it; None where the data set has none."""
        return self._strings("image_id") if "image_id" in self.dataset.column_names else None

    @cached_property
    def galleries(self) -> list[list[str]] | None:
        """The names of the galleries that each image belongs to; None where the data set has none."""
        return self._strings("galleries") if "galleries" in self.dataset.column_names else None

    @cached_property
    def tags(self) -> list[list[str]] | None:
        """All tags of each row, "attribute=value", where `labels` have room for one; None where there are none."""
        return self._strings("tags") if "tags" in self.dataset.column_names else None

    def select(self, indices: Sequence[int] | np.ndarray) -> ImageTable:
        """A table of the rows at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        codes = {attribute: codes[indices] for attribute, codes in self.codes.items()}
        return replace(self, rows=self.rows[indices], codes=codes)

    def drop(self, indices: Sequence[int] | np.ndarray) -> ImageTable:
        """A table without the rows at `indices`."""
        return self.select(np.delete(np.arange(len(self)), np.asarray(indices, dtype=np.int64)))

    def _check_attribute(self, attribute: str) -> None:
        if attribute not in self.vocabulary:
            raise ValueError(
                f"the data set has no attribute {attribute!r}; it has: {', '.join(self.vocabulary) or 'none'}"
            )

    def _column(self, name: str) -> Dataset:
        # One column only: indexing the full data set would decode every attribute of the row.
        if name not in self._columns:
            self._columns[name] = self.dataset.select_columns([name])
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, Dataset]:
        return {}

    def _strings(self, name: str) -> list:
        import pyarrow as pa

        return self.dataset.data.column(name).take(pa.array(self.rows)).to_pylist()


def load_tables(data_dir: str | os.PathLike, *, labels_only: Sequence[str] = ()) -> dict[str, ImageTable]:
    """Opens a prepared data set as one table a split, without reading the images.

    Args:
        data_dir: a folder written by one of the data_scripts.
        labels_only: splits whose images are left where they are: such a table has labels and no images.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: its rows are not of the schema.
    """
    dataset = _load(Path(data_dir), labels_only)
    attributes = {
        split: attribute_names(part.features, f"{data_dir} ({split})")
        for split, part in dataset.items()
        if split not in labels_only
    }
    names = next(iter(attributes.values()))
    odd = [split for split, given in attributes.items() if given != names]
    if odd:
        raise ValueError(
            f"{data_dir}: split {odd[0]!r} has the attributes {', '.join(attributes[odd[0]])}; "
            f"expected those of the other splits: {', '.join(names)}"
        )
    columns = {split: {name: _dictionary(part, name) for name in names} for split, part in dataset.items()}
    vocabulary = {
        name: tuple(sorted({value for split in columns for value in columns[split][name][1]})) for name in names
    }
    return {
        split: ImageTable(split, part, np.arange(len(part)), _codes(columns[split], vocabulary), vocabulary)
        for split, part in dataset.items()
    }


def check_images(table: ImageTable, bad_rows: BadRows, *, progress: bool = True) -> list[int]:
    """Decodes every image of a table once, in threads.

    Returns:
        The indices of the rows that cannot be used, each counted in `bad_rows`.
    """
    from tqdm import tqdm

    def cause(index: int) -> str | None:
        try:
            table.image(index)
        except BadImage as error:
            return error.cause
        return None

    bad = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        causes = tqdm(
            pool.map(cause, range(len(table))),
            desc=f"checking {table.split}",
            total=len(table),
            unit="image",
            disable=None if progress else True,
        )
        for index, found in enumerate(causes):
            if found is not None:
                bad.append(index)
                bad_rows.add(found, f"{table.split} row {table.rows[index]}: {table.image_bytes(index)['path']}")
    return bad


def _load(data_dir: Path, labels_only: Sequence[str]) -> DatasetDict:
    import pyarrow.parquet as pq
    from datasets import DatasetDict, Image, load_dataset, load_dataset_builder

    check_data_dir(data_dir)
    where = str(data_dir.resolve())  # a bare name such as "parquet" would be taken for a format
    if labels_only:
        # Without this choice every image would be copied into the cache of datasets.
        files = load_dataset_builder(where).config.data_files
        dataset = DatasetDict()
        for split in files:
            columns = None
            if split in labels_only:  # a set without attributes has no such column
                columns = [name for name in pq.read_schema(files[split][0]).names if name in COLUMNS[1:]]
            part = load_dataset("parquet", data_files={split: files[split]}, columns=columns)
            dataset[split] = part[split]
    else:
        dataset = load_dataset(where)
    check_splits(dataset, str(data_dir))
    for split in SPLITS:
        if split not in dataset:  # a split without rows has no file
            like = [name for name in dataset if name not in labels_only] or list(dataset)
            dataset[split] = dataset[like[0]].select(range(0))
    for split, part in dataset.items():
        if isinstance(part.features.get("image"), Image):
            dataset[split] = part.cast_column("image", Image(decode=False))
    return dataset


def _dictionary(dataset: Dataset, attribute: str) -> tuple[np.ndarray, list[str]]:
    """Codes (N,) with -1 for null, and the values they stand for, of one split."""
    import pyarrow.compute as pc

    encoded = pc.struct_field(dataset.data.column("attributes"), [attribute]).combine_chunks().dictionary_encode()
    if hasattr(encoded, "combine_chunks"):
        encoded = encoded.combine_chunks()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def _codes(columns: dict[str, tuple[np.ndarray, list[str]]], vocabulary: dict) -> dict[str, np.ndarray]:
    """The codes of a split in the shared vocabulary: int32 (N,) an attribute."""
    result = {}
    for name, (local, values) in columns.items():
        place = {value: code for code, value in enumerate(vocabulary[name])}
        # One more entry at the end: -1 (null) indexes it and stays -1.
        mapping = np.array([place[value] for value in values] + [-1], dtype=np.int32)
        result[name] = mapping[local]
    return result
