# SPDX-License-Identifier: Apache-2.0
"""The file that says what an index consists of: spaces, revisions, maps, and which revision answers."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .durable import flush_folder, make_folder, write_file
from .spaces import Link, Space, SpaceRevision, StoredRevision

MANIFEST, MAPS = "index.json", "maps"
_FORMAT = 1


@dataclass(frozen=True)
class IndexManifest:
    """
    Attributes:
        spaces: by name, in the order in which they were opened.
        landings: what landed when under which policy, oldest first.
        dropping: names and dims of stores of no revision any more that are not emptied yet.
    """

    spaces: dict[str, Space] = field(default_factory=dict)
    landings: tuple[dict[str, Any], ...] = ()
    dropping: tuple[tuple[str, int], ...] = ()

    def with_spaces(self, spaces: Iterable[Space]) -> "IndexManifest":
        """The same with these spaces, in place of those of their names."""
        return replace(self, spaces=self.spaces | {space.name: space for space in spaces})

    def stores(self) -> set[str]:
        """Names of the stores of all revisions."""
        return {revision.store for space in self.spaces.values() for revision in space.revisions}

    def map_files(self) -> set[str]:
        """Files of all maps."""
        return {link.file for space in self.spaces.values() for link in space.links if link.file}

    def to_json(self) -> bytes:
        """As it is written."""
        return (json.dumps({"format": _FORMAT} | asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes, folder: Path) -> "IndexManifest":
        """ValueError: something else than `to_json` writes, or by a newer program."""
        try:
            values = json.loads(text)
            form = values.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{folder / MANIFEST} is no manifest of an index.") from None
        if form != _FORMAT:
            raise ValueError(f"{folder / MANIFEST} has format {form}; this program reads {_FORMAT}. Update it.")
        try:
            spaces = {name: _space(space) for name, space in values["spaces"].items()}
            return cls(spaces, tuple(values["landings"]), tuple((name, dim) for name, dim in values["dropping"]))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{folder / MANIFEST} is damaged ({error!r}); take a copy.") from error


def read_index(folder: Path) -> bytes | None:
    """The manifest as it stands, None where there is none."""
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None


def is_named(folder: Path, store: str) -> bool:
    """Whether the index says that a revision's vectors are in a store of this name: then it was made before."""
    text = read_index(folder)
    return text is not None and store in IndexManifest.from_json(text, folder).stores()


def write_index(folder: Path, manifest: IndexManifest) -> bytes:
    """Put a manifest in the old one's place → its bytes. When it returns, it is durable."""
    text = manifest.to_json()
    write_file(folder / MANIFEST, lambda file: file.write(text))
    flush_folder(folder)
    return text


def write_map(folder: Path, name: str, content: bytes) -> str:
    """Write a map's file → its path inside the folder. It counts once a manifest names it."""
    maps = folder / MAPS
    make_folder(maps)
    write_file(maps / name, lambda file: file.write(content))
    flush_folder(maps)
    return f"{MAPS}/{name}"


def clean_maps(folder: Path, manifest: IndexManifest) -> None:
    """Delete files of maps that no manifest names (any more)."""
    kept = manifest.map_files()
    for path in (folder / MAPS).glob("*"):
        if f"{MAPS}/{path.name}" not in kept:
            path.unlink(missing_ok=True)


def _space(values: dict[str, Any]) -> Space:
    revisions = (
        StoredRevision(**(entry | {"description": SpaceRevision(**entry["description"])}))
        for entry in values["revisions"]
    )
    links = (Link(**entry) for entry in values["links"])
    return Space(values["name"], tuple(revisions), tuple(links), tuple(values["past"]))
