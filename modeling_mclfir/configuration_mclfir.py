# SPDX-License-Identifier: Apache-2.0
"""Configuration of the mclfir models (floor 0; travels to the Hub with a checkpoint)."""

import re

from transformers import AutoConfig, PreTrainedConfig

ADAPTER_POLICIES = ("per_increment", "shared", "frozen")
BASE_TRAINING = ("none", "first_increment")
PROMPT_TYPES = ("learned", "text")
SHARED_ADAPTER = "shared"
_INCREMENT_NAME = re.compile(r"[A-Za-z0-9_-]+")


class MclfirConfig(PreTrainedConfig):
    r"""
    Describes a trunk, its adapters and every increment learned so far: enough to rebuild the model empty.

    Args:
        vision_config (`PreTrainedConfig` or `dict`): configuration of any transformers vision model (the trunk).
        out_indices (`list[int]`, *optional*): units of the trunk whose outputs the heads fuse, lowest first. Unit 0
            is the stem (patch embedding), then one unit a block; negative numbers count from the end. Default:
            the last unit below the adapters and the last block.
        num_adapted_blocks (`int`, *optional*): how many of the last blocks carry adapters; default: a quarter of them.
        adapter_policy (`str`): `"per_increment"` (each increment owns an adapter: old embeddings never change),
            `"shared"` (one adapter that keeps learning) or `"frozen"` (heads only).
        base_training (`str`): `"none"`, or `"first_increment"`: the whole trunk learns in the first increment and is
            frozen afterwards (for a trunk without pretrained weights).
        lora_rank, lora_alpha, lora_dropout: of every adapter (LoRA, arXiv:2106.09685).
        embed_dim (`int`): size D of an attribute's embedding.
        head_rank (`int`): rank of each attribute's own projection of the pooled features; 0 leaves it out.
        gate_dim (`int`): hidden size of the channel gate.
        use_spatial_attention, use_channel_attention (`bool`): switch the parts of the head, for ablations.
        prompt_type (`str`): `"learned"`: the attribute's prompt is a parameter; `"text"`: a stored text embedding.
        prompt_dim (`int`, *optional*): size of a stored text embedding; needed where `prompt_type="text"`.
        increments (`list[dict]`): what `add_increment` recorded, in order: `{"name", "attributes", "new_values"}`.
        trunk_channels (`list[int]`, *optional*): channels of each unit's output, filled in when the trunk is first
            seen, so that the heads can be rebuilt without running it.

    Raises:
        ValueError: a setting outside its choices, a malformed increment.
    """

    model_type = "mclfir"
    # Saved checkpoints name their code, for machines where this package is not installed.
    _auto_class = "AutoConfig"
    sub_configs = {"vision_config": AutoConfig}

    def __init__(
        self,
        vision_config=None,
        out_indices: list[int] | None = None,
        num_adapted_blocks: int | None = None,
        adapter_policy: str = "per_increment",
        base_training: str = "none",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        embed_dim: int = 128,
        head_rank: int = 16,
        gate_dim: int = 32,
        use_spatial_attention: bool = True,
        use_channel_attention: bool = True,
        prompt_type: str = "learned",
        prompt_dim: int | None = None,
        increments: list[dict] | None = None,
        trunk_channels: list[int] | None = None,
        **kwargs,
    ):
        if isinstance(vision_config, dict):
            vision_config = _config_from_dict(vision_config)
        self.vision_config = vision_config
        self.out_indices = None if out_indices is None else list(out_indices)
        self.num_adapted_blocks = num_adapted_blocks
        self.adapter_policy = _one_of("adapter_policy", adapter_policy, ADAPTER_POLICIES)
        self.base_training = _one_of("base_training", base_training, BASE_TRAINING)
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.embed_dim = embed_dim
        self.head_rank = head_rank
        self.gate_dim = gate_dim
        self.use_spatial_attention = use_spatial_attention
        self.use_channel_attention = use_channel_attention
        self.prompt_type = _one_of("prompt_type", prompt_type, PROMPT_TYPES)
        self.prompt_dim = prompt_dim
        self.increments = []
        self.trunk_channels = trunk_channels
        for name, value in (("embed_dim", embed_dim), ("lora_rank", lora_rank), ("gate_dim", gate_dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if not (use_spatial_attention or use_channel_attention or head_rank > 0):
            raise ValueError(
                "A head needs use_spatial_attention, use_channel_attention or head_rank > 0, or it sees nothing."
            )
        if prompt_type == "text" and not prompt_dim:
            raise ValueError("prompt_type='text' needs prompt_dim, the size of the text encoder's embeddings.")
        for increment in increments or []:
            self.append_increment(**increment)
        super().__init__(**kwargs)

    def append_increment(self, name: str, attributes: list[str], new_values: bool = False) -> None:
        """Record an increment. Raises ValueError for a bad or known name, or an attribute that is already known."""
        if not isinstance(name, str) or not _INCREMENT_NAME.fullmatch(name):
            raise ValueError(f"An increment's name is made of letters, digits, '_' and '-'; got {name!r}.")
        if name in self.increment_names:
            raise ValueError(
                f"Increment {name!r} exists already (known: {self.increment_names}). Choose another name, or load "
                "the checkpoint from before it."
            )
        if isinstance(attributes, str):
            raise ValueError(f"attributes is a list of names; got the text {attributes!r}. Write [{attributes!r}].")
        attributes = list(attributes)
        if not attributes or len(set(attributes)) != len(attributes):
            raise ValueError(f"Increment {name!r} needs at least one attribute, each named once; got {attributes}.")
        known = [attribute for attribute in attributes if attribute in self.attributes]
        if known and not new_values:
            raise ValueError(
                f"Increment {name!r} names attributes that are known already: {known}. Pass new_values=True if it "
                "brings new values of them (they get a further space), else leave them out."
            )
        self.increments.append({"name": name, "attributes": attributes, "new_values": bool(new_values)})

    @property
    def increment_names(self) -> list[str]:
        """Names of the increments learned so far, in order."""
        return [increment["name"] for increment in self.increments]

    @property
    def attributes(self) -> list[str]:
        """The attribute of each space, in order: `attribute_ids` index this list."""
        return [attribute for increment in self.increments for attribute in increment["attributes"]]

    def check_increment_id(self, increment_id: int) -> None:
        """Raises ValueError where there is no such increment (negative numbers do not count from the end)."""
        if not 0 <= increment_id < len(self.increments):
            raise ValueError(
                f"increment_id {increment_id} is not in 0..{len(self.increments) - 1} ({self.increment_names})."
            )

    def attribute_range(self, increment_id: int) -> range:
        """`attribute_ids` of one increment's spaces."""
        self.check_increment_id(increment_id)
        start = sum(len(increment["attributes"]) for increment in self.increments[:increment_id])
        return range(start, start + len(self.increments[increment_id]["attributes"]))

    def increment_of(self, attribute_id: int) -> int:
        """The increment that owns a space."""
        for increment_id in range(len(self.increments)):
            if attribute_id in self.attribute_range(increment_id):
                return increment_id
        raise ValueError(f"attribute_id {attribute_id} is not in 0..{len(self.attributes) - 1} ({self.attributes}).")

    def adapter_name(self, increment_id: int) -> str | None:
        """PEFT name of the adapter that an increment runs with, or None where it runs on the bare trunk."""
        self.check_increment_id(increment_id)
        if self.adapter_policy == "frozen" or (increment_id == 0 and self.base_training == "first_increment"):
            return None
        if self.adapter_policy == "shared":
            return SHARED_ADAPTER
        # Not the bare name: PEFT keeps adapters in a ModuleDict, where "type" or "keys" would clash with its methods.
        return f"increment_{increment_id:02d}_{self.increments[increment_id]['name']}"

    def adapter_names(self) -> list[str]:
        """Every adapter once, in the order in which it was added."""
        names = [self.adapter_name(increment_id) for increment_id in range(len(self.increments))]
        return list(dict.fromkeys(name for name in names if name is not None))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}.")
    return value


def _config_from_dict(settings: dict) -> PreTrainedConfig:
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if not model_type:
        raise ValueError("vision_config needs a 'model_type', such as 'resnet' or 'vit'; got " f"{sorted(settings)}.")
    return AutoConfig.for_model(model_type, **settings)
