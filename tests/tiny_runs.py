# SPDX-License-Identifier: Apache-2.0
"""Runs of train_mclfir that take seconds: tiny drawn pictures, trunks of a few thousand parameters."""

import json
import shutil
from pathlib import Path

import torch
import yaml

SIZES = {"train": 64, "val": 16, "query": 16, "gallery": 32}
INCREMENTS = [
    {"name": "cut", "attributes": ["category", "sleeve_length"]},
    {"name": "surface", "attributes": ["colour"]},
    {"name": "details", "attributes": ["pocket", "closure"]},
]
TRUNKS = {
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "downsample_in_first_stage": False,
    },
    "vit": {
        "model_type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    },
}
SETTINGS = {
    "pretrained": False,
    "image_height": 32,
    "image_width": 32,
    "embed_dim": 16,
    "gate_dim": 8,
    "lora_rank": 2,
    "epochs": 2,
    "batch_size": 16,
    "save_steps": 0,
    "report_to": "none",
    "plots": False,
    "num_views": 3,
    "eval_batch_size": 16,
    "learning_rate": 0.01,
}

# Heads that classify attributes; the temperature and the weights of the three losses are learned.
LEARNED_SCALES = {
    "head_type": "ag_man",
    "use_attribute_classification": True,
    "classification_weight": 0.5,
    "learn_temperature": True,
    "learn_loss_weights": True,
}


def write_tiny_data(folder: Path, increments=INCREMENTS) -> Path:
    """A prepared data set of `SIZES` drawn images."""
    from modeling_mclfir.data.atelier import ATTRIBUTES, generate_split
    from modeling_mclfir.data.prepare import write_dataset

    splits = {split: generate_split(split, num_rows=size, image_size=40) for split, size in SIZES.items()}
    write_dataset(folder, splits, tuple(ATTRIBUTES), increments, name="Tiny", licence="cc0-1.0", progress=False)
    return folder


def arguments(data: Path, output_dir: Path, *flags: str, trunk: str = "resnet", **settings) -> list[str]:
    """Command-line arguments of a tiny run: a recipe with `SETTINGS` and what is given."""
    recipe = SETTINGS | {"trunk": TRUNKS.get(trunk, trunk), "dataset": str(data)} | settings
    path = Path(f"{output_dir}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return ["--recipe", str(path), "--output_dir", str(output_dir), *flags]


def train(data: Path, output_dir: Path, *flags: str, **settings) -> dict:
    """The report of a tiny run in this process."""
    import train_mclfir

    return train_mclfir.main(arguments(data, output_dir, *flags, **settings))


def stopped_after(num_increments: int, folder: Path, copy: Path) -> Path:
    """A copy of a run as it stood when so many of its increments were saved."""
    shutil.copytree(folder, copy)
    for later in (*sorted(copy.glob("increment-*"))[num_increments:], copy / "last"):
        shutil.rmtree(later, ignore_errors=True)
    return copy


def write_increments(path: Path, increments: list[dict]) -> str:
    path.write_text(json.dumps(increments))
    return str(path)


def weights(output_dir: Path, increment_id: int) -> dict[str, torch.Tensor]:
    """All tensors of an increment's checkpoint, read from its files."""
    from safetensors.torch import load_file

    tensors = {}
    for name in ("trunk", "adapters", "heads"):
        path = output_dir / f"increment-{increment_id:02d}" / f"{name}.safetensors"
        tensors |= load_file(path) if path.exists() else {}
    return tensors


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    unequal = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not unequal, unequal


def assert_equal_runs(first: dict, second: dict, folders: tuple[Path, Path], num_increments: int = 3) -> None:
    """Two runs ended bit-equal: scores, losses, costs, weights of every increment."""
    for key in ("scores", "loss", "history", "zero_shot", "initial_trunk", "forgetting", "finished"):
        assert first.get(key) == second.get(key), key
    for key in ("samples", "steps", "flops"):
        assert first["cost"][key] == second["cost"][key], key
        assert [b[key] for b in first["cost_per_increment"]] == [b[key] for b in second["cost_per_increment"]], key
    for increment_id in range(num_increments):
        assert_equal_weights(*(weights(folder, increment_id) for folder in folders))
