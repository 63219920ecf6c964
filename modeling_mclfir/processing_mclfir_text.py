# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of captions and images (floor 2; travels to the Hub with a checkpoint)."""

from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .processing_mclfir import MclfirImageProcessor


class MclfirProcessor(ProcessorMixin):
    """
    Images → `pixel_values`, captions → `input_ids` and `attention_mask`: what `MclfirForTextImageRetrieval` takes.

    Args:
        image_processor: of the image tower.
        tokenizer: of the text tower.

    Example:
    ```python
    processor = AutoProcessor.from_pretrained(FOLDER)
    inputs = processor(images=[image], text=["a red shirt", "blue jeans"])
    ```
    """

    _auto_class = "AutoProcessor"

    def __init__(self, image_processor: MclfirImageProcessor | None = None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self, images=None, text: str | list[str] | None = None, return_tensors: str = "pt", **kwargs
    ) -> BatchFeature:
        """
        Args:
            images: one picture or several (PIL, arrays).
            text: one caption or several; padded on the right to the longest, and cut where the tokenizer's
                `model_max_length` says so.
            kwargs: of the tokenizer, such as `max_length`.

        Raises:
            ValueError: neither images nor text.
        """
        if images is None and text is None:
            raise ValueError("Pass images, text, or both.")
        inputs = {}
        if images is not None:
            inputs["pixel_values"] = self.image_processor(images, return_tensors=return_tensors)["pixel_values"]
        if text is not None:
            settings = {"padding": True, "truncation": True, "padding_side": "right"} | kwargs
            # One row even of a single caption, as of a single picture.
            captions = [text] if isinstance(text, str) else list(text)
            tokens = self.tokenizer(captions, return_attention_mask=True, return_tensors=return_tensors, **settings)
            inputs |= {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return BatchFeature(inputs)

    @property
    def model_input_names(self) -> list[str]:
        """What a call gives."""
        return ["pixel_values", "input_ids", "attention_mask"]
