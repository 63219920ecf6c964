# SPDX-License-Identifier: Apache-2.0
"""One LoRA adapter an increment, inside the trunk, through PEFT (floor 1; travels to the Hub with a checkpoint)."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def lora_config(config, target_modules: list[str]) -> LoraConfig:
    """PEFT's settings for one adapter of `config` (an `MclfirConfig`) on the named modules of the trunk."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(target_modules),
        bias="none",
    )


def adapter_layers(trunk: nn.Module) -> list[BaseTunerLayer]:
    """The wrapped layers of the trunk, in the order of its modules."""
    return [module for module in trunk.modules() if isinstance(module, BaseTunerLayer)]


def add_adapter(trunk: nn.Module, settings: PeftConfig, name: str, start_from: str | None = None) -> None:
    """
    Put a new adapter into the trunk, frozen; `start_from` names an adapter whose weights it copies (transfer).

    Raises:
        ValueError: the trunk has an adapter of that name, or none called `start_from`.
    """
    known = adapter_names(trunk)
    if name in known:
        raise ValueError(f"The trunk has an adapter {name!r} already (known: {known}).")
    if start_from is not None and start_from not in known:
        raise ValueError(f"There is no adapter {start_from!r} to start from; known: {known}.")
    # Injection makes every adapter trainable, old ones too: what was trainable before is put back.
    trainable = {key for key, parameter in trunk.named_parameters() if parameter.requires_grad}
    with warnings.catch_warnings():
        # PEFT warns that a second adapter is a surprise; here it is the plan.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(settings, trunk, adapter_name=name)
    for layer in adapter_layers(trunk):
        _carry_convolution_settings(layer)
        if start_from is not None:
            for part in (layer.lora_A, layer.lora_B):
                part[name].load_state_dict(part[start_from].state_dict())
    for key, parameter in trunk.named_parameters():
        parameter.requires_grad_(key in trainable or key.replace(".base_layer.", ".") in trainable)


def adapter_names(trunk: nn.Module) -> list[str]:
    """Names of the adapters in the trunk."""
    return list(dict.fromkeys(name for layer in adapter_layers(trunk) for name in layer.lora_A))


def adapter_parameters(trunk: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter by their names in the trunk."""
    marks = (f".lora_A.{name}.", f".lora_B.{name}.")
    return {key: value for key, value in trunk.named_parameters() if any(mark in key for mark in marks)}


@contextmanager
def use_adapter(layers: list[BaseTunerLayer], name: str | Sequence[str] | None) -> Iterator[None]:
    """
    Run the trunk with one adapter, with the sum of several, or with none (None, or no name).

    PEFT's own `set_adapter` flips `requires_grad` on every call, in evaluation too, which would thaw old adapters
    and break the hooks of distributed training; so only the choice itself is switched.
    """
    names = [name] if isinstance(name, str) else list(name or ())
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = not names
            if names:
                layer._active_adapter = list(names)
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def adapter_state_dict(trunk: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """One adapter's weights under the names of PEFT's own files, so that `PeftModel.from_pretrained` reads them."""
    state = get_peft_model_state_dict(trunk, adapter_name=name)
    return {f"base_model.model.{key}": value.detach().cpu().contiguous() for key, value in state.items()}


def _carry_convolution_settings(layer: BaseTunerLayer) -> None:
    base = layer.get_base_layer()
    if isinstance(base, nn.Conv2d):
        # MobileNetV2 reads these from its convolutions to work out TensorFlow's padding; PEFT's wrapper lacks them.
        for name in ("stride", "kernel_size", "dilation"):
            setattr(layer, name, getattr(base, name))
