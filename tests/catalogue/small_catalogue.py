# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that nobody trained, photos of noise and catalogues of them, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
INCREMENTS = (("cut", ["neckline", "sleeve"]), ("look", ["colour"]))
MORE = (*INCREMENTS, ("spring", ["neckline"]))


def write_checkpoint(folder: Path, increments=INCREMENTS, seed: int = 0, described: bool = False, nudge: float = 0.0):
    """
    A complete checkpoint of a tiny trunk → its folder. The same seed gives the same weights to the increments that
    checkpoints have in common; `nudge` moves all of them a little.
    """
    import torch
    from transformers import ViTConfig

    from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor
    from modeling_mclfir.routing_mclfir import unit_length

    torch.manual_seed(seed)
    trunk = ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=SIZE, patch_size=8
    )
    model = MclfirForImageRetrieval.from_trunk(trunk, pretrained=False, embed_dim=8, gate_dim=4, lora_rank=2)
    for number, (name, attributes) in enumerate(increments):
        known = model.config.attributes
        model.add_increment(name, attributes, new_values=attributes[0] in known)
        generator = torch.Generator().manual_seed(100 * seed + number)
        for parameter in model.heads[number].parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    if nudge:
        generator = torch.Generator().manual_seed(9)
        for parameter in model.heads.parameters():
            parameter.data += nudge * torch.randn(parameter.shape, generator=generator)
    if described:
        for number, (_, attributes) in enumerate(increments):
            generator = torch.Generator().manual_seed(number)
            prototypes = unit_length(torch.randn(3, 16, generator=generator))
            model.describe_increment(number, prototypes, [0.2 + 0.1 * number] * len(attributes))
    model.eval().save_pretrained(folder)
    MclfirImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def picture(number: int) -> Image.Image:
    """Coloured noise that says which it is."""
    rng = np.random.default_rng(number)
    low = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((40, 40), Image.Resampling.BICUBIC)


def write_photos(folder: Path, numbers, first: int = 0) -> Path:
    """Photos NNN.png, every third in a folder inside; `first` makes other pictures of the same names."""
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(first + number).save(folder / photo_name(number))
    return folder


def photo_name(number: int) -> str:
    return f"{'inner/' if number % 3 == 0 else ''}{number:03d}.png"


def contents(index) -> dict[str, dict[str, tuple[bytes, str, str]]]:
    """Space → item → vector, metadata and what made it, of the live revisions."""
    found = {}
    for space in index.spaces:
        found[space] = {}
        for batch in index.export(space):
            for name, embed, metadata, made_by in zip(
                batch.ids, batch.embeds, batch.metadata, batch.made_by, strict=True
            ):
                assert name not in found[space], f"{name} is there twice"
                found[space][name] = (embed.tobytes(), repr(sorted(metadata.items())), made_by)
    return found


def vectors_of(checkpoint, images, batch_size: int = 4) -> dict[str, np.ndarray]:
    """Space → vectors of images, by the model itself."""
    import torch

    from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor

    model = MclfirForImageRetrieval.from_pretrained(checkpoint).eval()
    processor = MclfirImageProcessor.from_pretrained(checkpoint)
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels = processor(images[start : start + batch_size], return_tensors="pt")["pixel_values"]
            parts.append(model(pixels).embeds)
    embeds, config = torch.cat(parts).numpy(), model.config
    increments = [config.increment_names[config.increment_of(place)] for place in range(len(config.attributes))]
    names = [f"{attribute}@{name}" for attribute, name in zip(config.attributes, increments, strict=True)]
    return {name: embeds[:, place] for place, name in enumerate(names)}
