# SPDX-License-Identifier: Apache-2.0
"""The report of a run of text-image retrieval: report.json for programs, report.md for people."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.continual import backward_transfer, forgetting
from .drift import average_drift
from .report import plain, write_both
from .report_cells import as_count, as_percent, as_text, name_at, table_row
from .report_sections import (
    cost_section,
    data_section,
    matrix_section,
    parameters_section,
    picture_lines,
    settings_section,
    titled,
)

KNOWN, UNKNOWN = "known", "unknown"
DIRECTIONS = {"text_to_image": "T→I", "image_to_text": "I→T"}
_TOWERS = ("image", "text")
RECALLS = ("recall_at_1", "recall_at_5", "recall_at_10")
PICTURES = {
    "score_matrix": "Mean recall on each increment after each increment: what stays in a column is not forgotten.",
    "policies": "Mean recall after each increment: galleries embedded again, left as indexed, left and mapped to.",
    "drift": "What became of each increment's pairs since it was learned.",
    "loss": "The training loss, increment by increment.",
}
ABOUT_EXAMPLES = "What captions and photos of {} find: the five best photos, the five best captions; ✓ is right."
ABOUT_POLICIES = {
    "full": "texts and images of all increments are embedded again by the newest model",
    "none": "they stay as they were embedded when their increment was learned; queries come from the newest model",
    "drift_compensated": "as none, and queries are mapped to the age of what they search",
    "mean_drift": "as none, queries relieved of the mean drift",
    "procrustes": "as none, queries turned back by an orthogonal map",
}
# Head of the column → key of `drift.diagnose_increment`.
DRIFT_COLUMNS = {
    "image drift": "image_drift", "text drift": "text_drift", "same way": "drift_cosine",
    "unequal": "drift_difference", "alignment then": "alignment_before", "now": "alignment_now",
    "image neighbours kept": "image_neighbours_kept", "text": "text_neighbours_kept", "image CKA": "image_cka",
    "text CKA": "text_cka", "text overlap": "text_overlap", "image overlap": "image_overlap",
    "by chance": "overlap_by_chance", "text separation": "text_separation", "image separation": "image_separation",
}  # fmt: skip
ABOUT_DRIFT = """\
*Drift*: mean of 1 − cosine of an item's vector then and now. *Same way*: cosine of the two towers' mean drifts;
*unequal*: length of their difference. *Alignment*: mean cosine of matching pairs less that of all others.
*Neighbours kept*: share of the 10 nearest items of the own tower that are still among them. *CKA*: similarity of the
tower's structure then and now, blind to rotation. *Overlap*: share of a query's 10 nearest items among those of all
increments that are another's. *Separation*: distance of increments' centres over their own spread."""


def write_text_image_report(report: dict, output_dir: str | os.PathLike) -> None:
    """Writes report.json and report.md as `report.write_report` does. Draw the pictures first."""
    write_both(report, output_dir, text_image_markdown)


def text_image_markdown(report: dict, output_dir: str | os.PathLike | None = None) -> str:
    """
    The report as a page of Markdown (GitHub's tables).

    Args:
        report: of `run_report.build_text_image_report`; lists may be shorter than planned, values None.
        output_dir: folder whose `plots/NAME.png` are shown, by relative path; None: no pictures.
    """
    report = plain(report)
    folder = None if output_dir is None else Path(output_dir)

    def picture(name: str) -> list[str]:
        return picture_lines(name, PICTURES[name], folder)

    sections = [
        _headline(report),
        _conventions(report),
        titled("Increment by increment", _increments(report)),
        titled("What stays learned", _matrices(report) + picture("score_matrix")),
        titled("Indexed once or embedded again", _policies(report) + picture("policies")),
        titled("Why it forgets", _drift(report) + picture("drift")),
        titled("What it finds", _examples(report, folder)),
        cost_section(report) + picture("loss"),
        parameters_section(report, "towers", "increment"),
        data_section(report),
        settings_section(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _headline(report: dict) -> list[str]:
    names, policies = report.get("increments") or [], report.get("policies") or []
    data, done = report.get("data") or {}, len(policies)
    learned = f"{done} increment{'' if done == 1 else 's'}"
    lines = [f"# {as_text(data.get('name') or 'Text-image retrieval')}: {learned} learned", ""]
    if not report.get("finished", True):
        ahead = f": still to come: {', '.join(map(as_text, names[done:]))}" if names[done:] else ""
        lines += [f"> **This run is not finished**{ahead}. The page is rewritten after each increment.", ""]
    if not policies:
        return [*lines, "Nothing is scored yet."]
    full, initial = policies[-1]["full"], report.get("initial_trunk") or {}
    chance = report.get("random_order") or {}
    by_name = ", ".join(map(as_text, names[:done]))
    lines += [
        f"**Mean recall {as_percent(full[KNOWN]['mean_recall'])} %** over {learned} ({by_name}) where a query's "
        f"increment is known, **{as_percent(full[UNKNOWN]['mean_recall'])} %** where it is not and all that was "
        f"learned is searched; {as_percent(initial.get('mean_recall'))} % before any training (known)."
        + _counted(report, done),
        "",
        *_table_head(""),
    ]
    rows = [("**increment known**", full[KNOWN]), ("**increment unknown**", full[UNKNOWN])]
    rows += [("before any training, known", initial)] if initial else []
    rows += [(f"random order, {kind}", chance[kind]) for kind in (KNOWN, UNKNOWN) if chance]
    return [*lines, *(table_row(name, *_figures(row)) for name, row in rows), "", *_transfers(report)]


def _counted(report: dict, done: int) -> str:
    """How much is searched, as a sentence."""
    tests = (report.get("tests") or [])[:done]
    if not tests:
        return ""
    captions, photos = (as_count(sum(test[name] for test in tests)) for name in ("captions", "photos"))
    return f" The test: {captions} captions of {photos} photos."


def _table_head(first: str, *more: str) -> list[str]:
    heads = [f"{way} {name}" for way in DIRECTIONS.values() for name in ("R@1", "R@5", "R@10", "median")]
    return [
        table_row(first, "mean recall", *more, *heads),
        table_row("---", *["---:"] * (len(heads) + len(more) + 1)),
    ]


def _figures(row: dict, *more: str) -> list[str]:
    cells = [as_percent(row.get("mean_recall")), *more]
    for direction in DIRECTIONS:
        part = row.get(direction) or {}
        cells += [as_percent(part.get(name)) for name in RECALLS]
        cells.append(_decimal(part.get("median_rank"), 1))
    return cells


def _transfers(report: dict) -> list[str]:
    """Forgetting and transfer, with the increment known and not."""
    done = len(report.get("policies") or [])
    square = [row[:done] for row in report.get("scores_unknown_increment") or []]
    complete = len(square) == done and all(row[j] is not None for i, row in enumerate(square) for j in range(i + 1))
    unknown = [as_percent(measure(square)) if complete else "–" for measure in (forgetting, backward_transfer)]
    known = [as_percent(report.get(name)) for name in ("forgetting", "backward_transfer", "forward_transfer")]
    return [
        "| percentage points | known | unknown | |",
        "| --- | ---: | ---: | --- |",
        table_row("forgetting", known[0], unknown[0], "earlier increments: best score minus score now"),
        table_row("backward transfer", known[1], unknown[1], "score now minus when just learned"),
        table_row("forward transfer", known[2], "", "what is gained before being learned"),
    ]


def _conventions(report: dict) -> list[str]:
    if not report.get("policies"):
        return []
    return [
        "How to read the numbers:",
        "",
        "- Texts are searched among images (T→I) and images among texts (I→T). What has the same caption "
        "matches, also of another row. Recall at k (R@k): share of queries with a match among the first k; median "
        "rank: of the first match, 1 is best; *mean recall*: the mean of the six recalls.",
        "- *Known*: a query's increment is told, and its texts or images alone are searched. *Unknown*: those of all "
        "increments so far are; the more there are, the harder it is, also for a model that forgets nothing.",
        "- *Random order*: the recall to be expected of it, exact, from how many matches each query has.",
        "- Figures of several increments are their unweighted means.",
        "- `report.json` holds 0–1; tables here hold percent, two decimals; – is a value that does not exist (yet).",
    ]


def _increments(report: dict) -> list[str]:
    """How many test pairs each increment has, and what is found of them beside what chance would."""
    tests, details = report.get("tests") or [], report.get("policies_per_increment") or []
    if not tests or not details:
        return []
    lines = ["", "Test pairs, and mean recall in % at the end beside that of a random order:", ""]
    heads = ("captions", "photos", KNOWN, "random order", UNKNOWN, "random order")
    lines += [table_row("", *heads), table_row("---", *["---:"] * len(heads))]
    for place, test in enumerate(tests):
        found = details[-1][place]["full"] if place < len(details[-1]) else {}
        cells = [as_count(test["captions"]), as_count(test["photos"])]
        for kind in (KNOWN, UNKNOWN):
            parts = found.get(kind), test["random_order"].get(kind)
            cells += [as_percent((part or {}).get("mean_recall")) for part in parts]
        lines.append(table_row(as_text(test["increment"]), *cells))
    return lines


def _examples(report: dict, folder: Path | None) -> list[str]:
    names = (report.get("increments") or [])[: len(report.get("policies") or [])]
    pages = (picture_lines(f"retrievals_{name}", ABOUT_EXAMPLES.format(name), folder) for name in names)
    return [line for page in pages for line in page]


def _matrices(report: dict) -> list[str]:
    unlearned = "in the newest space"
    lines = matrix_section(report, "Mean recall in % on each increment's pairs, increment known", unlearned)
    more = matrix_section(report, "The same, increment unknown", unlearned, key="scores_unknown_increment")
    return (["", *lines] if lines else []) + (["", *more] if lines and more else [])


def _policies(report: dict) -> list[str]:
    policies, names = report.get("policies") or [], report.get("increments") or []
    if not policies:
        return []
    if same := _why_all_policies_are_one(report):
        return ["", same]
    last, details = policies[-1], report.get("policies_per_increment") or []
    lines = ["", *(f"- **{name}**: {ABOUT_POLICIES.get(name, as_text(name))}" for name in last)]
    for kind in (KNOWN, UNKNOWN):
        lines += ["", f"After {name_at(names, len(policies) - 1)}, increment {kind}, in %:", ""]
        lines += _table_head("policy", "against full", "earlier increments", "forgetting")
        for name, found in last.items():
            against = _points(found[kind]["mean_recall"], last["full"][kind]["mean_recall"])
            earlier = as_percent(earlier_recall(details, len(policies) - 1, name, kind))
            more = "" if name == "full" else against, earlier, as_percent(policy_forgetting(details, name, kind))
            lines.append(table_row(name, *_figures(found[kind], *more)))
    about = "Mean recall in % over all increments so far, and over the earlier ones alone, after each increment:"
    lines += ["", about, "", *_grid_head(last)]
    for after, found in enumerate(policies):
        lines.append(table_row(f"after {name_at(names, after)}", *_grid(found)))
        if after and len(details) == len(policies):
            recalls = {
                name: {kind: {"mean_recall": earlier_recall(details, after, name, kind)} for kind in (KNOWN, UNKNOWN)}
                for name in found
            }
            lines.append(table_row("– earlier ones", *_grid(recalls)))
    if len(details) == len(policies):
        lines += ["", "Each increment at the end:", "", *_grid_head(last)]
        lines += [table_row(name_at(names, place), *_grid(found)) for place, found in enumerate(details[-1])]
    return lines


def _why_all_policies_are_one(report: dict) -> str | None:
    """Why galleries left as indexed are what they would be if embedded again; None: they are not."""
    if len(report["policies"]) == 1:
        return "One increment is learned so far: what was indexed is of the newest model, under every policy."
    if not never_changes(report):
        return None
    policies = ", ".join(f"*{name}*" for name in report["policies"][-1])
    return (
        "No vector of an earlier increment ever changed: a gallery that is left as it was indexed answers as one that "
        f"is embedded again, and all policies ({policies}) have the figures above."
    )


def never_changes(report: dict) -> bool:
    """Whether every policy has the same figures after every increment, and neither tower of any increment drifted."""
    rows = [row for rows in report.get("policies_per_increment") or [] for row in rows] + report["policies"]
    figures = [[found for name, found in row.items() if name != "increment"] for row in rows]
    moved = [row.get(f"{tower}_drift") for rows in report.get("drift") or [] for row in rows for tower in _TOWERS]
    return all(found == one[0] for one in figures for found in one) and not any(moved)


def _grid_head(policies: dict) -> list[str]:
    heads = [f"{kind}: {name}" for kind in (KNOWN, UNKNOWN) for name in policies]
    return [table_row("", *heads), table_row("---", *["---:"] * len(heads))]


def _grid(found: dict[str, Any]) -> list[str]:
    names = [name for name in found if name != "increment"]
    return [as_percent(found[name][kind]["mean_recall"]) for kind in (KNOWN, UNKNOWN) for name in names]


def policy_forgetting(details: Sequence[Sequence[dict]], policy: str, kind: str) -> float | None:
    """Forgetting of mean recall under a policy, increment known or unknown; None where figures are missing."""
    square = [
        [row[policy][kind]["mean_recall"] for row in rows] + [None] * (len(details) - len(rows)) for rows in details
    ]
    complete = square and all(row[j] is not None for i, row in enumerate(square) for j in range(i + 1))
    return forgetting(square) if complete else None


def earlier_recall(details: Sequence[Sequence[dict]], after: int, policy: str, kind: str) -> float | None:
    """Mean recall over the increments before the one learned last; None where there are none."""
    rows = details[after][:after] if after < len(details) else []
    found = [row[policy][kind]["mean_recall"] for row in rows]
    return float(np.mean(found)) if found and None not in found else None


def _drift(report: dict) -> list[str]:
    history, names = report.get("drift") or [], report.get("increments") or []
    if not any(history):
        return []
    if never_changes(report):
        return [
            "",
            "No vector moved: drift is 0 and every neighbour is kept. What is lost with the increment unknown is lost "
            "to the other increments' items; how far they overlap and lie apart is under *drift* in report.json.",
        ]
    lines = ["", *ABOUT_DRIFT.split("\n"), "", f"After {name_at(names, len(history) - 1)}, of each increment before:"]
    lines += ["", *_drift_head()]
    lines += [_drift_row(name_at(names, place), row) for place, row in enumerate(history[-1])]
    if len(history) > 2:
        lines += ["", "Means over the increments before, after each increment:", "", *_drift_head()]
        means = [(after, average_drift(rows)) for after, rows in enumerate(history) if rows]
        lines += [_drift_row(f"after {name_at(names, after)}", row) for after, row in means]
    return lines


def _drift_head() -> list[str]:
    return [table_row("", *DRIFT_COLUMNS), table_row("---", *["---:"] * len(DRIFT_COLUMNS))]


def _drift_row(name: str, row: dict) -> str:
    return table_row(name, *(_decimal(row.get(key), 3) for key in DRIFT_COLUMNS.values()))


def _decimal(value: float | None, places: int) -> str:
    # Adding 0.0 turns -0.0, which rounding leaves, into 0.0.
    return "–" if value is None else f"{round(value, places) + 0.0:,.{places}f}"


def _points(value: float | None, other: float | None) -> str:
    return "–" if value is None or other is None else f"{round(100 * (value - other), 2) + 0.0:+.2f}"
