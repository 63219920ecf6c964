# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of weights: equal exactly where the tensors are."""

import hashlib
import json
from collections.abc import Mapping

import torch

# Written into a configuration when it is saved or loaded; they say nothing about the network.
BOOKKEEPING = ("dtype", "_name_or_path", "architectures", "transformers_version")


def tensors_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shared_fingerprint(model) -> str:
    """Of the part of the trunk below the first adapted unit: its architecture and its weights."""
    mclfir = model.mclfir
    units = mclfir.units
    weights = {}
    if not units.opaque:
        prefixes = tuple(f"{name}." for unit in units.names[: mclfir.first_adapted] for name in unit)
        state = mclfir.trunk.state_dict()
        weights = {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
    config = {key: value for key, value in model.config.vision_config.to_dict().items() if key not in BOOKKEEPING}
    settings = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{settings} {mclfir.first_adapted} {tensors_fingerprint(weights)}".encode()).hexdigest()


def tokenizer_fingerprint(tokenizer) -> str:
    """Of what makes tokens of a caption: vocabulary, rules, special tokens, and where it is cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:
        del rules["truncation"], rules["padding"]  # what the last call asked for; each call says it anew
    settings = tokenizer.model_max_length, tokenizer.pad_token_id
    return hashlib.sha256(json.dumps([rules, settings], sort_keys=True).encode()).hexdigest()


def _settings(config, processor) -> str:
    images = getattr(processor, "image_processor", processor)
    settings = {
        "vision": {key: value for key, value in config.vision_config.to_dict().items() if key not in BOOKKEEPING},
        # What changes what a forward pass does with these weights, and nothing that a later increment adds.
        "model": {
            key: value
            for key, value in config.to_dict().items()
            if key not in (*BOOKKEEPING, "vision_config", "text_config", "increments", "auto_map", "trunk_channels")
        },
        # Saving a processor adds where its code lies, which changes no pixel.
        "processor": {key: value for key, value in images.to_dict().items() if key != "auto_map"},
    }
    if getattr(processor, "tokenizer", None) is not None:
        settings["tokenizer"] = tokenizer_fingerprint(processor.tokenizer)
    if getattr(config, "text_config", None) is not None:
        text = config.text_config.to_dict()
        settings["text"] = {key: value for key, value in text.items() if key not in BOOKKEEPING}
    return json.dumps(settings, sort_keys=True, default=str)


def space_fingerprints(model, processor) -> list[str]:
    """
    Of each space (`attribute_ids` of the model) all that makes its vectors: trunk, the adapters that run for it, its
    heads with their refinement, preprocessing; of captions and images both towers and, where the processor has one,
    the tokenizer. Vectors of one space may be compared exactly where these are equal.

    A model that learned further increments has the same ones for its old spaces as before, as long as those stay bit
    for bit (adapter_policy "per_increment" or "frozen").
    """
    config, common = model.config, _settings(model.config, processor)
    state = model.state_dict()
    trunk = tensors_fingerprint({
        # The first adapter wraps its layers, which changes their names and nothing else.
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.startswith(("mclfir.", "text.")) and ".lora_" not in name
    })  # fmt: skip
    found = []
    for increment_id in range(len(model.heads)):
        # By their order, not by the increment's number: the same space may come into another model at another place.
        own = {
            name.removeprefix(f"heads.{increment_id}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"heads.{increment_id}.")
        }
        for order, adapter in enumerate(config.running_adapters(increment_id)):
            own |= {
                name.replace(f".{adapter}.", f".{order}."): tensor
                for name, tensor in state.items()
                if ".lora_" in name and f".{adapter}." in name
            }
        part = tensors_fingerprint(own)
        for place, attribute_id in enumerate(config.attribute_range(increment_id)):
            attribute = config.attributes[attribute_id]
            text = f"{common} {trunk} {part} {place} {attribute}"
            found.append(hashlib.sha256(text.encode()).hexdigest())
    return found
