# SPDX-License-Identifier: Apache-2.0
"""Myntra product photos (a subset of Kaggle's "Fashion Product Images"): 9,583 photos with catalogue data and titles.

Expected in --source: images/*.jpg, labels.csv (image, id, gender, masterCategory, subCategory, articleType,
baseColour, season, year, usage, productDisplayName), split.csv (image, split), increments.json.
"""

from collections.abc import Sequence

from data_scripts.command import parser, require_files, run, write_annotations
from modeling_mclfir.data.folder import read_folder
from modeling_mclfir.data.shards import DatasetSummary

NAME = "Myntra fashion products"
LICENCE = "unclear: the Kaggle page is said to state MIT; photos © Myntra; local use only"
CITATION = "Param Aggarwal: Fashion Product Images Dataset, Kaggle, 2019 (catalogue data and photos of myntra.com)"
DESCRIPTION = (
    "Product photos on white with catalogue data; the title is the caption, the id the product id. "
    "Labels are kept as they are: NA is a value. Byte-identical copies are left out."
)
# masterCategory chooses the rows of the increments; year is a fact of the catalogue that no photo shows.
ATTRIBUTES = ("gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "usage")
FILES = ("labels.csv", "split.csv", "increments.json")


def main(arguments: Sequence[str] | None = None) -> DatasetSummary:
    """Reads the folder and writes the data set."""
    options = parser("myntra", __doc__, source="folder with the four things above").parse_args(arguments)
    require_files(options.source, FILES if options.annotations_only else ("images", *FILES))
    annotations = read_folder(
        options.source,
        "labels.csv",
        split="split.csv",
        caption_column="productDisplayName",
        product_id_column="id",
        attributes=ATTRIBUTES,
    )
    return write_annotations(
        annotations, options, name=NAME, licence=LICENCE, citation=CITATION, description=DESCRIPTION
    )


if __name__ == "__main__":
    run(main)
