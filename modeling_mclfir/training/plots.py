# SPDX-License-Identifier: Apache-2.0
"""The report's pictures."""

import os
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from .attention_plots import MAX_ATTRIBUTES, plot_attention, plot_photo
from .figures import COLOURS, FAINT, GREY, RIGHT, TEXT, WRONG, by_increment, literal, needed, save, short
from .report import plain

_TILE = (192, 256)  # width and height that every photo of a page is fitted into, so that rows and columns line up


def draw_plots(report: dict, examples: dict[str, list[dict]], folder: str | os.PathLike) -> list[Path]:
    """
    Draws every picture there is something for.

    Args:
        report: as in report.json.
        examples: `{"retrievals": retrieval_examples(…), "attentions": attention_examples(…)}`; either may be missing.
        folder: made if need be.

    Returns:
        Paths of the pictures drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    retrievals, attentions = examples.get("retrievals"), examples.get("attentions") or []
    # One more page where the first does not show every attribute.
    whole = attentions[0] if attentions and len(attentions[0]["maps"]) > MAX_ATTRIBUTES else None
    num_attributes = len(report.get("attributes") or ())
    pictures = (
        ("score_matrix", plot_score_matrix, report, report.get("scores")),
        ("attributes", plot_attributes, report, report.get("attributes")),
        ("loss", plot_loss, report, report.get("loss")),
        ("retrievals", partial(plot_retrievals, num_attributes=num_attributes), retrievals, retrievals),
        ("attention", plot_attention, attentions, attentions),
        ("attention_photo", plot_photo, whole, whole),
    )
    paths = []
    for name, draw, content, found in pictures:
        if found:
            paths.append(folder / f"{name}.png")
            draw(content, paths[-1])
    return paths


def plot_score_matrix(
    report: dict,
    path: str | os.PathLike,
    title: str = "What is learned, and what stays learned: MAP in %",
    scored_on: str = "scored on the attributes of",
    unlearned: str = "ranked by the trunk's pooled features",
) -> None:
    """A heat map of a[i][j]: score on increment j after increment i; hatched where j was not learned yet."""
    scores = needed(plain(report.get("scores")), "scores")
    names = [literal(name) for name in report["increments"]]
    height = len(scores)
    width = max(1 + max((j for j, a in enumerate(row) if a is not None), default=0) for row in scores)
    cell = min(1.15, max(0.75, 14 / width))  # inches
    figure = Figure(figsize=(2.6 + cell * width, 2.0 + 0.72 * height), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(scores):
        for j, score in enumerate(row[:width]):
            if score is not None:
                _draw_score(axes, i, j, score, learned=scores[j][j] if j < i else None)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if width > 3 else {}
    axes.set_xticks(range(width), names[:width], **slanted)
    axes.set_yticks(range(height), names[:height])
    axes.set(xlabel=scored_on, ylabel="after learning")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    notes = ["bold: just learned" + ("; small: change since then, in points" if height > 1 else "")]
    if (report.get("average") or {}).get("triplet_accuracy") is not None:
        notes.append("triplets in order, in %, where all attributes are known by triplets alone")
    if any(a is not None for i, row in enumerate(scores) for a in row[i + 1 :]):
        notes.append(f"hatched, italic: not learned yet, {unlearned}")
    save(figure, path, title, notes)


def _draw_score(axes, i: int, j: int, score: float, learned: float | None) -> None:
    colour = colormaps["YlGnBu"](0.85 * score)
    ink = "white" if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.55 else TEXT
    box = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=colour, linewidth=0)
    kind = {"color": ink, "weight": "bold" if i == j else "normal"}
    if j > i:
        box.set(facecolor="#F2F2F2", hatch="///", edgecolor="#C8C8C8")
        patch = {"facecolor": "#F2F2F2", "edgecolor": "none", "pad": 1.5}
        kind = {"color": TEXT, "style": "italic", "bbox": patch}
    axes.add_patch(box)
    up = 0 if learned is None else 0.12
    axes.text(j, i - up, f"{100 * score:.2f}", fontsize=11, ha="center", va="center", **kind)
    if learned is not None:
        change = "±0" if score == learned else f"{100 * (score - learned):+.2f}".replace("-", "−")
        axes.text(j, i + 0.22, change, fontsize=8, ha="center", va="center", color=ink)


def plot_attributes(report: dict, path: str | os.PathLike) -> None:
    """MAP of each attribute (dot) against its random ranking (ring), sorted within its increment."""
    rows = needed(plain(report.get("attributes")), "attributes")
    for row in rows:
        if row["mean_average_precision"] is None and row.get("triplet_accuracy") is not None:
            row["attribute"] += " (triplets in order)"
            row |= {"mean_average_precision": row["triplet_accuracy"], "random_ranking": 0.5}
    groups = by_increment(rows)
    height = 1.9 + 0.27 * (len(rows) + 1.2 * len(groups))
    figure = Figure(figsize=(8.2, height), layout="constrained")
    axes = figure.add_subplot()
    place, places, labels = 0.0, [], []
    for (name, group), colour in zip(groups.items(), cycle(COLOURS), strict=False):
        axes.text(1, place, literal(name), color=colour, weight="bold", va="center", fontsize=10)
        place += 1
        for row in sorted(group, key=lambda row: -(row["mean_average_precision"] or 0)):
            _draw_attribute(axes, place, row, colour)
            places.append(place)
            labels.append(literal(row["attribute"]))
            place += 1
        place += 0.2
    axes.set(xlim=(0, 108), ylim=(place - 0.3, -0.8), xlabel="MAP, %")
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    ring = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": GREY, "linestyle": "none"}
    dot = {"marker": "o", "color": TEXT, "linestyle": "none"}
    figure.legend(
        handles=[Line2D([], [], label="random order", **ring), Line2D([], [], label="mclfir", **dot)],
        loc="outside lower right", ncols=2, frameon=False,
    )  # fmt: skip
    save(figure, path, "How well each attribute is found, against a random order")


def _draw_attribute(axes, place: float, row: dict, colour: str) -> None:
    chance, score = row["random_ranking"], row["mean_average_precision"]
    if chance is not None and score is not None:
        axes.plot([100 * chance, 100 * score], [place, place], color=colour, linewidth=3, alpha=0.35)
    if chance is not None:
        axes.plot(100 * chance, place, "o", markerfacecolor="white", markeredgecolor=GREY, markersize=6)
    if score is not None:
        axes.plot(100 * score, place, "o", color=colour, markersize=7)
        right = 100 * max(score, chance or 0) + 1.5
        axes.text(right, place, f"{100 * score:.1f}", va="center", fontsize=9, color=TEXT)


def plot_loss(
    report: dict,
    path: str | os.PathLike,
    title: str = "Training loss: each increment starts on attributes it has not seen",
) -> None:
    """The loss of every step (thin) and its running mean (thick); further panels for its parts, where several."""
    rows = needed(plain(report.get("loss")), "loss")
    found = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, int | float))
    parts = [key for key in found if key not in ("loss", "step")]
    panels = ["loss", *(parts if len(parts) > 1 else ())]
    figure = Figure(figsize=(9, 1.4 + 2.3 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    start, edges, groups = 0, [], by_increment(rows)
    slanted = {"rotation": 30, "ha": "left", "fontsize": 8} if len(groups) > 6 else {"ha": "center"}
    for (name, steps), colour in zip(groups.items(), cycle(COLOURS), strict=False):
        last = max(row["step"] for row in steps)
        for axes, key in zip(all_axes, panels, strict=True):
            points = [(start + row["step"], row[key]) for row in steps if row.get(key) is not None]
            _draw_curve(axes, points, colour)
        place = {"x": start + last / 2, "y": 1.02, "transform": all_axes[0].get_xaxis_transform(), "va": "bottom"}
        all_axes[0].text(s=literal(name), color=colour, weight="bold", **place, **slanted)
        start += last + 1
        edges.append(start - 0.5)
    for axes, key in zip(all_axes, panels, strict=True):
        for edge in edges[:-1]:
            axes.axvline(edge, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_ylabel("loss, all parts" if key == "loss" and len(panels) > 1 else literal(key))
        axes.grid(axis="y", color=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(-0.01 * start, 1.01 * start)
    all_axes[-1].set_xlabel("optimiser step, all increments one after the other")
    figure.align_ylabels()
    save(figure, path, title, ["thin: as logged; thick: running mean"])


def _draw_curve(axes, points: list[tuple[float, float]], colour: str) -> None:
    if not points:
        return
    steps, values = np.array(points, dtype=float).T
    # A centred mean of what there is: its window is cut off at both ends, so that no value is made up there.
    half = len(values) // 24
    sums, places = np.concatenate([[0.0], values.cumsum()]), np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    smooth = (sums[last] - sums[first]) / (last - first)
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35, marker="o" if len(values) == 1 else None)
    axes.plot(steps, smooth, color=colour, linewidth=2)


def plot_retrievals(examples: Sequence[dict], path: str | os.PathLike, num_attributes: int = 0) -> None:
    """
    A page of queries: the query's photo, then the first gallery images, framed and marked right or wrong.

    Args:
        num_attributes: how many there are, of which the page shows some; fewer than it shows: not known.
    """
    examples = needed(list(examples), "retrieval examples")
    k = max(1, max(len(example["results"]) for example in examples))
    figure = Figure(figsize=(3.4 + 1.3 * k, 1.1 + 2.0 * len(examples)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)
    grid = figure.add_gridspec(len(examples), k + 2, width_ratios=[1.3] + [1.0] * (k + 1))
    for i, example in enumerate(examples):
        _draw_query(figure.add_subplot(grid[i, 0]), example)
        tiles = [figure.add_subplot(grid[i, 1 + j]) for j in range(1 + len(example["results"]))]
        _draw_photo(tiles[0], example["image"], example["value"])
        for axes, result in zip(tiles[1:], example["results"], strict=True):
            colour, mark = (RIGHT, "✓") if result["correct"] else (WRONG, "✗")
            _draw_photo(axes, result["image"], result["value"], colour, mark)
        if i == 0:
            for j, axes in enumerate(tiles):
                axes.set_title(f"found {j}" if j else "query", fontsize=10, color=GREY)
    shown = len({(example["increment"], example["attribute"]) for example in examples})
    notes = ["✓ the query's value, ✗ another one. Queries are taken by turns over attributes and values."]
    if num_attributes >= shown:
        notes.append(f"{shown} of {num_attributes} attributes are shown.")
    save(figure, path, "Photos with the same value: what the model finds first", notes)


def _draw_query(axes, example: dict) -> None:
    axes.axis("off")
    lines = wrap(str(example["attribute"]).replace("_", " "), 15)[:4]
    share = example["num_relevant"] / max(1, example["num_gallery"])
    below = f"{short(example['increment'])}\n\nby chance:\n{share:.0%} right"
    heading = axes.text(0, 0.98, literal("\n".join(lines)), weight="bold", fontsize=11, va="top")
    # Below the heading, however many lines that has.
    axes.annotate(below, (0, -0.5), xycoords=heading, fontsize=8.5, color=GREY, va="top")


def _draw_photo(axes, image: Image.Image, value: str, frame: str | None = None, mark: str = "") -> None:
    axes.imshow(ImageOps.pad(image, _TILE, color="white"))
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(short(value), fontsize=9, color=frame or TEXT)
    axes.spines[:].set(visible=frame is not None, color=frame or "none", linewidth=4)
    if frame is not None:
        badge = {"facecolor": frame, "edgecolor": "white", "boxstyle": "circle,pad=0.2"}
        style = {"color": "white", "weight": "bold", "fontsize": 10, "ha": "center", "va": "center", "bbox": badge}
        axes.text(0.09, 0.93, mark, transform=axes.transAxes, **style)
