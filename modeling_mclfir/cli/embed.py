# SPDX-License-Identifier: Apache-2.0
"""`mclfir embed`: images + checkpoint → one vector an image and attribute, in Parquet."""

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .checkpoint import open_checkpoint
from .folder_images import image_batches, image_files


def main(arguments: list[str]) -> None:
    """
    Embed every image of a folder. Rows of the output: image (path inside the folder), attribute, embed.

    Raises:
        FileNotFoundError: no checkpoint, no folder, no image in it.
        ValueError: an unknown attribute, or more bad images than --max_bad_fraction.
    """
    parser = argparse.ArgumentParser(
        prog="mclfir embed", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="an increment-XX folder, or a Hub id")
    parser.add_argument("--images", required=True, type=Path, help="folder of images, searched through")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--attributes", nargs="*", help="only these; default: all of the checkpoint")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01, help="more bad images than this are an error")
    args = parser.parse_args(arguments)

    model, processor = open_checkpoint(args.checkpoint)
    attribute_ids = model.attribute_ids(args.attributes) if args.attributes else None
    known = model.config.attributes
    names = known if attribute_ids is None else [known[index] for index in attribute_ids]

    tables = []
    files = image_files([args.images])
    for kept, images in image_batches(files, args.batch_size, args.max_bad_fraction, "embedding"):
        pixels = processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        with torch.no_grad():
            embeds = model(pixels, attribute_ids=attribute_ids).embeds.cpu()  # (n, A, D)
        tables.append(_table(kept, names, embeds))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    pq.write_table(pa.concat_tables(tables), partial)
    partial.replace(args.output)
    num_images = sum(len(table) for table in tables) // len(names)
    sys.stderr.write(f"{num_images:,} images, {len(names)} attributes: {args.output} (image, attribute, embed)\n")


def _table(paths: list[str], attributes: list[str], embeds: torch.Tensor) -> pa.Table:
    flat = embeds.reshape(-1, embeds.shape[-1])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1).numpy()), flat.shape[1])
    return pa.table(
        {
            "image": [path for path in paths for _ in attributes],
            "attribute": list(attributes) * len(paths),
            "embed": vectors,
        }
    )
