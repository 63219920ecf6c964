# SPDX-License-Identifier: Apache-2.0
"""What happens to stored vectors when a model revision lands: the policies, and the mathematics of drift maps.

A drift map brings vectors of a new revision into the coordinates of the stored ones, so that these stay as they are:
by the mean drift (QDC, CoLLAs 2025, of query embeddings), or by an orthogonal map (Procrustes), each mixed on the
sphere with the vectors as they are ("Spherical Interpolation for Backward-Compatible Multimodal Representations"; that
paper mixes in the old encoder's query, for which `spherical_mix` serves as well).
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import load, save

from .store import VectorStore

# Policy → what it does with a space whose encoder changed. Under each of them new spaces are opened, and spaces of
# the same fingerprint stay as they are.
POLICIES = {
    "new_only": "refuses it: only for revisions that leave old spaces as they were",
    "none": "keeps the old vectors, and new queries search them as they are",
    "drift_compensated": "keeps the old vectors, and new queries are mapped to them",
    "full": "embeds every item again, in a store beside the live one",
}
MAPS = ("mean_drift", "procrustes")
# Metadata of an entry that came through a map: fingerprint of what made its vector.
MADE_BY = "made_by"
_POOL = 50
# Of the largest singular value: directions in which the pairs say nothing are left as they are.
_UNDECIDED = 1e-9


def mean_drift(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Mean of new - old over pairs (n, D): float64 (D,), which new vectors are to be relieved of."""
    old, new = _pairs(old, new)
    if old.shape[1] != new.shape[1]:
        raise ValueError(f"Mean drift needs vectors of one length; got {old.shape[1]} and {new.shape[1]}.")
    return (new - old).mean(axis=0)


def procrustes(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """
    The orthogonal map R with the least Σ |new R - old|² (Schönemann 1966).

    Args:
        old: (n, D).
        new: (n, E).

    Returns:
        float64 (E, D): rows, or columns where E is larger, are orthonormal. Of directions that no pair shows, those
        of the least turn.
    """
    old, new = _pairs(old, new)
    products = new.T @ old
    left, sizes, right = np.linalg.svd(products + _UNDECIDED * np.abs(products).max() * np.eye(*products.shape))
    rank = len(sizes)
    return left[:, :rank] @ right[:rank]


def spherical_mix(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """
    Directions on the great circle from each first vector to its second one, float64 (N, D), with the first's lengths.

    Args:
        weight: 0: the first, 1: the second. Opposite ones have no way between them: the nearer one is taken.

    Raises:
        ValueError: another shape, a weight outside 0..1.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"Expected two arrays (N, D) to mix; got {first.shape} and {second.shape}.")
    _check_mix(weight)
    if weight in (0, 1):
        return first.copy() if weight == 0 else _of_length(second, first)
    one, other = (_of_length(rows, None) for rows in (first, second))
    cosine = np.clip((one * other).sum(axis=1, keepdims=True), -1, 1)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    # At an angle of 0 the sines cancel to the plain shares.
    shares = [
        np.where(angle < 1e-6, part, np.sin(part * angle) / np.where(sine == 0, 1, sine))
        for part in (1 - weight, weight)
    ]
    mixed = shares[0] * one + shares[1] * other
    opposite = cosine < -1 + 1e-12
    return _of_length(np.where(opposite, one if weight < 0.5 else other, mixed), first)


@dataclass(frozen=True)
class DriftMap:
    """
    Brings vectors (N, E) of one revision into the coordinates (D) of another; each keeps its own length.

    Attributes:
        kind: mean_drift or procrustes.
        parameters: float64: the drift (D,), or the map (E, D).
        mix: 1: the mapped vector, 0: the vector as it is, between them on the sphere.
    """

    kind: str
    parameters: np.ndarray = field(repr=False)
    mix: float = 1.0

    def __post_init__(self):
        if self.kind not in MAPS:
            raise ValueError(f"There is no drift map {self.kind!r}; choose one of {', '.join(MAPS)}.")
        _check_mix(self.mix)
        if self.mix != 1 and self.dims[0] != self.dims[1]:
            raise ValueError(f"Vectors of {self.dims[0]} can't be mixed with ones of {self.dims[1]}; take mix=1.")

    @property
    def dims(self) -> tuple[int, int]:
        """E and D."""
        return self.parameters.shape[0], self.parameters.shape[-1]

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (N, D). ValueError: another shape."""
        raw = np.asarray(vectors, dtype=np.float64)
        if raw.ndim != 2 or raw.shape[1] != self.dims[0]:
            raise ValueError(f"Expected vectors (N, {self.dims[0]}) to map; got {raw.shape}.")
        mapped = raw - self.parameters if self.kind == "mean_drift" else raw @ self.parameters
        mapped = _of_length(mapped, raw)
        return (mapped if self.mix == 1 else spherical_mix(raw, mapped, self.mix)).astype(np.float32)

    def to_bytes(self) -> bytes:
        """As a safetensors file; the same map, the same bytes."""
        return save({"parameters": np.ascontiguousarray(self.parameters)})

    @classmethod
    def from_bytes(cls, content: bytes, kind: str, mix: float) -> "DriftMap":
        """What `to_bytes` wrote; its kind and mix are the manifest's to say."""
        return cls(kind, load(content)["parameters"], mix)


def fit_map(kind: str, old: np.ndarray, new: np.ndarray, mix: float = 1.0) -> tuple[DriftMap, dict[str, float]]:
    """
    A map from the coordinates of `new` to those of `old`, learned from pairs of the same items.

    Returns:
        The map, and what it does to the pairs: their number, mean cosine before (where the lengths are the same) and
        after. They were fitted, so that this flatters a map of few pairs; recall is the judge.

    Raises:
        ValueError: no such kind, no pairs, shapes that do not fit, vectors that are not finite.
    """
    if kind not in MAPS:
        raise ValueError(f"There is no drift map {kind!r}; choose one of {', '.join(MAPS)}.")
    found = DriftMap(kind, (mean_drift if kind == "mean_drift" else procrustes)(old, new), mix)
    details: dict[str, float] = {"pairs": len(old), "cosine_after": _mean_cosine(old, found.apply(new))}
    if found.dims[0] == found.dims[1]:
        details["cosine_before"] = _mean_cosine(old, new)
    return found, details


def choose_calibration(store: VectorStore, num_items: int, seed: int = 0) -> list[str]:
    """
    Ids of items that stand for all that a store holds: a tree of random halvings with as many leaves, an item out of
    each. Every part of the space has its share, so that a mean over them is one over all, with less noise than of
    items drawn at random.

    Entries that came through a map are left out: their vectors are of another revision. Of more than fifty times
    `num_items` entries, so many are drawn first. The order in which the store gives its entries does not matter.

    Raises:
        ValueError: num_items below 1.
    """
    if num_items < 1:
        raise ValueError(f"num_items must be at least 1; got {num_items}.")
    pool: list[tuple[int, str, np.ndarray]] = []
    for batch in store.scroll():
        pool += [
            (_draw(name, seed), name, embed.copy())
            for name, embed, metadata in zip(batch.ids, batch.embeds, batch.metadata, strict=True)
            if MADE_BY not in metadata
        ]
        if len(pool) > 2 * _POOL * num_items:
            pool = heapq.nsmallest(_POOL * num_items, pool, key=lambda entry: entry[:2])
    pool = heapq.nsmallest(_POOL * num_items, pool, key=lambda entry: entry[:2])
    if len(pool) <= num_items:
        return sorted(name for _, name, _ in pool)
    names, embeds = [name for _, name, _ in pool], np.stack([embed for _, _, embed in pool])
    return sorted(names[place] for place in _spread_places(embeds, num_items, np.random.default_rng(seed)))


def _spread_places(embeds: np.ndarray, count: int, random: np.random.Generator) -> list[int]:
    """Places of `count` rows, one out of each leaf of a tree that halves the rows along random directions."""
    chosen, waiting = [], [(np.arange(len(embeds)), count)]
    while waiting:
        places, wanted = waiting.pop()
        if wanted == 1:
            chosen.append(int(random.choice(places)))
            continue
        heights = embeds[places] @ random.standard_normal(embeds.shape[1])
        order, few = places[np.argsort(heights, kind="stable")], wanted // 2
        cut = max(few, min(len(order) - (wanted - few), round(len(order) * few / wanted)))
        waiting += [(order[:cut], few), (order[cut:], wanted - few)]
    return chosen


def score_spread(embeds: np.ndarray, num_pairs: int = 10_000, seed: int = 0) -> float:
    """Standard deviation of the inner products of different rows (n, D). ValueError: fewer than two rows."""
    if len(embeds) < 2:
        raise ValueError(f"Two vectors at least are needed to know a spread; got {len(embeds)}.")
    random = np.random.default_rng(seed)
    one = random.integers(len(embeds), size=num_pairs)
    other = (one + random.integers(1, len(embeds), size=num_pairs)) % len(embeds)
    return float(np.einsum("nd,nd->n", embeds[one], embeds[other], dtype=np.float64).std())


def _draw(name: str, seed: int) -> int:
    """A number that depends on the name and the seed alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "little")


def _pairs(old: Sequence | np.ndarray, new: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    old, new = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    if old.ndim != 2 or new.ndim != 2 or len(old) != len(new) or not len(old):
        raise ValueError(
            f"A calibration is pairs of the same items, old vectors (n, D) and new ones (n, E), n at least 1; got "
            f"{old.shape} and {new.shape}."
        )
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ValueError("Vectors of a calibration must be finite; some are not.")
    return old, new


def _check_mix(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"A mix must be 0 (the vector as it is) to 1 (the mapped one); got {weight}.")


def _of_length(rows: np.ndarray, model: np.ndarray | None) -> np.ndarray:
    """Rows of the lengths of another array's rows, or of 1; zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = 1.0 if model is None else np.linalg.norm(model, axis=1, keepdims=True)
    return rows * (wanted / np.where(lengths == 0, 1, lengths))


def _mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = (_of_length(np.asarray(rows, dtype=np.float64), None) for rows in (one, other))
    return float((one * other).sum(axis=1).mean())
