# SPDX-License-Identifier: Apache-2.0
"""`mclfir embed`: images + checkpoint → one vector an image and attribute, in Parquet."""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from ..data.images import BadImage, BadRows, decode_image
from ..modeling_mclfir import MclfirForImageRetrieval
from ..processing_mclfir import MclfirImageProcessor

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def main(arguments: list[str]) -> None:
    """
    Embed every image of a folder. Rows of the output: image (path inside the folder), attribute, embed.

    Raises:
        FileNotFoundError: no checkpoint, no folder, no image in it.
        ValueError: an unknown attribute, or more bad images than --max_bad_fraction.
    """
    parser = argparse.ArgumentParser(prog="mclfir embed", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="an increment-XX folder, or a Hub id")
    parser.add_argument("--images", required=True, type=Path, help="folder of images, searched through")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--attributes", nargs="*", help="only these; default: all of the checkpoint")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_bad_fraction", type=float, default=0.01)
    args = parser.parse_args(arguments)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MclfirForImageRetrieval.from_pretrained(args.checkpoint).to(device).eval()
    processor = MclfirImageProcessor.from_pretrained(args.checkpoint)
    attribute_ids = model.attribute_ids(args.attributes) if args.attributes else None
    known = model.config.attributes
    names = known if attribute_ids is None else [known[index] for index in attribute_ids]
    files = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{args.images} holds no image ({', '.join(sorted(_SUFFIXES))}).")

    bad_rows, tables = BadRows(), []
    for start in tqdm(range(0, len(files), args.batch_size), desc="embedding", unit="batch"):
        images, kept = [], []
        for path in files[start : start + args.batch_size]:
            try:
                images.append(decode_image(path))
                kept.append(str(path.relative_to(args.images)))
            except BadImage as error:
                bad_rows.add(error.cause, str(path))
        if images:
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(device)
            with torch.no_grad():
                embeds = model(pixels, attribute_ids=attribute_ids).embeds.cpu()  # (n, A, D)
            tables.append(_table(kept, names, embeds))
    bad_rows.check(len(files), args.max_bad_fraction)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    pq.write_table(pa.concat_tables(tables), partial)
    partial.replace(args.output)


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
