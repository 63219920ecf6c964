# SPDX-License-Identifier: Apache-2.0
"""Opens a finished checkpoint, for the commands that use one."""

import torch

from ..catalogue.checkpoint_folder import model_type_of
from ..configuration_mclfir import MclfirConfig
from ..configuration_mclfir_text import MclfirTextImageConfig
from ..modeling_mclfir import MclfirForImageRetrieval
from ..modeling_mclfir_text import MclfirForTextImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from ..processing_mclfir_text import MclfirProcessor
from ..training.memory import keep_freed_memory


def open_checkpoint(checkpoint: str) -> tuple[MclfirForImageRetrieval, MclfirImageProcessor]:
    """
    The model, in eval mode and where there is a GPU on it, and its processor.

    Raises:
        FileNotFoundError: see `check_folder`.
        ValueError: a checkpoint of another kind.
    """
    check_kind(checkpoint, MclfirConfig.model_type, "attribute retrieval")
    return _open(MclfirForImageRetrieval, checkpoint), MclfirImageProcessor.from_pretrained(checkpoint)


def open_text_image_checkpoint(checkpoint: str) -> tuple[MclfirForTextImageRetrieval, MclfirProcessor]:
    """
    The same of text-image retrieval.

    Raises:
        FileNotFoundError: as `open_checkpoint`.
        ValueError: a checkpoint of another kind.
    """
    check_kind(checkpoint, MclfirTextImageConfig.model_type, "text-image retrieval")
    return _open(MclfirForTextImageRetrieval, checkpoint), MclfirProcessor.from_pretrained(checkpoint)


def _open(model_class: type, checkpoint: str):
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model_class.from_pretrained(checkpoint).to(device).eval()


def check_kind(checkpoint: str, model_type: str, task: str) -> None:
    """
    Refuse a checkpoint of another kind.

    Raises:
        FileNotFoundError: as `open_checkpoint`.
        ValueError: another `model_type` in its configuration; `task` is what the message calls the right one.
    """
    found = model_type_of(checkpoint)
    if found != model_type:
        raise ValueError(f"{checkpoint} is a checkpoint of {found!r}, but must be one of {task} ({model_type!r}).")
