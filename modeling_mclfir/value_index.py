# SPDX-License-Identifier: Apache-2.0
"""Labelled gallery embeddings, for `MclfirForImageRetrieval.predict_values` (floor 5)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from tqdm import tqdm

from .data.augmentation import Augmentation
from .data.table import ImageTable
from .training.checkpoint import fresh_folder, publish, recover
from .training.feature_cache import load_pixels

_TENSORS, _NAMES = "index.safetensors", "index.json"


@dataclass(frozen=True)
class ValueIndex:
    """
    The labelled items of a gallery, as each attribute sees them.

    Attributes:
        embeds: attribute → unit-length (G, D); G differs between attributes.
        labels: attribute → int64 (G,), places in `values`.
        values: attribute → names of its values.
    """

    embeds: dict[str, torch.Tensor] = field(repr=False)
    labels: dict[str, torch.Tensor] = field(repr=False)
    values: dict[str, tuple[str, ...]]

    @classmethod
    def from_embeds(
        cls,
        embeds: Mapping[str, torch.Tensor],
        labels: Mapping[str, torch.Tensor],
        values: Mapping[str, Sequence[str]],
    ) -> "ValueIndex":
        """
        Args:
            embeds: attribute → unit-length (G, D).
            labels: attribute → (G,) integers; items below 0 have no value and are left out.
            values: attribute → names of its values.

        Raises:
            ValueError: other attributes in one than in another, shapes that do not fit, labels without a name.
        """
        if not embeds.keys() == labels.keys() == values.keys():
            raise ValueError(
                f"embeds, labels and values must have the same attributes; got {list(embeds)}, {list(labels)}, "
                f"{list(values)}."
            )
        kept_embeds, kept_labels = {}, {}
        for name, vectors in embeds.items():
            codes = torch.as_tensor(labels[name]).long()
            if vectors.ndim != 2 or codes.shape != vectors.shape[:1]:
                raise ValueError(
                    f"Expected embeds (G, D) and labels (G,) of {name!r}; got {tuple(vectors.shape)} and "
                    f"{tuple(codes.shape)}."
                )
            if len(codes) and int(codes.max()) >= len(values[name]):
                raise ValueError(
                    f"labels of {name!r} must lie below its {len(values[name])} values; got {int(codes.max())}."
                )
            known = codes >= 0
            kept_embeds[name], kept_labels[name] = vectors.detach()[known.to(vectors.device)], codes[known]
        return cls(kept_embeds, kept_labels, {name: tuple(names) for name, names in values.items()})

    @classmethod
    @torch.no_grad()
    def from_table(
        cls, model, table: ImageTable, processor, batch_size: int = 64, attributes: Sequence[str] | None = None
    ) -> "ValueIndex":
        """
        Embed the rows of a table, a gallery say, with a model in eval mode.

        Args:
            attributes: of those that the model and the table both have; default: all of them. Of an attribute with
                several spaces, the first.

        Raises:
            ValueError: an attribute that one of them does not have, or none in common.
        """
        known = dict.fromkeys(name for name in model.config.attributes if name in table.attributes)
        wanted = list(known if attributes is None else attributes)
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            raise ValueError(
                f"Attributes {unknown or 'to predict'} are not in both: the model has {model.config.attributes}, the "
                f"table {list(table.attributes)}."
            )
        ids, device = [model.config.attributes.index(name) for name in wanted], next(model.parameters()).device
        found = []
        for start in tqdm(range(0, len(table), batch_size), desc=f"embedding {table.split}", unit="batch"):
            rows = range(start, min(start + batch_size, len(table)))
            pixels = load_pixels(table, rows, 0, processor, Augmentation(), 0).to(device)
            found.append(model(pixels, attribute_ids=ids).embeds.float().cpu())
        embeds = torch.cat(found) if found else torch.zeros(0, len(ids), model.config.embed_dim)
        return cls.from_embeds(
            {name: embeds[:, place] for place, name in enumerate(wanted)},
            {name: torch.from_numpy(table.labels(name)) for name in wanted},
            {name: table.values(name) for name in wanted},
        )

    def means(self) -> "ValueIndex":
        """
        One vector a value instead of its items: the unit-length mean of theirs; of a value without items, none. With
        it `predict_values(k=1)` takes the nearest mean (of exemplars: iCaRL, arXiv:1611.07725).
        """
        embeds, labels = {}, {}
        for name, vectors in self.embeds.items():
            codes, places = self.labels[name].to(vectors.device).unique(return_inverse=True)
            sums = vectors.new_zeros(len(codes), vectors.shape[1], dtype=torch.float32)
            embeds[name] = functional.normalize(sums.index_add_(0, places, vectors.float()), dim=-1)
            labels[name] = codes
        return ValueIndex(embeds, labels, self.values)

    def to(self, device: torch.device | str) -> "ValueIndex":
        """The same on a device: a query then waits for no copy."""
        embeds = {name: vectors.to(device) for name, vectors in self.embeds.items()}
        return ValueIndex(embeds, {name: codes.to(device) for name, codes in self.labels.items()}, self.values)

    def save(self, folder: str | Path) -> None:
        """Write the index as a folder of its own; one that stands there is replaced, and never half written."""
        partial = fresh_folder(Path(folder))
        tensors = {}
        for place, name in enumerate(self.values):  # by place: a name may be any text
            tensors[f"embeds.{place}"] = self.embeds[name].contiguous().cpu()
            tensors[f"labels.{place}"] = self.labels[name].contiguous().cpu()
        save_file(tensors, partial / _TENSORS)
        (partial / _NAMES).write_text(json.dumps({"values": self.values}, indent=1) + "\n")
        publish(partial, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "ValueIndex":
        """Read what `save` wrote. FileNotFoundError where there is none."""
        recover(Path(folder))
        path = Path(folder) / _NAMES
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no index ({_NAMES}); ValueIndex.save writes one.")
        values = json.loads(path.read_text())["values"]
        tensors = load_file(Path(folder) / _TENSORS)
        parts = [
            {name: tensors[f"{part}.{place}"] for place, name in enumerate(values)} for part in ("embeds", "labels")
        ]
        return cls.from_embeds(*parts, values)
