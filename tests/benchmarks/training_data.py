# SPDX-License-Identifier: Apache-2.0
"""The last two parts of data.py: photos to batches, and what a training run waits for."""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_mclfir import MclfirImageProcessor
from modeling_mclfir.data.atelier import generate_split
from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.images import decode_image
from modeling_mclfir.data.stream_batches import RowPool
from modeling_mclfir.training.feature_cache import load_pixels

ROOT = Path(__file__).resolve().parents[2]


def decode(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """Photos to a batch, ours against PIL alone, in turn."""
    files, kind = photo_files(args.photos, args.batch)
    processor = MclfirImageProcessor(size={"height": args.size, "width": args.size})
    mean, std = (np.array(values, dtype=np.float32) for values in (processor.image_mean, processor.image_std))

    def ours(data: bytes) -> torch.Tensor:
        return processor(decode_image(data), return_tensors="pt")["pixel_values"][0]

    def with_pil(data: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image = image.resize((args.size, args.size), Image.Resampling.BILINEAR)
        pixels = (np.asarray(image, dtype=np.float32) / 255 - mean) / std
        return torch.from_numpy(pixels.transpose(2, 0, 1))

    pool = RowPool([{"bytes": data, "path": None} for data in files], np.arange(len(files)), {})

    def pil_in_threads() -> torch.Tensor:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            return torch.stack(list(threads.map(with_pil, files)))

    works = {
        "ours": lambda: torch.stack([ours(data) for data in files]),
        "PIL": lambda: torch.stack([with_pil(data) for data in files]),
        "ours in threads": lambda: load_pixels(pool, range(len(files)), 0, processor, Augmentation(), seed=0),
        "PIL in threads": pil_in_threads,
    }
    difference = float((works["ours in threads"]() - works["PIL"]()).abs().max())
    times = {name: [] for name in works}
    for turn in range(args.rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    for name, values in times.items():
        rate = len(files) / statistics.median(values)
        yield f"{len(files)} {kind} to {args.size} px, {name}", f"{rate:,.0f} images/s"
    for name in ("", " in threads"):
        # Round by round: what else the machine does comes and goes.
        ratios = [plain / ours for plain, ours in zip(times["PIL" + name], times["ours" + name], strict=True)]
        yield f"images/s, ours / PIL{name}", f"{statistics.median(ratios):.2f}"
    yield "largest difference of a normalised pixel", f"{difference:.1e}"


def photo_files(source: str, count: int) -> tuple[list[bytes], str]:
    """Bytes of some photos, or of as many drawn pictures where there are none."""
    paths = sorted(Path(source).glob("images/*.jpg"))
    if paths:
        return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]], "photos"
    rows = islice(generate_split("train", num_rows=count, image_size=256), count)
    return [row["image"]["bytes"] for row in rows], "drawn pictures"


def wait(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """One increment learned from images, from a stream and from cached features."""
    data = training_set(args.photos, folder)
    increments = json.loads((data / "increments.json").read_text())[:1]
    (folder / "one.json").write_text(json.dumps(increments))
    common = ["--recipe", "mobilenetv2-stanford", "--dataset", str(data), "--increments", str(folder / "one.json")]
    common += ["--trunk", args.trunk, "--image_height", str(args.size), "--image_width", str(args.size)]
    common += [
        "--num_views",
        "2",
        "--epochs",
        str(args.epochs),
        "--plots",
        "False",
        "--report_to",
        "none",
        "--evaluate_on",
        "val",
    ]
    cached = ["--cache_dir", str(folder / "features")]
    runs = {
        "images from a table": ["--max_cache_gib", "0"],
        "images from a table, 2 workers": ["--max_cache_gib", "0", "--num_workers", "2"],
        "a stream": ["--max_cache_gib", "0", "--streaming", "True"],
        "fill the cache": [*cached, "--epochs", "0.1"],
        "cached features": cached,
    }
    for name, flags in runs.items():
        output = folder / name.replace(" ", "-")
        command = [sys.executable, str(ROOT / "train_mclfir.py"), *common, *flags, "--output_dir", str(output)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{name}: {result.stderr[-2000:]}")
        cost = json.loads((output / "report.json").read_text())["cost"]
        if name != "fill the cache":  # that it is filled is no part of a step
            share = cost["waiting_seconds"] / cost["seconds"]
            per_step = f"{cost['seconds'] / cost['steps']:.2f} s/step"
            yield f"from {name}, share of time waited", f"{100 * share:.2f} %", per_step, f"{cost['steps']} steps"


def training_set(source: str, folder: Path) -> Path:
    """Stanford Clothing Attributes prepared, or drawn garments where it is not there."""
    output = folder / "training-set"
    script, flags = "stanford_clothing", ["--source", source]
    if not Path(source).is_dir():
        script, flags = "atelier", ["--image-size", "256"]
    command = [sys.executable, "-m", f"data_scripts.{script}", *flags, "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return output


PARTS = {"decode": decode, "wait": wait}
