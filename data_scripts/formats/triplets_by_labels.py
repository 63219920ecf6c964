# SPDX-License-Identifier: Apache-2.0
"""Triplets drawn from labels by the rule of Conditional Similarity Networks (Veit et al., CVPR 2017)."""

from collections.abc import Sequence

import numpy as np


def label_codes(values: Sequence[str | None]) -> np.ndarray:
    """int32 (images,): number of each image's value, in the order in which values come up; -1 for None."""
    numbers: dict[str, int] = {}
    codes = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
    return np.array(codes, dtype=np.int32)


def values_alone(codes: np.ndarray) -> int:
    """Number of values that one image has: it can be no anchor, for there is no positive."""
    return int((np.bincount(codes[codes >= 0]) == 1).sum())


def draw_by_labels(codes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws distinct triplets: close has the value of the anchor, far has another one.

    Each time the anchor is drawn uniformly from the images that have triplets left, and its pair of close and far
    uniformly from those that are left.

    Args:
        codes: (images,): number of each image's value, -1 where it has none; such an image is in no triplet.
        count: how many; where there are fewer, all.
        rng: decides.

    Returns:
        int32 (n, 3): numbers of the images anchor, far and close, in the order of the anchors.
    """
    images = np.flatnonzero(codes >= 0)
    found = [np.empty((0, 3), dtype=np.int32)]
    sizes = np.bincount(codes[images])
    size = sizes[codes[images]]
    quotas = _share_out((size - 1) * (len(images) - size), count, rng)
    for value in np.unique(codes[images]):
        inside = codes[images] == value
        same, others = images[inside], images[~inside]
        for place, quota in enumerate(quotas[inside]):
            if quota:
                pairs = rng.choice((len(same) - 1) * len(others), quota, replace=False)
                close, far = np.divmod(pairs, len(others))
                close += close >= place  # the anchor itself is passed over
                rows = np.stack([np.full(quota, same[place]), others[far], same[close]], axis=1)
                found.append(rows.astype(np.int32))
    drawn = np.concatenate(found)
    return drawn[np.argsort(drawn[:, 0], kind="stable")]


def _share_out(room: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """How many of `count` each anchor gets, by chance and equally, but none more than its `room`."""
    quotas = np.zeros_like(room)
    missing = wanted = min(count, int(room.sum()))
    while missing:
        places = np.flatnonzero(quotas < room)
        quotas[places] += rng.multinomial(missing, np.full(len(places), 1 / len(places)))
        quotas = np.minimum(quotas, room)
        missing = wanted - int(quotas.sum())
    return quotas
