# SPDX-License-Identifier: Apache-2.0
"""What text names and finds, beside what trained heads do: a table, and a picture of some photos."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import ImageOps
from torch import Tensor

from ..data.table import ImageTable
from ..value_naming import best_values
from .examples import thumbnail
from .figures import FAINT, GREY, RIGHT, TEXT, WRONG, literal, needed, save, short
from .report_cells import as_count, as_percent, as_text, table_row

_MOST_ATTRIBUTES = 5
_PHOTO = (192, 256)
# Heading, and where a row of the report has the figure.
_NAMING = (
    ("constant @1", ("constant", "accuracy_at_1")),
    ("text @1", ("text", "accuracy_at_1")),
    ("heads @1", ("heads", "accuracy_at_1")),
    ("constant @5", ("constant", "accuracy_at_5")),
    ("text @5", ("text", "accuracy_at_5")),
    ("heads @5", ("heads", "accuracy_at_5")),
    ("constant AP", ("constant", "mean_reciprocal_rank")),
    ("text AP", ("text", "mean_reciprocal_rank")),
)
_RETRIEVAL = (
    ("random, by text", ("retrieval", "random_ranking")),
    ("text → photos", ("retrieval", "mean_average_precision")),
    ("by text's shares", ("retrieval", "mean_average_precision_by_shares")),
    ("random, by photo", ("heads", "random_ranking")),
    ("heads, photo → photos", ("heads", "mean_average_precision")),
)


def mean_row(rows: Sequence[Mapping]) -> dict:
    """Unweighted means over the attributes, over those with heads where some have them; of the figures all have."""
    some = [row for row in rows if row.get("heads")] or list(rows)
    mean: dict = {"num_attributes": len(some)}
    for _, (part, name) in _NAMING + _RETRIEVAL:
        values = [(row.get(part) or {}).get(name) for row in some]
        values = [value for value in values if value is not None]
        mean.setdefault(part, {})[name] = float(np.mean(values)) if values else None
    return mean


def naming_markdown(report: Mapping) -> str:
    """The two tables, in percent. `report` as in report.json: attributes, mean, and how they were scored."""
    rows, mean = report["attributes"], report["mean"]
    heads = any(row.get("heads") for row in rows)
    templates = ", ".join(f"“{as_text(template)}”" for template in report["templates"])
    lines = [
        "## Values named by text",
        "",
        f"{as_count(report['num_photos'])} photos of {as_text(report['evaluate_on'])}, "
        f"{as_count(report['num_gallery'])} in the gallery; {templates}; {_spaces(report)}.",
        "",
        *_table(rows, mean, _NAMING, heads, ("values", "photos"), ("num_values", "num_photos")),
        "",
        "Accuracy at 1 and 5, %: the true value comes first, or among the first five (– where there are no more than "
        "five). AP: mean over photos of one over the place of the true value. Constant: always the most frequent "
        "values of these very photos, in that order."
        + (f" Heads: the vote of the {report['k']} nearest labelled photos of the gallery." if heads else ""),
        "",
        *_table(rows, mean, _RETRIEVAL, heads, ("values", "gallery"), ("num_queries", "num_gallery")),
        "",
        "Mean average precision, %, of full rankings. By text: each value's prompt ranks the gallery, mean over the "
        "values that it has; by shares: the gallery by the share that each photo gives the value when it is named."
        + (" By photo: each photo ranks the others, mean over photos; each way has its own random order." if heads
           else ""),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _spaces(report: Mapping) -> str:
    names = [as_text(name) for name in report["spaces"]]
    return f"the space of {names[0]}" if len(names) == 1 else f"{len(names)} spaces, fused ({', '.join(names)})"


def _table(rows, mean, columns, heads: bool, counts: Sequence[str], keys: Sequence[str]) -> list[str]:
    columns = [column for column in columns if heads or ("heads" not in column[0] and column[1][0] != "heads")]

    def cells(row: Mapping) -> list[str]:
        return [as_percent((row.get(part) or {}).get(name)) for _, (part, name) in columns]

    few = mean["num_attributes"] < len(rows)
    label = f"**mean of the {mean['num_attributes']} with heads**" if few else "**mean**"
    return [
        table_row("attribute", *counts, *(heading for heading, _ in columns)),
        table_row("---", *["---:"] * (len(counts) + len(columns))),
        *(table_row(as_text(row["attribute"]), *(as_count(row[key]) for key in keys), *cells(row)) for row in rows),
        table_row(label, *[""] * len(counts), *cells(mean)),
    ]


def naming_examples(table: ImageTable, scores: Mapping[str, Tensor], num_photos: int = 6, top: int = 3) -> list[dict]:
    """
    Some photos and what they are called, at even distances among those with the most labels, however they fare.

    Args:
        table: the photos.
        scores: attribute → (N, V), of `naming_scores`, a row each.

    Returns:
        `{"image", "names"}` a photo; a name is `{"attribute", "value", "named"}`: the label (None: there is none)
        and the first `top` as `ValuePrediction`s.
    """
    labels = {attribute: table.labels(attribute) for attribute in scores}
    counts = sum((codes >= 0).astype(int) for codes in labels.values())
    pool = np.flatnonzero(counts == counts.max())
    rows = pool[np.linspace(0, len(pool) - 1, min(num_photos, len(pool))).round().astype(int)]
    examples = []
    for row in rows.tolist():
        names = []
        for attribute, part in scores.items():
            values, code = table.values(attribute), labels[attribute][row]
            value = values[code] if code >= 0 else None
            names.append({"attribute": attribute, "value": value, "named": best_values(part[row], values, top)})
        examples.append({"image": thumbnail(table.image(row)), "names": names})
    return examples


def plot_names(examples: Sequence[dict], path: str | os.PathLike) -> None:
    """Photos (rows) by attributes: the values that text puts first, with their shares, and the true one."""
    examples = needed(list(examples), "named photos")
    shown = min(_MOST_ATTRIBUTES, len(examples[0]["names"]))
    figure = Figure(figsize=(1.6 + 2.3 * shown, 1.3 + 1.75 * len(examples)), layout="constrained")
    grid = figure.subplots(len(examples), 1 + shown, width_ratios=[1.1] + [2.0] * shown, squeeze=False)
    for number, (row, example) in enumerate(zip(grid, examples, strict=True)):
        row[0].imshow(ImageOps.pad(example["image"], _PHOTO, color="white"))
        row[0].axis("off")
        for axes, name in zip(row[1:], example["names"], strict=False):
            _draw_names(axes, name)
            if not number:
                axes.set_title(short(name["attribute"]), fontsize=11, weight="bold", color=TEXT, loc="left")
    notes = ["Bars: a value's share among all values of the attribute; green: the photo's own label."]
    if len(examples[0]["names"]) > shown:
        notes.append(f"{shown} of {len(examples[0]['names'])} attributes are shown.")
    save(figure, path, "What text calls a photo: the first three values", notes)


def _draw_names(axes, name: Mapping) -> None:
    named, value = name["named"], name["value"]
    for place, (guess, share) in enumerate(named):
        right = guess == value
        colour = RIGHT if right else GREY
        axes.barh(place, 1, height=0.16, color=FAINT, align="edge")
        axes.barh(place, share, height=0.16, color=colour, align="edge")
        weight = "bold" if right else "normal"
        axes.text(0, place - 0.08, short(guess, 22), fontsize=9, color=colour if right else TEXT, weight=weight)
        axes.text(1, place - 0.08, f"{share:.0%}", fontsize=9, color=colour if right else TEXT, ha="right")
    if value is None:
        axes.text(0, 3 - 0.08, "no label", fontsize=8.5, color=GREY)
    elif value not in [guess for guess, _ in named]:
        axes.text(0, 3 - 0.08, literal("true: ") + short(value, 22), fontsize=9, color=WRONG, weight="bold")
    axes.set(xlim=(0, 1), ylim=(3.2, -0.55))
    axes.axis("off")
