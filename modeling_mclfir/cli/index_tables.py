# SPDX-License-Identifier: Apache-2.0
"""What `mclfir index` shows on a terminal."""

from collections.abc import Sequence
from typing import Any

from ..catalogue.searching import Hit

_LONGEST = 40
_MOST_COLUMNS = 4


def search_text(hits: Sequence[Hit], attributes: Sequence[str]) -> str:
    """A line a hit: rank, score, id, and metadata, that of the attributes first."""
    if not hits:
        return "nothing found\n"
    names = list(dict.fromkeys(name for hit in hits for name in hit.metadata))
    first = [f"attributes.{name.split('@')[0]}" for name in attributes] + [name.split("@")[0] for name in attributes]
    names.sort(key=lambda name: first.index(name) if name in first else len(first))
    names = names[:_MOST_COLUMNS]
    rows = [
        [str(place), f"{hit.score:.4f}", hit.id, *(str(hit.metadata.get(name, "")) for name in names)]
        for place, hit in enumerate(hits, 1)
    ]
    return table_text(["", "score", "id", *(name.removeprefix("attributes.") for name in names)], rows)


def info_text(info: dict[str, Any]) -> str:
    """Spaces and their revisions, how far they are filled, where the photos are, checkpoints and history."""
    backend = {name: value for name, value in info["backend"].items() if name != "kind"}
    settings = ", ".join(f"{name} {value}" for name, value in backend.items())
    kind = info["backend"]["kind"]
    parts = [f"{info['folder']}: {info['items']:,} items in {len(info['spaces'])} spaces; {kind} ({settings})"]
    if not info["is_built"]:
        parts.append("build not finished: interrupted, or still at work; the same `mclfir index build` goes on")
    rows = []
    for name, space in info["spaces"].items():
        for revision in space["revisions"]:
            state, spread = revision["state"], revision["spread"]
            share = {"building": space["share_built"], "live": space["share_filled"]}.get(state)
            filled = "" if share is None else f"{100 * share:.0f} %"
            if state == "live" and not info["is_built"]:
                filled = "not finished"
            rows.append(
                [
                    name,
                    revision["model_revision"],
                    state,
                    revision["policy"],
                    f"{revision['entries']:,}",
                    filled,
                    "" if spread is None else f"{spread:.3f}",
                    revision["created"][:10],
                ]
            )
        for link in space["links"]:
            kind = link["details"].get("kind", "as they are")
            rows.append([name, link["model_revision"], "queries", link["policy"], kind, "", "", link["created"][:10]])
    head = ["space", "revision", "state", "policy", "entries", "filled", "spread", "since"]
    parts.append(table_text(head, rows).rstrip("\n"))
    sources = ["; ".join(f"{key} {value}" for key, value in source.items() if value) for source in info["sources"]]
    parts.append("photos (newest last):\n" + "\n".join(f"  {text}" for text in sources))
    paths = [f"  {entry['model_revision']}  {entry['path']}" for entry in info["checkpoints"]]
    parts.append("checkpoints (last used last):\n" + "\n".join(paths))
    parts.append("history:\n" + "\n".join(f"  {line}" for line in _history(info)))
    return "\n\n".join(parts) + "\n"


def _history(info: dict[str, Any]) -> list[str]:
    lines = []
    for landing in info["history"]:
        outcomes = dict.fromkeys(entry.get("outcome", "") for entry in landing["spaces"].values())
        revisions = dict.fromkeys(entry["model_revision"] for entry in landing["spaces"].values())
        words = [landing["event"], landing.get("policy", ""), ", ".join(revisions), ", ".join(filter(None, outcomes))]
        lines.append((landing["time"], "  ".join(filter(None, words))))
    for event in info["events"]:
        counts = [
            f"{event[name]:,} {word}" for name, word in (("embedded", "embedded"), ("items", "items")) if name in event
        ]
        words = [event["event"], event.get("model_revision", ""), *counts]
        lines.append((event["time"], "  ".join(filter(None, words))))
    return [f"{time}  {words}" for time, words in sorted(lines, key=lambda line: line[0])]


def table_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, long cells cut."""
    cells = [[_short(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
