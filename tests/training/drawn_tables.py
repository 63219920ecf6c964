# SPDX-License-Identifier: Apache-2.0
"""A small drawn table, a small real model and an evaluator, for the tests of pictures."""

import io

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage
from transformers import ResNetConfig

from modeling_mclfir.data.increments import Increment
from modeling_mclfir.data.table import ImageTable
from modeling_mclfir.evaluation import Evaluator
from modeling_mclfir.modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.processing_mclfir import MclfirImageProcessor

INCREMENTS = [Increment("cut", ("sleeve", "neck")), Increment("surface", ("colour",))]
VALUES = {"sleeve": ("long", "none", "short"), "neck": ("round", "v"), "colour": ("$blue$", "red")}


def make_table(split: str, num_rows: int, seed: int, missing: float = 0.2) -> ImageTable:
    rng = np.random.default_rng(seed)
    images = []
    for row in range(num_rows):
        buffer = io.BytesIO()
        size = (40, 60) if row % 2 else (70, 50)
        PilImage.new("RGB", size, tuple(int(value) for value in rng.integers(100, 140, 3))).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{split}{row}.png"})
    features = Features({"image": Image(decode=False), "caption": Value("string"), "product_id": Value("string")})
    columns = {"image": images, "caption": [None] * num_rows, "product_id": [None] * num_rows}
    codes = {}
    for name, values in VALUES.items():
        code = rng.integers(0, len(values), num_rows)
        codes[name] = np.where(rng.random(num_rows) < missing, -1, code).astype(np.int32)
    dataset = Dataset.from_dict(columns, features=features)
    return ImageTable(split, dataset, np.arange(num_rows), codes, VALUES)


def make_tables() -> dict[str, ImageTable]:
    names = {"query": (12, 0), "gallery": (30, 1), "val": (20, 2)}
    return {split: make_table(split, rows, seed) for split, (rows, seed) in names.items()}


def make_model(**settings) -> MclfirForImageRetrieval:
    torch.manual_seed(0)
    trunk = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = MclfirForImageRetrieval.from_trunk(
        trunk, **{"embed_dim": 8, "lora_rank": 2, "gate_dim": 4} | settings
    )
    for increment in INCREMENTS:
        model.add_increment(increment.name, list(increment.attributes))
    return model.eval()


def make_evaluator(tables, evaluate_on="query") -> Evaluator:
    processor = MclfirImageProcessor(size={"height": 48, "width": 32})
    return Evaluator(tables, evaluate_on, processor, None, Accelerator(cpu=True))


def embed(model, evaluator, sides, increments=INCREMENTS) -> dict:
    return {
        increment.name: tuple(evaluator.embed(model, side, i) for side in sides)
        for i, increment in enumerate(increments)
    }
