# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set that ASEN's lists describe: an image, what it is labelled with, the galleries it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_scripts.formats.asen_meta import SPLIT_OF, MetaSplit
from modeling_mclfir.data.annotations import SourceImage
from modeling_mclfir.data.schema import SPLITS


class Labelled(NamedTuple):
    """A row in little space.

    Attributes:
        image: path as it is listed.
        labels: (attribute, value) of each label, as ids, in the order of the list.
        galleries: the galleries that the image belongs to.
    """

    image: str
    labels: tuple[tuple[int, int], ...]
    galleries: tuple[str, ...] = ()


def image_root(source: Path, lists: Path, folders: Sequence[str]) -> Path:
    """Where the listed paths begin: `source`, or the folder of the lists where the images are there instead.

    Args:
        source: what the user gave.
        lists: the folder of the lists; the authors of ASEN put the images beside them.
        folders: a listed path begins with one of these names.
    """
    places = (source, lists)
    return next((place for place in places if any((place / name).is_dir() for name in folders)), source)


def listed_splits(meta: MetaSplit) -> dict[str, list[Labelled]]:
    """Split → rows of the lists, in their order; train is empty where the lists have none.

    A row of val, query and gallery has one label. In train all labels of an image make one row, as ASEN's code takes
    every pair of a line.
    """
    splits: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
    for name, (split, galleries) in SPLIT_OF.items():
        if split != "train":
            listed = meta.lists[name]
            splits[split] += (Labelled(item.image, ((item.attribute, item.value),), galleries) for item in listed)
    labels: dict[str, list[tuple[int, int]]] = {}
    for item in meta.lists.get("train", ()):
        labels.setdefault(item.image, []).append((item.attribute, item.value))
    splits["train"] = [Labelled(image, tuple(pairs)) for image, pairs in labels.items()]
    return splits


def second_values_note(meta: MetaSplit, rest: str) -> list[str]:
    """A note on images of train with several values of one attribute, where there are any; `rest` is their lot."""
    count = meta.second_values
    return [f"Train labels beside another one of the same image and attribute: {count}. {rest}"] if count else []


def labelled_rows(
    root: Path, attributes: Sequence[str], value_names: Sequence[Sequence[str]], items: Iterable[Labelled]
) -> Iterator[dict[str, Any]]:
    """Yields a row for each of `items`: of an attribute the first label that it has, None where it has none."""
    for item in items:
        labels: dict[str, str | None] = dict.fromkeys(attributes)
        for attribute, value in reversed(item.labels):
            labels[attributes[attribute]] = value_names[attribute][value]
        yield {"image": SourceImage(root, item.image), "attributes": labels, "galleries": list(item.galleries)}
