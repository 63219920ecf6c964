# SPDX-License-Identifier: Apache-2.0
"""Which rows stand for a set best, in order."""

import numpy as np


def herd(features: np.ndarray, count: int) -> np.ndarray:
    """
    Herding as in iCaRL (arXiv:1611.07725, algorithm 4): the row that comes next is the one with which the mean of the
    chosen lies nearest to the mean of all. A list that is cut from its end is again such a list.

    Args:
        features: (n, D), of unit length as a rule.
        count: rows wanted, at least 0; where there are fewer, all are put in order.

    Returns:
        places of rows, (min(n, count),) int64, each once; of equals the first.

    Raises:
        ValueError: features of another shape, or a count below 0.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or count < 0:
        raise ValueError(f"Expected features (n, D) and a count of at least 0; got {features.shape} and {count}.")
    order = np.empty(min(len(features), count), dtype=np.int64)
    if not len(order):
        return order
    mean, chosen = features.mean(axis=0), np.zeros(features.shape[1])
    squares, used = (features**2).sum(axis=1), np.zeros(len(features), dtype=bool)
    for place in range(len(order)):
        # |mean - (chosen + f) / k|², times k² and less what is the same for every row f.
        distance = squares - 2 * features @ ((place + 1) * mean - chosen)
        order[place] = np.where(used, np.inf, distance).argmin()
        used[order[place]] = True
        chosen += features[order[place]]
    return order
