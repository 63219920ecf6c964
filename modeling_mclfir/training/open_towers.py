# SPDX-License-Identifier: Apache-2.0
"""The two towers that the arguments name, and what prepares their inputs."""

from collections.abc import Iterable

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..data.caption_tokenizer import train_tokenizer
from ..modeling_mclfir_text import MclfirForTextImageRetrieval
from ..processing_mclfir import MclfirImageProcessor
from .arguments import ModelArguments
from .open_model import check_folder

_SETTINGS = (
    "adapter_policy", "num_adapted_blocks", "num_adapted_text_blocks", "lora_rank", "lora_alpha", "lora_dropout",
    "embed_dim", "image_pooling", "text_pooling", "num_shared_layers",
)  # fmt: skip


def open_towers(
    arguments: ModelArguments, captions: Iterable[list[str]]
) -> tuple[MclfirForTextImageRetrieval, MclfirImageProcessor, PreTrainedTokenizerBase]:
    """
    A model without increments, its image processor and its tokeniser: the text model's own or, for a text tower that
    is named by its configuration, one that is learned from the captions.

    Raises:
        ValueError: no trunk is named; settings that do not go together.
        FileNotFoundError: a folder that is not there.
        OSError: a tower cannot be loaded.
    """
    if arguments.trunk is None:
        raise ValueError("Name a trunk: --trunk ID_OR_FOLDER, or a --recipe that has one.")
    text_encoder, tokenizer = arguments.text_encoder, None
    settings = {name: getattr(arguments, name) for name in _SETTINGS}
    if text_encoder is None:
        del settings["embed_dim"]  # a pair of towers has a space, and its size
    if isinstance(text_encoder, dict):
        tokenizer = train_tokenizer(
            [text for texts in captions for text in texts], arguments.vocabulary_size, arguments.max_text_length
        )
        # The last one is where CLIP's tower looks for what it pools.
        ids = {"pad_token_id": "[PAD]", "bos_token_id": "[CLS]", "eos_token_id": "[SEP]"}
        ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()}
        text_encoder = text_encoder | {"vocab_size": len(tokenizer)} | ids
    for name, tower in (("--trunk", arguments.trunk), ("--text_encoder", text_encoder)):
        check_folder(name, tower)
    try:
        model = MclfirForTextImageRetrieval.from_towers(
            arguments.trunk, text_encoder, pretrained=arguments.pretrained, **settings
        )
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(text_encoder or arguments.trunk)
    except OSError as error:
        raise OSError(
            f"the towers {arguments.trunk!r} and {text_encoder!r} cannot be loaded ({error}). Without a network, name "
            "their folders: --trunk DIR --text_encoder DIR."
        ) from error
    # What a checkpoint's processor cuts is what was cut in training; no tower has places beyond its own.
    places = getattr(model.text.trunk.config, "max_position_embeddings", None) or arguments.max_text_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, arguments.max_text_length, places)
    trunk_id = arguments.trunk if isinstance(arguments.trunk, str) else None
    processor = MclfirImageProcessor.for_trunk(trunk_id, arguments.image_height, arguments.image_width)
    return model, processor, tokenizer
