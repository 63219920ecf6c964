# SPDX-License-Identifier: Apache-2.0
"""What all pictures share: colours, text, files. Figures are objects: no window, no global state of matplotlib."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .report import write_atomically

# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
RIGHT, WRONG = "#009E73", "#D55E00"
GREY, TEXT, FAINT, NOTE = "#757575", "#262626", "#E5E5E5", "#595959"
DPI = 130


def by_increment(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Increment → its rows, both in their order."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["increment"], []).append(row)
    return groups


def needed(content, name: str):
    """The content. ValueError where there is none."""
    if not content:
        raise ValueError(f"There are no {name} to draw; expected at least one (draw_plots leaves such a picture out).")
    return content


def literal(text) -> str:
    """The text as it stands: matplotlib would read what is between two dollar signs as mathematics."""
    return str(text).replace("$", r"\$")


def short(text, length: int = 22) -> str:
    """The text as it stands, cut to `length` characters."""
    text = str(text)
    return literal(text if len(text) <= length else f"{text[: length - 1]}…")


def save(figure: Figure, path: str | os.PathLike, title: str, notes: Sequence[str] = ()) -> None:
    """Write a figure whose layout is constrained, with a title above and notes below, as PNG."""
    figure.suptitle(title, weight="bold", x=0.01, ha="left")
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=8.5, color=NOTE, x=0.01, ha="left")
    write_png(figure, path)


def write_png(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as PNG, as a whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    write_atomically(Path(path), buffer.getvalue())
