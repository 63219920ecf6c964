# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as the cells of the report's tables."""


def table_row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def name_at(names: list[str], place: int) -> str:
    """The name at a place of a list; the place itself where the list is shorter."""
    return as_text(names[place]) if place < len(names) else str(place)


def as_text(value) -> str:
    """Any text, as one that breaks neither a table nor the page."""
    # A name is any text: it must break neither the table nor the page.
    escaped = " ".join(str("–" if value is None else value).split()).replace("\\", "\\\\").replace("<", "&lt;")
    for mark in "|*`[":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def as_percent(value: float | None) -> str:
    """A share in percent, two decimals; – for None."""
    # Adding 0.0 turns -0.0, which rounding leaves, into 0.0.
    return "–" if value is None else f"{round(100 * value, 2) + 0.0:.2f}"


def as_count(value: float | None) -> str:
    """A number with commas; – for None."""
    return "–" if value is None else f"{value:,.0f}"


def as_flops(value: float | None) -> str:
    """A number of operations with its unit; – for None."""
    if value is None:
        return "–"
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}FLOP"
    return f"{value:,.0f} FLOP"


def as_duration(seconds: float | None) -> str:
    """Seconds as people say them; – for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
