# SPDX-License-Identifier: Apache-2.0
"""A small index for tests: spaces, vectors and items of known names."""

import numpy as np

from modeling_mclfir.index import FaissStore
from modeling_mclfir.index.spaces import SpaceRevision

DIM = 8
COLLAR, SLEEVE, LATER = "collar@tops", "sleeve@tops", "collar@spring"
OLD, NEW = "old weights", "new weights"


def unit(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rotation(seed: int = 1) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0].astype(np.float32)


def names(count: int, first: int = 0) -> list[str]:
    return [f"item {place:04d}" for place in range(first, first + count)]


def revision(space: str = COLLAR, fingerprint: str = OLD, spread: float | None = 0.5, **other) -> SpaceRevision:
    attribute, increment = space.split("@")
    model_revision = other.pop("model_revision", f"of {fingerprint}")
    dim = other.pop("dim", DIM)
    return SpaceRevision(space, attribute, increment, model_revision, fingerprint, dim, spread, **other)


def stores(folder):
    return lambda name, dim: FaissStore(folder / "stores" / name, dim)


def filled(index, count: int = 60, spaces=(COLLAR,)) -> dict[str, np.ndarray]:
    """Land spaces and add items → the vectors of each."""
    index.land([revision(space) for space in spaces], "new_only")
    found = {}
    for seed, space in enumerate(spaces):
        found[space] = unit(count, seed)
        metadata = [{"colour": ("red", "blue")[place % 2]} for place in range(count)]
        index.add(space, names(count), found[space], metadata, fingerprint=OLD)
    return found


def answers(index, fingerprint: str = OLD, k: int = 5, **options) -> list:
    found = index.search(COLLAR, unit(4, 99), k, fingerprint=fingerprint, **options)
    return [found.ids, [scores.tobytes() for scores in found.scores]]
