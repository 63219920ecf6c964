# SPDX-License-Identifier: Apache-2.0
"""The card of a prepared data set: README.md with what `load_dataset` and a reader need to know."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .increments import increments_keys, load_increments

if TYPE_CHECKING:
    from .annotations import Check
    from .images import BadRows
    from .shards import DatasetSummary
    from .source_images import ImageSettings

MAX_VALUES = 50
CONTENT_MARK = "content sha256:"


def dataset_card(
    summary: DatasetSummary,
    increments: Any,
    *,
    name: str,
    licence: str,
    citation: str,
    description: str,
    columns: Sequence[str] = (),
    settings: ImageSettings | None = None,
) -> str:
    """The text of the card: the same for the same rows."""
    import yaml

    spdx = re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence) is not None
    filled = [split for split, rows in summary.counts.items() if rows]
    content = hashlib.sha256("".join(summary.shards.values()).encode()).hexdigest()
    head = {
        "pretty_name": name,
        "license": licence if spdx else "other",
        **({} if spdx else {"license_name": "see-below"}),
        "configs": [
            {
                "config_name": "default",
                # datasets finds its cached copy by what stands here, not by the files: without a word on the content,
                # a folder written anew, or another one of the same name, would be read as it was the first time.
                "description": f"{CONTENT_MARK}{content}",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in filled],
            },
            *(_table_config(table, rows, content) for table, rows in summary.tables.items() if any(rows.values())),
        ],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        f"# {name}\n",
        f"{description.strip()}\n" if description.strip() else "",
        *(f"{note.strip()}\n" for note in summary.notes),
        _images(settings),
        f"**Licence:** {licence}\n",
        "## Rows\n",
        "`image`; `attributes`: attribute → value or null; `caption`; `product_id`" + _further(columns) + ". "
        "Read with `datasets.load_dataset(FOLDER)`, or with `streaming=True`.\n",
        _table(("split", "rows"), [*summary.counts.items(), ("all", sum(summary.counts.values()))]),
        _bad_rows(summary),
        _bad_lines(summary),
        _duplicates(summary),
        _tables(summary),
        _checks(summary.checks),
        "## Increments\n",
        _increments(increments),
        "## Attributes\n",
        _table(("attribute", "values", "no label", "rows with each value"), _attributes(summary)),
        "## Files\n",
        _table(("file", "sha256"), list(summary.shards.items())),
        f"## Citation\n\n```\n{citation.strip()}\n```\n" if citation.strip() else "",
    ]
    return "\n".join(part for part in parts if part)


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def _bad_rows(summary: DatasetSummary) -> str:
    bad = summary.bad_rows
    if not bad.total:
        return "No row was left out as bad.\n"
    return f"Left out as bad: {bad.total}.\n\n" + _causes(bad)


def _bad_lines(summary: DatasetSummary) -> str:
    parts = [
        f"Of {lines.total} {kind} lines left out as bad: {lines.counter.total}.\n\n{_causes(lines.counter)}"
        for kind, lines in summary.bad_lines.items()
        if lines.counter.total
    ]
    return "\n".join(parts)


def _causes(bad: BadRows) -> str:
    rows = [(cause, count, ", ".join(bad.examples[cause])) for cause, count in sorted(bad.counts.items())]
    return _table(("cause", "number", "for example"), rows)


def _table_config(table: str, rows: Mapping[str, int], content: str) -> dict[str, Any]:
    return {
        "config_name": table,
        "description": f"{CONTENT_MARK}{content}",
        "data_files": [{"split": split, "path": f"{table}/{split}-*.parquet"} for split in rows if rows[split]],
    }


def _further(columns: Sequence[str]) -> str:
    return "".join(f"; `{name}`" for name in columns)


def _images(settings: ImageSettings | None) -> str:
    if settings is None or (settings.read and not settings.max_size):
        return ""
    if not settings.read:
        return "**Without images:** prepared from the annotations only; `image` is null in every row.\n"
    return f"Images are at most {settings.max_size} pixels long; larger ones were made smaller and written anew.\n"


def _duplicates(summary: DatasetSummary) -> str:
    copies = sum(summary.duplicates.values())
    return f"Left out as byte-identical copies, the first of which is kept: {copies}.\n" if copies else ""


def _tables(summary: DatasetSummary) -> str:
    if not summary.tables:
        return ""
    rows = [(table, split, count) for table, splits in summary.tables.items() for split, count in splits.items()]
    text = "## Further tables\n\nRead with `datasets.load_dataset(FOLDER, TABLE)`; they name images by `image_id`.\n\n"
    text += _table(("table", "split", "rows"), rows)
    for table, count in summary.dangling.items():
        text += f"\nRows of `{table}` that name an image that is not in the data set: {count}.\n"
    return text


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    rows = [(check.what, check.counted, "–" if check.published is None else check.published) for check in checks]
    return "## Counts of the annotations\n\n" + _table(("what", "counted", "published"), rows)


def _increments(content: Any) -> str:
    if not content:
        return "None.\n"
    rows = []
    for key in increments_keys(content):
        for increment in load_increments(content, key=key):
            where = [f"{name} in {', '.join(values)}" for name, values in increment.conditions().items()]
            where += [f"{name} not in {', '.join(values)}" for name, values in increment.where_not.items()]
            what = ", ".join(increment.attributes) or "rows with captions"
            rows.append((key or "", increment.name, what, "; ".join(where) or "all"))
    return _table(("list", "increment", "attributes", "rows"), rows)


def _attributes(summary: DatasetSummary) -> list[tuple]:
    rows = []
    for attribute, counts in summary.value_counts.items():
        rows.append((attribute, len(counts), summary.null_counts[attribute], _values(counts)))
    return rows


def _values(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{value} {count}" for value, count in ordered[:MAX_VALUES])
    return text + (f", and {len(ordered) - MAX_VALUES} more" if len(ordered) > MAX_VALUES else "")
