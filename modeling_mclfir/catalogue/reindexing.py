# SPDX-License-Identifier: Apache-2.0
"""A new checkpoint lands in a catalogue: pairs of old and new vectors of the same photos, for drift maps."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from ..data.images import BadImage, decode_image
from .embedder import Embedder
from .sources import Item, Source
from .versions import CatalogueIndex

_ENOUGH = 0.5  # of the items that were chosen, so many must still have a photo


def changed_spaces(index: CatalogueIndex, embedder: Embedder, spaces: Sequence[str]) -> list[str]:
    """Those of some spaces that the index has with vectors of something else than the embedder."""
    live = index.spaces
    return [name for name in spaces if name in live and live[name].fingerprint != embedder.revisions[name].fingerprint]


def find_items(sources: Sequence[Source], ids: Sequence[str]) -> dict[str, Item]:
    """Items by id, each from the newest source that has it (sources come oldest first)."""
    found: dict[str, Item] = {}
    for source in reversed(sources):
        waiting = [name for name in ids if name not in found]
        if waiting:
            found |= source.find(waiting)
    return found


def calibration_pairs(
    index: CatalogueIndex,
    embedder: Embedder,
    sources: Sequence[Source],
    spaces: Sequence[str],
    num_items: int,
    batch_size: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Of each space old and new vectors of the same stored items: a share of the items is chosen in every space, spread
    over it, and all of them serve each.

    Raises:
        ValueError: of too many of them the photo is not to be had any more.
    """
    share = max(1, -(-num_items // max(1, len(spaces))))
    ids = dict.fromkeys(name for space in spaces for name in index.calibration(space, share).ids)
    for space in spaces:  # in the place of those that several spaces chose
        if len(ids) < num_items:
            more = (name for name in index.calibration(space, num_items).ids if name not in ids)
            ids |= dict.fromkeys(islice(more, num_items - len(ids)))
    ids = list(ids)
    items = find_items(sources, ids)
    names, new = _embedded(embedder, [items[name] for name in ids if name in items], spaces, batch_size)
    if not names or len(names) < _ENOUGH * len(ids):
        raise ValueError(
            f"Of {len(ids)} items chosen for the drift map only {len(names)} still have a photo in the sources that "
            "the catalogue remembers. Name where they are now (--images, --parquet or --dataset), or take another "
            "policy."
        )
    pairs = {}
    for space in spaces:
        there = np.flatnonzero(index.has(space, names))
        entries = index.get(space, [names[place] for place in there])
        # One that came through a map is no vector of the old revision.
        own = np.array([made_by == entries.revision for made_by in entries.made_by], dtype=bool)
        pairs[space] = entries.embeds[own], new[space][there[own]]
    return pairs


def _embedded(
    embedder: Embedder, items: Sequence[Item], spaces: Sequence[str], batch_size: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    names: list[str] = []
    parts: dict[str, list[np.ndarray]] = {space: [] for space in spaces}
    for start in range(0, len(items), batch_size):
        pixels = []
        for item in items[start : start + batch_size]:
            try:
                pixels.append(embedder.pixels(decode_image(item.load())))
                names.append(str(item.id))
            except BadImage:
                continue
        if pixels:
            for space, rows in embedder.embed(torch.cat(pixels), spaces).items():
                parts[space].append(rows)
    return names, {space: np.concatenate(rows) for space, rows in parts.items() if rows}
