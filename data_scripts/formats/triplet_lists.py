# SPDX-License-Identifier: Apache-2.0
"""Lists of triplets in the form of Conditional Similarity Networks: lines of "anchor far close", as line numbers."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_scripts.formats.line_counts import LineCounter
from data_scripts.formats.text_files import lines

Triplets = Mapping[str, np.ndarray]  # condition → int32 (n, 3): anchor, far, close


def read_triplets(path: Path, places: Sequence[int], counter: LineCounter) -> np.ndarray:
    """Reads one list; a line that is no triplet of three known, different images is counted and left out.

    Args:
        path: the file.
        places: for each line of the list of images, counted from 0, the number of its image; -1 where there is none.
        counter: counts the lines, and the causes malformed, unknown_id and degenerate.

    Returns:
        int32 (n, 3): numbers of the images anchor, far and close, in the order of the lines.
    """
    found = array("i")
    for number, text in lines(path):
        counter.read += 1
        try:
            listed = [int(token) for token in text.split()]
        except ValueError:
            listed = []
        where = f"{path.name} line {number}"
        if len(listed) != 3:
            counter.add("malformed", where)
            continue
        images = [places[i] if 0 <= i < len(places) else -1 for i in listed]
        if min(images) < 0:
            counter.add("unknown_id", where)
        elif len(set(images)) < 3:
            counter.add("degenerate", where)
        else:
            found.extend(images)
    return np.array(found, dtype=np.int32).reshape(-1, 3)


def count_triplets(triplets: Triplets) -> int:
    """Number of triplets of all conditions."""
    return sum(len(rows) for rows in triplets.values())


def draw_triplets(triplets: Triplets, count: int | None, seed: int) -> Triplets:
    """At most `count` triplets, all conditions together, in the order of the lists; None keeps all."""
    total = count_triplets(triplets)
    if count is None or count >= total:
        return triplets
    chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    kept, start = {}, 0
    for condition, rows in triplets.items():
        end = start + len(rows)
        kept[condition] = rows[chosen[(start <= chosen) & (chosen < end)] - start]
        start = end
    return kept


def triplet_rows(triplets: Triplets, image_ids: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of the table (`TRIPLETS` in `schema`): close is the positive, far the negative."""
    for condition, rows in triplets.items():
        for row in rows:
            anchor, far, close = row.tolist()
            yield {
                "condition": condition,
                "anchor": image_ids[anchor],
                "positive": image_ids[close],
                "negative": image_ids[far],
            }


def count_agreeing(rows: np.ndarray, codes: np.ndarray) -> int:
    """Number of triplets in which close has the label of the anchor, and far has another one.

    Args:
        rows: int32 (n, 3): anchor, far, close.
        codes: int32 (images,): label of each image, -1 where it has none.
    """
    anchor, far, close = codes[rows.T]
    return int(((anchor == close) & (anchor != far) & (anchor >= 0) & (far >= 0)).sum())


def images_of(triplets: Triplets, num_images: int) -> np.ndarray:
    """Which images occur in a triplet: bool (num_images,)."""
    inside = np.zeros(num_images, dtype=bool)
    for rows in triplets.values():
        inside[rows] = True
    return inside
