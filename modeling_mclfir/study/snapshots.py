# SPDX-License-Identifier: Apache-2.0
"""What the checkpoints of a training run make of its queries and gallery, each image embedded once a checkpoint."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ..continual import METHODS
from ..data.increments import Increment
from ..evaluation import Evaluator
from ..index import SpaceRevision
from ..modeling_mclfir import MclfirForImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from ..training.arguments import DataArguments
from ..training.checkpoint import STATE_FILE, increment_folder, read_state
from ..training.feature_cache import FeatureCache
from ..training.fingerprint import space_fingerprints
from ..training.memory import keep_freed_memory
from ..training.open_data import TrainingData, open_data


@dataclass(frozen=True)
class Snapshot:
    """
    What a checkpoint makes of the two sides of a search.

    Attributes:
        revisions: of its spaces, in the order of its `attribute_ids`.
        embeds: queries (N, A, D) and gallery (G, A, D), float32, of A spaces.
    """

    revisions: tuple[SpaceRevision, ...]
    embeds: tuple[np.ndarray, np.ndarray] = field(repr=False)

    def places(self, increment: Increment) -> list[int]:
        """Of the spaces that serve an increment: its own, or those that learned its new values on."""
        own = [(revision.increment, revision.attribute) for revision in self.revisions]
        attributes = [revision.attribute for revision in self.revisions]
        return [
            own.index((increment.name, name)) if (increment.name, name) in own else attributes.index(name)
            for name in increment.attributes
        ]


def open_run(
    run: Path, output: Path, dataset: str | None = None, batch_size: int = 64
) -> tuple[dict[str, Any], list[Increment], list[Snapshot], Evaluator]:
    """
    The settings of a training run, its increments so far, a snapshot of each checkpoint, and what scores them.

    Args:
        run: its output_dir, with increment-00, increment-01, …
        output: here embeddings (embeds/) and shared features (cache/) are kept, so that no image is embedded twice.
        dataset: where the run's data are now; default: where they were.
        batch_size: images embedded at a time.

    Raises:
        FileNotFoundError: no run, no weights in a checkpoint, no data.
        ValueError: a method whose spaces are not what it searches by; data of other increments or rows than the run's.
    """
    folders = _checkpoints(Path(run))
    states = [read_state(folder) for folder in folders]
    settings = states[-1]["settings"]
    if METHODS[settings["method"]].by_pooled_features:
        raise ValueError(
            f"The run in {run} is of method {settings['method']!r}, which searches by pooled features of a trunk that "
            "never changes: there is nothing to reindex."
        )
    keep_freed_memory()
    accelerator = Accelerator(mixed_precision="no")
    data = _open_data(settings | ({"dataset": dataset} if dataset else {}), Path(run), accelerator)
    _check_same(data, states[-1]["learned_from"], run)
    cache = FeatureCache(Path(output) / "cache", int(settings["max_cache_gib"] * 2**30))
    processor = MclfirImageProcessor.from_pretrained(folders[0])
    evaluator = Evaluator(data.tables, settings["evaluate_on"], processor, cache, accelerator, batch_size)
    snapshots = [take_snapshot(folder, evaluator, Path(output) / "embeds") for folder in folders]
    return settings, data.increments[: len(folders)], snapshots, evaluator


def take_snapshot(folder: Path, evaluator: Evaluator, cache: Path) -> Snapshot:
    """Embed both sides with a checkpoint, all spaces from one pass, or take what an earlier call kept in `cache`."""
    model = MclfirForImageRetrieval.from_pretrained(folder).to(evaluator.accelerator.device).eval()
    fingerprints = space_fingerprints(model, evaluator.processor)
    owners = [model.config.increments[model.config.increment_of(place)] for place in range(len(fingerprints))]
    revisions = tuple(
        SpaceRevision(
            f"{attribute}@{owner['name']}", attribute, owner["name"], folder.name, fingerprint, model.config.embed_dim
        )
        for attribute, owner, fingerprint in zip(model.config.attributes, owners, fingerprints, strict=True)
    )
    files = [cache / _name(folder, table, fingerprints) for table in evaluator.tables]
    if not all(file.exists() for file in files):
        cache.mkdir(parents=True, exist_ok=True)
        for side, file in zip(evaluator.prepare(model), files, strict=True):
            if not file.exists():  # both sides may be one
                _save(file, evaluator.embed(model, side, None).numpy())
    return Snapshot(revisions, tuple(np.load(file, mmap_mode="r") for file in files))


def _checkpoints(run: Path) -> list[Path]:
    """Folders of the finished increments, in their order, all with their weights."""
    folders: list[Path] = []
    while (increment_folder(run, len(folders)) / STATE_FILE).exists():
        folders.append(increment_folder(run, len(folders)))
    if not folders:
        raise FileNotFoundError(f"{run} holds no run: it has no increment-00. Give the --output_dir of a training.")
    empty = [folder.name for folder in folders if not any(folder.glob("*.safetensors"))]
    if empty:
        raise FileNotFoundError(
            f"{run}: {', '.join(empty)} have no weights (`mclfir study` keeps none); train it with `mclfir train`."
        )
    return folders


def _open_data(settings: Mapping[str, Any], run: Path, accelerator: Accelerator) -> TrainingData:
    names = {one.name for one in fields(DataArguments)}
    arguments = DataArguments(**{name: value for name, value in settings.items() if name in names})
    return open_data(arguments, run, settings["seed"], accelerator)


def _check_same(data: TrainingData, before: Mapping[str, Any], run: Path) -> None:
    found = {
        "increments": [increment.to_dict() for increment in data.increments],
        "rows": {split: len(table) for split, table in data.tables.items()},
    }
    other = [name for name, value in found.items() if value != before[name]]
    if other:
        told = "; ".join(f"{name}: {before[name]} then, {found[name]} now" for name in other)
        raise ValueError(f"{data.folder} is not what the run in {run} learned from: {told}. Give its --dataset.")


def _name(folder: Path, table, fingerprints: list[str]) -> str:
    digest = hashlib.sha256("".join(fingerprints).encode())
    digest.update(np.ascontiguousarray(table.image_ids).tobytes())
    return f"{folder.name}-{table.split}-{digest.hexdigest()[:20]}.npy"


def _save(file: Path, embeds: np.ndarray) -> None:
    partial = file.with_suffix(".partial")
    with open(partial, "wb") as target:
        np.save(target, embeds)
    os.replace(partial, file)
