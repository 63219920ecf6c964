# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of weights: equal exactly where the tensors are."""

import hashlib
import json
from collections.abc import Mapping

import torch

# Written into a configuration when it is saved or loaded; they say nothing about the network.
_BOOKKEEPING = ("dtype", "_name_or_path", "architectures", "transformers_version")


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
    config = {key: value for key, value in model.config.vision_config.to_dict().items() if key not in _BOOKKEEPING}
    settings = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{settings} {mclfir.first_adapted} {tensors_fingerprint(weights)}".encode()).hexdigest()
