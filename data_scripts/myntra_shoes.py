# SPDX-License-Identifier: Apache-2.0
"""The shoes of Myntra's product photos, with triplets drawn from their labels by CSN's rule, as on Zappos50k.

Expected in --source: images/*.jpg, labels.csv (image, id, gender, subCategory, articleType, baseColour, usage,
productDisplayName), split.csv (image, split): the folder that data_scripts.myntra reads. Shoes are the rows with the
subCategory Shoes, Sandal or Flip Flops; they keep their splits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_scripts.command import parser, require_files, run, write_annotations
from data_scripts.formats.increment_lists import attribute_increments
from data_scripts.formats.stable_hash import hash_number
from data_scripts.formats.triplet_lists import Triplets, images_of, triplet_rows
from data_scripts.formats.triplets_by_labels import draw_by_labels, label_codes, values_alone
from data_scripts.myntra import CITATION, LICENCE
from modeling_mclfir.data.annotations import Again, Annotations, Check, Table
from modeling_mclfir.data.folder import read_folder
from modeling_mclfir.data.schema import FURTHER_COLUMNS, SPLITS, TRIPLETS, table_features
from modeling_mclfir.data.shards import DatasetSummary

NAME = "Myntra shoes"
DESCRIPTION = (
    "Product photos of shoes, sandals and flip-flops on white. Four conditions of similarity: articleType, gender, "
    "baseColour and usage; the triplets are drawn from these labels: anchor and positive share the condition's value, "
    "the negative has another one. The title is the caption, the id the product id."
)
ATTRIBUTES = ("articleType", "gender", "baseColour", "usage")
SHOES = ("Shoes", "Sandal", "Flip Flops")  # of subCategory
# Split of the triplets → splits of their images. As in CSN's lists, those of test are of images kept apart.
SIDES = {"train": ("train",), "val": ("val",), "query": ("query", "gallery")}
MAX_TRIPLETS = (40_000, 8_000, 20_000)  # of SIDES in their order, all conditions together
FILES = ("labels.csv", "split.csv")


def read(
    source: Path, *, max_triplets: Sequence[int] = MAX_TRIPLETS, seed: int = 0, without_labels: bool = False
) -> Annotations:
    """Reads the labels, keeps the shoes and draws their triplets; reads no image.

    Args:
        source: folder with the files above.
        max_triplets: so many of train, val and test, all conditions together, each an equal share; fewer where there
            are fewer.
        seed: of that draw. A split's triplets of a condition depend on nothing but this, their number and the labels.
        without_labels: rows get no label, so that training has the triplets alone.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: `max_triplets` are no three positive numbers, a column is missing, or no row is of a shoe.
    """
    if len(max_triplets) != len(SIDES) or min(max_triplets) < 1:
        raise ValueError(
            f"max_triplets is {list(max_triplets)}; expected three numbers from 1, such as "
            f"{' '.join(map(str, MAX_TRIPLETS))}"
        )
    every = read_folder(
        source,
        "labels.csv",
        split="split.csv",
        caption_column="productDisplayName",
        product_id_column="id",
        attributes=(*ATTRIBUTES, "subCategory"),
        increments=attribute_increments(ATTRIBUTES),
    )
    images = {split: [(row["image_id"], row["attributes"]) for row in _shoes(every, split)] for split in SPLITS}
    if not any(images.values()):
        raise ValueError(
            f"{source}/labels.csv has no shoes in any split; expected rows with the subCategory {', '.join(SHOES)}"
        )
    drawn, codes, rows = {}, {}, {}
    for (split, parts), count in zip(SIDES.items(), max_triplets, strict=True):
        inside = [image for part in parts for image in images[part]]
        codes[split] = {name: label_codes([labels[name] for _, labels in inside]) for name in ATTRIBUTES}
        drawn[split] = _draw(codes[split], split, count, seed)
        rows[split] = Again(triplet_rows, drawn[split], [image_id for image_id, _ in inside])
    return replace(
        every,
        attributes=ATTRIBUTES,
        splits={split: Again(_shoes, every, split, not without_labels) for split in SPLITS},
        counts={split: len(found) for split, found in images.items()},
        columns={"image_id": FURTHER_COLUMNS["image_id"]},
        tables={"triplets": Table(table_features(TRIPLETS), rows)},
        checks=_checks(drawn, codes),
        notes=[*every.notes, *_notes(every, images, codes, seed, without_labels)],
    )


def _shoes(every: Annotations, split: str, with_labels: bool = True) -> Iterator[dict[str, Any]]:
    """Rows of the shoes of a split; the labels are there, or all None."""
    for row in every.splits[split]:
        if row["attributes"]["subCategory"] in SHOES:
            labels = {name: row["attributes"][name] if with_labels else None for name in ATTRIBUTES}
            yield row | {"attributes": labels, "image_id": row["image"].listed}


def _draw(codes: Mapping[str, np.ndarray], split: str, count: int, seed: int) -> Triplets:
    """Condition → its share of `count` triplets."""
    drawn = {}
    for place, (name, numbers) in enumerate(codes.items()):
        share = count // len(codes) + (place < count % len(codes))
        rng = np.random.default_rng([seed, hash_number(f"{split}/{name}")])
        drawn[name] = draw_by_labels(numbers, share, rng)
    return drawn


def _checks(drawn: Mapping[str, Triplets], codes: Mapping[str, Mapping[str, np.ndarray]]) -> list[Check]:
    checks = []
    for split, triplets in drawn.items():
        checks += [Check(f"{split} triplets {name}", len(rows)) for name, rows in triplets.items()]
        checks += [
            Check(f"{split} values {name} of one image, which is no anchor", values_alone(numbers))
            for name, numbers in codes[split].items()
        ]
        num_images = len(codes[split][ATTRIBUTES[0]])
        checks.append(Check(f"{split} images", num_images))
        checks.append(Check(f"{split} images in the triplets", int(images_of(triplets, num_images).sum())))
    return checks


def _notes(
    every: Annotations,
    images: Mapping[str, Sequence],
    codes: Mapping[str, Mapping[str, np.ndarray]],
    seed: int,
    without_labels: bool,
) -> list[str]:
    alone = sum(values_alone(numbers) for of_split in codes.values() for numbers in of_split.values())
    notes = [
        f"Of {sum(every.counts.values())} products, those with the subCategory {', '.join(SHOES)} are kept: "
        f"{sum(map(len, images.values()))}.",
        f"Triplets are drawn with the seed {seed}, distinct, each anchor as likely as another; those of train and val "
        "are of the images of that split, those of test (the split query) of query and gallery together. A value that "
        f"one image of them has makes no anchor, but may be a negative: {alone} such values, each counted in the "
        "splits that have it.",
    ]
    if without_labels:
        notes.append("The labels are left out of the rows: the four attributes are known by their triplets alone.")
    return notes


def main(arguments: Sequence[str] | None = None) -> DatasetSummary:
    """Reads the folder and writes the data set."""
    command = parser("myntra_shoes", __doc__, source="folder with the three things above")
    command.add_argument(
        "--max-triplets",
        type=int,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        default=MAX_TRIPLETS,
        help=f"draw so many, all conditions together (default: {' '.join(map(str, MAX_TRIPLETS))})",
    )
    command.add_argument("--seed", type=int, default=0, help="of the draw of triplets (default: 0)")
    command.add_argument(
        "--without-labels", action="store_true", help="leave the labels out: learn from triplets alone, as CSN does"
    )
    options = command.parse_args(arguments)
    require_files(options.source, FILES if options.annotations_only else ("images", *FILES))
    annotations = read(
        options.source,
        max_triplets=options.max_triplets,
        seed=options.seed,
        without_labels=options.without_labels,
    )
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
