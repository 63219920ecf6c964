# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as a catalogue sees it: the spaces it has, and photos → vectors of any of them in one pass."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..index.spaces import SpaceRevision
from ..modeling_mclfir import MclfirForImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from ..training.fingerprint import space_fingerprints
from ..training.memory import keep_freed_memory


class Embedder:
    """
    Args:
        model: in eval mode.
        processor: of its images.
        checkpoint: where both came from.
        fp16: run the network in half precision, on a GPU.

    Attributes:
        revisions: name of a space ("neckline@tops") → what makes its vectors, in the model's order.
        attribute_ids: name of a space → its place in the model.
        model_revision: the checkpoint's name, and a digest of all fingerprints: no two contents share it.

    Raises:
        ValueError: fp16 on a CPU, which has no half precision that keeps the vectors.
    """

    def __init__(self, model: MclfirForImageRetrieval, processor: Any, checkpoint: str, fp16: bool = False):
        self.model, self.processor, self.checkpoint, self.fp16 = model, processor, checkpoint, fp16
        self.device = next(model.parameters()).device
        if fp16 and self.device.type != "cuda":
            raise ValueError(
                "--fp16 needs a GPU: on a CPU half precision would be bfloat16, whose 8 bits move vectors by up to a "
                "hundredth for years, and seldom saves time. Leave it out."
            )
        fingerprints = space_fingerprints(model, processor)
        digest = hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()[:8]
        self.model_revision = f"{Path(checkpoint).name}.{digest}"
        self.revisions: dict[str, SpaceRevision] = {}
        self.attribute_ids: dict[str, int] = {}
        config = model.config
        for attribute_id, (attribute, fingerprint) in enumerate(zip(config.attributes, fingerprints, strict=True)):
            increment = config.increment_names[config.increment_of(attribute_id)]
            name = f"{attribute}@{increment}"
            self.attribute_ids[name] = attribute_id
            self.revisions[name] = SpaceRevision(
                name, attribute, increment, self.model_revision, fingerprint, config.embed_dim
            )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Space → fingerprint of what makes its vectors."""
        return {name: revision.fingerprint for name, revision in self.revisions.items()}

    @classmethod
    def open(cls, checkpoint: str | Path, fp16: bool = False, device: torch.device | None = None) -> "Embedder":
        """
        Load a checkpoint, onto the GPU where there is one.

        Raises:
            FileNotFoundError: a folder is meant that is not there; what else it may be, only the Hub knows.
        """
        checkpoint, folder = str(checkpoint), Path(checkpoint)
        if not folder.exists() and (folder.is_absolute() or checkpoint.startswith(".") or len(folder.parts) > 2):
            raise FileNotFoundError(f"--checkpoint {checkpoint}: no such folder; expected an increment-XX of a run.")
        keep_freed_memory()
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = MclfirForImageRetrieval.from_pretrained(checkpoint).to(device).eval()
        name = os.fspath(folder.resolve()) if folder.exists() else checkpoint
        return cls(model, MclfirImageProcessor.from_pretrained(checkpoint), name, fp16)

    def spaces_of(self, attributes: Sequence[str] | None) -> list[str]:
        """Names of the spaces of some attributes, or of all. ValueError names those that there are."""
        known = {revision.attribute for revision in self.revisions.values()}
        unknown = [name for name in attributes or () if name not in known and name not in self.revisions]
        if unknown:
            raise ValueError(f"{self.checkpoint} has no attributes {unknown}; it has {sorted(known)}.")
        return [
            name
            for name, revision in self.revisions.items()
            if attributes is None or revision.attribute in attributes or name in attributes
        ]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """A decoded photo as the model takes it: (1, 3, H, W)."""
        return self.processor([image], return_tensors="pt")["pixel_values"]

    def embed(self, pixels: torch.Tensor, spaces: Sequence[str]) -> dict[str, np.ndarray]:
        """Photos (N, 3, H, W) → of each space float32 (N, D), unit length, from one pass of the trunk."""
        return self._run(pixels, spaces)[0]

    def embed_routed(
        self, pixels: torch.Tensor, spaces: Sequence[str], routed: Sequence[Sequence[str]]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """
        `embed`, and what each space's inner products count for each photo: float64 (N,).

        Args:
            routed: of each attribute of several spaces their names.

        Raises:
            ValueError: nothing tells these spaces apart, see `MclfirForImageRetrieval.fuse_queries`.
        """
        embeds, output = self._run(pixels, spaces)
        if not routed:
            return embeds, {}
        with torch.inference_mode():
            pooled = self.model.mclfir(shared_features=output.shared_features).pooled.float()
        factors = {}
        for names in routed:
            ids = [self.attribute_ids[name] for name in names]
            # The model's own fusion, of vectors of one number: what comes back is what it multiplies scores with.
            ones = [torch.ones(len(pixels), 1, device=pooled.device)] * len(ids)
            columns = self.model.fuse_queries(ids, ones, pooled).double().cpu().numpy()
            factors |= dict(zip(names, columns.T, strict=True))
        return embeds, factors

    def _run(self, pixels: torch.Tensor, spaces: Sequence[str]):
        half = torch.autocast("cuda", torch.float16) if self.fp16 else nullcontext()
        ids = [self.attribute_ids[name] for name in spaces]
        with torch.inference_mode(), half:
            output = self.model(pixels.to(self.device), attribute_ids=ids)
        rows = output.embeds.float()
        if self.fp16:
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return {name: part.cpu().numpy() for name, part in zip(spaces, rows.unbind(1), strict=True)}, output
