# SPDX-License-Identifier: Apache-2.0
"""The page of an increment's captions and photos and what they find."""

import os
from textwrap import wrap

from matplotlib.figure import Figure
from PIL import ImageOps

from .figures import FAINT, GREY, RIGHT, TEXT, literal, needed, save, short

_TILE = (192, 256)  # width and height that every photo is fitted into, as on the page of attributes
_ROW, _HEADING = 2.15, 0.4  # inches high


def plot_pair_examples(examples: dict, path: str | os.PathLike) -> None:
    """
    Captions with the photos ranked first for each, then photos with their first captions; right ones are marked.

    Args:
        examples: of `text_image_examples.pair_examples`, with "increment", its name.
        path: of the PNG.

    Raises:
        ValueError: there is neither a caption nor a photo.
    """
    captions, photos = examples["captions"], examples["photos"]
    needed([*captions, *photos], "examples of retrieval")
    k = max(1, *(len(one["results"]) for one in [*captions, *photos]))
    heights = [_HEADING, *[_ROW] * len(captions), _HEADING, *[_ROW] * len(photos)]
    figure = Figure(figsize=(3.2 + 1.45 * k, 0.9 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05)
    grid = figure.add_gridspec(len(heights), k + 1, width_ratios=[1.9] + [1.0] * k, height_ratios=heights)
    _heading(figure.add_subplot(grid[0, :]), f"Captions, and the first of {examples['num_photos']:,} photos")
    for row, example in enumerate(captions, 1):
        _draw_caption(figure.add_subplot(grid[row, 0]), example, examples["num_photos"])
        for column, result in enumerate(example["results"], 1):
            _draw_photo(figure.add_subplot(grid[row, column]), result)
    start = 1 + len(captions)
    _heading(figure.add_subplot(grid[start, :]), f"Photos, and the first of {examples['num_captions']:,} captions")
    for row, example in enumerate(photos, start + 1):
        _draw_photo(figure.add_subplot(grid[row, 0]), {"image": example["image"]})
        _draw_captions(figure.add_subplot(grid[row, 1:]), example, examples["num_captions"])
    notes = [
        "✓: has the very caption of the query. Increment told: its own photos and captions are searched, all of them "
        "embedded by the newest model.",
        "Queries are drawn, spread over the increment, the same ones each time. Of equal captions the first is shown; "
        "places count them all.",
    ]
    save(figure, path, f"What captions and photos find: {short(examples['increment'], 40)}", notes)


def _heading(axes, text: str) -> None:
    axes.axis("off")
    axes.axhline(0.1, color=FAINT, linewidth=1.2)
    axes.text(0, 0.25, text, fontsize=10.5, color=GREY, va="bottom", transform=axes.transAxes)


def lines_of(text: str, width: int, most: int) -> list[str]:
    """A text in at most so many lines, cut between words; a word that is longer than a line is broken."""
    lines = wrap(str(text), width, max_lines=most, placeholder=" …", break_on_hyphens=False)
    return [literal(line) for line in lines]


def _found_at(place: int, count: int, k: int) -> str:
    return f"right at place {place:,}" if place <= k else f"right at place {place:,}\nof {count:,}"


def _draw_caption(axes, example: dict, num_photos: int) -> None:
    axes.axis("off")
    heading = axes.text(
        0, 0.98, "\n".join(lines_of(example["caption"], 24, 6)), weight="bold", fontsize=10.5, va="top"
    )
    below = _found_at(example["place"], num_photos, len(example["results"]))
    axes.annotate(below, (0, -0.25), xycoords=heading, fontsize=8.5, color=GREY, va="top")


def _draw_photo(axes, result: dict) -> None:
    correct = result.get("correct", False)
    axes.imshow(ImageOps.pad(result["image"], _TILE, color="white"))
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(
        "\n".join(lines_of(result.get("caption", ""), 24, 4)), fontsize=7.5, color=RIGHT if correct else TEXT
    )
    axes.spines[:].set(visible=correct, color=RIGHT, linewidth=4)
    if correct:
        _badge(axes, 0.09, 0.93)


def _draw_captions(axes, example: dict, num_captions: int) -> None:
    """A list of captions, the right ones in green, and at which place the first of them is."""
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    results = example["results"]
    step = 0.86 / max(1, len(results))
    for number, result in enumerate(results):
        height = 0.95 - step * (number + 0.5)
        style = {"color": RIGHT, "weight": "bold"} if result["correct"] else {"color": TEXT}
        axes.text(0.05, height, "\n".join(lines_of(result["caption"], 88, 2)), fontsize=9, va="center", **style)
        if result["correct"]:
            _badge(axes, 0.02, height)
    below = _found_at(example["place"], num_captions, len(results)).replace("\n", " ")
    if not any(result["correct"] for result in results):
        below += f": {lines_of(example['captions'][0], 76, 1)[0]}"
    axes.text(0.05, 0.0, below, fontsize=8.5, color=GREY, va="bottom")


def _badge(axes, x: float, y: float) -> None:
    patch = {"facecolor": RIGHT, "edgecolor": "white", "boxstyle": "circle,pad=0.2"}
    style = {"color": "white", "weight": "bold", "fontsize": 10, "ha": "center", "va": "center", "bbox": patch}
    axes.text(x, y, "✓", transform=axes.transAxes, **style)
