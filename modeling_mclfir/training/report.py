# SPDX-License-Identifier: Apache-2.0
"""The report of a run: report.json for programs, report.md for people."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

PLOTS = "plots"
PICTURES = {
    "score_matrix": "Each column follows one increment through training: what stays the same is not forgotten.",
    "attributes": "Each attribute's MAP against what a random order of the gallery would score.",
    "loss": "The training loss, increment by increment.",
    "retrievals": "Queries and the five gallery images ranked first: ✓ has the query's value, ✗ has another.",
    "attention": "Where the model looks in a photo, for different attributes.",
}


def write_report(report: dict, output_dir: str | os.PathLike) -> None:
    """
    Writes report.json and report.md into `output_dir`; each is replaced as a whole or not at all.

    NaN and infinity become null. Draw the pictures first: the page shows those that are in `output_dir/plots`.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = plain(report)
    content = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / "report.json", content.encode())
    write_atomically(folder / "report.md", report_markdown(report, folder).encode())


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
        _titled("What it finds", _picture("retrievals", folder)),
        _titled("Where it looks", _picture("attention", folder)),
        _cost(report) + _picture("loss", folder),
        _parameters(report),
        _data(report),
        _settings(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _headline(report: dict) -> list[str]:
    names, done = report.get("increments") or [], len(report.get("scores") or [])
    average, initial = report.get("average") or {}, report.get("initial_trunk") or {}
    data = report.get("data") or {}
    learned = f"{done} increment{'' if done == 1 else 's'}"
    lines = [f"# {_text(data.get('name') or 'Attribute retrieval')}: {learned} learned", ""]
    if not report.get("finished", True):
        ahead = f": still to come: {', '.join(map(_text, names[done:]))}" if names[done:] else ""
        lines += [f"> **This run is not finished**{ahead}. The page is rewritten after each increment.", ""]
    if not average:
        return [*lines, "Nothing is scored yet."]
    count = len(report.get("attributes") or [])
    rows = [(f"**after {learned}**", average), ("trunk before any training, pooled features", initial)]
    lines += [
        f"**MAP {_percent(average.get('mean_average_precision'))} %** over {count} attributes of {learned} "
        f"({', '.join(map(_text, names[:done]))}); a random order would score "
        f"{_percent(average.get('random_ranking'))} %.",
        "",
        "| % | MAP | gain over random | gain over prior | MAP by queries | MAP by increments |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    keys = ("mean_average_precision", "gain_over_random", "gain_over_prior")
    keys += tuple(f"mean_average_precision_by_{name}" for name in ("queries", "increments"))
    lines += [_row(name, *(_percent(row.get(key)) for key in keys)) for name, row in rows if row]
    lines += [
        _row("random order", _percent(average.get("random_ranking")), "0.00", "", "", ""),
        _row("prior (share of positives)", _percent(average.get("prior")), "", "0.00", "", ""),
        "",
        "| percentage points | | |",
        "| --- | ---: | --- |",
        _row("forgetting", _percent(report.get("forgetting")), "earlier increments: best score minus score now"),
        _row("backward transfer", _percent(report.get("backward_transfer")), "score now minus when just learned"),
        _row("forward transfer", _percent(report.get("forward_transfer")), "what is gained before being learned"),
    ]
    return lines


def _conventions(report: dict) -> list[str]:
    data, average = report.get("data") or {}, report.get("average") or {}
    searched = {
        "query": "the split *query* is searched for in the split *gallery*",
        "val": "each image of the split *val* is searched for among the others (for tuning; not a final result)",
    }.get(data.get("evaluate_on"), f"evaluated on {_text(data.get('evaluate_on'))}")
    without = sum(row.get("num_queries_without_positives") or 0 for row in report.get("attributes") or [])
    if not average:
        return []
    return [
        "How to read the numbers:",
        "",
        f"- {searched[0].upper()}{searched[1:]}; the whole ranking counts (MAP: mean average precision).",
        f'- Queries that nothing in the gallery matches are left out (`no_positives="skip"`): {without:,} here.',
        "- MAP of several attributes is their unweighted mean; *by queries* weights them by their number of queries, "
        "*by increments* is the mean of the increments' means.",
        "- Gain over random: 0 is a random order, 100 a perfect one. Prior: the share of the gallery that matches.",
        "- `report.json` holds 0–1; tables here hold percent, two decimals; – is a value that does not exist (yet).",
    ]


def _matrix(report: dict) -> list[str]:
    scores, names = report.get("scores") or [], report.get("increments") or []
    if not scores:
        return []
    width = max(len(scores), *(1 + max((j for j, a in enumerate(row) if a is not None), default=0) for row in scores))
    columns = [_name(names, j) for j in range(width)]
    lines = ["## What stays learned", "", "MAP in % on each increment's attributes, after each increment:", ""]
    lines += [_row("", *columns), _row("---", *["---:"] * width)]
    for i, row in enumerate(scores):
        cells = [_percent(row[j]) if j < len(row) and row[j] is not None else "" for j in range(width)]
        # Above the diagonal the increment is not learned yet: another kind of score, so another kind of type.
        cells = [f"*{cell}*" if cell and j > i else cell for j, cell in enumerate(cells)]
        lines.append(_row(f"after {_name(names, i)}", *cells))
    return [*lines, "", "*In italics: the increment before it was learned, ranked by the trunk's pooled features.*"]


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
    lines = ["## Attribute by attribute", "", _row(*heads), _row("---", "---", *["---:"] * (len(heads) - 2))]
    for row in rows:
        before, now = first.get((row["increment"], row["attribute"])), row.get("mean_average_precision")
        change = "–" if before is None or now is None else f"{100 * (now - before):+.2f}"
        counts = (row.get(f"num_{name}") for name in ("queries", "gallery", "values"))
        scores = (_percent(row.get(name)) for name in ("random_ranking", "prior", "gain_over_random"))
        names = _text(row["increment"]), _text(row["attribute"])
        lines.append(_row(*names, _percent(now), change, *scores, *map(_count, counts)))
    return [*lines, "", "Since learned: the change of MAP since the attribute was learned, in points."]


def _cost(report: dict) -> list[str]:
    bills = [(_text(bill.get("increment")), bill) for bill in report.get("cost_per_increment") or []]
    if report.get("cost"):
        bills.append(("**all**", report["cost"]))
    if not bills:
        return []
    lines = ["## What training cost", "", "| | samples | steps | FLOPs | time | peak memory |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, bill in bills:
        memory = bill.get("peak_memory_bytes")
        memory = "–" if memory is None else f"{memory / 2**20:,.0f} MiB"
        counts = _count(bill.get("samples")), _count(bill.get("steps"))
        lines.append(_row(name, *counts, _flops(bill.get("flops")), _duration(bill.get("seconds")), memory))
    return [*lines, "", "A multiplication and an addition count as two FLOPs (T: 10¹², P: 10¹⁵)."]


def _parameters(report: dict) -> list[str]:
    parameters = report.get("parameters") or {}
    if not parameters:
        return []
    trunk, added = parameters.get("trunk"), parameters.get("added") or {}
    lines = ["## Parameters", "", "| | parameters | % of the trunk |", "| --- | ---: | ---: |"]
    lines.append(_row("trunk", _count(trunk), "100.00"))
    for name, number in added.items():
        lines.append(_row(f"added by {_text(name)}", _count(number), _percent(number / trunk if trunk else None)))
    per_attribute = _count(parameters.get("added_per_attribute"))
    return [*lines, _row("**added per attribute**", per_attribute, _percent(parameters.get("share_of_trunk")))]


def _data(report: dict) -> list[str]:
    data = report.get("data") or {}
    if not data:
        return []
    splits, bad = data.get("splits") or {}, data.get("bad_rows") or {}
    counts = ", ".join(f"{_count(number)} {_text(split)}" for split, number in splits.items())
    lines = ["## Data", "", f"{_text(data.get('name'))}, images: {counts or 'none'}."]
    if not any(bad.values()):
        return [*lines, "No row was left out."]
    lines += ["", f"{sum(bad.values()):,} rows could not be used:", "", "| cause | rows |", "| --- | ---: |"]
    return lines + [_row(_text(cause), _count(count)) for cause, count in bad.items()]


def _settings(report: dict) -> list[str]:
    lines = []
    for title, key in (("Arguments of this run", "arguments"), ("Versions", "versions")):
        values = report.get(key) or {}
        if values:
            body = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
            lines += ["", f"<details><summary>{title}</summary>", "", "```yaml", *body, "```", "", "</details>"]
    return ["## Made with", *lines] if lines else []


def _picture(name: str, folder: Path | None) -> list[str]:
    if folder is None or not (folder / PLOTS / f"{name}.png").is_file():
        return []
    return ["", f"![{PICTURES[name]}]({PLOTS}/{name}.png)"]


def _titled(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", *lines] if lines else []


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(names: list[str], place: int) -> str:
    return _text(names[place]) if place < len(names) else str(place)


def _text(value) -> str:
    # A name is any text: it must break neither the table nor the page.
    escaped = " ".join(str("–" if value is None else value).split()).replace("\\", "\\\\").replace("<", "&lt;")
    for mark in "|*`[":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def _percent(value: float | None) -> str:
    # Adding 0.0 turns -0.0, which rounding leaves, into 0.0.
    return "–" if value is None else f"{round(100 * value, 2) + 0.0:.2f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _flops(value: float | None) -> str:
    if value is None:
        return "–"
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}FLOP"
    return f"{value:,.0f} FLOP"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
