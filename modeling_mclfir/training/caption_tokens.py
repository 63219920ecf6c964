# SPDX-License-Identifier: Apache-2.0
"""The captions of a table as tokens, and what the frozen part of the text tower makes of them."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from filelock import FileLock
from torch.nn.functional import pad
from tqdm import tqdm

from ..data.table import ImageTable
from .fingerprint import BOOKKEEPING, tensors_fingerprint

logger = get_logger(__name__)
_CHUNK = 64
_TOKENISED = 10_000


class CaptionTokens:
    """
    Every distinct caption of a table once.

    Args:
        table: its rows may have one caption, several or none.
        tokenizer: of the text tower.
        max_length: tokens that are kept of a caption.

    Attributes:
        texts: the captions, in the order in which they first come up; a caption's code is its place here.
        codes: of each row the codes of its captions.
        input_ids, attention_mask: (C, T) int64, padded on the right to the longest.
        hidden: (C, T, H) float16, what `fill` put there; None: nothing.
    """

    def __init__(self, table: ImageTable, tokenizer, max_length: int):
        places: dict[str, int] = {}
        self.codes = [
            np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
            for texts in table.all_captions
        ]
        self.texts = list(places)
        tokens = tokenize(tokenizer, self.texts, max_length)
        self.input_ids, self.attention_mask = tokens["input_ids"], tokens["attention_mask"]
        self.hidden: np.ndarray | None = None
        self.padded = False

    @property
    def rows(self) -> np.ndarray:
        """Rows that have a caption, int64."""
        return np.flatnonzero([len(codes) > 0 for codes in self.codes])

    def inputs(self, codes: np.ndarray) -> dict[str, torch.Tensor]:
        """What a model takes of these captions, no longer than the longest of them."""
        mask = self.attention_mask[codes]
        length = max(1, int(mask.sum(dim=1).max()))
        inputs = {"input_ids": self.input_ids[codes][:, :length], "attention_mask": mask[:, :length]}
        if self.hidden is not None:
            # A tower that pads every caption to one length by itself (SigLIP's) wants all of it back.
            inputs["shared_text"] = torch.from_numpy(self.hidden[codes, : None if self.padded else length])
        return inputs

    def fill(self, model, folder: Path, max_bytes: int, accelerator: Accelerator) -> str | None:
        """
        Have what the part of the text tower below the first adapted block gives, from `folder` or, once, worked out.

        Args:
            max_bytes: cap of all files there.

        Returns:
            the file's name, or None where the cap forbids it: the tower then runs whole for every batch.
        """
        with torch.no_grad():
            device = accelerator.device
            sample = model.text.shared_forward(self.input_ids[:1].to(device), self.attention_mask[:1].to(device))
        shape = (len(self.texts), *sample.shape[1:])
        self.padded = model.text.full_length is not None
        path = Path(folder) / f"captions-{self._key(model)}.npy"
        # The first process fills, the others find the file; of several runs with one folder, too.
        with accelerator.main_process_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / ".lock"):
                if not path.exists() and not self._fits(path.parent, shape, max_bytes):
                    return None
                if not path.exists():
                    self._compute(model, path, shape, device)
        self.hidden = np.load(path, mmap_mode="r")
        return path.name

    def _fits(self, folder: Path, shape: tuple[int, ...], max_bytes: int) -> bool:
        used, size = sum(file.stat().st_size for file in folder.glob("*.npy")), 2 * int(np.prod(shape))
        if used + size > max_bytes:
            logger.warning(
                f"captions would need {size / 2**30:.1f} GiB of feature cache, past the cap of "
                f"{max_bytes / 2**30:.1f} GiB (--max_cache_gib): they are run afresh each time instead."
            )
        return used + size <= max_bytes

    def _compute(self, model, path: Path, shape: tuple[int, ...], device: torch.device) -> None:
        partial = path.with_suffix(".partial")
        target = np.lib.format.open_memmap(partial, mode="w+", dtype="float16", shape=shape)
        for start in tqdm(range(0, len(self.texts), _CHUNK), desc="features of captions", unit="batch"):
            part = slice(start, start + _CHUNK)
            with torch.no_grad():
                hidden = model.text.shared_forward(
                    self.input_ids[part].to(device), self.attention_mask[part].to(device)
                )
            target[part] = hidden.float().cpu().numpy()
        target.flush()
        os.replace(partial, path)

    def _key(self, model) -> str:
        text = model.text
        config = {key: value for key, value in text.trunk.config.to_dict().items() if key not in BOOKKEEPING}
        weights = {name: tensor for name, tensor in text.trunk.state_dict().items() if ".lora_" not in name}
        # The first adapter wraps its layers, which changes their names and nothing else.
        weights = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items()}
        digest = hashlib.sha256(tensors_fingerprint(weights).encode())
        digest.update(f"{json.dumps(config, sort_keys=True, default=str)} {text.first_adapted}".encode())
        digest.update(json.dumps(self.texts).encode())
        digest.update(self.input_ids.numpy().tobytes())
        return digest.hexdigest()[:20]


def tokenize(tokenizer, texts: list[str], max_length: int) -> dict[str, torch.Tensor]:
    """Captions → `input_ids` and `attention_mask`, (C, T), padded on the right to the longest of them."""
    if not texts:
        empty = torch.zeros(0, 1, dtype=torch.int64)
        return {"input_ids": empty, "attention_mask": empty}
    parts = []
    for start in range(0, len(texts), _TOKENISED):  # what a tokeniser gives on the way is many times what is kept
        tokens = tokenizer(
            texts[start : start + _TOKENISED], padding=True, truncation=True,
            max_length=min(max_length, tokenizer.model_max_length), padding_side="right", return_attention_mask=True,
            return_tensors="pt",
        )  # fmt: skip
        parts.append([tokens["input_ids"], tokens["attention_mask"]])
    length = max(ids.shape[1] for ids, _ in parts)
    fills = tokenizer.pad_token_id, 0
    ids, masks = (
        torch.cat([pad(part[place], (0, length - part[place].shape[1]), value=fills[place]) for part in parts])
        for place in (0, 1)
    )
    return {"input_ids": ids, "attention_mask": masks}
