# SPDX-License-Identifier: Apache-2.0
"""The report of a run: report.json for programs, report.md for people."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from .report_cells import as_count, as_percent, as_text, table_row
from .report_sections import (
    cost_section,
    data_section,
    matrix_section,
    parameters_section,
    picture_lines,
    settings_section,
    titled,
)

PICTURES = {
    "score_matrix": "Each column follows one increment through training: what stays the same is not forgotten.",
    "attributes": "Each attribute's MAP against what a random order of the gallery would score.",
    "loss": "The training loss, increment by increment.",
    "retrievals": "Queries and the five gallery images ranked first: ✓ has the query's value, ✗ has another.",
    "attention": "Where the model looks in a photo, for different attributes.",
    "attention_photo": "Where the model looks in one photo, for every attribute.",
}


def write_report(report: dict, output_dir: str | os.PathLike) -> None:
    """
    Writes report.json and report.md into `output_dir`; each is replaced as a whole or not at all.

    NaN and infinity become null. Draw the pictures first: the page shows those that are in `output_dir/plots`.
    """
    write_both(report, output_dir, report_markdown)


def write_both(report: dict, output_dir: str | os.PathLike, page: Callable[[dict, Path], str]) -> None:
    """`write_report` with another page: report, folder → Markdown."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = plain(report)
    content = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / "report.json", content.encode())
    write_atomically(folder / "report.md", page(report, folder).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, flushes it, then renames it: readers see the old or the new, whole."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp's files are their owner's alone
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def plain(value):
    """What JSON can hold: numbers of numpy and torch as Python's, NaN and infinity as None, the rest by its name."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def report_markdown(report: dict, output_dir: str | os.PathLike | None = None) -> str:
    """
    The report as a page of Markdown (GitHub's tables).

    Args:
        report: what the training script collected; lists may be shorter than planned, values None.
        output_dir: folder whose `plots/NAME.png` are shown, by relative path; None: no pictures.
    """
    report = plain(report)
    folder = None if output_dir is None else Path(output_dir)
    sections = [
        _headline(report),
        _conventions(report),
        _matrix(report) + _picture("score_matrix", folder),
        _attributes(report) + _picture("attributes", folder),
        titled("What it finds", _picture("retrievals", folder)),
        titled("Where it looks", _picture("attention", folder) + _picture("attention_photo", folder)),
        cost_section(report) + _picture("loss", folder),
        parameters_section(report),
        data_section(report),
        settings_section(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _headline(report: dict) -> list[str]:
    names, done = report.get("increments") or [], len(report.get("scores") or [])
    average, initial = report.get("average") or {}, report.get("initial_trunk") or {}
    data = report.get("data") or {}
    learned = f"{done} increment{'' if done == 1 else 's'}"
    lines = [f"# {as_text(data.get('name') or 'Attribute retrieval')}: {learned} learned", ""]
    if not report.get("finished", True):
        ahead = f": still to come: {', '.join(map(as_text, names[done:]))}" if names[done:] else ""
        lines += [f"> **This run is not finished**{ahead}. The page is rewritten after each increment.", ""]
    if not average:
        return [*lines, "Nothing is scored yet."]
    if "mean_average_precision" in average:  # else all attributes are known by triplets alone
        lines += _map(report, average, initial, learned, names[:done])
    lines += _triplets_and_tags(average, initial)
    return [
        *lines,
        "",
        "| percentage points | | |",
        "| --- | ---: | --- |",
        table_row(
            "forgetting", as_percent(report.get("forgetting")), "earlier increments: best score minus score now"
        ),
        table_row(
            "backward transfer", as_percent(report.get("backward_transfer")), "score now minus when just learned"
        ),
        table_row(
            "forward transfer", as_percent(report.get("forward_transfer")), "what is gained before being learned"
        ),
    ]


def _map(report: dict, average: dict, initial: dict, learned: str, names: list[str]) -> list[str]:
    count = sum(row.get("mean_average_precision") is not None for row in report.get("attributes") or [])
    rows = [(f"**after {learned}**", average), ("trunk before any training, pooled features", initial)]
    lines = [
        f"**MAP {as_percent(average.get('mean_average_precision'))} %** over {count} "
        f"attribute{'' if count == 1 else 's'} of {learned} ({', '.join(map(as_text, names))}); a random order would "
        f"score {as_percent(average.get('random_ranking'))} %.",
        "",
        "| % | MAP | gain over random | gain over prior | MAP by queries | MAP by increments |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    keys = ("mean_average_precision", "gain_over_random", "gain_over_prior")
    keys += tuple(f"mean_average_precision_by_{name}" for name in ("queries", "increments"))
    lines += [table_row(name, *(as_percent(row.get(key)) for key in keys)) for name, row in rows if row]
    return [
        *lines,
        table_row("random order", as_percent(average.get("random_ranking")), "0.00", "", "", ""),
        table_row("prior (share of positives)", as_percent(average.get("prior")), "", "0.00", "", ""),
    ]


def _triplets_and_tags(average: dict, initial: dict) -> list[str]:
    lines = []
    if average.get("triplet_accuracy") is not None:
        lines += [
            "",
            f"**Triplet accuracy {as_percent(average['triplet_accuracy'])} %** over the triplets of all conditions "
            f"(50 by chance, {as_percent(initial.get('triplet_accuracy'))} before any training).",
        ]
    if average.get("mean_average_precision_all_tags") is not None:
        lines += [
            "",
            f"Judged by all tags of an image: MAP {as_percent(average['mean_average_precision_all_tags'])} % "
            f"({as_percent(average.get('random_ranking_all_tags'))} % by chance, "
            f"{as_percent(initial.get('mean_average_precision_all_tags'))} % before any training).",
        ]
    return lines


def _conventions(report: dict) -> list[str]:
    data, average = report.get("data") or {}, report.get("average") or {}
    searched = {
        "query": "the split *query* is searched for in the split *gallery*",
        "val": "the queries of the split *val* are searched for among its other images, or, where the data set names "
        "none, each image among all others (for tuning; not a final result)",
    }.get(data.get("evaluate_on"), f"evaluated on {as_text(data.get('evaluate_on'))}")
    if data.get("evaluate_on") == "query" and (data.get("splits") or {}).get("query") == 0:
        searched = "each image of the split *gallery* is searched for among the others, for there are no queries"
    without = sum(row.get("num_queries_without_positives") or 0 for row in report.get("attributes") or [])
    if not average:
        return []
    return [
        "How to read the numbers:",
        "",
        f"- {searched[0].upper()}{searched[1:]}; the whole ranking counts (MAP: mean average precision).",
        f'- Queries that nothing in the gallery matches are left out (`no_positives="skip"`): {without:,} here.',
        "- MAP of several attributes is their unweighted mean; *by queries* weights them by their number of queries "
        "(and counts a query that nothing matches as 0, as the papers' code does), "
        "*by increments* is the mean of the increments' means.",
        "- Gain over random: 0 is a random order, 100 a perfect one. Prior: the share of the gallery that matches.",
        "- `report.json` holds 0–1; tables here hold percent, two decimals; – is a value that does not exist (yet).",
    ]


def _matrix(report: dict) -> list[str]:
    scored = "MAP in % on each increment's attributes"
    if (report.get("average") or {}).get("triplet_accuracy") is not None:
        scored += " (triplets in order, in %, where all of them are known by triplets alone)"
    lines = matrix_section(report, scored, "ranked by the trunk's pooled features")
    return ["## What stays learned", "", *lines] if lines else []


def _attributes(report: dict) -> list[str]:
    rows = report.get("attributes") or []
    if not rows:
        return []
    first = {}
    for past in report.get("history") or []:
        for row in past:
            first.setdefault((row["increment"], row["attribute"]), row.get("mean_average_precision"))
    heads = ("increment", "attribute", "MAP %", "since learned", "random %", "prior %", "gain over random %")
    heads += ("queries", "gallery", "values")
    further = (
        ("MAP by all tags %", "mean_average_precision_all_tags", as_percent),
        ("triplets in order %", "triplet_accuracy", as_percent),
        ("triplets", "num_triplets", as_count),
    )
    further = [column for column in further if any(row.get(column[1]) is not None for row in rows)]
    heads += tuple(head for head, _, _ in further)
    lines = ["## Attribute by attribute", "", table_row(*heads), table_row("---", "---", *["---:"] * (len(heads) - 2))]
    for row in rows:
        before, now = first.get((row["increment"], row["attribute"])), row.get("mean_average_precision")
        change = "–" if before is None or now is None else f"{100 * (now - before):+.2f}"
        counts = (row.get(f"num_{name}") for name in ("queries", "gallery", "values"))
        scores = (as_percent(row.get(name)) for name in ("random_ranking", "prior", "gain_over_random"))
        names = as_text(row["increment"]), as_text(row["attribute"])
        more = (show(row.get(name)) for _, name, show in further)
        lines.append(table_row(*names, as_percent(now), change, *scores, *map(as_count, counts), *more))
    return [*lines, "", "Since learned: the change of MAP since the attribute was learned, in points."]


def _picture(name: str, folder: Path | None) -> list[str]:
    return picture_lines(name, PICTURES[name], folder)
