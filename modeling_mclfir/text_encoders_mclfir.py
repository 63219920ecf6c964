# SPDX-License-Identifier: Apache-2.0
"""Text encoders of transformers, whole and in parts (floor 1; travels to the Hub with a checkpoint)."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel


def load_text_encoder(source: str | PreTrainedConfig | dict, pretrained: bool = True) -> PreTrainedModel:
    """
    A text encoder from a Hub id or a folder (its weights, or random ones if not `pretrained`), or from a configuration
    (random weights). Of a two-tower model such as CLIP the text tower is taken, of T5 and its like the encoder.

    Raises:
        ValueError: the model has no text side; a dict without `model_type`.
    """
    if isinstance(source, dict):
        settings = dict(source)
        if "model_type" not in settings:
            raise ValueError(f"A text encoder's settings need a 'model_type', such as 'bert'; got {sorted(settings)}.")
        source = AutoConfig.for_model(settings.pop("model_type"), **settings)
    if isinstance(source, PreTrainedConfig):
        return build_text_encoder(getattr(source, "text_config", source))
    if not pretrained:
        return load_text_encoder(AutoConfig.from_pretrained(source))
    return _encoder(AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True))


def build_text_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder of this configuration with random weights."""
    try:
        return _encoder(AutoModel.from_config(config))
    except ValueError:
        # AutoModel does not know the text towers of all pairs, SigLIP's for one: there it is XModel for an XConfig.
        model_class = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
        if model_class is None:
            raise
        return _encoder(model_class(config))


def _encoder(model: PreTrainedModel) -> PreTrainedModel:
    model = getattr(model, "text_model", model)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if model.main_input_name != "input_ids":
        raise ValueError(
            f"A text tower takes input_ids; {type(model).__name__} takes {model.main_input_name}. Name a text "
            "encoder, such as sentence-transformers/all-MiniLM-L6-v2, or a model of two towers."
        )
    return model


def path_of_layers(trunk: PreTrainedModel) -> str | None:
    """Where the encoder keeps its layers: the outermost list of as many modules as it says it has layers."""
    count = getattr(trunk.config, "num_hidden_layers", None)
    found = [
        name for name, module in trunk.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return min(found, key=lambda name: name.count("."), default=None)


def first_argument(layer: nn.Module) -> str:
    """Name of the argument with which a layer takes its hidden states."""
    return list(inspect.signature(type(layer).forward).parameters)[1]


@contextmanager
def handing_on(layers: list[nn.Module], form: int) -> Iterator[None]:
    """Let layers answer with what they were asked: a tensor (form 0), or a tuple of `form` parts, of which the first.

    Their `forward` alone is replaced: their places, attributes and hooks are still there for the encoder to use.
    """
    before = [layer.__dict__.get("forward") for layer in layers]

    def hand_on(hidden_states=None, *_, **others):
        if hidden_states is None:
            hidden_states = next(iter(others.values()))
        return (hidden_states, *[None] * (form - 1)) if form else hidden_states

    try:
        for layer in layers:
            layer.forward = hand_on
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def token_mean(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(N, T, H) → (N, H), the mean over tokens that are not padding; a mask of None: nothing is."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    missing = hidden.shape[1] - attention_mask.shape[1]  # an encoder may pad further by itself
    mask = functional.pad(attention_mask, (0, missing))[..., None].to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
