# SPDX-License-Identifier: Apache-2.0
"""Bring your own data: a folder of images with a CSV or Parquet of attributes.

Expected in --source: the images; labels.csv or labels.parquet (one row an image: its path in the folder, and one
column an attribute; an empty cell where it is not known; a column "caption" has texts about the images, in Parquet
maybe a list of them). If they are there, these are used as well:
  split.csv        columns image and split (train, val, query or gallery); images not in it are left out.
                   Without it: a column "split" of the labels, else a split by hash of product id or image name.
  increments.json  such as [{"name": "shape", "attributes": ["category", "fit"]}, ...]; else one of all attributes.
  values.json      attribute -> list of its values; a row with another value is left out and counted.
"""

from collections.abc import Sequence
from pathlib import Path

from data_scripts.command import parser, run, write_annotations
from modeling_mclfir.data.folder import read_folder
from modeling_mclfir.data.shards import DatasetSummary


def main(arguments: Sequence[str] | None = None) -> DatasetSummary:
    """Reads the folder and writes the data set."""
    command = parser("folder", __doc__, source="folder with the images and the label file")
    command.add_argument("--labels", type=Path, default=None, help="label file, as a path or inside --source")
    command.add_argument("--split", type=Path, default=None, help="split file, as a path or inside --source")
    command.add_argument("--increments", type=Path, default=None, help="increments.json to use")
    command.add_argument("--image-column", default="image", help='column with the image paths (default: "image")')
    command.add_argument(
        "--caption-column", nargs="+", default=None, metavar="COLUMN",
        help='columns with texts about the image, or lists of them (default: "caption" and "captions", if there)',
    )  # fmt: skip
    command.add_argument("--product-id-column", default=None, help="column with the product's id")
    command.add_argument(
        "--attributes", nargs="+", default=None, metavar="COLUMN", help="columns that are attributes (default: others)"
    )
    command.add_argument("--keep-duplicates", action="store_true", help="keep byte-identical copies")
    command.add_argument("--name", default=None, help="name in the card (default: that of the folder)")
    command.add_argument("--licence", default="not stated", help='in the card, such as "cc0-1.0"')
    command.add_argument("--citation", default="", help="in the card")
    options = command.parse_args(arguments)
    annotations = read_folder(
        options.source,
        options.labels,
        split=options.split,
        image_column=options.image_column,
        caption_column=options.caption_column,
        product_id_column=options.product_id_column,
        attributes=options.attributes,
        increments=options.increments,
        keep_duplicates=options.keep_duplicates,
    )
    name = options.name or options.source.resolve().name
    return write_annotations(annotations, options, name=name, licence=options.licence, citation=options.citation)


if __name__ == "__main__":
    run(main)
