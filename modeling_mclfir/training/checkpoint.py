# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: one complete folder an increment, and the state of a run that was stopped inside one.

Nothing is ever half written: a folder gets its name when all of it is on disk. Weights and optimiser states are
safetensors; nothing is pickled.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import custom_object_save

from ..adapters_mclfir import adapter_state_dict
from ..base_mclfir import MclfirPreTrainedModel
from ..data.journal import flush
from ..modeling_mclfir import MclfirForImageRetrieval
from .fingerprint import tensors_fingerprint

TRUNK_FILE, ADAPTERS_FILE, HEADS_FILE = "trunk.safetensors", "adapters.safetensors", "heads.safetensors"
TEXT_FILE = "text.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STATE_FILE = "training_state.json"


def increment_folder(output_dir: Path, increment_id: int) -> Path:
    """Where the checkpoint after an increment stands."""
    return Path(output_dir) / f"increment-{increment_id:02d}"


def save_increment(
    folder: Path,
    model: MclfirPreTrainedModel,
    processor,
    state: dict,
    method_state: dict[str, torch.Tensor],
    previous: Path | None = None,
) -> None:
    """
    Write a complete checkpoint: `AutoModel.from_pretrained(folder)` loads it. Beside it `adapters/NAME/` in PEFT's own
    layout (of a text tower `adapters/NAME/text/`); a trunk or a text tower that did not change since `previous` is
    hard-linked (copied where links are not to be had).

    Args:
        processor: what prepares the model's inputs; of a text-image model a `MclfirProcessor`.
        state: plain data, kept as training_state.json.
        method_state: tensors of the continual method.
    """
    partial = fresh_folder(folder)
    parts = _split_state(model)
    weight_map, total = {}, 0
    digests = {}
    for name, tensors in parts.items():
        digests[name] = tensors_fingerprint(tensors)
        _save_or_link(partial / name, tensors, digests[name], previous)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total, "sha256": digests}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(partial / INDEX_FILE, index)
    _save_adapters(partial / "adapters", model, previous)
    # The code travels too, for machines where this package is not installed (trust_remote_code).
    model.config.architectures = [type(model).__name__]
    custom_object_save(model, partial, config=model.config)
    model.config.save_pretrained(partial)
    processor.save_pretrained(partial)
    if method_state:
        save_file(_plain(method_state), partial / "method.safetensors")
    _write_json(partial / STATE_FILE, state)
    publish(partial, folder)


def load_increment(
    folder: Path, model_class: type[MclfirPreTrainedModel] = MclfirForImageRetrieval
) -> tuple[MclfirPreTrainedModel, dict, dict[str, torch.Tensor]]:
    """The model, the run's state and the method's state of a checkpoint."""
    model = model_class.from_pretrained(folder)
    method_file = folder / "method.safetensors"
    return model, json.loads((folder / STATE_FILE).read_text()), load_file(method_file) if method_file.exists() else {}


def save_state(folder: Path, model, optimizer, method_state: dict[str, torch.Tensor], state: dict) -> None:
    """Write where a run stands inside an increment; replaces the state written before."""
    partial = fresh_folder(folder)
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if model.mclfir.trunk_trains:
        trainable |= dict(model.named_buffers())
    save_file(_plain(trainable), partial / "trainable.safetensors")
    save_file(_plain(flatten_optimizer(optimizer)), partial / "optimizer.safetensors")
    save_file(_plain(method_state), partial / "method.safetensors")
    _write_json(partial / STATE_FILE, state)
    publish(partial, folder)


def load_state(folder: Path, model, optimizer) -> dict[str, torch.Tensor]:
    """Put weights and optimiser back; returns the method's state."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in load_file(folder / "trainable.safetensors").items():
            tensors[name].copy_(value)
    restore_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
    return load_file(folder / "method.safetensors")


def read_state(folder: Path) -> dict | None:
    """The plain data of a saved state, or None where there is none."""
    recover(folder)
    path = folder / STATE_FILE
    return json.loads(path.read_text()) if path.exists() else None


def flatten_optimizer(optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors under flat names `INDEX.NAME`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, part in state.items() for name, value in part.items()}


def restore_optimizer(optimizer, flat: dict[str, torch.Tensor]) -> None:
    """Put back what `flatten_optimizer` gave; rates and groups stay as the optimiser was built."""
    state: dict[int, dict] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def fresh_folder(folder: Path) -> Path:
    """An empty folder beside it, to be written and then given to `publish`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def publish(partial: Path, folder: Path) -> None:
    """Give a written folder its name; one of that name before it is replaced, and never both missing."""
    for path in partial.rglob("*"):
        if path.is_file():
            flush(path)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """After a stop between the two renames of `publish`: the older folder takes its name back."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.rename(old, folder)


def _split_state(model: MclfirPreTrainedModel) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {TRUNK_FILE: {}, TEXT_FILE: {}, ADAPTERS_FILE: {}, HEADS_FILE: {}}
    for name, value in _plain(model.state_dict()).items():
        if name.startswith(("heads.", "router.", "text_router.")):
            parts[HEADS_FILE][name] = value
        elif ".lora_" in name or ".prompt_pool." in name:
            parts[ADAPTERS_FILE][name] = value
        else:
            parts[TEXT_FILE if name.startswith("text.") else TRUNK_FILE][name] = value
    return {name: tensors for name, tensors in parts.items() if tensors}


def _save_or_link(path: Path, tensors: dict[str, torch.Tensor], digest: str, previous: Path | None) -> None:
    if previous is not None and (previous / INDEX_FILE).exists():
        known = json.loads((previous / INDEX_FILE).read_text())["metadata"].get("sha256", {})
        if known.get(path.name) == digest:
            _link(previous / path.name, path)
            return
    save_file(tensors, path, metadata={"format": "pt"})


def _save_adapters(folder: Path, model: MclfirPreTrainedModel, previous: Path | None) -> None:
    config = model.config
    for increment_id, increment in enumerate(config.increments):
        adapter = config.adapter_name(increment_id)
        if adapter is None:
            continue
        name = adapter if config.adapter_policy == "shared" else increment["name"]
        target = folder / name
        if target.exists():
            continue
        older = None if previous is None else previous / "adapters" / name
        if config.adapter_policy != "shared" and older is not None and older.exists():
            for file in [path for path in older.rglob("*") if path.is_file()]:  # an old adapter never changes
                (target / file.relative_to(older)).parent.mkdir(parents=True, exist_ok=True)
                _link(file, target / file.relative_to(older))
            continue
        _save_adapter(target, model.mclfir, adapter, config.vision_config)
        if len(model.towers) > 1:
            _save_adapter(target / "text", model.text, adapter, config.text_config)


def _save_adapter(folder: Path, tower, adapter: str, trunk_config) -> None:
    settings = tower.adapter_settings()
    if settings is None:
        return
    folder.mkdir(parents=True)
    save_file(adapter_state_dict(tower.trunk, adapter), folder / "adapter_model.safetensors")
    settings.base_model_name_or_path = trunk_config.name_or_path or None
    settings.inference_mode = True
    settings.save_pretrained(folder)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
