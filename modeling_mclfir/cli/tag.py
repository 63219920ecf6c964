# SPDX-License-Identifier: Apache-2.0
"""`mclfir tag`: photos + checkpoint + labelled gallery → a value of each attribute, with a confidence, in Parquet."""

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data.table import load_tables
from ..modeling_mclfir import MclfirForImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from ..training.memory import keep_freed_memory
from ..value_index import ValueIndex
from .folder_images import check_checkpoint, folder_batches


def main(arguments: list[str]) -> None:
    """
    Tag every image of a folder by the vote of its nearest gallery items. Rows of the output: image (path inside the
    folder), attribute, value (null where the gallery knows none), confidence (0..1).

    Raises:
        FileNotFoundError: no checkpoint, gallery, index or folder, no image in it.
        ValueError: no gallery and no index, an unknown attribute, more bad images than --max_bad_fraction.
    """
    args = _parse(arguments)
    if args.gallery is None and args.index is None:
        raise ValueError("Name the labelled items: --gallery (a data set of data_scripts), or --index (a saved one).")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_checkpoint(args.checkpoint)
    keep_freed_memory()
    model = MclfirForImageRetrieval.from_pretrained(args.checkpoint).to(device).eval()
    processor = MclfirImageProcessor.from_pretrained(args.checkpoint)
    if args.gallery is None:
        index = ValueIndex.load(args.index)
    else:
        tables = load_tables(args.gallery)
        if args.split not in tables:
            raise ValueError(f"{args.gallery} has no split {args.split!r}; it has {', '.join(tables)}.")
        index = ValueIndex.from_table(model, tables[args.split], processor, args.batch_size, args.attributes)
        if args.index is not None:
            index.save(args.index)
    index = index.to(device)
    # Of an attribute with several spaces the first, as in the index.
    attribute_ids = [model.attribute_ids([name])[0] for name in args.attributes or index.values]

    columns: dict[str, list] = {"image": [], "attribute": [], "value": [], "confidence": []}
    batches = folder_batches(args.images, processor, args.batch_size, args.max_bad_fraction, "tagging")
    for names, pixels in batches:
        found = model.predict_values(pixels.to(device), index, args.k, args.temperature, attribute_ids)
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
    parser.add_argument("--gallery", type=Path, help="data set of labelled images, as data_scripts write it")
    parser.add_argument("--split", default="gallery", help="which part of it")
    parser.add_argument("--index", type=Path, help="folder of the embedded gallery: written with --gallery, else read")
    parser.add_argument("--images", required=True, type=Path, help="folder of images, searched through")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--attributes", nargs="*", help="only these; default: all that checkpoint and gallery have")
    parser.add_argument("--k", type=int, default=20, help="gallery items that vote")
    parser.add_argument("--temperature", type=float, default=0.1, help="a vote weighs exp(cosine / temperature)")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01, help="more bad images than this are an error")
    return parser.parse_args(arguments)
