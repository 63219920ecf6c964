# SPDX-License-Identifier: Apache-2.0
"""Runs of text-image retrieval that take seconds: drawn pictures and their captions, towers of a few thousand
parameters, a tokeniser learned from the captions."""

from pathlib import Path

import torch
from tiny_runs import arguments, write_increments

DOMAINS = [
    {"name": "tops", "where": {"category": ["shirt", "sweater", "jacket"]}},
    {"name": "rest", "where": {"category_not": ["shirt", "sweater", "jacket"]}},
]
TEXT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
SETTINGS = {
    "task": "text-image",
    "text_encoder": TEXT,
    "vocabulary_size": 200,
    "head_start": "random",
    "embed_dim": 8,
    "num_adapted_text_blocks": 1,
    "epochs": 2,
    "batch_size": 16,
    "temperature": 0.1,
}


def pair_arguments(data: Path, output_dir: Path, *flags: str, domains=DOMAINS, **settings) -> list[str]:
    """Command-line arguments of a tiny run; see `tiny_runs.arguments`."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    path = write_increments(output_dir.parent / "domains.json", domains)
    return arguments(data, output_dir, "--increments", path, *flags, **(SETTINGS | settings))


def train_pairs(data: Path, output_dir: Path, *flags: str, **settings) -> dict:
    """The report of a tiny run in this process."""
    import train_mclfir

    return train_mclfir.main(pair_arguments(data, output_dir, *flags, **settings))


def write_tiny_clip(folder: Path) -> Path:
    """A CLIP of random weights, 24 wide, whose tokens are letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tower = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32})).save_pretrained(folder)
    CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return folder


def write_tiny_siglip(folder: Path) -> Path:
    """A SigLIP of random weights, 24 wide, which pads captions to 12 tokens; its tokens are letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    tokens = {token: place for place, token in enumerate(["<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    letters = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tower = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokens), "max_position_embeddings": 12, "pad_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    config = SiglipConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 16})
    SiglipModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=12
    ).save_pretrained(folder)
    return folder
