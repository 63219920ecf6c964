# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as a catalogue sees it: the spaces it has, and photos → vectors of any of them in one pass."""

import hashlib
import os
from abc import ABC, abstractmethod
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
from .checkpoint_folder import model_type_of
from .searching import Fusion

Inputs = dict[str, torch.Tensor]


class Embedder(ABC):
    """
    What the kinds of checkpoints have in common; `open` gives the one that a checkpoint is of.

    Args:
        model: in eval mode.
        processor: of its images; of its captions, too, where it reads them.
        checkpoint: where both came from.
        fp16: run the network in half precision, on a GPU.

    Attributes:
        model_class, processor_class: of this kind of checkpoints.
        revisions: name of a space ("neckline@tops", "text@topwear") → what makes its vectors, in the model's order.
        attribute_ids: name of a space → its place in the model.
        model_revision: the checkpoint's name, and a digest of all fingerprints: no two contents share it.

    Raises:
        ValueError: fp16 on a CPU, which has no half precision that keeps the vectors.
    """

    model_class: type
    processor_class: type

    def __init__(self, model: Any, processor: Any, checkpoint: str, fp16: bool = False):
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
    def model_type(self) -> str:
        """Kind of the checkpoint, as its configuration has it."""
        return self.model.config.model_type

    @property
    def fingerprints(self) -> dict[str, str]:
        """Space → fingerprint of what makes its vectors."""
        return {name: revision.fingerprint for name, revision in self.revisions.items()}

    @classmethod
    def open(cls, checkpoint: str | Path, fp16: bool = False, device: torch.device | None = None) -> "Embedder":
        """
        Load a checkpoint, onto the GPU where there is one.

        Raises:
            FileNotFoundError: see `check_folder`.
            ValueError: a checkpoint of something else; one without its processor.
        """
        checkpoint, folder = str(checkpoint), Path(checkpoint)
        kind = _kind_of(checkpoint)
        keep_freed_memory()
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = kind.model_class.from_pretrained(checkpoint).to(device).eval()
        name = os.fspath(folder.resolve()) if folder.exists() else checkpoint
        return kind(model, kind.open_processor(checkpoint), name, fp16)

    @classmethod
    def open_processor(cls, checkpoint: str) -> Any:
        """What prepares the model's inputs."""
        return cls.processor_class.from_pretrained(checkpoint)

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

    def photos(self, images: Sequence[Image.Image]) -> Inputs:
        """Decoded photos as `embed_routed` takes them."""
        return {"pixel_values": torch.cat([self.pixels(image) for image in images])}

    @abstractmethod
    def captions(self, texts: Sequence[str]) -> Inputs:
        """Captions as `embed_routed` takes them. ValueError: the model reads none, or one is blank."""

    def embed(self, pixels: torch.Tensor, spaces: Sequence[str]) -> dict[str, np.ndarray]:
        """Photos (N, 3, H, W) → of each space float32 (N, D), unit length, from one pass of the trunk."""
        return self._run({"pixel_values": pixels}, spaces)[0]

    def embed_items(
        self, pixels: torch.Tensor, spaces: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """`embed`, and of spaces that need it how like what each was learned from the photos look: float32 (N,)."""
        embeds, output = self._run({"pixel_values": pixels}, spaces)
        with torch.inference_mode(), self._precision():
            return embeds, self._fits(output, spaces)

    def _fits(self, output: Any, spaces: Sequence[str]) -> dict[str, np.ndarray]:
        return {}

    def embed_routed(
        self, inputs: Inputs, spaces: Sequence[str], routed: Sequence[Sequence[str]]
    ) -> tuple[dict[str, np.ndarray], dict[str, Fusion]]:
        """
        `embed` of photos or captions, and how scores of several spaces become one for each of them.

        Args:
            inputs: of `photos` or `captions`, N of them.
            routed: of each attribute of several spaces their names.

        Raises:
            ValueError: nothing tells these spaces apart, see the model's `fuse_queries` or `fusion`.
        """
        embeds, output = self._run(inputs, spaces)
        fusions: dict[str, Fusion] = {}
        with torch.inference_mode(), self._precision():
            seen = self._seen_by_router(inputs, output) if routed else ()
            for names in routed:
                found = self._fusions([self.attribute_ids[name] for name in names], *seen)
                fusions |= dict(zip(names, found, strict=True))
        return embeds, fusions

    def _seen_by_router(self, inputs: Inputs, output: Any) -> tuple:
        """What the model tells spaces apart by: of photos features of the bare trunk, (N, C)."""
        return (self.model.mclfir(shared_features=output.shared_features).pooled.float(),)

    @abstractmethod
    def _fusions(self, ids: list[int], pooled: torch.Tensor, *side: str) -> list[Fusion]:
        """Of each of these spaces its part in the score, by what `_seen_by_router` gave."""

    def _precision(self):
        return torch.autocast("cuda", torch.float16) if self.fp16 else nullcontext()

    def _run(self, inputs: Inputs, spaces: Sequence[str]):
        ids = [self.attribute_ids[name] for name in spaces]
        inputs = {name: part.to(self.device) for name, part in inputs.items()}
        with torch.inference_mode(), self._precision():
            output = self.model(**inputs, attribute_ids=ids)
        rows = output.embeds.float()
        if self.fp16:
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return {name: part.cpu().numpy() for name, part in zip(spaces, rows.unbind(1), strict=True)}, output


class AttributeEmbedder(Embedder):
    """A checkpoint of `MclfirForImageRetrieval`: a space of each attribute, and of each increment's new values."""

    model_class, processor_class = MclfirForImageRetrieval, MclfirImageProcessor

    def captions(self, texts: Sequence[str]) -> Inputs:
        """It reads none."""
        raise ValueError(
            f"{self.checkpoint} is an attribute model, which reads photos and no captions. Search by --image or "
            "--item, or build another catalogue with a text-image checkpoint (mclfir train --task text-image)."
        )

    def _fusions(self, ids: list[int], pooled: torch.Tensor, *side: str) -> list[Fusion]:
        # The model's own fusion, of vectors of one number: what comes back is what it multiplies scores with.
        ones = [torch.ones(len(pooled), 1, device=pooled.device)] * len(ids)
        columns = self.model.fuse_queries(ids, ones, pooled).double().cpu().numpy()
        return [Fusion(factor) for factor in columns.T]


def _kind_of(checkpoint: str) -> type[Embedder]:
    from .text_embedder import TextImageEmbedder

    kinds = {kind.model_class.config_class.model_type: kind for kind in (AttributeEmbedder, TextImageEmbedder)}
    found = model_type_of(checkpoint)
    if found not in kinds:
        raise ValueError(
            f"{checkpoint} is a checkpoint of {found!r}; a catalogue takes one of attribute retrieval or text-image "
            f"retrieval ({', '.join(map(repr, kinds))})."
        )
    return kinds[found]
