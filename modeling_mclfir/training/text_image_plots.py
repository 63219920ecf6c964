# SPDX-License-Identifier: Apache-2.0
"""The pictures of a text-image run's report."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figures import COLOURS, FAINT, GREY, TEXT, literal, needed, save, short
from .plots import plot_loss, plot_score_matrix
from .report import plain
from .text_image_pages import plot_pair_examples
from .text_image_report import KNOWN, UNKNOWN

_MARKERS = "osD^vPX*"
# Told apart where there is a single point, too, and where both lie on each other.
_TOWERS = {
    "image": {"linestyle": "-", "marker": "o", "markersize": 4, "zorder": 3},
    "text": {"linestyle": "--", "marker": "s", "markersize": 8, "markerfacecolor": "none", "zorder": 2},
}
_CHANCE = {"color": GREY, "linestyle": ":", "marker": "x", "markersize": 6}
_NOTES = {
    "full": "galleries embedded again", "none": "left as indexed", "drift_compensated": "left, queries mapped to them",
    "mean_drift": "left, queries relieved of the mean drift", "procrustes": "left, queries turned back",
}  # fmt: skip
# Of each panel: title, what is drawn of both towers ({tower}), alone, and as a grey line.
_PANELS = (
    ("drift: 1 − cosine", "{tower}_drift", None, None),
    ("unequal drift", None, "drift_difference", None),
    ("alignment", None, "alignment_now", None),
    ("nearest neighbours kept", "{tower}_neighbours_kept", None, None),
    ("overlap", "{tower}_overlap", None, "overlap_by_chance"),
    ("separation", "{tower}_separation", None, None),
)


def draw_text_image_plots(report: dict, examples: dict, folder: str | os.PathLike) -> list[Path]:
    """
    Draws every picture there is something for.

    Args:
        report: as in report.json.
        examples: `{"retrievals": [pair_examples(…) | {"increment": NAME}, …]}`, a page each; may be missing.
        folder: made if need be.

    Returns:
        Paths of the pictures drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = plain(report)
    pictures = (
        ("score_matrix", _plot_matrix, report.get("scores")),
        ("policies", plot_policies, report.get("policies")),
        ("drift", plot_drift, any(report.get("drift") or ())),
        ("loss", _plot_loss, report.get("loss")),
    )
    paths = []
    for name, draw, found in pictures:
        if found:
            paths.append(folder / f"{name}.png")
            draw(report, paths[-1])
    for page in examples.get("retrievals") or ():
        paths.append(folder / f"retrievals_{page['increment']}.png")
        plot_pair_examples(page, paths[-1])
    return paths


def _plot_matrix(report: dict, path: Path) -> None:
    plot_score_matrix(report, path, "Mean recall in %", "scored on the known pairs of", "in the newest space")


def _plot_loss(report: dict, path: Path) -> None:
    plot_loss(report, path, "Training loss: each increment starts on pairs of another domain")


def plot_policies(report: dict, path: str | os.PathLike) -> None:
    """Mean recall over the increments so far, after each of them: a line a policy, increment known and unknown."""
    policies = needed(plain(report.get("policies")), "policies")
    names = _names(report, len(policies))
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = KNOWN, UNKNOWN
    ends = {name: [_percent(found[kind]["mean_recall"]) for kind in kinds] for name, found in policies[-1].items()}
    order = sorted(ends, key=lambda name: -ends[name][0])
    for axes, kind in zip(panels, kinds, strict=True):
        _plain_axes(axes, names, angle=len(names) > 3)
        for place, name in enumerate(policies[-1]):
            values = [_percent(found[name][kind]["mean_recall"]) for found in policies]
            # Lines that lie on each other are all seen: later ones are thinner, with a smaller mark.
            style = _style(policies[-1], name)
            axes.plot(range(len(values)), values, linewidth=max(1.2, 4 - 1.2 * place), **style,
                      markersize=max(4, 10 - 2.5 * place), zorder=2 + place)  # fmt: skip
        axes.set_title(f"increment {kind}", fontsize=11, color=TEXT)
        axes.set_xlabel("after learning")
    panels[0].set_ylim(0, max(1.0, 1.06 * panels[0].dataLim.y1, 1.06 * panels[1].dataLim.y1))
    panels[0].set_ylabel("mean recall over the increments so far, %")
    handles = [_handle(policies[-1], name, ends[name]) for name in order]
    title = "at the end: known / unknown"
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9, title=title)
    notes = [f"{name}: {_NOTES[name]}" for name in policies[-1] if name in _NOTES]
    save(figure, path, "Galleries left as indexed, or embedded again", wrap("; ".join(notes), 125))


def _style(policies: Iterable[str], name: str) -> dict[str, Any]:
    place = list(policies).index(name)
    return {"color": COLOURS[place % len(COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}


def _handle(policies: Iterable[str], name: str, ends: Sequence[float]) -> Line2D:
    label = f"{name}  " + " / ".join(f"{value:.2f}" for value in ends)
    return Line2D([], [], label=label, **_style(policies, name))


def plot_drift(report: dict, path: str | os.PathLike) -> None:
    """What became of each increment's pairs since it was learned: a panel a factor, a colour an increment."""
    history = needed(plain(report.get("drift") if any(report.get("drift") or ()) else None), "figures of drift")
    names = _names(report, len(history))
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    for axes, (title, towers, alone, chance) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
        _plain_axes(axes, names, angle=len(names) > 3)
        axes.set_title(title, fontsize=10.5, color=TEXT)
        if chance:
            means = [[row[chance] for row in rows if row.get(chance) is not None] for rows in history]
            points = [(after, sum(found) / len(found)) for after, found in enumerate(means) if found]
            _line(axes, points, label="by chance", **_CHANCE)
        for place in range(len(history) - 1):
            colour = COLOURS[place % len(COLOURS)]
            for tower, style in _TOWERS.items() if towers else ():
                _line(axes, _points(history, place, towers.format(tower=tower)), color=colour, **style)
            if alone:
                _line(axes, _points(history, place, alone), color=colour)
        low, high = axes.dataLim.intervaly
        low, high = (min(0, low), max(0.05, high)) if axes.lines else (0, 1)
        axes.set_ylim(low - 0.03 * (high - low), high + 0.06 * (high - low))
    handles = [
        Line2D([], [], color=COLOURS[place % len(COLOURS)], linewidth=4, label=short(name))
        for place, name in enumerate((report.get("increments") or [])[: len(history) - 1])
    ]
    handles += [Line2D([], [], color=TEXT, label=f"{tower}s", **style) for tower, style in _TOWERS.items()]
    handles.append(Line2D([], [], label="by chance", **_CHANCE))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9, title="pairs of")
    notes = [
        "unequal drift: length of the difference of the towers' mean drifts; alignment: mean cosine of matching pairs "
        "less that of all others;",
        "neighbours: share of the 10 in the own tower that stay; overlap: share of the 10 items nearest to a text "
        "(image) that belong to another increment;",
        "separation: distance of increments' centres over their spread. Lines start where their increment is learned.",
    ]
    save(figure, path, "Why it forgets: what became of earlier increments' pairs", notes)


def _points(history: Sequence[Sequence[dict]], place: int, key: str) -> list[tuple[int, float]]:
    """Where an increment's line goes through; what it starts from where that is known."""
    starts = {"drift": 0.0, "kept": 1.0, "difference": 0.0}
    start = starts.get(key.rsplit("_", 1)[-1])
    if key == "alignment_now":
        start = history[place + 1][place].get("alignment_before")
    points = [] if start is None else [(place, start)]
    later = ((after, rows[place].get(key)) for after, rows in enumerate(history) if place < len(rows))
    return points + [(after, value) for after, value in later if value is not None]


def _line(axes, points: Sequence[tuple[int, float]], **style) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **({"marker": "o", "markersize": 4, "linewidth": 1.8} | style))


def _plain_axes(axes, names: Sequence[str], angle: bool = False) -> None:
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=TEXT)
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if angle else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_xlim(-0.15, max(len(names) - 0.85, 0.15))


def _names(report: dict, count: int) -> list[str]:
    names = [short(name, 16) for name in report.get("increments") or []]
    return [names[place] if place < len(names) else literal(place) for place in range(count)]


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value
