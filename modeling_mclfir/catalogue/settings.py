# SPDX-License-Identifier: Apache-2.0
"""The file that says what an index alone does not know: backend, sources, checkpoints, and what was done when."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..index.durable import flush_folder, locked, make_folder, write_file
from ..index.manifest import IndexManifest, read_index
from ..index.spaces import now

SETTINGS = "catalogue.json"
ATTRIBUTES = "mclfir"  # model_type of checkpoints of attributes
_FORMAT = 1
KEPT_EVENTS = 1000
# Seconds to wait for another writer: it may have a whole space's vectors to look at.
LOCK_TIMEOUT = 600.0


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        backend: kind of store and how it is opened; never a token.
        attributes: whose spaces the catalogue has; None: all that a checkpoint brings.
        sources: descriptions; of several that have an item, the last one has the photo that counts.
        checkpoints: where, kind (of attributes, where none is written), model revision, and space → fingerprint; in
            the order in which they were last built, landed or filled with.
        events: what was done when, oldest first; the last thousand.
    """

    backend: dict[str, Any]
    attributes: list[str] | None = None
    sources: tuple[dict[str, Any], ...] = ()
    checkpoints: tuple[dict[str, Any], ...] = ()
    events: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def with_source(self, source: dict[str, Any], replaces: bool = True) -> "Settings":
        """The same with a source as the newest; or, where it replaced no photo of others, behind those that count."""
        if not replaces:
            return self if source in self.sources else replace(self, sources=(source, *self.sources))
        return replace(self, sources=(*(other for other in self.sources if other != source), source))

    @property
    def model_type(self) -> str | None:
        """Kind of all checkpoints; None: there is none yet."""
        return self.checkpoints[-1].get("model_type", ATTRIBUTES) if self.checkpoints else None

    def with_checkpoint(
        self, path: str, model_type: str, model_revision: str, fingerprints: Mapping[str, str]
    ) -> "Settings":
        """The same with a checkpoint as the newest."""
        entry = {"path": path, "model_type": model_type, "model_revision": model_revision}
        entry |= {"fingerprints": dict(fingerprints)}
        kept = (other for other in self.checkpoints if other["path"] != path)  # what was there before is there no more
        return replace(self, checkpoints=(*kept, entry))

    def with_attributes(self, attributes: Sequence[str]) -> "Settings":
        """The same for these attributes."""
        return replace(self, attributes=list(dict.fromkeys(attributes)))

    def with_event(self, event: str, **details: Any) -> "Settings":
        """The same and one event more."""
        return replace(self, events=(*self.events, {"time": now(), "event": event} | details)[-KEPT_EVENTS:])


def read_settings(folder: Path) -> Settings:
    """
    Raises:
        FileNotFoundError: there is no catalogue.
        ValueError: something else than ours, or by a newer program.
    """
    try:
        text = (folder / SETTINGS).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder} holds no catalogue ({SETTINGS}); `mclfir index build --index {folder} …` makes one."
        ) from None
    try:
        values = json.loads(text)
        form = values.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(
            f"{folder / SETTINGS} says nothing of a catalogue; it was changed by something else."
        ) from None
    if form != _FORMAT:
        raise ValueError(f"{folder / SETTINGS} has format {form}; this program reads {_FORMAT}. Update it.")
    return Settings(**{name: tuple(value) if isinstance(value, list) and name != "attributes" else value
                       for name, value in values.items()})  # fmt: skip


def make_settings(folder: Path, settings: Settings) -> Settings:
    """
    Write the settings of a new catalogue; where there is one, its own. Of one without a space yet, whose first build
    failed for its backend say, the backend is changed.

    Raises:
        ValueError: the one that is there has entries in another backend, or the folder holds something else.
    """
    if not (folder / SETTINGS).exists():
        others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if any(not name.startswith((".lock", SETTINGS)) for name in others):
            raise ValueError(f"{folder} holds something else than a catalogue: {sorted(others)[:5]}. Take another.")
        make_folder(folder)
        with locked(folder, LOCK_TIMEOUT):
            if not (folder / SETTINGS).exists():  # another process may have been quicker
                _write(folder, settings)
    with locked(folder, LOCK_TIMEOUT) if _other(read_settings(folder), settings) else nullcontext():
        found = read_settings(folder)
        other = _other(found, settings)
        if other and not _has_spaces(folder):
            found = replace(found, backend=dict(settings.backend))
            _write(folder, found)
            return found
    if other:
        raise ValueError(
            f"The catalogue in {folder} is kept with {found.backend}; got {other}. Leave these flags out, or build "
            "another catalogue."
        )
    return found


def change_settings(folder: Path, change: Callable[[Settings], Settings]) -> Settings:
    """Settings as they stand → as they shall be, while nobody else changes them."""
    with locked(folder, LOCK_TIMEOUT):
        before = read_settings(folder)
        after = change(before)
        if after != before:
            _write(folder, after)
        return after


def _other(found: Settings, wanted: Settings) -> dict[str, Any]:
    """What is wanted of a backend that is not as it was found."""
    return {key: value for key, value in wanted.backend.items() if found.backend.get(key) != value}


def _has_spaces(folder: Path) -> bool:
    text = read_index(folder)
    return text is not None and bool(IndexManifest.from_json(text, folder).spaces)


def _write(folder: Path, settings: Settings) -> None:
    text = (json.dumps({"format": _FORMAT} | asdict(settings), indent=1) + "\n").encode()
    write_file(folder / SETTINGS, lambda file: file.write(text))
    flush_folder(folder)
