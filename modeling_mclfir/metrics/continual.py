"""Continual-learning metrics from the matrix of scores a[i][j]: on increment j after training increment i.

Rows and columns are numbered from 0 and are in the order of training; the matrix is square and T is its last index.
An entry that was not measured is None; above the diagonal only a[j-1][j] is ever read, by `forward_transfer`. Scores
are "higher is better", 0 to 1, and so are differences of them, -1 to 1.
"""

import math
from collections.abc import Sequence

Scores = Sequence[Sequence[float | None]]


def _check_square(scores: Scores) -> None:
    if len(scores) == 0:
        raise ValueError("scores is empty, but needs a row for each increment that was trained.")
    lengths = [len(row) for row in scores]
    if any(length != len(scores) for length in lengths):
        raise ValueError(
            f"scores has {len(scores)} rows of lengths {lengths}, but must be square: a row and a column for each "
            "increment; fill what was not measured with None."
        )


def _value(value: float | None, name: str) -> float:
    if value is None or math.isnan(value):
        raise ValueError(f"{name} is {value}, but this metric reads it; measure it, or leave the increment out.")
    return float(value)


def _score(scores: Scores, i: int, j: int) -> float:
    return _value(scores[i][j], f"scores[{i}][{j}] (increment {j} after training increment {i})")


def _check_references(name: str, values: Sequence[float | None], num_increments: int) -> None:
    if len(values) != num_increments:
        raise ValueError(
            f"{name} has {len(values)} entries, but scores has {num_increments} increments; give one for each."
        )


def average_score(scores: Scores) -> float:
    """Mean score over all increments after the last one was trained: mean_j a[T][j].

    Raises ValueError where the matrix is empty, not square or lacks an entry that is needed, as all functions here.

        >>> average_score([[0.5, None], [0.25, 0.75]])
        0.5
    """
    _check_square(scores)
    last = len(scores) - 1
    return sum(_score(scores, last, j) for j in range(last + 1)) / (last + 1)


def forgetting(scores: Scores) -> float:
    """Mean drop from an increment's best earlier score to its last: mean_{j<T} (max_{j<=i<T} a[i][j] - a[T][j]).

    As defined by Chaudhry et al. (2018): the last row is not in the maximum, so that an increment which gains at the
    end counts negative. (PILOT, PyCIL and Mammoth include it, and never go below 0; Avalanche takes a[j][j] in
    place of the maximum.) 0.0 with a single increment, which has nothing to forget.

        >>> round(forgetting([[0.5, None, None], [0.7, 0.4, None], [0.6, 0.5, 0.9]]), 6)
        0.0
    """
    _check_square(scores)
    last = len(scores) - 1
    drops = [max(_score(scores, i, j) for i in range(j, last)) - _score(scores, last, j) for j in range(last)]
    return sum(drops) / last if last else 0.0


def backward_transfer(scores: Scores) -> float:
    """Mean change from an increment's score when it was learned to its last: mean_{j<T} (a[T][j] - a[j][j]).

    As defined by Lopez-Paz and Ranzato (2017). 0.0 with a single increment, which has no earlier one.

        >>> round(backward_transfer([[0.5, None], [0.25, 0.75]]), 6)
        -0.25
    """
    _check_square(scores)
    last = len(scores) - 1
    changes = [_score(scores, last, j) - _score(scores, j, j) for j in range(last)]
    return sum(changes) / last if last else 0.0


def forward_transfer(scores: Scores, zero_shot: Sequence[float | None]) -> float:
    """Mean gain on an increment before it is trained: mean_{j>0} (a[j-1][j] - zero_shot[j]).

    a[j-1][j] is scored with pooled trunk features, since increment j has no head yet; `zero_shot` holds the same for
    the trunk before any training, one entry an increment (the first is not read). 0.0 with a single increment.

        >>> round(forward_transfer([[0.5, 0.4], [0.25, 0.75]], zero_shot=[None, 0.3]), 6)
        0.1
    """
    _check_square(scores)
    _check_references("zero_shot", zero_shot, len(scores))
    later = range(1, len(scores))
    gains = [_score(scores, j - 1, j) - _value(zero_shot[j], f"zero_shot[{j}]") for j in later]
    return sum(gains) / len(gains) if gains else 0.0


def intransigence(scores: Scores, static: Sequence[float]) -> float:
    """Mean shortfall against static training when an increment is learned: mean_j (static[j] - a[j][j]).

    `static` holds, an increment, the score of the model trained on all data of the increments up to it at once
    (Chaudhry et al. 2018); positive where learning in increments learns less.

        >>> round(intransigence([[0.5, None], [0.25, 0.75]], static=[0.6, 0.75]), 6)
        0.05
    """
    _check_square(scores)
    _check_references("static", static, len(scores))
    shortfalls = [_value(static[j], f"static[{j}]") - _score(scores, j, j) for j in range(len(scores))]
    return sum(shortfalls) / len(shortfalls)
