# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from modeling_mclfir.continual.herding import herd


def unit_rows(seed: int, n: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_herd(features, count):
    """Algorithm 4 of iCaRL word by word: each candidate's mean with the chosen, against the mean of all."""
    mean = sum(features) / len(features)
    chosen = []
    for k in range(1, min(count, len(features)) + 1):
        distances = {}
        for row in range(len(features)):
            if row not in chosen:
                together = (features[row] + sum((features[other] for other in chosen), np.zeros(len(mean)))) / k
                distances[row] = np.linalg.norm(mean - together)
        chosen.append(min(distances, key=distances.get))
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n, dim, count", [(12, 4, 12), (30, 3, 7), (5, 16, 9), (1, 2, 1)])
def test_herding_equals_the_algorithm_word_by_word(seed, n, dim, count):
    for features in (unit_rows(seed, n, dim), 3 * np.random.default_rng(seed).random((n, dim))):
        assert herd(features, count).tolist() == slow_herd(features, count)


def test_a_shorter_list_is_the_beginning_of_a_longer_one():
    features = unit_rows(0, 40, 5)
    whole = herd(features, 40)
    assert sorted(whole) == list(range(40))
    assert all(np.array_equal(herd(features, count), whole[:count]) for count in range(40))


def test_the_mean_of_a_few_is_nearer_to_the_mean_of_all_than_that_of_random_ones():
    features, rng = unit_rows(1, 200, 8), np.random.default_rng(2)
    mean = features.mean(axis=0)
    found = np.linalg.norm(features[herd(features, 10)].mean(axis=0) - mean)
    drawn = [np.linalg.norm(features[rng.choice(200, 10, replace=False)].mean(axis=0) - mean) for _ in range(100)]
    assert found < min(drawn)


def test_equals_are_taken_in_order_and_once():
    assert herd(np.ones((4, 3), dtype=np.float32), 3).tolist() == [0, 1, 2]
    assert herd(np.ones((0, 3)), 3).tolist() == [] == herd(np.ones((2, 3)), 0).tolist()
    assert herd(np.ones((4, 3)), 3).dtype == np.int64


@pytest.mark.parametrize("features, count", [(np.ones(3), 1), (np.ones((2, 2)), -1)])
def test_what_cannot_be_herded(features, count):
    with pytest.raises(ValueError, match=r"Expected features \(n, D\) and a count of at least 0; got"):
        herd(features, count)
