"""Continual metrics against slow loops and by hand."""

import doctest
import random

import pytest

from modeling_mclfir.metrics import (
    average_score,
    backward_transfer,
    continual,
    forgetting,
    forward_transfer,
    intransigence,
)

N = None
MATRIX = [
    [0.60, 0.20, N, N],
    [0.80, 0.50, 0.30, N],
    [0.70, 0.40, 0.90, 0.10],
    [0.50, 0.60, 0.70, 0.40],
]


def test_by_hand():
    assert average_score(MATRIX) == pytest.approx((0.5 + 0.6 + 0.7 + 0.4) / 4)
    assert forgetting(MATRIX) == pytest.approx(((0.8 - 0.5) + (0.5 - 0.6) + (0.9 - 0.7)) / 3)
    assert backward_transfer(MATRIX) == pytest.approx(((0.5 - 0.6) + (0.6 - 0.5) + (0.7 - 0.9)) / 3)
    zero_shot = [N, 0.1, 0.1, 0.2]
    assert forward_transfer(MATRIX, zero_shot) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.1) + (0.1 - 0.2)) / 3)
    static = [0.7, 0.7, 0.7, 0.7]
    assert intransigence(MATRIX, static) == pytest.approx((0.1 + 0.2 - 0.2 + 0.3) / 4)


@pytest.mark.parametrize("seed", range(20))
def test_random_matrices_equal_the_loop(seed):
    rng = random.Random(seed)
    size = rng.randint(2, 6)
    a = [[rng.random() if j <= i + 1 else None for j in range(size)] for i in range(size)]
    last = size - 1
    total = 0.0
    for j in range(last):
        best = a[j][j]
        for i in range(j, last):
            if a[i][j] > best:
                best = a[i][j]
        total += best - a[last][j]
    assert forgetting(a) == pytest.approx(total / last)
    total = 0.0
    for j in range(last):
        total += a[last][j] - a[j][j]
    assert backward_transfer(a) == pytest.approx(total / last)
    assert forgetting(a) >= -backward_transfer(a) - 1e-12  # the best score is at least the first


def test_forgetting_is_negative_where_an_increment_gains_at_the_end():
    assert forgetting([[0.5, N], [0.7, 0.1]]) == pytest.approx(-0.2)


def test_a_single_increment():
    assert average_score([[0.5]]) == 0.5
    assert forgetting([[0.5]]) == backward_transfer([[0.5]]) == forward_transfer([[0.5]], [None]) == 0.0
    assert intransigence([[0.5]], [0.75]) == 0.25


@pytest.mark.parametrize(
    "words, call",
    [
        ("empty", lambda: average_score([])),
        (r"lengths \[1, 2\]", lambda: forgetting([[0.5], [0.5, 0.5]])),
        (r"scores\[1\]\[0\]", lambda: average_score([[0.5, N], [N, 0.5]])),
        (r"scores\[1\]\[1\]", lambda: forgetting([[0.5, N, N], [0.5, N, N], [0.5, 0.5, 0.5]])),
        (r"scores\[0\]\[0\] .* is nan", lambda: backward_transfer([[float("nan"), N], [0.5, 0.5]])),
        (r"scores\[0\]\[1\]", lambda: forward_transfer([[0.5, N], [0.5, 0.5]], [0.1, 0.1])),
        (r"zero_shot\[1\]", lambda: forward_transfer(MATRIX, [0.1, N, 0.1, 0.1])),
        ("zero_shot has 1 entries", lambda: forward_transfer(MATRIX, [0.1])),
        ("static has 2 entries", lambda: intransigence(MATRIX, [0.1, 0.2])),
    ],
)
def test_mistakes_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_examples_in_docstrings():
    assert doctest.testmod(continual).failed == 0
