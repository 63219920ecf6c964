# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of captions and images that nobody trained, for tests."""

from pathlib import Path

from tiny_towers import make_towers
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
    import torch

    from modeling_mclfir import MclfirImageProcessor, MclfirProcessor
    from modeling_mclfir.data.caption_tokenizer import train_tokenizer
    from modeling_mclfir.routing_mclfir import unit_length

    model = make_towers("vit", "bert")
    for number, name in enumerate(increments):
        model.add_increment(name, new_values=number > 0)
        generator = torch.Generator().manual_seed(number)
        adapter = model.config.adapter_name(number)
        for name, parameter in model.named_parameters():
            if f"heads.{number}." in name and "logit_scale" not in name or f".lora_B.{adapter}." in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.data += nudge * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
        if described:
            # Near each other, so that every space counts for every query.
            sides = (unit_length(1 + 0.1 * torch.randn(3, dim, generator=generator)) for dim in model._pooled_dims())
            model.describe_increment(number, *sides, [0.2 + 0.1 * number, 0.4 - 0.1 * number])
    model.eval().save_pretrained(folder)
    images = MclfirImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    MclfirProcessor(images, train_tokenizer(CAPTIONS, vocabulary)).save_pretrained(folder)
    return folder


def open_text_checkpoint(folder: Path):
    """The model and its processor."""
    from modeling_mclfir import MclfirForTextImageRetrieval, MclfirProcessor

    return MclfirForTextImageRetrieval.from_pretrained(folder).eval(), MclfirProcessor.from_pretrained(folder)
