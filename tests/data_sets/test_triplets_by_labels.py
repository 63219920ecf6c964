# SPDX-License-Identifier: Apache-2.0
"""Triplets drawn from labels: all anchors alike, as many as there are, none twice."""

import numpy as np
import pytest

from data_scripts.formats.triplets_by_labels import draw_by_labels, label_codes, values_alone

THREE_OF_EIGHT = np.repeat([0, 1, 2], 8).astype(np.int32)  # each anchor has 7 · 16 = 112 pairs of close and far


def draw(codes, count: int, seed: int = 0) -> np.ndarray:
    return draw_by_labels(np.array(codes, dtype=np.int32), count, np.random.default_rng(seed))


def test_values_get_numbers_as_they_come_up():
    codes = label_codes(["b", None, "a", "b", "c"])
    assert codes.tolist() == [0, -1, 1, 0, 2] and codes.dtype == np.int32
    assert values_alone(codes) == 2
    assert values_alone(label_codes([None, None])) == values_alone(label_codes([])) == 0


def test_of_all_triplets_each_anchor_has_its_own():
    rows = draw(THREE_OF_EIGHT, 10**6)
    anchor, far, close = THREE_OF_EIGHT[rows.T]
    assert len(np.unique(rows, axis=0)) == len(rows) == 24 * 112 and rows.dtype == np.int32
    assert (anchor == close).all() and (anchor != far).all() and (rows[:, 0] != rows[:, 2]).all()
    assert (np.bincount(rows[:, 0]) == 112).all() and (np.diff(rows[:, 0]) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_anchors_positives_and_negatives_are_drawn_alike(seed):
    # Half of all: each image is in about 56 triplets as anchor, close and far; counts spread by 7.3 or less.
    rows = draw(THREE_OF_EIGHT, 24 * 56, seed)
    assert len(np.unique(rows, axis=0)) == len(rows) == 24 * 56
    for column in rows.T:
        counts = np.bincount(column, minlength=24)
        assert 56 - 5 * 7.3 < counts.min() < 56 < counts.max() < 56 + 5 * 7.3


def test_each_image_is_as_likely_an_anchor_whatever_the_size_of_its_value():
    # 3 images of one value and 97 of another: were all triplets alike, each of the few would come 187 / 3 = 62 times.
    counts = np.bincount(draw([0] * 3 + [1] * 97, 9000)[:, 0], minlength=100)
    assert abs(counts[:3].mean() - 90) < 3 * 9.5 / 3**0.5 and abs(counts[3:].mean() - 90) < 3 * 9.5 / 97**0.5


def test_an_anchor_of_few_triplets_leaves_its_share_to_others():
    # One pair of value 0 and twenty images of value 1: 2 · 20 and 20 · 19 · 2 triplets; the last image has no value.
    rows = draw([0, 0, *[1] * 20, -1], 700)
    anchors = np.bincount(rows[:, 0], minlength=23)
    assert len(np.unique(rows, axis=0)) == len(rows) == 700
    assert anchors[:2].tolist() == [20, 20] and anchors[2:22].max() <= 38 and anchors[2:22].sum() == 660
    assert 22 not in rows


@pytest.mark.parametrize("codes", [[], [-1, -1], [0, 0, 0], [0, 1, 2]])
def test_without_a_positive_or_a_negative_there_is_no_triplet(codes):
    assert draw(codes, 10).shape == (0, 3)


def test_the_generator_decides():
    assert (draw(THREE_OF_EIGHT, 300, 1) == draw(THREE_OF_EIGHT, 300, 1)).all()
    assert not (draw(THREE_OF_EIGHT, 300, 1) == draw(THREE_OF_EIGHT, 300, 2)).all()
