# SPDX-License-Identifier: Apache-2.0
"""Which spaces of a catalogue are not filled to the end, and what that means for a search."""

from collections.abc import Sequence

from .settings import KEPT_EVENTS, Settings
from .versions import CatalogueIndex

_FILLING = ("build", "backfill", "reindex")


def unfinished(index: CatalogueIndex, settings: Settings) -> list[str]:
    """
    Spaces that were opened and that no build, backfill or reindex has filled to the end: it was cut off, is still at
    work, or was never begun. What it fills last is the spread, and an event; the oldest events are not kept.
    """
    events = [event for event in settings.events if event["event"] in _FILLING]
    ended = {space for event in events for space in event.get("spaces", ())}
    none_ended = not events and len(settings.events) < KEPT_EVENTS
    spaces = index.spaces
    return [name for name in spaces if name not in ended and (none_ended or spaces[name].spread is None)]


def is_first_build(index: CatalogueIndex, lacking: Sequence[str]) -> bool:
    """Whether what `unfinished` gave is all there is: nothing but a build can have begun it."""
    return bool(lacking) and len(lacking) == len(index.spaces)


def check_spreads(index: CatalogueIndex, settings: Settings, spaces: Sequence[str]) -> None:
    """
    Before scores of several spaces are added up: each needs its spread, or can't have one, having too few entries.

    Raises:
        ValueError: a space is not filled to the end, which would be known then.
    """
    live, lacking = index.spaces, unfinished(index, settings)
    wrong = [name for name in spaces if name in lacking and live[name].spread is None]
    if not wrong:
        return
    if is_first_build(index, lacking):
        raise ValueError(
            f"The build of this catalogue was interrupted, or is still at work, so that spaces can't be searched "
            f"together yet: {', '.join(wrong)}. The same `mclfir index build` goes on where it stopped; until then "
            "search in one attribute."
        )
    counts = [f"{name} has {index.num_stored(name):,} of {index.num_items():,} items" for name in wrong]
    raise ValueError(
        f"Not filled to the end: {'; '.join(counts)}. `mclfir index backfill` fills them; or search in other "
        "attributes."
    )
