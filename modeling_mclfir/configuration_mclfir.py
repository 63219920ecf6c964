# SPDX-License-Identifier: Apache-2.0
"""Configuration of the mclfir models (floor 0; travels to the Hub with a checkpoint)."""

import re

from transformers import AutoConfig, PreTrainedConfig

ADAPTER_POLICIES = ("per_increment", "shared", "frozen", "stacked", "prompts")
BASE_TRAINING = ("none", "first_increment")
PROMPT_TYPES = ("learned", "text")
MASK_TYPES = ("blocks", "random", "fixed")
# The parts of a head that can be switched or chosen, with their defaults, and which heads have them.
_PARTS = {
    "use_pooled_features": True,
    "use_spatial_attention": True,
    "use_channel_attention": True,
    "use_low_level_branch": True,
    "use_self_gate": True,
    "use_spatial_gate": True,
    "use_masks": True,
    "mask_type": "blocks",
    "use_attribute_classification": False,
}
_BOTH_ATTENTIONS = ("use_spatial_attention", "use_channel_attention")
HEAD_TYPES = {
    "mclfir": ("use_pooled_features", *_BOTH_ATTENTIONS),
    "linear": (),
    "csn": ("use_masks", "mask_type"),
    "asen": _BOTH_ATTENTIONS,
    "asen_v2": _BOTH_ATTENTIONS,
    "ag_man": tuple(part for part in _PARTS if part != "use_pooled_features"),
    "mclfir_published": _BOTH_ATTENTIONS,
    "closed_form": (),
}
# These read no embedding of an attribute, so a text cannot guide them.
_WITHOUT_PROMPTS = ("linear", "csn", "closed_form")
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
            `"shared"` (one adapter that keeps learning), `"frozen"` (heads only), `"stacked"` (each increment adds
            an adapter, and all of them run together, so that the trunk is shared) or `"prompts"` (a frozen trunk of
            tokens, and one pool of prompts that keeps learning; it takes the adapters' place).
        base_training (`str`): `"none"`, or `"first_increment"`: the whole trunk learns in the first increment and is
            frozen afterwards (for a trunk without pretrained weights).
        lora_rank, lora_alpha, lora_dropout: of every adapter (LoRA, arXiv:2106.09685).
        prompt_pool_size, prompt_length, prompts_per_image (`int`): with `adapter_policy="prompts"`: prompts in the
            pool, tokens of each, and how many of them an image gets (see `PromptPool`).
        head_type (`str`): `"mclfir"` (ours), or a baseline: `"linear"`, `"csn"`, `"asen"`, `"asen_v2"`, `"ag_man"`,
            `"mclfir_published"`; or `"closed_form"`, which nothing learns by steps: the methods `simplecil` and
            `ranpac` work it out. Sizes that a head does not have are not read; switches that it does not have are
            refused away from their defaults. The docstring of each head names all that it reads.
        embed_dim (`int`): size D of an image's embedding for an attribute.
        gate_dim (`int`): hidden size of the channel gate.
        attribute_dim (`int`, *optional*): size of a learned attribute embedding and, in `asen` and `asen_v2`, of the
            map that it is compared with; default: `embed_dim`. Not read by `mclfir`, `linear`, `csn` and
            `closed_form`.
        projection_dim (`int`): size of `closed_form`'s random projection of the pooled features; 0: none.
        use_pooled_features (`bool`): `mclfir` projects the pooled features too.
        use_spatial_attention, use_channel_attention (`bool`): switch these parts, for ablations, in every head but
            `linear`, `csn` and `closed_form`. Without the first, every place counts alike.
        use_low_level_branch (`bool`): `ag_man` adds the lowest map of `out_indices` to the highest.
        use_self_gate (`bool`): `ag_man` gates the attribute's embedding with itself.
        use_spatial_gate (`bool`): `ag_man` has a 7x7 spatial gate after its attention.
        use_masks (`bool`): `csn` and `ag_man` have a mask an attribute. `csn` without masks is a plain triplet
            network: one embedding for all attributes.
        mask_type (`str`): of those masks: `"blocks"` (learned from 1 in the attribute's own block and 0.1 elsewhere),
            `"random"` (learned from normal numbers of mean 0.9 and spread 0.7) or `"fixed"` (1 in the own block, else
            0).
        use_attribute_classification (`bool`): `ag_man` also predicts, in training, which attribute an image was
            drawn for (`attribute_logits`). Only with a loss that reads them: otherwise the branch never learns.
        prompt_type (`str`): `"learned"`: the attribute's prompt is a parameter; `"text"`: a stored text embedding
            (not for `linear`, `csn` and `closed_form`, which have no prompts).
        prompt_dim (`int`, *optional*): size of a stored text embedding; needed where `prompt_type="text"`.
        increments (`list[dict]`): what `add_increment` recorded, in order: `{"name", "attributes", "new_values"}`, and
            `"router"` where `describe_increment` was called, `"refined_values"` where `refine_increment` was.
        trunk_channels (`list[int]`, *optional*): channels of each unit's output, filled in when the trunk is first
            seen, so that the heads can be rebuilt without running it.

    Raises:
        ValueError: a setting outside its choices, a part switched that the head does not have (an ablation would
            change nothing), a malformed increment.
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
        prompt_pool_size: int = 10,
        prompt_length: int = 5,
        prompts_per_image: int = 5,
        head_type: str = "mclfir",
        embed_dim: int = 32,
        gate_dim: int = 32,
        attribute_dim: int | None = None,
        projection_dim: int = 0,
        use_pooled_features: bool = True,
        use_spatial_attention: bool = True,
        use_channel_attention: bool = True,
        use_low_level_branch: bool = True,
        use_self_gate: bool = True,
        use_spatial_gate: bool = True,
        use_masks: bool = True,
        mask_type: str = "blocks",
        use_attribute_classification: bool = False,
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
        self.prompt_pool_size = prompt_pool_size
        self.prompt_length = prompt_length
        self.prompts_per_image = prompts_per_image
        self.head_type = _one_of("head_type", head_type, tuple(HEAD_TYPES))
        self.embed_dim = embed_dim
        self.gate_dim = gate_dim
        self.attribute_dim = embed_dim if attribute_dim is None else attribute_dim
        self.projection_dim = projection_dim
        self.use_pooled_features = use_pooled_features
        self.use_spatial_attention = use_spatial_attention
        self.use_channel_attention = use_channel_attention
        self.use_low_level_branch = use_low_level_branch
        self.use_self_gate = use_self_gate
        self.use_spatial_gate = use_spatial_gate
        self.use_masks = use_masks
        self.mask_type = _one_of("mask_type", mask_type, MASK_TYPES)
        self.use_attribute_classification = use_attribute_classification
        self.prompt_type = _one_of("prompt_type", prompt_type, PROMPT_TYPES)
        self.prompt_dim = prompt_dim
        self.increments = []
        self.trunk_channels = trunk_channels
        at_least_one = ("embed_dim", "lora_rank", "gate_dim", "attribute_dim")
        for name in (*at_least_one, "prompt_pool_size", "prompt_length", "prompts_per_image"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if not isinstance(projection_dim, int) or projection_dim < 0:
            raise ValueError(f"projection_dim must be a whole number of at least 0; got {projection_dim!r}.")
        self._check_prompts()
        self._check_head()
        for increment in increments or []:
            self.append_increment(**increment)
        super().__init__(**kwargs)

    def _check_prompts(self) -> None:
        if self.prompts_per_image > self.prompt_pool_size:
            raise ValueError(
                f"prompts_per_image must be at most prompt_pool_size; got {self.prompts_per_image} of "
                f"{self.prompt_pool_size}."
            )
        if self.adapter_policy == "prompts" and self.base_training != "none":
            raise ValueError(
                f"adapter_policy 'prompts' is for a trunk that never learns; got base_training {self.base_training!r}."
                " Leave that at 'none', or take another policy."
            )

    def _check_head(self) -> None:
        for name, default in _PARTS.items():
            value = getattr(self, name)
            if value != default and name not in HEAD_TYPES[self.head_type]:
                having = [head for head, parts in HEAD_TYPES.items() if name in parts]
                raise ValueError(
                    f"head_type {self.head_type!r} has no part that {name}={value!r} would change; heads that have "
                    f"it: {having}. Leave it at {default!r}."
                )
        attends = self.use_spatial_attention or self.use_channel_attention
        if self.head_type == "mclfir" and not (attends or self.use_pooled_features):
            raise ValueError(
                "A head needs use_spatial_attention, use_channel_attention or use_pooled_features, or it sees nothing."
            )
        if self.prompt_type == "text" and self.head_type in _WITHOUT_PROMPTS:
            raise ValueError(f"head_type {self.head_type!r} reads no prompts; leave prompt_type at 'learned'.")
        if self.prompt_type == "text" and not self.prompt_dim:
            raise ValueError("prompt_type='text' needs prompt_dim, the size of the text encoder's embeddings.")

    def append_increment(
        self,
        name: str,
        attributes: list[str],
        new_values: bool = False,
        router: dict | None = None,
        refined_values: int | None = None,
    ) -> None:
        """
        Record an increment. Raises ValueError for a bad or known name, or an attribute that is already known.

        Args:
            router: how its spaces are told from others of the same attributes (`describe_increment`): its `place` in
                the router, its `num_prototypes` there, and `spreads`, of each space the spread of its scores.
            refined_values: values that its spaces' `SpaceRefinement` has room for.
        """
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
        increment = {"name": name, "attributes": attributes, "new_values": bool(new_values)}
        if router is not None:
            increment["router"] = dict(router)
        if refined_values is not None:
            increment["refined_values"] = int(refined_values)
        self.increments.append(increment)

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
        """PEFT name of the adapter that an increment learns, or None where it runs on the bare trunk."""
        self.check_increment_id(increment_id)
        trunk_learns = increment_id == 0 and self.base_training == "first_increment"
        if trunk_learns or self.adapter_policy in ("frozen", "prompts"):
            return None
        if self.adapter_policy == "shared":
            return SHARED_ADAPTER
        # Not the bare name: PEFT keeps adapters in a ModuleDict, where "type" or "keys" would clash with its methods.
        return f"increment_{increment_id:02d}_{self.increments[increment_id]['name']}"

    def running_adapters(self, increment_id: int) -> tuple[str, ...]:
        """PEFT names of the adapters that an increment runs with, their sum; none: it runs on the bare trunk."""
        own = self.adapter_name(increment_id)
        if own is not None and self.adapter_policy == "stacked":
            return tuple(self.adapter_names())
        return () if own is None else (own,)

    def adapter_names(self) -> list[str]:
        """Every adapter once, in the order in which it was added."""
        names = [self.adapter_name(increment_id) for increment_id in range(len(self.increments))]
        return list(dict.fromkeys(name for name in names if name is not None))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}.")
    return value


def _config_from_dict(
    settings: dict, name: str = "vision_config", examples: str = "resnet' or 'vit"
) -> PreTrainedConfig:
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if not model_type:
        raise ValueError(f"{name} needs a 'model_type', such as '{examples}'; got {sorted(settings)}.")
    return AutoConfig.for_model(model_type, **settings)
