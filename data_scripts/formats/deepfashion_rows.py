# SPDX-License-Identifier: Apache-2.0
"""Rows of DeepFashion: which of its tags an image is labelled with, and the column that has all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_scripts.formats.deepfashion_files import Box, ImageTags, Vocabulary
from data_scripts.formats.increment_lists import attribute_increments
from data_scripts.formats.stable_hash import draw
from modeling_mclfir.data.annotations import Again, Annotations, Check, SourceImage
from modeling_mclfir.data.schema import FURTHER_COLUMNS, table_features

NUM_TAGS = 1_000
NUM_VALUES = (156, 218, 180, 216, 230)
# Image, the tags that its labels are taken from before any others, and the galleries it belongs to.
Item = tuple[str, Sequence[int], tuple[str, ...]]


@dataclass(frozen=True)
class Rows:
    """Makes the rows of all splits.

    Attributes:
        root: where the listed paths begin.
        vocabulary: the tags.
        tags: image → all its tags, where they are known.
        protocol: "one-tag": labels are taken from the tags of the item only; "all-tags": also from `tags`, for the
            types that the item has none of.
        boxes: image → its box, where there is one.
        categories: image → its category; None: the set has no attribute of that name.
        columns: further columns of a row.
    """

    root: Path
    vocabulary: Vocabulary
    tags: ImageTags
    protocol: str
    boxes: Mapping[str, Box]
    categories: Mapping[str, str] | None = None
    columns: tuple[str, ...] = ("tags",)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, in order."""
        return self.vocabulary.attributes + (() if self.categories is None else ("category",))

    def of(self, items: Iterable[Item]) -> Iterator[Mapping[str, Any]]:
        """Yields a row for each item."""
        for image, given, galleries in items:
            labels: dict[str, str | None] = dict.fromkeys(self.attributes)
            tags = sorted({*self.tags.get(image, ()), *given})
            for tag in self._labelled(image, sorted(given), tags):
                labels[self.vocabulary.attributes[self.vocabulary.types[tag]]] = self.vocabulary.names[tag]
            words = [self.vocabulary.labels[tag] for tag in tags]
            if self.categories and image in self.categories:
                labels["category"] = self.categories[image]
                words.append(f"category={self.categories[image]}")
            row = {"image": SourceImage(self.root, image, self.boxes.get(image)), "attributes": labels, "tags": words}
            if "galleries" in self.columns:
                row["galleries"] = list(galleries)
            yield row

    def _labelled(self, image: str, *sources: Sequence[int]) -> Iterator[int]:
        """One tag of each type, by a hash of image and type, from the first of `sources` that has the type."""
        types = self.vocabulary.types
        if self.protocol == "one-tag":
            sources = sources[:1]
        for i in range(len(self.vocabulary.attributes)):
            of_type = next(filter(None, ([tag for tag in tags if types[tag] == i] for tags in sources)), None)
            if of_type:
                yield draw(f"{image}\t{i + 1}", of_type)

    def annotations(self, splits: Mapping[str, list[Item]], **rest: Any) -> Annotations:
        """What is handed over to the writer."""
        return Annotations(
            attributes=self.attributes,
            increments=attribute_increments(self.attributes),
            splits={split: Again(self.of, items) for split, items in splits.items()},
            counts={split: len(items) for split, items in splits.items()},
            columns=table_features({name: FURTHER_COLUMNS[name] for name in self.columns}),
            **rest,
        )


def image_root(*places: Path) -> Path:
    """Where the listed paths, img/..., begin; the first place where the images are nowhere."""
    # Img comes first: some file systems take Img for img.
    candidates = [place / name for place in places for name in ("Img", "")]
    return next((folder for folder in candidates if (folder / "img").is_dir()), places[0])


def tag_checks(vocabulary: Vocabulary) -> list[Check]:
    """Numbers of the tags, in all and by type."""
    counts = [len(tags) for tags in vocabulary.by_type]
    by_type = zip(vocabulary.attributes, counts, NUM_VALUES, strict=True)
    checks = [Check(f"values of {name}", count, published) for name, count, published in by_type]
    return [Check("tags", sum(counts), NUM_TAGS), *checks]
