# SPDX-License-Identifier: Apache-2.0
"""What the reports of all tasks share: what stays learned, what it cost, what it was made with."""

import json
from pathlib import Path

from .report_cells import as_count, as_duration, as_flops, as_percent, as_text, name_at, table_row

PLOTS = "plots"


def matrix_section(report: dict, scored: str, unlearned: str, key: str = "scores") -> list[str]:
    """
    a[i][j] as a table.

    Args:
        scored: what the scores are, for the line above.
        unlearned: what those of increments not learned yet are, for the line below.
        key: of the matrix in the report.
    """
    scores, names = report.get(key) or [], report.get("increments") or []
    if not scores:
        return []
    width = max(len(scores), *(1 + max((j for j, a in enumerate(row) if a is not None), default=0) for row in scores))
    columns = [name_at(names, j) for j in range(width)]
    lines = [f"{scored}, after each increment:", ""]
    lines += [table_row("", *columns), table_row("---", *["---:"] * width)]
    for i, row in enumerate(scores):
        cells = [as_percent(row[j]) if j < len(row) and row[j] is not None else "" for j in range(width)]
        # Above the diagonal the increment is not learned yet: another kind of score, so another kind of type.
        cells = [f"*{cell}*" if cell and j > i else cell for j, cell in enumerate(cells)]
        lines.append(table_row(f"after {name_at(names, i)}", *cells))
    ahead = any(a is not None for i, row in enumerate(scores) for a in row[i + 1 :])
    return [*lines, "", f"*In italics: the increment before it was learned, {unlearned}.*"] if ahead else lines


def cost_section(report: dict) -> list[str]:
    """What training cost, increment by increment."""
    bills = [(as_text(bill.get("increment")), bill) for bill in report.get("cost_per_increment") or []]
    if report.get("cost"):
        bills.append(("**all**", report["cost"]))
    if not bills:
        return []
    lines = ["## What training cost", "", "| | samples | steps | FLOPs | time | waiting for data % | peak memory |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, bill in bills:
        memory = bill.get("peak_memory_bytes")
        memory = "–" if memory is None else f"{memory / 2**20:,.0f} MiB"
        counts = as_count(bill.get("samples")), as_count(bill.get("steps"))
        waiting = as_percent(_share(bill.get("waiting_seconds"), bill.get("seconds")))
        times = as_duration(bill.get("seconds")), waiting
        lines.append(table_row(name, *counts, as_flops(bill.get("flops")), *times, memory))
    return [*lines, "", "A multiplication and an addition count as two FLOPs (T: 10¹², P: 10¹⁵)."]


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def parameters_section(report: dict, trunk_name: str = "trunk", each: str = "attribute") -> list[str]:
    """What the trunk has and what increments added; `each`: what a space is of."""
    parameters = report.get("parameters") or {}
    if not parameters:
        return []
    trunk, added = parameters.get("trunk"), parameters.get("added") or {}
    lines = ["## Parameters", "", f"| | parameters | % of the {trunk_name} |", "| --- | ---: | ---: |"]
    lines.append(table_row(trunk_name, as_count(trunk), "100.00"))
    for name, number in added.items():
        lines.append(
            table_row(f"added by {as_text(name)}", as_count(number), as_percent(number / trunk if trunk else None))
        )
    per_attribute = as_count(parameters.get("added_per_attribute"))
    return [*lines, table_row(f"**added per {each}**", per_attribute, as_percent(parameters.get("share_of_trunk")))]


def data_section(report: dict) -> list[str]:
    """Images of each split, how many have a caption where that counts, and rows that could not be used."""
    data = report.get("data") or {}
    if not data:
        return []
    splits, bad = data.get("splits") or {}, data.get("bad_rows") or {}
    captioned = data.get("captioned") or {}
    counts = [
        f"{as_count(number)} {as_text(split)}"
        + (f", {as_count(captioned[split])} with a caption" if split in captioned else "")
        for split, number in splits.items()
    ]
    counts = ("; " if captioned else ", ").join(counts)
    lines = ["## Data", "", f"{as_text(data.get('name'))}, images: {counts or 'none'}."]
    if not any(bad.values()):
        return [*lines, "No row was left out."]
    lines += ["", f"{sum(bad.values()):,} rows could not be used:", "", "| cause | rows |", "| --- | ---: |"]
    return lines + [table_row(as_text(cause), as_count(count)) for cause, count in bad.items()]


def settings_section(report: dict) -> list[str]:
    """Arguments and versions, folded away."""
    lines = []
    for title, key in (("Arguments of this run", "arguments"), ("Versions", "versions")):
        values = report.get(key) or {}
        if values:
            body = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
            lines += ["", f"<details><summary>{title}</summary>", "", "```yaml", *body, "```", "", "</details>"]
    return ["## Made with", *lines] if lines else []


def picture_lines(name: str, about: str, folder: Path | None) -> list[str]:
    """The picture `plots/NAME.png` of a folder, where it is there; `about`: for those who can't see it."""
    if folder is None or not (folder / PLOTS / f"{name}.png").is_file():
        return []
    return ["", f"![{about}]({PLOTS}/{name}.png)"]


def titled(title: str, lines: list[str]) -> list[str]:
    """Lines under a heading; nothing where there are none."""
    return [f"## {title}", *lines] if lines else []
