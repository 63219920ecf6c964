# SPDX-License-Identifier: Apache-2.0
"""The report of the reindex study: report.md and report.json, a table after each increment and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..training.figures import COLOURS, FAINT, GREY, TEXT, literal, save
from ..training.report import plain, write_atomically
from ..training.report_cells import as_count, as_percent, as_text, table_row
from .reindexing import ABOUT_OLD_MODEL, OLD_MODEL, STUDIED_POLICIES, TOP, Landing, ReindexStudy

PICTURE = "old_attributes.png"
_PRECISION = f"precision_at_{TOP}"
_ABOUT = f"""\
After each increment its checkpoint landed in an index of {{gallery}} gallery images under each reindex policy, and
{{queries}} queries were embedded by that checkpoint and searched in every space learned so far. MAP in percent over
the full ranking; *old*: mean over the attributes of earlier increments, unweighted (of the increment itself: *new*);
*against full*: the difference to full reindex, in points; *not below*: of how many old attributes the MAP is at least
full reindex's; *P@{TOP}*: of old attributes, the share of the query's value among the first {TOP} results of a search.
*Embedded again*: images of old spaces that a policy had to embed again up to then, and their share of full reindex's;
of drift maps the calibration's, {{calibration}} stored images that serve all spaces. A new space costs a pass over the
gallery under every policy, which is not counted: where one trunk is shared, that pass would give the old spaces' new
vectors for their heads' work alone."""


def summarise_policies(rows: Sequence[dict], landings: Mapping[str, Sequence[Landing]]) -> list[dict]:
    """
    A row a policy and landing, 0–1.

    Attributes of increments before the landing's are old; means are over them, unweighted, without those that no query
    has a positive for. `not_below_full` counts those whose MAP is at least full reindex's. `images_again` is summed up
    to the landing, and `share_of_full` related to full reindex's; None where that embeds nothing again.
    """
    metrics = ("mean_average_precision", _PRECISION)
    full = {_key(row): row[metrics[0]] for row in rows if row["policy"] == "full"}
    summary = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        for after in sorted({row["after"] for row in rows}):
            mine = [row for row in rows if (row["policy"], row["after"]) == (policy, after)]
            mine = [row for row in mine if not np.isnan(row[metrics[0]])]
            old, new = ([row for row in mine if row["new"] == is_new] for is_new in (False, True))
            found: dict[str, Any] = {"policy": policy, "after": after}
            for part, some in (("old", old), ("new", new), ("all", mine)):
                found |= {f"{part}_{name}": _mean([row[name] for row in some]) for name in metrics}
            found["num_old"] = len(old)
            found["not_below_full"] = sum(row[metrics[0]] >= full[_key(row)] for row in old)
            images, of_full = (_images_again(landings.get(name, ()), after) for name in (policy, "full"))
            summary.append(found | {"images_again": images, "share_of_full": images / of_full if of_full else None})
    return summary


def write_reindexing(
    study: ReindexStudy,
    rows: Sequence[dict],
    landings: Mapping[str, Sequence[Landing]],
    settings: Mapping[str, Any],
    folder: Path,
) -> None:
    """
    Write report.md, report.json and the picture.

    Args:
        rows, landings: of `ReindexStudy.compare`.
        settings: of the training run.
        folder: of the report.
    """
    summary = summarise_policies(rows, landings)
    names = [increment.name for increment in study.increments]
    policies = {name: policy.about for name, policy in study.policies().items()} | {OLD_MODEL: ABOUT_OLD_MODEL}
    queries, gallery = (len(side.table) for side in study.sides)
    about = _ABOUT.format(gallery=gallery, queries=queries, calibration=min(study.num_calibration, gallery))
    title = f"Reindex policies: {settings['method']}, adapters {settings['adapter_policy']}"
    lines = [f"# {title}", "", about, ""]
    lines += [f"* **{name}**: {text}" for name, text in policies.items()]
    lines += ["", *_changes(landings["full"], names), "", f"![MAP of old attributes]({PICTURE})"]
    for after in range(1, len(names)):
        some = [row for row in summary if row["after"] == after]
        lines += ["", f"## After {as_text(names[after])}", "", *_table(some)]
    lines += ["", *_drift(landings, names), *_attributes(rows, list(policies), len(names) - 1), ""]
    plot_old_attributes(summary, names, folder / PICTURE, title)
    content = {
        "settings": dict(settings),
        "increments": names,
        "sizes": {"queries": queries, "gallery": gallery, "calibration": study.num_calibration},
        "policies": policies,
        "summary": summary,
        "landings": {name: [asdict(landing) for landing in found] for name, found in landings.items()},
        "rows": rows,
    }
    write_atomically(folder / "report.json", (json.dumps(plain(content), indent=1) + "\n").encode())
    write_atomically(folder / "report.md", "\n".join(lines).encode())


def plot_old_attributes(summary: Sequence[dict], increments: Sequence[str], path: Path, title: str) -> None:
    """Mean MAP and mean precision of the first results of old attributes, after each increment: a line a policy."""
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    names = sorted({row["policy"] for row in summary}, key=[*STUDIED_POLICIES, OLD_MODEL].index)
    later = [row for row in summary if row["after"]]  # after the first increment nothing is old
    panels = {"old_mean_average_precision": "MAP, %", f"old_{_PRECISION}": f"P@{TOP}, %"}
    found = {
        name: [[100 * row[metric] for row in later if row["policy"] == name] for metric in panels] for name in names
    }
    for place, (axes, about) in enumerate(zip(figure.subplots(1, 2), panels.values(), strict=True)):
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=TEXT)
        for name in sorted(names, key=lambda name: -found[name][0][-1]):  # the legend in the order of the lines' ends
            label = f"{name}  " + " / ".join(f"{values[-1]:.2f}" for values in found[name])
            style = _style(name, names.index(name)) | {"label": None if place else label}
            axes.plot(range(1, len(increments)), found[name][place], linewidth=1.8, **style)
        axes.set_xticks(range(1, len(increments)), [literal(name) for name in increments[1:]])
        axes.set(xlabel="after learning", ylabel=f"attributes learned before: {about}")
    figure.legend(loc="outside right center", frameon=False, fontsize=9, title=f"at the end: MAP / P@{TOP}")
    save(figure, path, title, ["which attributes are old changes from increment to increment: compare within one"])


def _style(policy: str, place: int) -> dict[str, Any]:
    if policy == OLD_MODEL:
        return {"color": GREY, "marker": "s", "linestyle": "--"}
    linestyle = ":" if STUDIED_POLICIES[policy].new_items else "-"
    return {"color": COLOURS[place % len(COLOURS)], "marker": "osD^vPX*"[place % 8], "linestyle": linestyle}


def _table(rows: Sequence[dict]) -> list[str]:
    (full,) = (row for row in rows if row["policy"] == "full")
    columns = ("policy", "old", "against full", "not below", f"P@{TOP}", "new", "embedded again", "share of full")
    lines = [table_row(*columns), table_row("---", *["---:"] * (len(columns) - 1))]
    for row in rows:
        score = row["old_mean_average_precision"]
        against = "" if row is full else f"{100 * (score - full['old_mean_average_precision']) + 0.0:+.2f}"
        share = "–" if row["share_of_full"] is None else f"{row['share_of_full']:.2f}"
        again = ["–", "–"] if row["policy"] == OLD_MODEL else [as_count(row["images_again"]), share]
        cells = [as_percent(score), against, f"{row['not_below_full']} of {row['num_old']}"]
        cells += [as_percent(row[f"old_{_PRECISION}"]), as_percent(row["new_mean_average_precision"]), *again]
        lines.append(table_row(row["policy"], *cells))
    return lines


def _changes(landings: Sequence[Landing], names: Sequence[str]) -> list[str]:
    """What became of old spaces' encoders, in words."""
    same = [names[landing.after] for landing in landings[1:] if not landing.changed]
    if len(same) == len(landings) - 1:
        return ["No increment changed the encoder of an old space: under every policy old answers are what they were."]
    if same:
        return [f"Old spaces' encoders did not change with {', '.join(map(as_text, same))}; they did with the others."]
    return ["Every increment changed the encoders of old spaces."]


def _drift(landings: Mapping[str, Sequence[Landing]], names: Sequence[str]) -> list[str]:
    """How far old spaces moved, and how much of it the maps take back."""
    maps = {name: found for name, found in landings.items() if any(one.cosine_after is not None for one in found)}
    if not maps:
        return []
    about = (
        "Mean cosine of the calibration's stored vectors and its new ones: as they are, after a map fitted on them."
    )
    lines = ["## How far old spaces moved", "", about, ""]
    lines += [table_row("after", "as they are", *maps), table_row("---", *["---:"] * (len(maps) + 1))]
    first = next(iter(maps.values()))
    for place, landing in enumerate(first):
        if landing.cosine_before is not None:
            after = [f"{found[place].cosine_after:.3f}" for found in maps.values()]
            lines.append(table_row(as_text(names[landing.after]), f"{landing.cosine_before:.3f}", *after))
    return [*lines, ""]


def _attributes(rows: Sequence[dict], policies: Sequence[str], after: int) -> list[str]:
    """MAP of every attribute after the last increment."""
    lines = ["## Every attribute, after the last increment", "", table_row("increment", "attribute", *policies)]
    lines.append(table_row("---", "---", *["---:"] * len(policies)))
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["after"] == after:
            place = found.setdefault((row["increment"], row["attribute"]), {})
            place[row["policy"]] = row["mean_average_precision"]
    for (increment, attribute), scores in found.items():
        cells = [as_percent(None if np.isnan(scores[name]) else scores[name]) for name in policies]
        lines.append(table_row(as_text(increment), as_text(attribute), *cells))
    return lines


def _key(row: Mapping[str, Any]) -> tuple:
    return row["after"], row["increment"], row["attribute"]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _images_again(landings: Sequence[Landing], after: int) -> int:
    return sum(landing.images_again for landing in landings if landing.after <= after)
