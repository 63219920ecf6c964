# SPDX-License-Identifier: Apache-2.0
"""Data sets one after the other: joins prepared data sets into one whose increments are those sets.

Expected in --sources: folders that other data_scripts wrote, each with images, attributes and the splits train, val,
query and gallery, in the order of learning. An attribute is named NAME_attribute, where NAME is that of its source;
rows of the other sources have no label for it. increments.json gets two lists:
  data_sets   an increment a source: all attributes of its list of increments;
  attributes  the increments of that list, source after source, each named NAME_increment.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_scripts.command import require_files, run
from modeling_mclfir.data.annotations import Again, Annotations
from modeling_mclfir.data.card import CONTENT_MARK
from modeling_mclfir.data.increment_entries import Increment
from modeling_mclfir.data.increments import load_increments
from modeling_mclfir.data.prepare import write_annotations
from modeling_mclfir.data.schema import COLUMNS, FURTHER_COLUMNS, SPLITS, TABLES, attribute_names, check_data_dir
from modeling_mclfir.data.shards import DatasetSummary

DESCRIPTION = (
    "{count} prepared data sets joined, to be learned one after the other. An attribute is named NAME_attribute, "
    "where NAME is that of its data set; rows of the others have no label for it. Images are the bytes that they were."
)
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CARD = {
    "title": re.compile(r"^# (.+)$", re.MULTILINE),
    "licence": re.compile(r"^\*\*Licence:\*\* (.+)$", re.MULTILINE),
    "content": re.compile(rf"{CONTENT_MARK}([0-9a-f]{{64}})"),
    "citation": re.compile(r"^## Citation\n\n```\n(.*?)\n```$", re.MULTILINE | re.DOTALL),
}


@dataclass(frozen=True)
class Source:
    """A prepared data set that is joined with others.

    Attributes:
        folder: where it is.
        name: what its attributes, increments and ids begin with.
        attributes: names as they are in it, in order.
        increments: of the chosen list, as they are in it.
        further: names of its further columns.
        counts: split → rows.
        card: title, licence, content (sha256) and citation, as its card tells; "" where it does not.
    """

    folder: Path
    name: str
    attributes: tuple[str, ...]
    increments: tuple[Increment, ...]
    further: tuple[str, ...]
    counts: Mapping[str, int]
    card: Mapping[str, str]

    def attribute(self, own: str) -> str:
        """The name of an attribute in the joined set."""
        return f"{self.name}_{own}"

    def inside(self, own: str | None) -> str | None:
        """An id in the joined set; None stays None."""
        return None if own is None else f"{self.name}/{own}"

    def increment(self, own: Increment) -> Increment:
        """An increment of the joined set: the same, of the renamed attributes."""
        return replace(
            own,
            name=f"{self.name}_{own.name}",
            attributes=tuple(map(self.attribute, own.attributes)),
            where={self.attribute(name): values for name, values in own.where.items()},
            where_not={self.attribute(name): values for name, values in own.where_not.items()},
        )

    def rows(self, split: str, columns: Collection[str]) -> Iterator[dict[str, Any]]:
        """The rows of a split as the joined set has them, in their order, one row group in memory at a time."""
        import pyarrow.parquet as pq

        place = 0
        for path in _shards(self.folder, split):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    for row in file.read_row_group(group).to_pylist():
                        yield self._row(row, place, columns)
                        place += 1

    def _row(self, row: Mapping[str, Any], place: int, columns: Collection[str]) -> dict[str, Any]:
        image, labels = row["image"], row["attributes"]
        if image is None:
            raise ValueError(f"{self.folder}, row {place}: no image; prepare it again without --annotations-only")
        joined = {
            "image": {"bytes": image["bytes"], "path": self.inside(image["path"])},
            "attributes": {self.attribute(name): value for name, value in labels.items()},
            "caption": row["caption"],
            "product_id": self.inside(row["product_id"]),
            "image_id": self.inside(row.get("image_id") or str(place)),
            "captions": row.get("captions"),
            "galleries": [self.inside(name) for name in row.get("galleries") or ()],
        }
        # Tags are all that holds of an image: of a source without any, its labels.
        tags = row["tags"] if "tags" in row else [f"{name}={value}" for name, value in labels.items() if value]
        joined["tags"] = [self.attribute(tag) for tag in tags or ()]
        return {name: value for name, value in joined.items() if name in COLUMNS or name in columns}


def open_sources(
    folders: Sequence[Path], names: Sequence[str] | None = None, keys: Sequence[str] | None = None
) -> list[Source]:
    """Looks through the sources; reads no image but the first of each.

    Args:
        folders: written by other data_scripts, two at least.
        names: one a folder: letters, digits, "_" and "-" (default: those of the folders).
        keys: one a folder: which list of its increments.json (default: the only one, or "attributes").

    Raises:
        FileNotFoundError: a folder holds no prepared data set.
        ValueError: fewer than two folders, not one name or key each, names that do not tell the sources apart, or a
            source that cannot be joined; the message says which and how to mend it.
    """
    if len(folders) < 2:
        raise ValueError(f"--sources has {len(folders)} folder; expected two at least, in the order of learning")
    for flag, given in (("--names", names), ("--increments-key", keys)):
        if given is not None and len(given) != len(folders):
            raise ValueError(f"{flag} has {len(given)} for {len(folders)} sources; expected one each, in their order")
    names = [folder.resolve().name for folder in folders] if names is None else list(names)
    _check_names(names)
    keys = [None] * len(folders) if keys is None else keys
    return [_open_source(*given) for given in zip(folders, names, keys, strict=True)]


def _check_names(names: Sequence[str]) -> None:
    odd = [name for name in names if not _NAME.fullmatch(name)]
    if odd:
        raise ValueError(f"names {odd}; expected letters, digits, '_' and '-' only: give others with --names")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several sources are named {', '.join(twice)}; expected names that differ: give --names")
    for name in names:
        # "a" with an attribute "b_c" and "a_b" with "c" would both have "a_b_c".
        longer = [other for other in names if other.startswith(f"{name}_")]
        if longer:
            raise ValueError(
                f"the name {longer[0]!r} begins with {name + '_'!r}, so that attributes of the two could not be told "
                "apart; give other --names"
            )


def _open_source(folder: Path, name: str, key: str | None) -> Source:
    import pyarrow.parquet as pq
    from datasets import Features

    check_data_dir(folder)
    require_files(folder, ("increments.json", "README.md"))
    tables = [table for table in TABLES if any(folder.glob(f"{table}/*.parquet"))]
    if tables:
        raise ValueError(
            f"{folder} has the further tables {', '.join(tables)}, which a joined set does not carry; join a set that "
            "is prepared from its labels alone (such as data_scripts.folder writes)"
        )
    counts = {split: sum(pq.read_metadata(path).num_rows for path in _shards(folder, split)) for split in SPLITS}
    lacking = [split for split in SPLITS if not counts[split]]
    if lacking:
        raise ValueError(
            f"{folder} has no rows in {', '.join(lacking)}; a data set is learned and scored by {', '.join(SPLITS)}. "
            "Prepare it with such rows (data_scripts.folder takes a split.csv), or leave it out"
        )
    with pq.ParquetFile(_shards(folder, "train")[0]) as file:
        features = Features.from_arrow_schema(file.schema_arrow)
        attributes = attribute_names(features, str(folder))
        with_images = file.read_row_group(0, columns=["image"])["image"][0].is_valid
    if not attributes or not with_images:
        lacks = "images; prepare it without --annotations-only" if attributes else "attributes, so nothing to join"
        raise ValueError(f"{folder} has no {lacks}")
    increments = _increments(folder / "increments.json", attributes, key)
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = {what: pattern.search(text) for what, pattern in _CARD.items()}
    card = {what: match[1] if match else "" for what, match in found.items()}
    further = tuple(column for column in features if column not in COLUMNS)
    return Source(folder, name, attributes, increments, further, counts, card)


def _increments(path: Path, attributes: Sequence[str], key: str | None) -> tuple[Increment, ...]:
    increments = load_increments(path, attributes, key=key)
    domains = [increment.name for increment in increments if not increment.attributes]
    if domains:
        raise ValueError(
            f"{path}: increments {', '.join(domains)} name no attributes: they are domains, for text-image retrieval. "
            "Choose another list with --increments-key"
        )
    return tuple(increments)


def _shards(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"data/{split}-*.parquet"))


def join(sources: Sequence[Source]) -> Annotations:
    """One data set of all sources' rows: in each split those of the first, then those of the second, and so on.

    Every row has an `image_id`, NAME/id: its own, or its place in the split of its source. `tags` are there where a
    source has some, `galleries` where all have them (in val they say who is searched for among whom).
    """
    carried = {"image_id"}
    carried |= {name for name in ("captions", "tags") if any(name in source.further for source in sources)}
    carried |= {name for name in ("galleries",) if all(name in source.further for source in sources)}
    return Annotations(
        attributes=tuple(source.attribute(own) for source in sources for own in source.attributes),
        increments={
            "data_sets": [{"name": source.name, "attributes": _learned(source)} for source in sources],
            "attributes": [source.increment(own).to_dict() for source in sources for own in source.increments],
        },
        splits={split: Again(_rows, sources, split, carried) for split in SPLITS},
        counts={split: sum(source.counts[split] for source in sources) for split in SPLITS},
        columns={name: kind for name, kind in FURTHER_COLUMNS.items() if name in carried},
        notes=[_note(source, carried) for source in sources],
    )


def _rows(sources: Sequence[Source], split: str, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    for source in sources:
        yield from source.rows(split, columns)


def _learned(source: Source) -> list[str]:
    """Each attribute of its increments once, as the joined set names it."""
    return list(dict.fromkeys(source.attribute(own) for each in source.increments for own in each.attributes))


def _note(source: Source, carried: Collection[str]) -> str:
    rows = ", ".join(f"{split} {count}" for split, count in source.counts.items())
    left_out = [column for column in source.further if column not in carried]
    note = f"`{source.name}` is {source.card['title']} ({CONTENT_MARK}{source.card['content']}): {rows} rows."
    return note + (f" Left out: its columns {', '.join(left_out)}." if left_out else "")


def licence_of(sources: Sequence[Source]) -> str:
    """The licence that all sources have, or each one's behind its name."""
    licences = [source.card["licence"] or "not stated" for source in sources]
    if len(set(licences)) == 1:
        return licences[0]
    return " / ".join(f"{source.name}: {licence}" for source, licence in zip(sources, licences, strict=True))


def main(arguments: Sequence[str] | None = None) -> DatasetSummary:
    """Opens the sources and writes the joined set."""
    command = argparse.ArgumentParser(
        prog="python -m data_scripts.joined", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    command.add_argument("--sources", type=Path, nargs="+", required=True, metavar="DIR", help="prepared data sets")
    command.add_argument("--output", type=Path, required=True, help="folder to write; must be new or empty")
    command.add_argument("--names", nargs="+", metavar="NAME", help="one a source (default: those of the folders)")
    command.add_argument(
        "--increments-key",
        nargs="+",
        metavar="KEY",
        help='one a source: which list of its increments.json (default: the only one, or "attributes")',
    )
    command.add_argument("--overwrite", action="store_true", help="replace a data set written there before")
    command.add_argument("--rows-per-shard", type=int, default=10_000, help="rows a Parquet file (default: 10000)")
    options = command.parse_args(arguments)
    sources = open_sources(options.sources, options.names, options.increments_key)
    if options.output.resolve() in [source.folder.resolve() for source in sources]:
        raise ValueError(f"--output {options.output} is one of the sources; give another folder")
    citations = dict.fromkeys(source.card["citation"] for source in sources)
    return write_annotations(
        options.output,
        join(sources),
        name=", then ".join(source.card["title"] or source.name for source in sources),
        licence=licence_of(sources),
        citation="\n\n".join(filter(None, citations)),
        description=DESCRIPTION.format(count=len(sources)),
        rows_per_shard=options.rows_per_shard,
        overwrite=options.overwrite,
        check_images=False,  # done when the sources were prepared
    )


if __name__ == "__main__":
    run(main)
