# SPDX-License-Identifier: Apache-2.0
"""Configurations of text encoders and pairs of towers of some thousand parameters, and captions for them."""

import torch
import transformers
from tiny_trunks import IMAGE_SIZE, trunk_config

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHORT = {"vocab_size": 100, "num_layers": 4, "num_heads": 2, "d_model": 32, "d_ff": 64, "d_kv": 16}
_DISTIL = {"vocab_size": 100, "dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 24}
_MODERN = {"cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2, "local_attention": 8}
TEXT = {
    "bert": ("BertConfig", COMMON),
    "distilbert": ("DistilBertConfig", _DISTIL),
    "modernbert": ("ModernBertConfig", COMMON | SPECIAL | _MODERN),
    "deberta": ("DebertaV2Config", COMMON | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "mpnet": ("MPNetConfig", COMMON),
    "gemma": ("Gemma3TextConfig", COMMON | SPECIAL | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4}),
    "t5": ("T5Config", _SHORT),
    "albert": ("AlbertConfig", COMMON | SPECIAL | {"embedding_size": 16}),
    "clip": ("CLIPTextConfig", COMMON | {"pad_token_id": 0, "bos_token_id": 98, "eos_token_id": 99}),
    "siglip": ("SiglipTextConfig", COMMON | SPECIAL | {"projection_size": 24}),
}


def text_config(family: str = "bert", **settings):
    """A tiny configuration of the family."""
    name, own = TEXT[family]
    return getattr(transformers, name)(**own | settings)


def pair_config(family: str):
    """A tiny CLIP or SigLIP, both towers."""
    vision = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": IMAGE_SIZE, "patch_size": 16}
    if family == "clip":
        text = TEXT["clip"][1] | {"hidden_size": 16}
        return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    text = TEXT["siglip"][1] | {"projection_size": 32}
    return transformers.SiglipConfig(text_config=text, vision_config=vision)


def captions(full: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of four captions (4, 7) and their mask; each ends with 99. `full`: none is padded."""
    generator = torch.Generator().manual_seed(5)
    input_ids = torch.randint(3, 98, (4, 7), generator=generator)
    mask = torch.ones_like(input_ids)
    for row, length in enumerate((7, 7, 7, 7) if full else (7, 4, 2, 6)):
        input_ids[row, length - 1], input_ids[row, length:], mask[row, length:] = 99, 0, 0
    return input_ids, mask


def shake(module) -> None:
    """Move every weight a little: adapters and layers that begin where they change nothing do something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def make_routed_towers(increments, nudge: float = 0.0, described: bool = True):
    """
    Towers with a space an increment, all different, and prototypes near each other, so that every space counts for
    every query. Increments that two of them have in common have the same weights, but for what `nudge` adds.
    """
    from modeling_mclfir.routing_mclfir import unit_length

    model = make_towers()
    for number, name in enumerate(increments):
        model.add_increment(name, new_values=number > 0)
        generator = torch.Generator().manual_seed(number)
        adapter = model.config.adapter_name(number)
        for key, parameter in model.named_parameters():
            if f"heads.{number}." in key and "logit_scale" not in key or f".lora_B.{adapter}." in key:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.data += nudge * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
        if described:
            sides = (unit_length(1 + 0.1 * torch.randn(3, dim, generator=generator)) for dim in model._pooled_dims())
            model.describe_increment(number, *sides, [0.2 + 0.1 * number, 0.4 - 0.1 * number])
    return model.eval()


def make_towers(trunk: str = "vit", text: str = "bert", **settings):
    """A `MclfirForTextImageRetrieval` with seeded weights and no increments."""
    from modeling_mclfir import MclfirForTextImageRetrieval

    torch.manual_seed(0)
    pair = trunk in ("clip", "siglip")
    settings = {"lora_rank": 2} | ({} if pair else {"embed_dim": 16}) | settings
    towers = (pair_config(trunk), None) if pair else (trunk_config(trunk), text_config(text))
    return MclfirForTextImageRetrieval.from_towers(*towers, **settings)
