# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of captions and images that nobody trained, for tests."""

from pathlib import Path

from tiny_towers import make_routed_towers
from tiny_trunks import IMAGE_SIZE

CAPTIONS = ["a red cotton shirt", "blue denim jeans for men", "navy check shirt", "black leather shoes", "green dress"]
INCREMENTS = ("topwear", "apparel")
MORE = (*INCREMENTS, "footwear")


def write_text_checkpoint(
    folder: Path, increments=INCREMENTS, nudge: float = 0.0, vocabulary: int = 90, described: bool = True
) -> Path:
    """
    A complete checkpoint of tiny towers → its folder. Increments that checkpoints have in common have the same
    weights; `nudge` moves their projections a little, another `vocabulary` is another tokenizer.
    """
    from modeling_mclfir import MclfirImageProcessor, MclfirProcessor
    from modeling_mclfir.data.caption_tokenizer import train_tokenizer

    make_routed_towers(increments, nudge, described).save_pretrained(folder)
    images = MclfirImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    MclfirProcessor(images, train_tokenizer(CAPTIONS, vocabulary)).save_pretrained(folder)
    return folder


def open_text_checkpoint(folder: Path):
    """The model and its processor."""
    from modeling_mclfir import MclfirForTextImageRetrieval, MclfirProcessor

    return MclfirForTextImageRetrieval.from_pretrained(folder).eval(), MclfirProcessor.from_pretrained(folder)
