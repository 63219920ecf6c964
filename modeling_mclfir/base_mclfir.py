# SPDX-License-Identifier: Apache-2.0
"""What all mclfir models stand on: loading and saving, and the trunk with an adapter an increment (floor 2).

Travels to the Hub with a checkpoint.
"""

from dataclasses import dataclass

import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .adapters_mclfir import adapter_layers, add_adapter, lora_config, use_adapter
from .ag_man_mclfir import AgManHeads
from .attention_mclfir import AttributeHeads, IncrementHeads
from .baseline_heads_mclfir import AsenHeads, AsenV2Heads, CsnHeads, LinearHeads, MclfirPublishedHeads
from .closed_form_mclfir import ClosedFormHeads
from .configuration_mclfir import MclfirConfig
from .prompt_pool_mclfir import PromptPool
from .trunk_mclfir import TrunkUnits, fold_tokens, own_pooler, pool_tower, unit_channels

# What `from_pretrained` may be told of where a checkpoint is.
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
HEADS = {
    "mclfir": AttributeHeads,
    "linear": LinearHeads,
    "csn": CsnHeads,
    "asen": AsenHeads,
    "asen_v2": AsenV2Heads,
    "ag_man": AgManHeads,
    "mclfir_published": MclfirPublishedHeads,
    "closed_form": ClosedFormHeads,
}


@dataclass
class MclfirModelOutput(ModelOutput):
    """
    Features of one increment.

    Args:
        feature_maps (`list` of `(N, C_l, H_l, W_l)`): outputs of the units in `out_indices`, finest first.
        pooled (`(N, C)`): output of the last unit that runs (the trunk's last; where no head reads that, that of the
            highest map), averaged over places.
        shared_features: output of the part of the trunk that all increments share; may be handed in again.
        prompt_similarity (`(N, K)`, with adapter_policy "prompts"): cosines of the image's query and the keys of the
            prompts that it got.
    """

    feature_maps: list[torch.Tensor] | None = None
    pooled: torch.Tensor | None = None
    shared_features: torch.Tensor | None = None
    prompt_similarity: torch.Tensor | None = None


class MclfirPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, common to all mclfir models."""

    config_class = MclfirConfig
    base_model_prefix = "mclfir"
    main_input_name = "pixel_values"
    _auto_class = "AutoModel"

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """
        As always, with every tensor at an aligned address: weights are mapped from the file wherever they lie there,
        and some matrix kernels round differently off the alignment. So a loaded model answers bit for bit as saved.

        Raises:
            ValueError: a checkpoint of another kind of mclfir model.
        """
        config = kwargs.get("config", args[1] if len(args) > 1 else None)
        if config is None and args:
            asked = {name: kwargs[name] for name in _WHERE if name in kwargs}
            config = PreTrainedConfig.get_config_dict(args[0], **asked)[0].get("model_type")
        found, wanted = getattr(config, "model_type", config), cls.config_class.model_type
        if isinstance(found, str) and found.startswith("mclfir") and found != wanted:
            raise ValueError(
                f"{args[0] if args else 'This'} is a checkpoint of model_type {found!r}; {cls.__name__} loads "
                f"{wanted!r}. AutoModel.from_pretrained takes either."
            )
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        # Called by from_pretrained for weights a checkpoint lacks. Trunk, adapters and heads draw their own.
        if isinstance(module, IncrementHeads | PromptPool):
            module.reset()


class MclfirModel(MclfirPreTrainedModel):
    """
    A vision trunk with one adapter an increment: images → feature maps, as the increment sees them.

    The adapters that `config.increments` lists are rebuilt here, so that `from_pretrained` finds their places.
    """

    def __init__(self, config: MclfirConfig):
        super().__init__(config)
        if config.vision_config is None:
            raise ValueError("MclfirConfig.vision_config is missing; build a model with from_trunk(ID_OR_CONFIG).")
        self.trunk = AutoModel.from_config(config.vision_config)
        self._set_up_trunk()
        for name in config.adapter_names():
            add_adapter(self.trunk, self.adapter_settings(), name)
        self.prompt_pool = self._build_prompt_pool() if config.adapter_policy == "prompts" else None
        self.post_init()

    def _set_up_trunk(self) -> None:
        config = self.config
        self.units = TrunkUnits(self.trunk)
        if config.trunk_channels is None:
            config.trunk_channels = unit_channels(self.units)
        num_units = len(config.trunk_channels)
        self.first_adapted = self.units.first_adapted(config.num_adapted_blocks)
        if config.out_indices is None:
            last = num_units - 1 if self.units.opaque else self.units.last_block()
            config.out_indices = sorted({min(max(self.first_adapted - 1, 0), last), last})
        wrong = [index for index in config.out_indices if not -num_units <= index < num_units]
        if wrong:
            raise ValueError(f"out_indices {wrong} are not units of this trunk: it has {num_units} (0 is the stem).")
        self.out_units = sorted({index % num_units for index in config.out_indices})
        lost = [index for index in self.out_units if index < self.first_adapted - 1]
        if lost:
            raise ValueError(
                f"out_indices {lost} lie below the shared part's last unit ({self.first_adapted - 1}), whose output "
                "alone is kept between the parts; use that unit or later ones, or adapt more blocks."
            )
        heads = HEADS[config.head_type]
        if len(self.out_units) < heads.num_maps(config):
            raise ValueError(
                f"head_type {config.head_type!r} needs maps of {heads.num_maps(config)} levels; out_indices "
                f"{config.out_indices} name {len(self.out_units)}. Name more, or switch use_low_level_branch off."
            )
        # Units above the last map feed the pooled features alone: where no head reads those they need not run.
        self.last_unit = num_units - 1 if heads.reads_pooled(config) else self.out_units[-1]
        adaptable = self.units.adaptable_modules(self.first_adapted, self.last_unit + 1)
        if config.adapter_policy != "frozen" and not adaptable:
            raise ValueError(
                f"There is no layer to adapt above unit {self.first_adapted - 1} (num_adapted_blocks "
                f"{config.num_adapted_blocks}); raise num_adapted_blocks, or take adapter_policy='frozen'."
            )

    def _build_prompt_pool(self) -> PromptPool:
        config = self.config
        if not self.units.of_tokens:
            raise ValueError(
                "adapter_policy 'prompts' puts tokens before an image's own, but a trunk of type "
                f"{config.vision_config.model_type!r} has none to join; take a ViT-like one, or another policy."
            )
        sizes = config.prompt_pool_size, config.prompt_length, config.prompts_per_image
        channels = config.trunk_channels
        return PromptPool(*sizes, channels[self.first_adapted - 1], channels[self.last_unit])

    @property
    def num_units(self) -> int:
        """Units of the trunk: the stem, the blocks and, where the family has one, a final layer."""
        return len(self.config.trunk_channels)

    def adapter_settings(self) -> LoraConfig:
        """PEFT settings of every adapter of this model."""
        targets = self.units.adaptable_modules(self.first_adapted, self.last_unit + 1)
        # A layer that an earlier adapter wrapped is named with its wrapper's parts: keep the wrapped layer's own name.
        clean = [name.removesuffix(".base_layer") for name in targets if ".lora_" not in name]
        return lora_config(self.config, list(dict.fromkeys(clean)))

    def shared_forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The part below the first adapted unit: (N, 3, H, W) → its output, the same for every increment."""
        expected = getattr(self.config.vision_config, "num_channels", 3)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != expected:
            raise ValueError(f"pixel_values must be (N, {expected}, H, W); got {tuple(pixel_values.shape)}.")
        if self.units.opaque:
            return pixel_values
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trunk_trains):
            hidden, _ = self.units.run(pixel_values, 0, self.first_adapted)
        return hidden

    @property
    def trunk_trains(self) -> bool:
        """Whether the trunk itself is learning (base_training); else its shared part runs without gradients."""
        return getattr(self, "_trunk_trains", False)

    def free_trunk(self) -> None:
        """
        Let the whole trunk learn, but for its poolers, classification heads and mask tokens, which never run here
        (distributed training refuses parameters without gradients), and the adapters of later increments.
        """
        units, used = self.units, ""
        if not units.opaque:
            used = tuple(f"{name}." for unit in units.names[: self.last_unit + 1] for name in unit)
            if getattr(self.config, "image_pooling", "mean") == "pooler":
                used += tuple(f"{name}." for name in own_pooler(self.trunk))
        for name, parameter in self.trunk.named_parameters():
            idle = ".lora_" in name or name.endswith("mask_token")
            parameter.requires_grad_(name.startswith(used) and not idle)

    def increment_forward(self, shared_features: torch.Tensor, increment_id: int | None) -> MclfirModelOutput:
        """
        The part above, with the increment's adapters (None: the bare trunk): shared features → maps and pooled.

        With adapter_policy "prompts" an image's query for prompts is its pooled features of the bare trunk, without
        gradients. They stand before its tokens from the first adapted unit on, and maps and pooled features are of its
        own tokens. (L2P puts them at the trunk's input; here the part below is the same for all and can be cached.)
        """
        if increment_id is None:
            return self._upper_part(shared_features)
        if self.prompt_pool is None:
            return self._upper_part(shared_features, self.config.running_adapters(increment_id))
        with torch.no_grad():
            query = self._upper_part(shared_features).pooled
        prompts, similarity = self.prompt_pool(query)
        output = self._upper_part(torch.cat([prompts, shared_features], dim=1), num_prompts=prompts.shape[1])
        output.shared_features, output.prompt_similarity = shared_features, similarity
        return output

    def _upper_part(
        self, shared_features: torch.Tensor, adapters: tuple[str, ...] = (), num_prompts: int = 0
    ) -> MclfirModelOutput:
        """Everything above the shared part; of `num_prompts` tokens that come first nothing is given."""
        with use_adapter(adapter_layers(self.trunk), adapters):
            if self.units.opaque:
                kept = dict(enumerate(self.units.run_opaque(shared_features)))
                last = kept[self.last_unit]
            else:
                last, kept = self.units.run(
                    shared_features, self.first_adapted, self.last_unit + 1, tuple(self.out_units)
                )
                kept[self.first_adapted - 1] = shared_features
        if num_prompts:
            last, kept = last[:, num_prompts:], {index: hidden[:, num_prompts:] for index, hidden in kept.items()}
        vision_config = self.config.vision_config
        maps = [fold_tokens(kept[index], vision_config) for index in self.out_units]
        pooled = pool_tower(self.trunk, last, getattr(self.config, "image_pooling", "mean"))
        return MclfirModelOutput(feature_maps=maps, pooled=pooled, shared_features=shared_features)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        increment_id: int | None = None,
        shared_features: torch.Tensor | None = None,
    ) -> MclfirModelOutput:
        """
        Args:
            pixel_values: images (N, 3, H, W), from the checkpoint's image processor.
            increment_id: whose adapter runs; None: the bare trunk.
            shared_features: what `shared_forward` gave, instead of `pixel_values`.
        """
        shared_features = self._shared(pixel_values, shared_features)
        return self.increment_forward(shared_features, increment_id)

    def _shared(self, pixel_values: torch.Tensor | None, shared_features: torch.Tensor | None) -> torch.Tensor:
        if (pixel_values is None) == (shared_features is None):
            raise ValueError("Pass either pixel_values or shared_features, not both and not neither.")
        return self.shared_forward(pixel_values) if shared_features is None else shared_features

    def train(self, mode: bool = True):
        """
        As always, except that batch normalisation of a frozen trunk keeps its statistics, and that its shared part
        stays in eval mode altogether: what a cache holds is what it would give. With prompts all of it does, since
        the same image is to have the same query.
        """
        super().train(mode)
        if self.prompt_pool is not None:
            self.trunk.eval()
        if mode and not self.trunk_trains:
            for name in [] if self.units.opaque else sum(self.units.names[: self.first_adapted], []):
                self.trunk.get_submodule(name).eval()
            for module in self.trunk.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self
