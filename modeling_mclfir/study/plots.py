# SPDX-License-Identifier: Apache-2.0
"""A study's pictures: score after each increment, and score against cost."""

import os
from collections.abc import Sequence
from itertools import cycle

from matplotlib.figure import Figure

from ..training.figures import COLOURS, FAINT, GREY, TEXT, literal, needed, save
from .continual import BOUNDS, MethodFigures

_MARKERS = "osD^vPX*<>"


def plot_after_each(rows: Sequence[MethodFigures], increments: Sequence[str], path: str | os.PathLike) -> None:
    """The mean score over the increments seen so far, after each of them: a line a method."""
    rows = needed(list(rows), "methods")
    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = _axes(figure)
    places = range(len(rows[0].scores))
    every = [100 * value for row in rows for value in row.after_each]
    ends = _apart([100 * row.after_each[-1] for row in rows], (max(every) - min(every)) / 22)
    for row, end, style in zip(rows, ends, _styles(rows), strict=True):
        values = [100 * value for value in row.after_each]
        axes.plot(places, values, markersize=6, linewidth=1.8, **style)
        label = f"{row.method} {values[-1]:.2f}"
        arrow = {"arrowstyle": "-", "color": style["color"], "lw": 0.5, "relpos": (0, 0.5)}
        axes.annotate(label, (places[-1], values[-1]), (places[-1] + 0.12, end), fontsize=9, color=style["color"],
                      va="center", arrowprops=arrow)  # fmt: skip
    axes.set_xticks(places, [literal(name) for name in increments[: len(places)]])
    axes.set_xlim(-0.2, places[-1] + 0.35 * len(places))
    axes.set(xlabel="after learning", ylabel=f"{_score(rows)} over what was learned so far, %")
    save(figure, path, "What is known after each increment", [_dashed(rows)])


def plot_cost(rows: Sequence[MethodFigures], path: str | os.PathLike) -> None:
    """The average score at the end against what training cost in all, as a share of static retraining."""
    rows = needed([row for row in rows if row.cost_ratio], "methods with a cost")
    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = _axes(figure)
    places = [(row.cost_ratio["flops"], 100 * row.headline[0]) for row in rows]
    right = 1.25 * max(1.0, *(cost for cost, _ in places))
    for row, place, label, style in zip(rows, places, _labels(places, right), _styles(rows), strict=True):
        axes.errorbar(*place, yerr=100 * row.headline[1] or None, markersize=9, capsize=3,
                      **(style | {"linestyle": "none"}))  # fmt: skip
        arrow = {"arrowstyle": "-", "color": style["color"], "lw": 0.5, "relpos": (0, 0.5)}
        axes.annotate(literal(row.method), place, label, fontsize=9, color=style["color"], va="center",
                      arrowprops=arrow)  # fmt: skip
    axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlim(left=-0.05, right=right)
    xlabel = "training FLOPs of the whole sequence, as a share of static retraining"
    axes.set(xlabel=xlabel, ylabel=f"average {_score(rows)}, %")
    save(figure, path, "What it costs, and what it gives", ["up and to the left is better; bars: spread over seeds"])


def _score(rows: Sequence[MethodFigures]) -> str:
    return "MAP" if rows[0].task == "attribute" else "mean recall (increment not told)"


def _labels(places: Sequence[tuple[float, float]], width: float) -> list[tuple[float, float]]:
    """Where the names of points stand: right of each; of points so near that names would meet, one above the other."""
    heights = [height for _, height in places]
    least = (max(heights) - min(heights)) / 22
    groups: list[list[int]] = []
    for index in sorted(range(len(places)), key=places.__getitem__):
        cost, height = places[index]
        near = [
            group
            for group in groups
            if any(cost - places[other][0] < width / 6 and abs(height - heights[other]) < least for other in group)
        ]
        groups = [group for group in groups if group not in near] + [[*sum(near, []), index]]
    labels = list(places)
    for group in groups:
        start = max(places[index][0] for index in group) + width / 60
        for index, end in zip(group, _apart([heights[index] for index in group], least), strict=True):
            labels[index] = start, end
    return labels


def _axes(figure: Figure):
    axes = figure.add_subplot()
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=TEXT)
    return axes


def _styles(rows: Sequence[MethodFigures]) -> list[dict]:
    # By name, so that a method looks the same in every order's picture.
    names = sorted({row.method for row in rows if row.method not in BOUNDS})
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    markers = dict(zip(names, cycle(_MARKERS), strict=False))
    return [
        {"color": colours.get(row.method, GREY), "marker": markers.get(row.method, "s"),
         "linestyle": (":" if row.method.endswith("tenth") else "--") if row.method in BOUNDS else "-"}
        for row in rows
    ]  # fmt: skip


def _dashed(rows: Sequence[MethodFigures]) -> str:
    bounds = [row.method for row in rows if row.method in BOUNDS]
    return f"dashed: the bounds, {' and '.join(bounds)}" if bounds else ""


def _apart(values: Sequence[float], least: float) -> list[float]:
    """The values moved so that labels there do not overlap: order kept, `least` apart, each group about its middle."""
    groups: list[list[int]] = []
    for index in sorted(range(len(values)), key=values.__getitem__):
        groups.append([index])
        while len(groups) > 1 and _ends(groups[-2], values, least)[1] + least > _ends(groups[-1], values, least)[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [0.0] * len(values)
    for group in groups:
        start = _ends(group, values, least)[0]
        for place, index in enumerate(group):
            placed[index] = start + place * least
    return placed


def _ends(group: Sequence[int], values: Sequence[float], least: float) -> tuple[float, float]:
    """Lowest and highest place of a group of labels that lie `least` apart about the middle of their values."""
    middle = sum(values[index] for index in group) / len(group)
    reach = (len(group) - 1) * least / 2
    return middle - reach, middle + reach
