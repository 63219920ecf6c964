# SPDX-License-Identifier: Apache-2.0
"""Configuration of the models with an image tower and a text tower (floor 0; travels to the Hub with a checkpoint)."""

from transformers import AutoConfig

from .configuration_mclfir import MclfirConfig, _config_from_dict, _one_of

POOLINGS = ("auto", "pooler", "mean", "first")
# Trained as one half of a pair: their own pooled output is what was trained to meet the other half.
_PAIRED = ("clip_vision_model", "clip_text_model", "siglip_vision_model", "siglip_text_model")


class MclfirTextImageConfig(MclfirConfig):
    r"""
    Describes two towers, their adapters and every increment learned so far. An increment is one space of captions and
    images, recorded as a space of the attribute "text": all that `MclfirConfig` knows of increments holds here, too.

    Args:
        vision_config (`PreTrainedConfig` or `dict`): configuration of any transformers vision model.
        text_config (`PreTrainedConfig` or `dict`): configuration of any transformers text encoder.
        num_adapted_text_blocks (`int`, *optional*): how many of the text tower's last blocks carry adapters; default:
            a quarter of them. 0: it has none.
        image_pooling, text_pooling (`str`): what of a tower's output is projected: `"pooler"` (the model's own pooled
            output), `"mean"` (over places; over tokens that are not padding), `"first"` (the first token's), or
            `"auto"`: `"pooler"` for the towers of CLIP and SigLIP, else `"mean"`.
        use_low_level_features (`bool`, *optional*): the projections read, beside a tower's pooled features, what its
            shared part gives: of each channel of the map the mean, the mean of the inner half, the deviation and the
            maximum; of the caption's hidden states the mean. Colour and pattern of a photo, and the words themselves,
            are clearer there. Default: True, but for two towers of one model, whose projections are for pooled ones.
        num_shared_layers (`int`): residual layers after the projections that both towers share, so that what moves
            one side's vectors moves the other's.
        embed_dim (`int`): size D of an embedding.
        text_dim, shared_text_dim (`int`, *optional*): sizes of the text tower's pooled output and of what its shared
            part gives, filled in when it is first seen.
        own_projections (`bool`): whether the model holds projections that came with the towers (CLIP), where the
            first increment's begin.
        kwargs: further fields of `MclfirConfig`; those of heads do not apply.

    Raises:
        ValueError: as `MclfirConfig`; a pooling outside its choices, a negative number of layers, a policy or a head
            that is for attributes only.
    """

    model_type = "mclfir_text_image"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config=None,
        text_config=None,
        num_adapted_text_blocks: int | None = None,
        image_pooling: str = "auto",
        text_pooling: str = "auto",
        num_shared_layers: int = 0,
        embed_dim: int = 256,
        text_dim: int | None = None,
        shared_text_dim: int | None = None,
        own_projections: bool = False,
        use_low_level_features: bool | None = None,
        **kwargs,
    ):
        if isinstance(text_config, dict):
            text_config = _config_from_dict(text_config, "text_config", "bert' or 'distilbert")
        self.text_config = text_config
        self.num_adapted_text_blocks = num_adapted_text_blocks
        if not isinstance(num_shared_layers, int) or num_shared_layers < 0:
            raise ValueError(f"num_shared_layers must be a whole number of at least 0; got {num_shared_layers!r}.")
        self.num_shared_layers = num_shared_layers
        self.text_dim, self.shared_text_dim = text_dim, shared_text_dim
        self.own_projections = bool(own_projections)
        low = not own_projections if use_low_level_features is None else bool(use_low_level_features)
        if low and own_projections:
            raise ValueError(
                "Projections that came with the towers read pooled features alone; leave use_low_level_features out, "
                "or name a text_encoder."
            )
        self.use_low_level_features = low
        head_type = kwargs.pop("head_type", "linear")
        if head_type != "linear":
            raise ValueError(f"A text-image model projects pooled features and has no other heads; got {head_type!r}.")
        # Maps of places are what attributes look at; nothing here does, so the last one will do.
        out_indices = kwargs.pop("out_indices", None) or [-1]
        super().__init__(vision_config, out_indices=out_indices, head_type="linear", embed_dim=embed_dim, **kwargs)
        if self.adapter_policy == "prompts":
            raise ValueError(
                "adapter_policy 'prompts' is for attribute models; a text-image model takes 'per_increment', "
                "'shared', 'stacked' or 'frozen'."
            )
        self.image_pooling = _resolved("image_pooling", image_pooling, self.vision_config)
        self.text_pooling = _resolved("text_pooling", text_pooling, self.text_config)


def _resolved(name: str, pooling: str, config) -> str:
    pooling = _one_of(name, pooling, POOLINGS)
    if pooling != "auto" or config is None:
        return pooling
    return "pooler" if config.model_type in _PAIRED else "mean"
