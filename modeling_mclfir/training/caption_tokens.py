# SPDX-License-Identifier: Apache-2.0
"""The captions of a table as tokens, and what the frozen part of the text tower makes of them."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property
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
        hidden: (all captions' tokens, H) float16, one caption after the other, what `fill` put there; None: nothing.
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
        self._lengths = self.attention_mask.sum(dim=1).numpy()  # of each caption's rows in `hidden`

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
            inputs["shared_text"] = self._hidden_of(codes, length)
        return inputs

    def _hidden_of(self, codes: np.ndarray, length: int) -> torch.Tensor:
        """(n, length, H), of a tower that pads to one length by itself that; zeros for padding that none reads."""
        found = np.zeros((len(codes), max(length, *self._lengths[codes]), self.hidden.shape[1]), dtype=np.float16)
        for row, code in zip(found, codes, strict=True):
            row[: self._lengths[code]] = self.hidden[self._place(code)]
        return torch.from_numpy(found)

    @cached_property
    def _ends(self) -> np.ndarray:
        return self._lengths.cumsum()

    def _place(self, code: int) -> slice:
        """Rows of a caption in `hidden`."""
        return slice(self._ends[code] - self._lengths[code], self._ends[code])

    def _chunks(self) -> Iterator[np.ndarray]:
        """Codes, some at a time, the short ones first: little of what a tower is given is padding."""
        order = np.argsort(self._lengths, kind="stable")
        return (order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK))

    @property
    def num_filled(self) -> int:
        """Tokens that a tower is given to fill `hidden`, padding among them."""
        return sum(len(codes) * int(self._lengths[codes[-1]]) for codes in self._chunks())

    def fill(self, model, folder: Path, max_bytes: int, accelerator: Accelerator) -> str | None:
        """
        Have what the part of the text tower below the first adapted block gives, from `folder` or, once, worked out.

        Args:
            max_bytes: cap of all files there.

        Returns:
            the file's name, or None where the cap forbids it: the tower then runs whole for every batch.
        """
        device = accelerator.device
        with torch.no_grad():
            sample = model.text.shared_forward(self.input_ids[:1].to(device), self.attention_mask[:1].to(device))
        if model.text.full_length is not None:
            # It pads every caption to one length by itself (SigLIP's), looks at the padding, and wants all of it back.
            self._lengths = np.full(len(self.texts), sample.shape[1])
        shape = int(self._ends[-1]), sample.shape[2]
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
        for codes in tqdm(self._chunks(), desc="features of captions", unit="batch"):
            tokens = self.inputs(codes)
            with torch.no_grad():
                hidden = model.text.shared_forward(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
            for code, rows in zip(codes, hidden.float().cpu().numpy(), strict=True):
                target[self._place(code)] = rows[: self._lengths[code]]
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
        digest.update(json.dumps([self.texts, self._lengths.tolist()]).encode())
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
