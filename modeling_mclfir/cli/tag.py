# SPDX-License-Identifier: Apache-2.0
"""`mclfir tag`: photos + checkpoint + labelled gallery → a value of each attribute, with a confidence, in Parquet."""

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .checkpoint import open_checkpoint
from .folder_images import image_batches, image_files
from .labelled_gallery import add_gallery_flags, check_gallery_flags, open_gallery


def main(arguments: list[str]) -> None:
    """
    Tag every image of a folder by the vote of its nearest gallery items. Rows of the output: image (path inside the
    folder), attribute, value (null where the gallery knows none), confidence (0..1).

    Raises:
        FileNotFoundError: no checkpoint, gallery, index or folder, no image in it.
        ValueError: no gallery and no index, an unknown attribute, more bad images than --max_bad_fraction.
    """
    args = _parse(arguments)
    check_gallery_flags(args)
    model, processor = open_checkpoint(args.checkpoint)
    files = image_files([args.images])
    index, ids = open_gallery(args, model, processor)
    index = index.to(model.device)

    columns: dict[str, list] = {"image": [], "attribute": [], "value": [], "confidence": []}
    for names, images in image_batches(files, args.batch_size, args.max_bad_fraction, "tagging"):
        pixels = processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        found = model.predict_values(pixels, index, args.k, args.temperature, list(ids.values()))
        for name, predictions in zip(names, found, strict=True):
            for attribute, (value, confidence) in predictions.items():
                for column, cell in zip(columns.values(), (name, attribute, value, confidence), strict=True):
                    column.append(cell)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    schema = [("image", pa.string()), ("attribute", pa.string()), ("value", pa.string()), ("confidence", pa.float32())]
    pq.write_table(pa.table(columns, schema=pa.schema(schema)), partial)
    partial.replace(args.output)
    num_images = len(set(columns["image"]))
    sys.stderr.write(f"{num_images:,} images: {args.output} (image, attribute, value, confidence)\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mclfir tag", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="an increment-XX folder, or a Hub id")
    add_gallery_flags(parser)
    parser.add_argument("--images", required=True, type=Path, help="folder of images, searched through")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01, help="more bad images than this are an error")
    return parser.parse_args(arguments)
