# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of captions and images as a catalogue sees it: photos are kept, photos and captions search them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..modeling_mclfir_text import MclfirForTextImageRetrieval
from ..processing_mclfir_text import MclfirProcessor
from ..text_spaces_mclfir import ROUTE_TEMPERATURE
from .embedder import Embedder, Inputs
from .searching import Fusion


class TextImageEmbedder(Embedder):
    """A checkpoint of `MclfirForTextImageRetrieval`: a space of each increment, "text@topwear" say."""

    model_class, processor_class = MclfirForTextImageRetrieval, MclfirProcessor

    @classmethod
    def open_processor(cls, checkpoint: str) -> MclfirProcessor:
        """
        Of images and captions: a space is of both, so that neither may lack.

        Raises:
            ValueError: files of it are missing.
        """
        try:
            return super().open_processor(checkpoint)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(
                f"{checkpoint} lacks what prepares its photos and captions (processor_config.json, tokenizer.json, "
                f"tokenizer_config.json): {first} Take these files from the run's folder, or save them anew: "
                "MclfirProcessor(image_processor, tokenizer).save_pretrained(FOLDER)."
            ) from error

    def captions(self, texts: Sequence[str]) -> Inputs:
        """Cut where they were cut in training."""
        blank = [place for place, text in enumerate(texts) if not text.strip()]
        if blank or not texts:
            raise ValueError(f"A caption must have words; got {texts[blank[0]]!r}." if blank else "Give a caption.")
        return dict(self.processor(text=list(texts)))

    def _fits(self, output: Any, spaces: Sequence[str]) -> dict[str, np.ndarray]:
        increments = self.model.config.increments
        ids = {name: self.attribute_ids[name] for name in spaces if "router" in increments[self.attribute_ids[name]]}
        if not ids:
            return {}
        pooled = super()._seen_by_router({}, output)[0]
        columns = self.model.similarities(pooled, "image", list(ids.values())).float().cpu().numpy()
        return dict(zip(ids, columns.T, strict=True))

    def _seen_by_router(self, inputs: Inputs, output: Any) -> tuple:
        if output.shared_text is None:
            return *super()._seen_by_router(inputs, output), "image"
        tokens = (inputs[name].to(self.device) for name in ("input_ids", "attention_mask"))
        return self.model.text.increment_forward(output.shared_text, *tokens, None).float(), "text"

    def _fusions(self, ids: list[int], pooled: torch.Tensor, *side: str) -> list[Fusion]:
        scales, offsets = self.model.fusion(pooled, *side, ids)
        factors = scales.expand_as(offsets).double().cpu().numpy()
        offsets = offsets.double().cpu().numpy()
        return [Fusion(*part, ROUTE_TEMPERATURE) for part in zip(factors.T, offsets.T, strict=True)]
