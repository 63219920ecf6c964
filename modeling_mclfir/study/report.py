# SPDX-License-Identifier: Apache-2.0
"""The report of a study: report.md for people, report.json for programs, two pictures an order."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..training.report import plain, write_atomically
from ..training.report_cells import as_count, as_percent, name_at, table_row
from .continual import MethodFigures
from .plots import plot_after_each, plot_cost

_ABOUT = """\
MAP in percent, 0–100; a[i][j] is the score on increment j after increment i (T the last), the mean over its
attributes. *average* = mean_j a[T][j]; *forgetting* = mean_{j<T} (max_{j≤i<T} a[i][j] − a[T][j]); *BWT* = mean_{j<T}
(a[T][j] − a[j][j]); *FWT* = mean_{j>0} (a[j−1][j] by the trunk's pooled features − the same before any training);
*intransigence* = mean_j (static[j] − a[j][j]). ± is the standard deviation over seeds. Costs are of a whole sequence;
the shares are of static retraining's, which learns everything seen so far at every increment, with the same epochs,
batches that serve all attributes at once, and the same cached features. A *tenth* has a tenth of those epochs, as
small batches from one view of each image, and heads that begin at the ridge regression."""
_UNKNOWN = """\
*not told*: the same where a query's attribute is told, but not the increment that its value came with. Methods with
one space for an attribute have one answer to both; others weigh their spaces by the image (`fused_queries`). The
gallery holds the values of all increments."""
_ABOUT_RECALL = """\
*mean recall* in percent, 0–100: the mean of recall at 1, 5 and 10, captions to images and images to captions,
searched among the pairs of the query's own increment, all embedded anew; a[i][j] is that of increment j after
increment i (T the last). *average* = mean_j a[T][j]; *forgetting* = mean_{j<T} (max_{j≤i<T} a[i][j] − a[T][j]);
*BWT* = mean_{j<T} (a[T][j] − a[j][j]); *FWT* = mean_{j>0} (a[j−1][j] − the same before any training);
*intransigence* = mean_j (static[j] − a[j][j]). *not told*: searched among the pairs of all increments so far. ± is the
standard deviation over seeds. Costs are of a whole sequence; the shares are of static retraining's, which learns
everything seen so far at every increment, with the same epochs and the same cached features."""
_POLICIES = """\
After the last increment, where galleries are embedded anew (*full*), left as they were indexed when their increment
was learned (*none*), or left while queries are mapped back by what 200 stored items show, embedded again (by the turn
that fits best, *Procrustes*, or by *mean drift*); with the query's increment told, and not."""
_NAMES = {"drift_compensated": "Procrustes", "mean_drift": "mean drift"}
_COLUMNS = (
    "method", "average", "forgetting", "BWT", "FWT", "intransigence", "samples", "FLOPs", "seconds", "memory",
    "stored, kB", "exemplars", "seeds",
)  # fmt: skip


def write_study(figures: Sequence[MethodFigures], increments: Sequence[str], folder: Path, title: str) -> None:
    """
    Write report.md, report.json and the pictures of a study.

    Args:
        figures: of every method and order.
        increments: names, in the canonical order.
        folder: of the study.
        title: of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    orders = list(dict.fromkeys(row.order for row in figures))
    of_pairs = any(row.policies for row in figures)
    lines = [f"# {title}", "", _ABOUT_RECALL if of_pairs else _ABOUT, ""]
    for order in orders:
        rows = sorted((row for row in figures if row.order == order), key=lambda row: -row.headline[0])
        names = list(increments) if order == "canonical" else list(reversed(increments))
        plot_after_each(rows, names, folder / f"after_each_{order}.png")
        told = [_UNKNOWN, ""] if any(row.unknown_average for row in rows) and not of_pairs else []
        lines += [f"## Order: {order}", "", *told, *_table(rows), ""]
        lines += [_POLICIES, "", *_policy_table(rows), ""] if of_pairs else []
        lines += [f"![score after each increment](after_each_{order}.png)"]
        if any(row.cost_ratio for row in rows):
            plot_cost(rows, folder / f"cost_{order}.png")
            lines += [f"![score against cost](cost_{order}.png)"]
        for row in rows:
            lines += ["", f"### {row.method}: a[i][j], {order}", "", *_matrix(row, names)]
        lines.append("")
    write_atomically(folder / "report.md", "\n".join(lines).encode())
    content = json.dumps(plain([asdict(row) for row in figures]), indent=1) + "\n"
    write_atomically(folder / "report.json", content.encode())


def _table(rows: Sequence[MethodFigures]) -> list[str]:
    unknown = any(row.unknown_average for row in rows)
    columns = (*_COLUMNS[:3], "average, not told", "forgetting, not told", *_COLUMNS[3:]) if unknown else _COLUMNS
    lines = [table_row(*columns), table_row("---", *["---:"] * (len(columns) - 1))]
    for row in rows:
        ratio = row.cost_ratio or {}
        shares = [_share(ratio.get(name)) for name in ("samples", "flops", "seconds", "peak_memory_bytes")]
        more = (row.unknown_average, row.unknown_forgetting) if unknown else ()
        scores = (row.average, row.forgetting, *more, row.backward_transfer, row.forward_transfer, row.intransigence)
        kept = [as_count(row.stored_bytes / 1000), as_count(row.exemplars)]
        lines.append(table_row(row.method, *map(_with_spread, scores), *shares, *kept, str(row.num_seeds)))
    return lines


def _policy_table(rows: Sequence[MethodFigures]) -> list[str]:
    """Of each method the average under each policy, with the increment told and not."""
    rows = [row for row in rows if row.policies]
    names = [(policy, kind) for kind in ("known", "unknown") for policy in rows[0].policies]
    titles = [f"{_NAMES.get(policy, policy)}, {'told' if kind == 'known' else 'not told'}" for policy, kind in names]
    lines = [table_row("method", *titles), table_row("---", *["---:"] * len(names))]
    for row in rows:
        lines.append(table_row(row.method, *(_with_spread(row.policies[policy][kind]) for policy, kind in names)))
    return lines


def _matrix(row: MethodFigures, names: Sequence[str]) -> list[str]:
    lines = [table_row("after", *(name_at(list(names), j) for j in range(len(row.scores)))),
             table_row("---", *["---:"] * len(row.scores))]  # fmt: skip
    for i, scores in enumerate(row.scores):
        lines.append(table_row(name_at(list(names), i), *(as_percent(score) for score in scores)))
    return lines


def _with_spread(value: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    spread = f" ± {100 * value[1]:.2f}" if value[1] else ""
    return as_percent(value[0]) + spread


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
