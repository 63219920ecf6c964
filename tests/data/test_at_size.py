# SPDX-License-Identifier: Apache-2.0
"""Many rows: memory that does not grow with them, and every row exactly once in real processes.

`pytest -m slow` does the same with a million rows, which takes minutes and 2 GB of disk.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from benchmarks.generated_rows import Read, Written, in_processes, read_rows, write_rows

from modeling_mclfir.data.shards import ROWS_PER_GROUP

# The larger set has some 150 MB of images more than the smaller one, or 600 MB.
MOST_GROWTH = 40 * 2**20


@dataclass
class Sets:
    """A set of many rows and one of a fifth of them, both without the quarter of the rows that were copies."""

    folders: list[Path]
    distinct: list[int]
    written: list[Written]


@pytest.fixture(scope="module", params=[20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def sets(request, tmp_path_factory):
    # Few rows must be heavy for memory to tell; of a million, a few bytes each show.
    padding = 10_000 if request.param < 100_000 else 0
    counts = [request.param // 5, request.param]
    distinct = [count * 3 // 4 for count in counts]
    folders = [tmp_path_factory.mktemp("at_size") / "set" for _ in counts]
    calls = [(folder, *numbers, padding) for folder, *numbers in zip(folders, counts, distinct, strict=True)]
    return Sets(folders, distinct, in_processes(write_rows, *calls, check_images=False, keep_duplicates=False))


@pytest.fixture(scope="module")
def streamed(sets) -> list[list[Read]]:
    """Two epochs of both sets on two ranks each."""
    return [in_processes(read_rows, (folder, 0, 2), (folder, 1, 2), epochs=2) for folder in sets.folders]


def test_memory_of_a_preparation_does_not_grow_with_the_rows(sets):
    small, large = (written.peak for written in sets.written)
    assert large - small < MOST_GROWTH, (small, large)


def test_copies_are_found_however_far_apart(sets):
    assert [written.rows for written in sets.written] == sets.distinct
    assert [written.duplicates for written in sets.written] == [count // 3 for count in sets.distinct]


def test_two_processes_stream_every_row_once_in_each_epoch(sets, streamed):
    for ranks, distinct in zip(streamed, sets.distinct, strict=True):
        for epoch in range(2):
            shares = [rank.epochs[epoch] for rank in ranks]
            assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(distinct))
            assert abs(len(shares[0]) - len(shares[1])) <= ROWS_PER_GROUP


def test_a_rank_gets_other_rows_in_another_order_in_each_epoch(sets, streamed):
    for first, second in (rank.epochs for rank in streamed[-1]):
        again = np.isin(first, second)
        assert 0.4 < again.mean() < 0.6  # a half of a half, by chance
        places = np.zeros(sets.distinct[-1])
        places[second] = np.arange(len(second))
        assert abs(np.corrcoef(np.flatnonzero(again), places[first[again]])[0, 1]) < 0.4
        for order in (first, second):
            assert (np.diff(order) == 1).mean() < 0.01  # the files' order


def test_memory_of_a_stream_does_not_grow_with_the_rows(streamed):
    small, large = (max(rank.peak for rank in ranks) for ranks in streamed)
    assert large - small < MOST_GROWTH, (small, large)
