# SPDX-License-Identifier: Apache-2.0
"""The labelled items that vote on the values of photos, for the commands that ask them."""

import argparse
from pathlib import Path

from ..data.table import load_tables
from ..value_index import ValueIndex


def add_gallery_flags(parser: argparse.ArgumentParser) -> None:
    """What `open_gallery` reads, and how the vote is taken."""
    parser.add_argument("--gallery", type=Path, help="data set of labelled images, as data_scripts write it")
    parser.add_argument("--split", default="gallery", help="which part of it")
    parser.add_argument("--index", type=Path, help="folder of the embedded gallery: written with --gallery, else read")
    parser.add_argument("--attributes", nargs="*", help="only these; default: all that checkpoint and gallery have")
    parser.add_argument("--k", type=int, default=20, help="gallery items that vote")
    parser.add_argument("--temperature", type=float, default=0.1, help="a vote weighs exp(cosine / temperature)")


def check_gallery_flags(args: argparse.Namespace) -> None:
    """ValueError where neither a gallery nor an index is named."""
    if args.gallery is None and args.index is None:
        raise ValueError("Name the labelled items: --gallery (a data set of data_scripts), or --index (a saved one).")


def open_gallery(args: argparse.Namespace, model, processor) -> tuple[ValueIndex, dict[str, int]]:
    """
    The index that the flags name, on the CPU, and attribute → id of those asked for.

    Raises:
        FileNotFoundError: no such gallery or index.
        ValueError: no such split, an unknown attribute.
    """
    if args.gallery is None:
        index = ValueIndex.load(args.index)
    else:
        tables = load_tables(args.gallery)
        if args.split not in tables:
            raise ValueError(f"{args.gallery} has no split {args.split!r}; it has {', '.join(tables)}.")
        index = ValueIndex.from_table(model, tables[args.split], processor, args.batch_size, args.attributes)
        if args.index is not None:
            index.save(args.index)
    # Of an attribute with several spaces the first, as in the index.
    return index, {name: model.attribute_ids([name])[0] for name in args.attributes or index.values}
