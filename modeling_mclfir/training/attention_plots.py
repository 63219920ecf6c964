# SPDX-License-Identifier: Apache-2.0
"""Heat maps: where the model looks in a photo for each attribute, with the value that the gallery votes for."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from .figures import FAINT, GREY, NOTE, RIGHT, TEXT, WRONG, by_increment, literal, needed, short, write_png

MAX_ATTRIBUTES = 6  # on the page of several photos

# Inches. Cells are placed by hand: to align this many, matplotlib's layouts take a minute.
_WIDTH, _HEIGHT, _GAP, _BETWEEN, _MARGIN = 1.65, 2.3, 0.12, 0.26, 0.14
_LINE = {7.5: 0.15, 8.5: 0.15, 10: 0.18}  # of a size of type


@dataclass(frozen=True)
class _Line:
    text: str
    size: float = 8.5
    colour: str = GREY
    bold: bool = False

    @property
    def height(self) -> float:
        return _LINE[self.size]


@dataclass(frozen=True)
class _Cell:
    """A picture (height, width, 3), lines above it and below."""

    picture: np.ndarray | Image.Image
    above: tuple[_Line, ...] = ()
    below: tuple[_Line, ...] = ()

    def size(self) -> tuple[float, float]:
        """Width and height in inches: as large as the cell allows, its own aspect kept."""
        height, width = np.shape(self.picture)[:2]
        scale = min(_WIDTH / width, _HEIGHT / height)
        return width * scale, height * scale

    def heights(self) -> tuple[float, float, float]:
        """In inches: of what is above, of the picture, of what is below."""
        above, below = (sum(line.height for line in lines) for lines in (self.above, self.below))
        return above, self.size()[1], below


def plot_attention(examples: Sequence[dict], path: str | os.PathLike) -> None:
    """
    Photos (rows) by attributes (columns): the photo itself, then each attribute's attention laid over it.

    Args:
        examples: of `attention_examples`; of their attributes `MAX_ATTRIBUTES` are shown, by turns over increments.
    """
    examples = needed(list(examples), "attention examples")
    maps = examples[0]["maps"]
    places, labelled = _by_turns(maps, MAX_ATTRIBUTES), _labelled(examples)
    rows = []
    for number, example in enumerate(examples):
        shown = [example["maps"][place] for place in places]
        cells = [_map(example["image"], entry, labelled, heading=not number) for entry in shown]
        rows.append([_photo(example["image"], heading=not number), *cells])
    notes = [f"{len(places)} of {len(maps)} attributes are shown."] if len(places) < len(maps) else []
    title = "Where the model looks for each attribute, and the value that it takes from the nearest gallery items"
    _draw(rows, path, title, [*_notes(labelled), *notes])


def plot_photo(
    example: dict, path: str | os.PathLike, title: str = "Where the model looks in one photo, for every attribute"
) -> None:
    """
    One photo, and every attribute's attention laid over it, in as many rows as that takes.

    Args:
        example: `{"image", "maps"}`; the maps may be those of `photo_maps`, without labels.
    """
    maps, labelled = needed(example["maps"], "attention maps"), _labelled([example])
    cells = [_photo(example["image"]), *(_map(example["image"], entry, labelled) for entry in maps)]
    columns = min(8, max(min(4, len(cells)), math.ceil(math.sqrt(1.8 * len(cells)))))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    _draw(rows, path, title, _notes(labelled))


def overlay(image: Image.Image, attention: np.ndarray) -> np.ndarray:
    """A photo in grey with its attention (H, W) stretched smoothly over it: (height, width, 3), 0–1."""
    # Relative to the average place, but to no less than twice that: a map without a peak must not look like one.
    relative = attention * (attention.size / max(float(attention.sum()), 1e-12))
    strength = Image.fromarray((relative / max(2.0, float(relative.max()))).astype(np.float32))
    # Over the whole photo, whatever its aspect: so the processor squeezed it.
    smooth = np.asarray(strength.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255
    heat, opacity = colormaps["plasma"](smooth)[..., :3], 0.75 * smooth[..., None] ** 0.7
    return (grey * (1 - opacity) + heat * opacity).clip(0, 1)


def _by_turns(maps: Sequence[dict], limit: int) -> list[int]:
    """Places of the first map of each increment, then of the second of each, …, at most `limit`; in their order."""
    turn = {id(entry): turn for group in by_increment(maps).values() for turn, entry in enumerate(group)}
    return sorted(sorted(range(len(maps)), key=lambda place: turn[id(maps[place])])[:limit])


def _labelled(examples: Sequence[dict]) -> bool:
    return any(entry.get("value") is not None for example in examples for entry in example["maps"])


def _photo(image: Image.Image, heading: bool = True) -> _Cell:
    return _Cell(image, (_Line("photo", 10),) if heading else ())


def _map(image: Image.Image, entry: dict, labelled: bool, heading: bool = True) -> _Cell:
    """A photo's map of an attribute; `labelled`: whether to say that a photo has no label."""
    attention, value, correct = entry["attention"], entry.get("value"), entry.get("correct")
    if entry["predicted"] is None:
        below = [_Line("no vote")]
    else:
        mark, colour = {True: ("✓ ", RIGHT), False: ("✗ ", WRONG), None: ("", TEXT)}[correct]
        below = [_Line(mark + short(entry["predicted"], 20), colour=colour, bold=True)]
        below.append(_Line(f"{entry['confidence']:.0%}, by chance {entry['chance']:.0%}"))
    if value is None and labelled:
        below.append(_Line("no label"))
    elif value is not None and not correct:
        below.append(_Line("label: " + short(value, 18)))
    below.append(_Line(f"peak {attention.max() * attention.size:.1f}×"))
    return _Cell(overlay(image, attention), _heading(entry) if heading else (), tuple(below))


def _heading(entry: dict) -> tuple[_Line, ...]:
    words = wrap(str(entry["attribute"]).replace("_", " "), 16)[:3]
    return (_Line(short(entry["increment"], 26), 7.5), *(_Line(literal(line), 10, TEXT, bold=True) for line in words))


def _notes(labelled: bool) -> list[str]:
    judged = ["✓ the value of its label, ✗ another one."] if labelled else []
    return [
        "Yellow: looked at most; grey: hardly at all. Peak: how many times the average (1×: everywhere alike).",
        " ".join(["Below: the value that most of the nearest gallery items vote for, its share of their votes, and",
                  "its share of the whole gallery (by chance).", *judged]),
    ]  # fmt: skip


def _draw(rows: Sequence[Sequence[_Cell]], path: str | os.PathLike, title: str, notes: Sequence[str]) -> None:
    columns = max(len(row) for row in rows)
    width = max(2 * _MARGIN + columns * (_WIDTH + _GAP) - _GAP, 5.5)
    titles = wrap(title, int(9.5 * width), max_lines=3)
    notes = [line for note in notes for line in wrap(note, int(15 * width))]
    bands = [[max(heights) for heights in zip(*(cell.heights() for cell in row), strict=True)] for row in rows]
    top, bottom = 0.2 * len(titles) + 2 * _MARGIN, 0.155 * len(notes) + 2 * _MARGIN
    figure = Figure(figsize=(width, top + sum(map(sum, bands)) + _BETWEEN * (len(rows) - 1) + bottom))
    height = figure.get_figheight()
    heading = {"fontsize": 12, "weight": "bold", "va": "top", "linespacing": 1.2}
    figure.text(_MARGIN / width, 1 - _MARGIN / height, literal("\n".join(titles)), **heading)
    place = height - top
    for row, (above, picture, below) in zip(rows, bands, strict=True):
        for column, cell in enumerate(row):
            _draw_cell(figure, cell, _MARGIN + column * (_WIDTH + _GAP), place - above, picture)
        place -= above + picture + below + _BETWEEN
    style = {"fontsize": 8.5, "color": NOTE, "va": "bottom", "linespacing": 1.25}
    figure.text(_MARGIN / width, _MARGIN / height, "\n".join(notes), **style)
    write_png(figure, path)


def _draw_cell(figure: Figure, cell: _Cell, left: float, top: float, height: float) -> None:
    """`top`: of the picture's place, `height` inches high; lines end above it and begin below it."""
    width, total = figure.get_size_inches()
    size = cell.size()
    lower = top - height + (height - size[1]) / 2
    middle = left + _WIDTH / 2
    axes = figure.add_axes(((middle - size[0] / 2) / width, lower / total, size[0] / width, size[1] / total))
    axes.imshow(cell.picture, aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=FAINT, linewidth=0.6)  # a photo on white ends somewhere, too
    place = top + 0.05 + cell.heights()[0]
    for line in cell.above:
        _write(figure, line, middle / width, place / total)
        place -= line.height
    place = top - height - 0.05
    for line in cell.below:
        _write(figure, line, middle / width, place / total)
        place -= line.height


def _write(figure: Figure, line: _Line, x: float, y: float) -> None:
    weight = "bold" if line.bold else "normal"
    figure.text(x, y, line.text, fontsize=line.size, color=line.colour, weight=weight, ha="center", va="top")
