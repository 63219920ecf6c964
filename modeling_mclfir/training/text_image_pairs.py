# SPDX-License-Identifier: Apache-2.0
"""The test pairs of each increment: which they are, how many, and what a random order of them scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.increments import Increment
from ..data.table import ImageTable
from ..metrics import caption_codes
from ..metrics.aggregation import mean_over_queries
from ..metrics.chance import expected_recall_at_k
from ..metrics.cross_modal import RECALLS, Captions, both_directions
from ..metrics.ranking import row_blocks
from .open_pairs import pair_rows

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class TestPairs:
    """
    The test pairs of an increment.

    Attributes:
        rows: of each test table those of the increment.
        texts: all captions of these rows, in order.
        owners: (T,) int64, place of a caption's image among the rows.
        codes: (T,) int64, equal where texts are, over all increments.
    """

    rows: list[np.ndarray]
    texts: list[str]
    owners: Tensor
    codes: Tensor

    @property
    def num_images(self) -> int:
        """Photos, of all tables."""
        return sum(len(part) for part in self.rows)

    @property
    def sides(self) -> tuple[Captions, Captions]:
        """What the texts match by, and what the images do."""
        return Captions.of_texts(self.codes), Captions(self.codes, self.owners, self.num_images)


def read_test_pairs(increments: Sequence[Increment], tables: Sequence[ImageTable]) -> list[TestPairs]:
    """Those of each increment, of the tables of `open_pairs.test_tables`."""
    found = []
    for increment in increments:
        rows = [pair_rows(increment, table) for table in tables]
        captions = [table.all_captions[row] for table, part in zip(tables, rows, strict=True) for row in part]
        texts = [text for one in captions for text in one]
        owners = np.repeat(np.arange(len(captions)), [len(one) for one in captions])
        found.append((rows, texts, torch.from_numpy(owners)))
    codes = caption_codes([text for _, texts, _ in found for text in texts]).split([len(one[1]) for one in found])
    return [TestPairs(*one, part) for one, part in zip(found, codes, strict=True)]


def describe_tests(increments: Sequence[Increment], tests: Sequence[TestPairs], learned: int) -> list[dict]:
    """
    For the report, of each increment: numbers of captions and photos, and what a random order scores, where the
    increment is known (its own are searched) and where it is not (those of all `learned` increments are); None of an
    increment that is not learned yet.
    """
    sides = [test.sides for test in tests]
    so_far = [Captions.joined(side) for side in zip(*sides[:learned], strict=True)] if learned else None
    return [
        {
            "increment": increment.name,
            "captions": len(test.texts),
            "photos": test.num_images,
            "random_order": {
                "known": random_figures(own, own),
                "unknown": random_figures(own, so_far) if place < learned else None,
            },
        }
        for place, (increment, test, own) in enumerate(zip(increments, tests, sides, strict=True))
    ]


def random_figures(queries: Sequence[Captions], galleries: Sequence[Captions]) -> dict:
    """
    Expected recalls, 0 to 1, of a uniformly random order, exact, from how many matches each query has.

    Args:
        queries: texts and images.
        galleries: the same: the images that the texts are searched among, the texts that the images are.

    Returns:
        text_to_image and image_to_text: recall_at_1, recall_at_5, recall_at_10; beside them mean_recall.
    """
    ways = []
    for query, gallery in zip(queries, galleries[::-1], strict=True):
        matches = torch.cat([query.matches(rows, gallery).sum(1) for rows in row_blocks(query.num_items, _CHUNK)])
        sizes = torch.full_like(matches, gallery.num_items)
        chances = {k: expected_recall_at_k(matches.cpu(), sizes.cpu(), k) for k in RECALLS}
        ways.append({f"recall_at_{k}": mean_over_queries(chance) for k, chance in chances.items()})
    return both_directions(*ways)


def count_captioned(tables: dict[str, ImageTable]) -> dict[str, int]:
    """Rows of each split that have a caption."""
    return {split: sum(map(bool, table.all_captions)) for split, table in tables.items()}
