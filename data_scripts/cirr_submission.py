# SPDX-License-Identifier: Apache-2.0
"""Writes the two files that the authors' server of CIRR takes for its test1 split: recall.json, recall_subset.json.

--dataset is the folder that data_scripts.cirr wrote. --rankings is a JSON file, {pairid: [names of images, best
first]}, or a Parquet file with the columns query_id and ranking (a list), which takes far less memory. A ranking need
not hold the whole gallery, but at least 50 images beside the reference, and the five others of its group. The
reference is taken out; recall.json gets the first 50 images, recall_subset.json the first 3 of the group.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_scripts.formats.text_files import open_text

VERSION = "rc2"
NUM_RECALL, NUM_SUBSET = 50, 3
MAX_BYTES = 5_000_000
# File → "metric", as the server wants it.
OUTPUTS = {"recall.json": "recall", "recall_subset.json": "recall_subset"}
_MAX_NAMED = 5

Rankings = Mapping[str, Sequence[str]] | Iterable[tuple[str, Sequence[str]]]


def write_submission(
    rankings: Rankings, queries: Iterable[Mapping[str, Any]], output_dir: str | os.PathLike
) -> tuple[Path, Path]:
    """Checks the rankings and writes both files, or none.

    Args:
        rankings: pair id → names of images, best first; or such pairs one after the other, each dropped after its
            turn. The reference may be among the names.
        queries: rows with `query_id`, `reference` and `subset`, as in the split test of the table "composed". Their
            references and groups are the known images.
        output_dir: made where it is not there; files of the same names are replaced.

    Returns:
        Paths of recall.json and recall_subset.json.

    Raises:
        ValueError: pair ids are missing, unknown or given twice; a ranking has an unknown image, one twice, fewer than
            50 beside the reference, or lacks one of its group; a file would be larger than the server's 5 MB.
    """
    by_id = {str(query["query_id"]): query for query in queries}
    known = {name for query in by_id.values() for name in (query["reference"], *query["subset"])}
    best: dict[str, dict[str, list[str]]] = {metric: {} for metric in OUTPUTS.values()}
    unknown = []
    for pair_id, ranking in rankings.items() if isinstance(rankings, Mapping) else rankings:
        pair_id = str(pair_id)
        if pair_id not in by_id:
            unknown.append(pair_id)
            continue
        if pair_id in best["recall"]:
            raise ValueError(f"pair {pair_id} has two rankings; expected one")
        names = _checked(pair_id, ranking, by_id[pair_id], known)
        group = set(by_id[pair_id]["subset"])
        best["recall"][pair_id] = names[:NUM_RECALL]
        best["recall_subset"][pair_id] = [name for name in names if name in group][:NUM_SUBSET]
    missing = [pair_id for pair_id in by_id if pair_id not in best["recall"]]
    for pair_ids, what in ((unknown, "unknown pair ids"), (missing, "pairs without a ranking")):
        if pair_ids:
            raise ValueError(f"{len(pair_ids)} {what}: {_named(pair_ids)}; expected the {len(by_id)} pairs of test1")
    return _write(best, list(by_id), Path(output_dir))


def read_queries(dataset: str | os.PathLike) -> list[dict[str, Any]]:
    """The test pairs of a prepared data set: `query_id`, `reference`, `subset`.

    Raises:
        FileNotFoundError: it has none.
        ValueError: they have no subset: it is not CIRR.
    """
    import pyarrow.parquet as pq

    paths = sorted(Path(dataset).glob("composed/test-*.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"{dataset} has no composed/test-*.parquet; expected a folder that `python -m data_scripts.cirr` wrote"
        )
    columns = ["query_id", "reference", "subset"]
    rows = [row for path in paths for row in pq.ParquetFile(path).read(columns).to_pylist()]
    if not all(row["subset"] for row in rows):
        raise ValueError(f"{dataset}: test pairs without a subset; expected those of CIRR")
    return rows


def read_rankings(path: str | os.PathLike) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields (pair id, names of images, best first) of a JSON or Parquet file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another form.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with open_text(path) as file:
            # Pairs rather than a dict, so that an id that is there twice is seen.
            content = json.load(file, object_pairs_hook=tuple)
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not JSON ({error}); expected {{pairid: [names]}}") from error
    if not isinstance(content, tuple):
        raise ValueError(f"{path} holds {type(content).__name__}; expected an object, {{pairid: [names]}}")
    return iter(content)


def _read_parquet(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["query_id", "ranking"]
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not Parquet ({error})") from error
    with file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; expected {', '.join(columns)}")
        for batch in file.iter_batches(64, columns=columns):
            yield from zip(batch["query_id"].to_pylist(), batch["ranking"].to_pylist(), strict=True)


def _checked(pair_id: str, ranking: Sequence[str], query: Mapping[str, Any], known: set[str]) -> list[str]:
    """The ranking without the reference."""
    if not isinstance(ranking, list | tuple) or not all(isinstance(name, str) for name in ranking):
        raise ValueError(f"pair {pair_id}: the ranking is {ranking!r:.80}; expected a list of names, best first")
    unknown = [name for name in ranking if name not in known]
    if unknown:
        raise ValueError(f"pair {pair_id}: {len(unknown)} names are no images of test1: {_named(unknown)}")
    if len(set(ranking)) < len(ranking):
        seen: set[str] = set()
        twice = [name for name in ranking if name in seen or seen.add(name)]
        raise ValueError(f"pair {pair_id}: images ranked more than once: {_named(twice)}")
    names = [name for name in ranking if name != query["reference"]]
    if len(names) < NUM_RECALL:
        raise ValueError(
            f"pair {pair_id}: {len(names)} images are ranked beside the reference; expected at least {NUM_RECALL}"
        )
    absent = sorted(set(query["subset"]) - set(names))
    if absent:
        raise ValueError(f"pair {pair_id}: images of its group are not in the ranking: {_named(absent)}")
    return names


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")


def _write(best: Mapping[str, Mapping[str, list[str]]], pair_ids: Sequence[str], folder: Path) -> tuple[Path, Path]:
    content = {}
    for name, metric in OUTPUTS.items():
        answers = {pair_id: best[metric][pair_id] for pair_id in pair_ids}
        # Without blanks: names are long, and the server takes no more than 5 MB.
        text = json.dumps({"version": VERSION, "metric": metric, **answers}, separators=(",", ":"))
        content[folder / name] = text.encode()
        if len(content[folder / name]) > MAX_BYTES:
            raise ValueError(f"{name} would have {len(text):,} bytes; the server takes {MAX_BYTES:,} at most")
    folder.mkdir(parents=True, exist_ok=True)
    partial = {path: path.with_name(f".{path.name}.partial") for path in content}
    try:
        for path, data in content.items():
            partial[path].write_bytes(data)
        for path in content:
            partial[path].replace(path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return tuple(content)


def main(arguments: Sequence[str] | None = None) -> tuple[Path, Path]:
    """Reads the rankings and writes the two files."""
    command = argparse.ArgumentParser(
        prog="python -m data_scripts.cirr_submission",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    command.add_argument("--dataset", type=Path, required=True, help="folder that data_scripts.cirr wrote")
    command.add_argument("--rankings", type=Path, required=True, help="JSON or Parquet file")
    command.add_argument("--output", type=Path, required=True, help="folder for the two files")
    options = command.parse_args(arguments)
    queries = read_queries(options.dataset)
    return write_submission(read_rankings(options.rankings), queries, options.output)


def _run() -> None:
    try:
        paths = main()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    sys.stderr.write("".join(f"{path}: {path.stat().st_size:,} bytes\n" for path in paths))


if __name__ == "__main__":
    _run()
