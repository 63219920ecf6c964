# SPDX-License-Identifier: Apache-2.0
"""`mclfir attend`: photos + checkpoint + labelled gallery → heat maps of each attribute, with the value voted for."""

import argparse
import sys
from pathlib import Path

import torch

from ..training.attention_examples import Voters, has_spatial_attention, photo_maps
from ..training.attention_plots import plot_photo
from ..training.examples import thumbnail
from ..value_index import ValueIndex
from .checkpoint import open_checkpoint
from .folder_images import image_batches, image_files
from .labelled_gallery import add_gallery_flags, check_gallery_flags, open_gallery


def main(arguments: list[str]) -> None:
    """
    Draw one figure a photo: a heat map an attribute, each with the value that the nearest gallery items vote for.

    Raises:
        FileNotFoundError: no checkpoint, gallery, index or photo.
        ValueError: heads without spatial attention, no gallery and no index, an unknown attribute, two photos of one
            name, more bad images than --max_bad_fraction.
    """
    args = _parse(arguments)
    check_gallery_flags(args)
    model, processor = open_checkpoint(args.checkpoint)
    if not has_spatial_attention(model):
        switch = "" if model.config.use_spatial_attention else " without use_spatial_attention"
        raise ValueError(
            f"{args.checkpoint}: heads of head_type {model.config.head_type!r}{switch} have no spatial attention, so "
            "there is no heat map to draw. Train with --head_type mclfir, for instance."
        )
    files = image_files(args.images)
    index, ids = open_gallery(args, model, processor)
    voters = [_voters(model, index, name, place) for name, place in ids.items()]
    num_photos = 0
    for names, images in image_batches(files, args.batch_size, args.max_bad_fraction, "drawing"):
        pixels = processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        with torch.no_grad():
            seen = model(pixels, attribute_ids=list(ids.values()), output_attentions=True)
        found = photo_maps(seen.attentions, seen.embeds.unbind(1), voters, k=args.k, temperature=args.temperature)
        for name, image, maps in zip(names, images, found, strict=True):
            path = args.output / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            plot_photo({"image": thumbnail(image), "maps": maps}, path, f"Where the model looks in {name}")
        num_photos += len(names)
    sys.stderr.write(f"{num_photos:,} photo{'s' * (num_photos != 1)}, {len(voters)} attributes: {args.output}\n")


def _voters(model, index: ValueIndex, name: str, attribute_id: int) -> Voters:
    increment = model.config.increment_names[model.config.increment_of(attribute_id)]
    if name not in index.values:  # a saved index may know fewer: nobody votes
        embeds, labels = torch.zeros(0, model.config.embed_dim), torch.zeros(0, dtype=torch.long)
        return Voters(increment, name, attribute_id, embeds, labels, ())
    return Voters(increment, name, attribute_id, index.embeds[name], index.labels[name], index.values[name])


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mclfir attend", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="an increment-XX folder, or a Hub id")
    add_gallery_flags(parser)
    parser.add_argument("--images", required=True, type=Path, nargs="+", help="photos, or folders, searched through")
    parser.add_argument("--output", required=True, type=Path, help="folder of the figures, NAME_OF_THE_PHOTO.png each")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01, help="more bad images than this are an error")
    return parser.parse_args(arguments)
