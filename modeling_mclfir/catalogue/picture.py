# SPDX-License-Identifier: Apache-2.0
"""A contact sheet: a query and what it found, with captions."""

import os
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from PIL import Image

from ..training.figures import GREY, TEXT, literal, short, write_png
from .searching import Hit

_COLUMNS = 6
_WIDTH, _HEIGHT, _CAPTION, _TITLE = 1.7, 2.2, 0.16, 0.5  # inches
_MOST_VALUES = 3
_WRAPPED, _MOST_LINES = 17, 8  # letters a line, and lines, of a caption in the place of a photo


def contact_sheet(
    query: Image.Image | str | None,
    query_name: str,
    hits: Sequence[Hit],
    images: Sequence[Image.Image | None],
    weights: Mapping[str, float],
    path: str | os.PathLike,
) -> None:
    """
    Draw a query and its hits, best first, as PNG.

    Args:
        query: a photo, None where it is not to be had; or a caption.
        images: of the hits; None where the photo is not to be had.
        weights: attribute that was searched → what it counted for; under a photo stand the values of theirs that the
            catalogue knows.
    """
    values = [_values(hit, list(weights)) for hit in hits]
    lines = 2 + max(map(len, values), default=0)
    columns = min(_COLUMNS, len(hits) + 1)
    rows = -(-(len(hits) + 1) // columns)
    width, height = columns * (_WIDTH + 0.15) + 0.15, rows * (_HEIGHT + lines * _CAPTION + 0.15) + _TITLE
    figure = Figure(figsize=(width, height))
    title = title_of(query_name, weights)
    figure.text(0.15 / width, 1 - 0.3 / height, short(title, int(13 * width)), weight="bold", size=11, color=TEXT)
    cells = [(query, ["query", query_name])]
    cells += [
        (image, [f"{place}.  {hit.score:.3f}", hit.id, *some])
        for place, (hit, image, some) in enumerate(zip(hits, images, values, strict=True), 1)
    ]
    for place, (image, words) in enumerate(cells):
        left = 0.15 + (place % columns) * (_WIDTH + 0.15)
        top = _TITLE + (place // columns) * (_HEIGHT + lines * _CAPTION + 0.15)
        box = [left / width, 1 - (top + _HEIGHT) / height, _WIDTH / width, _HEIGHT / height]
        axes = figure.add_axes(box)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(place == 0 or image is None)
            side.set_edgecolor(TEXT if place == 0 else GREY)
            side.set_linewidth(1.5 if place == 0 else 0.5)
        if image is None or isinstance(image, str):
            _write(axes, image)
        else:
            axes.imshow(image)
            axes.set_anchor("SW")
        for line, word in enumerate(words):
            below = 1 - (top + _HEIGHT + (line + 0.9) * _CAPTION) / height
            bold = "bold" if line == 0 else "normal"
            figure.text(left / width, below, short(word, 27), size=7.5, color=TEXT if line == 0 else GREY, weight=bold)
    write_png(figure, path)


def title_of(query_name: str, weights: Mapping[str, float]) -> str:
    """What was looked for; weights are named where not all are 1."""
    plain = all(weight == 1 for weight in weights.values())
    names = [name if plain else f"{name} × {weight:g}" for name, weight in weights.items()]
    return f"Like {query_name} in {', '.join(names)}"


def _write(axes, caption: str | None) -> None:
    """A caption in the place of a photo, or that there is none."""
    text, color = "no photo", GREY
    if caption is not None:
        text, color = textwrap.fill(literal(caption), _WRAPPED, max_lines=_MOST_LINES, placeholder=" …"), TEXT
    axes.text(0.5, 0.5, text, ha="center", va="center", color=color, transform=axes.transAxes)


def _values(hit: Hit, attributes: Sequence[str]) -> list[str]:
    """Labels of the item for what was searched, where its metadata has them, such as `attributes.colour`."""
    found = []
    for attribute in attributes:
        name = attribute.split("@")[0]
        value = hit.metadata.get(f"attributes.{name}", hit.metadata.get(name))
        if value is not None:
            found.append(f"{name}: {value}")
    return found[:_MOST_VALUES]
