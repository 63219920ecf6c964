# SPDX-License-Identifier: Apache-2.0
"""Any transformers vision model as a chain of units (floor 1; travels to the Hub with a checkpoint).

The units below the first adapted one run once for all increments and may be cached; the units above run once an
increment. `AutoBackbone` cannot serve here: it does not know MobileNetV2 nor the vision towers of CLIP and SigLIP.
"""

import inspect
import math

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .configuration_mclfir import MclfirConfig

# model_type -> (stem, blocks, final): paths of the units inside the model, "*" for every child, "|" for one after
# the other. A family that is not listed still works: see `TrunkUnits`.
_CHAINS = {
    "mobilenet_v1": (("conv_stem",), "layer.*", ()),
    "mobilenet_v2": (("conv_stem",), "layer.*", ("conv_1x1",)),
    "resnet": (("embedder",), "encoder.stages.*.layers.*", ()),
    "convnext": (("embeddings",), "encoder.stages.*.downsampling_layer|layers.*", ()),
    "convnextv2": (("embeddings",), "encoder.stages.*.downsampling_layer|layers.*", ()),
    "vit": (("embeddings",), "layers.*", ("layernorm",)),
    "deit": (("embeddings",), "layers.*", ("layernorm",)),
    "dinov2": (("embeddings",), "encoder.layer.*", ("layernorm",)),
    "dinov2_with_registers": (("embeddings",), "encoder.layer.*", ("layernorm",)),
    "clip_vision_model": (("embeddings", "pre_layrnorm"), "encoder.layers.*", ("post_layernorm",)),
    "siglip_vision_model": (("embeddings",), "encoder.layers.*", ("post_layernorm",)),
}
# Of these, the families whose units hand on tokens, among which further ones find room.
_OF_TOKENS = ("vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model")


def load_trunk(trunk: str | PreTrainedConfig | dict, pretrained: bool = True) -> PreTrainedModel:
    """
    A vision model from a Hub id or a folder (its weights, or random ones if not `pretrained`), or from a
    configuration (random weights). Of a two-tower model such as CLIP the vision tower is taken.

    Raises:
        ValueError: the model has no vision side; a dict without `model_type`.
    """
    if isinstance(trunk, dict):
        trunk = MclfirConfig(vision_config=trunk).vision_config
    if isinstance(trunk, PreTrainedConfig):
        model = AutoModel.from_config(getattr(trunk, "vision_config", trunk))
    elif pretrained:
        model = AutoModel.from_pretrained(trunk, dtype=torch.float32, use_safetensors=True)
    else:
        model = AutoModel.from_config(AutoConfig.from_pretrained(trunk))
    model = getattr(model, "vision_model", model)
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"A trunk takes pixel_values; {type(model).__name__} takes {model.main_input_name}. Name a vision model, "
            "such as google/mobilenet_v2_1.0_224, facebook/dinov2-small or openai/clip-vit-base-patch16."
        )
    return model


class TrunkUnits:
    """
    The units of `trunk`, in the order in which it runs them: `run(hidden, start, stop)` is a part of its forward.

    A family that `_CHAINS` does not list is one opaque chain: nothing is shared between increments (`num_shared` is
    0, every unit is taken from `output_hidden_states`), yet every result is right. `names` holds each unit's path.
    """

    def __init__(self, trunk: PreTrainedModel):
        self.trunk = trunk
        chain = _CHAINS.get(trunk.config.model_type)
        self.opaque = chain is None
        if self.opaque:
            self.names, self.blocks = [], []
            return
        stem, blocks, final = chain
        block_names = _expand(trunk, blocks.split("."))
        self.stem_names, self.final_names = list(stem), list(final)
        # A stem or an end of two modules is one unit: nobody wants a map from between them.
        self.names = [list(stem)] + [[name] for name in block_names] + ([list(final)] if final else [])
        self.blocks = block_names

    @property
    def num_units(self) -> int:
        """Number of units, stem and final one included."""
        return len(self.names)

    @property
    def of_tokens(self) -> bool:
        """Whether units hand on tokens (N, T, C), and take in more of them than an image has; False if opaque."""
        return self.trunk.config.model_type in _OF_TOKENS

    def first_adapted(self, num_adapted_blocks: int | None) -> int:
        """Index of the first unit above the shared part. Raises ValueError where more is asked than there is."""
        if self.opaque:
            return 0
        count = -(-len(self.blocks) // 4) if num_adapted_blocks is None else num_adapted_blocks
        if not 0 <= count <= len(self.blocks):
            raise ValueError(f"num_adapted_blocks must lie in 0..{len(self.blocks)} for this trunk; got {count}.")
        return 1 + len(self.blocks) - count

    def last_block(self) -> int:
        """Index of the last block's output (before a final norm or convolution)."""
        return len(self.blocks)

    def run(self, hidden: torch.Tensor, start: int, stop: int, keep: tuple[int, ...] = ()) -> tuple:
        """Run units start..stop-1 on `hidden`; returns the last output and a dict of the outputs in `keep`."""
        kept = {}
        for index in range(start, stop):
            for name in self.names[index]:
                hidden = _call(self.trunk.get_submodule(name), hidden)
            if index in keep:
                kept[index] = hidden
        return hidden, kept

    def run_opaque(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """All hidden states of a trunk of an unlisted family, lowest first."""
        outputs = self.trunk(pixel_values, output_hidden_states=True, return_dict=True)
        states = getattr(outputs, "reshaped_hidden_states", None) or outputs.hidden_states
        if not states:
            raise ValueError(f"{type(self.trunk).__name__} gives no hidden_states, so it cannot serve as a trunk.")
        return list(states)

    def adaptable_modules(self, start: int, stop: int | None = None) -> list[str]:
        """Names of the linear and ungrouped convolution layers of units start..stop-1 (PEFT refuses depthwise)."""
        prefixes = [name for unit in self.names[start:stop] for name in unit] if not self.opaque else [""]
        found = []
        for prefix in prefixes:
            root = self.trunk.get_submodule(prefix) if prefix else self.trunk
            for name, module in root.named_modules():
                full = ".".join(part for part in (prefix, name) if part)
                if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                    found.append(full)
        return [name for name in found if not name.startswith(("pooler", "head"))]


def fold_tokens(hidden: torch.Tensor, trunk_config: PreTrainedConfig) -> torch.Tensor:
    """
    A token grid (N, T, C) as a map (N, C, H, W), class and register tokens dropped; a map is returned as it is.

    Raises:
        ValueError: the number of tokens fits no grid.
    """
    if hidden.ndim == 4:
        # Swin-like models hand out (N, C, H, W) too once asked for reshaped_hidden_states.
        return hidden
    num_tokens = hidden.shape[1]
    patch, size = getattr(trunk_config, "patch_size", None), getattr(trunk_config, "image_size", None)
    registers = getattr(trunk_config, "num_register_tokens", 0)
    # None, a class token, a class and a distillation token, or registers with or without one; not any number, or a
    # grid that is not square would be taken for a square one with some tokens more.
    prefixes = {0, 1, 2, registers, registers + 1}
    grids = [(math.isqrt(num_tokens - prefix),) * 2 for prefix in sorted(prefixes) if prefix < num_tokens]
    if patch and size:
        (rows, columns), (patch_rows, patch_columns) = _pair(size), _pair(patch)
        grids.insert(0, (rows // patch_rows, columns // patch_columns))
    fitting = [grid for grid in grids if num_tokens - grid[0] * grid[1] in prefixes]
    if not fitting:
        raise ValueError(
            f"{num_tokens} tokens fit no grid of patches (image_size {size}, patch_size {patch}). Give images of the "
            "trunk's own size, or square ones."
        )
    height, width = fitting[0]
    prefix = num_tokens - height * width
    return hidden[:, prefix:].transpose(1, 2).unflatten(2, (height, width))


def own_pooler(trunk: PreTrainedModel) -> list[str]:
    """Names of the modules that make a trunk's own pooled output of its last hidden states; none: it takes a token."""
    return [name for name in ("pooler", "head") if isinstance(getattr(trunk, name, None), nn.Module)]


def pool_tower(trunk: PreTrainedModel, last: torch.Tensor, pooling: str) -> torch.Tensor:
    """
    The last unit's output as one vector an image, (N, C).

    Args:
        last: tokens (N, T, C) or a map (N, C, H, W).
        pooling: "mean": over places; "first": the first token; "pooler": the trunk's own (CLIP: the first token,
            SigLIP: its attention pooling, others: their `pooler`).

    Raises:
        ValueError: a map has no first token.
    """
    if pooling == "mean":
        return fold_tokens(last, trunk.config).mean(dim=(2, 3))
    own = own_pooler(trunk) if pooling == "pooler" else []
    if own:
        return trunk.get_submodule(own[0])(last).flatten(1)
    if last.ndim != 3:
        raise ValueError(
            f"image_pooling {pooling!r} takes a token, but {type(trunk).__name__} gives a map; use 'mean'."
        )
    return last[:, 0]


def unit_channels(units: TrunkUnits, shape: tuple[int, int] | None = None) -> list[int]:
    """Channels of each unit's output, found by one run on an empty image (on the meta device: nothing is computed)."""
    config = units.trunk.config
    size = getattr(config, "image_size", None) or 64
    rows, columns = shape or _pair(size)
    with torch.device("meta"), torch.no_grad():
        probe = AutoModel.from_config(config).eval()
        probe_units = TrunkUnits(getattr(probe, "vision_model", probe))
        empty = torch.empty(1, getattr(config, "num_channels", 3), rows, columns, device="meta")
        if probe_units.opaque:
            states = probe_units.run_opaque(empty)
        else:
            _, kept = probe_units.run(empty, 0, probe_units.num_units, tuple(range(probe_units.num_units)))
            states = [kept[index] for index in range(probe_units.num_units)]
    return [state.shape[1] if state.ndim == 4 else state.shape[2] for state in states]


def _pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _expand(module: nn.Module, path: list[str], prefix: str = "") -> list[str]:
    if not path:
        return [prefix]
    names = []
    for choice in path[0].split("|"):
        children = [name for name, _ in module.named_children()] if choice == "*" else [choice]
        for child in children:
            full = f"{prefix}.{child}" if prefix else child
            submodule = module.get_submodule(child)
            # "a|b.*" ends in every child of a, then every child of b.
            names += _expand(submodule, path[1:], full)
    return names


def _call(unit: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    parameters = list(inspect.signature(unit.forward).parameters.values())[1:]
    # Encoder layers of the CLIP family demand an attention mask; images have none.
    required = {
        parameter.name: None
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    outputs = unit(hidden, **required)
    return outputs[0] if isinstance(outputs, tuple) else outputs
