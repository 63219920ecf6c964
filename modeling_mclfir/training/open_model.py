# SPDX-License-Identifier: Apache-2.0
"""A new model on the trunk that the arguments name."""

import os
from pathlib import Path

from ..modeling_mclfir import MclfirForImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from .arguments import ModelArguments
from .prompts import PromptEncoder

_MODEL_SETTINGS = (
    "adapter_policy", "base_training", "num_adapted_blocks", "out_indices", "lora_rank", "lora_alpha", "lora_dropout",
    "embed_dim", "gate_dim", "use_pooled_features", "use_spatial_attention", "use_channel_attention",
    "head_type", "attribute_dim", "use_low_level_branch", "use_self_gate", "use_spatial_gate", "use_masks",
    "mask_type", "use_attribute_classification", "projection_dim", "prompt_pool_size", "prompt_length",
    "prompts_per_image",
)  # fmt: skip


def open_model(
    arguments: ModelArguments, prompts: PromptEncoder | None
) -> tuple[MclfirForImageRetrieval, MclfirImageProcessor]:
    """
    A model without increments, and its processor.

    Raises:
        ValueError: no trunk is named.
        FileNotFoundError: a folder that is not there.
        OSError: the trunk cannot be loaded.
    """
    settings = {name: getattr(arguments, name) for name in _MODEL_SETTINGS}
    if prompts is not None:
        settings |= {"prompt_type": "text", "prompt_dim": prompts.dim}
    if arguments.trunk is None:
        raise ValueError("Name a trunk: --trunk ID_OR_FOLDER, or a --recipe that has one.")
    model = _open_trunk(arguments.trunk, arguments.pretrained, settings)
    trunk_id = arguments.trunk if isinstance(arguments.trunk, str) else None
    return model, MclfirImageProcessor.for_trunk(trunk_id, arguments.image_height, arguments.image_width)


def check_folder(flag: str, tower) -> None:
    """Raises FileNotFoundError where `tower` is meant for a folder, and there is none."""
    is_path = isinstance(tower, str) and (tower.startswith((".", os.sep)) or tower.count("/") > 1)
    if is_path and not Path(tower).exists():
        raise FileNotFoundError(f"{flag} {tower}: no such folder; expected one with a model of transformers.")


def _open_trunk(trunk, pretrained: bool, settings: dict) -> MclfirForImageRetrieval:
    check_folder("--trunk", trunk)
    try:
        return MclfirForImageRetrieval.from_trunk(trunk, pretrained=pretrained, **settings)
    except OSError as error:
        raise OSError(
            f"the trunk {trunk!r} cannot be loaded ({error}). Without a network, name its folder: --trunk DIR."
        ) from error
