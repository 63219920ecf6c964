# SPDX-License-Identifier: Apache-2.0
"""Flags that several verbs of `mclfir index` share, and what they mean."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..index.store import Value


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The catalogue itself."""
    parser.add_argument("--index", required=True, type=Path, help="folder of the catalogue")
    parser.add_argument(
        "--token", help="of Milvus, never written down; default: MCLFIR_MILVUS_TOKEN of the environment"
    )


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Where the photos are."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, help="folder of photos, searched through; ids are paths inside it")
    source.add_argument("--parquet", type=Path, help="Parquet file, or folder of them: bytes or paths of photos")
    source.add_argument("--dataset", help="folder of data_scripts, or a data set of the Hub, which is streamed")
    parser.add_argument("--split", help="of --dataset; default: gallery of a folder, train of the Hub's")
    parser.add_argument("--config", help="of a --dataset of the Hub")
    parser.add_argument("--id_column", help="of --parquet or --dataset; default: id, item_id or image_id")
    parser.add_argument("--image_column", help="of --parquet or --dataset; default: image, image_path, path or file")


def source_of(args: argparse.Namespace, needed: bool = True):
    """
    The source that the flags name; None: none is named.

    Raises:
        ValueError: none is named, but needed.
        FileNotFoundError: it is not there.
    """
    from ..catalogue import FolderSource, ParquetSource, StreamSource

    columns = {"id_column": args.id_column, "image_column": args.image_column}
    if args.images is not None:
        return FolderSource(args.images)
    if args.parquet is not None:
        return ParquetSource(args.parquet, **columns, split=args.split)
    if args.dataset is not None:
        folder = Path(args.dataset)
        if any(folder.glob("data/*.parquet")):
            return ParquetSource(folder, **columns, split=args.split or "gallery")
        if folder.is_absolute() or args.dataset.startswith(".") or len(folder.parts) > 2:
            if not folder.exists():
                raise FileNotFoundError(f"--dataset {args.dataset}: no such folder.")
        return StreamSource(args.dataset, args.split or "train", args.config, **columns)
    if needed:
        raise ValueError("Name the photos: --images FOLDER, --parquet FILE_OR_FOLDER or --dataset FOLDER_OR_ID.")
    return None


def add_fill_flags(parser: argparse.ArgumentParser) -> None:
    """How photos are embedded."""
    parser.add_argument("--batch_size", type=int, default=32, help="photos at a time")
    parser.add_argument(
        "--commit_size", type=int, default=512, help="photos written together: what a kill costs at most"
    )
    parser.add_argument("--max_bad_fraction", type=float, default=0.01, help="more bad photos than this are an error")
    parser.add_argument("--fp16", action="store_true", help="half precision; needs a GPU")


def fill_settings(args: argparse.Namespace):
    """
    Raises:
        ValueError: sizes below 1, a share outside 0..1.
    """
    from ..catalogue.filling import FillSettings

    return FillSettings(args.batch_size, args.commit_size, args.max_bad_fraction)


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """Where entries are kept; remembered."""
    parser.add_argument(
        "--factory", help="FAISS, in the catalogue's folder: Flat (the default, exact), HNSW32, IVF256,PQ16 …"
    )
    parser.add_argument("--ef_search", type=int, help="FAISS, HNSW: width of a search")
    parser.add_argument("--nprobe", type=int, help="FAISS, IVF: lists of a search")
    parser.add_argument("--uri", help="Milvus instead: a path ending in .db (an embedded file), or http://host:19530")
    parser.add_argument("--index_type", help="Milvus: FLAT (the default, exact), HNSW, IVF_FLAT …")
    parser.add_argument("--milvus", nargs="+", default=[], metavar="NAME=VALUE",
                        help="Milvus: further settings, such as secure=true ca_pem_path=FILE db_name=shop "
                        'index_params={"M":16}')  # fmt: skip


def backend_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """
    The backend that the flags name; None: none is named.

    Raises:
        ValueError: flags of both kinds, or a setting that is not NAME=VALUE.
    """
    from ..catalogue.backends import faiss_backend, milvus_backend

    ours = {name: getattr(args, name) for name in ("factory", "ef_search", "nprobe")}
    ours = {name: value for name, value in ours.items() if value is not None}
    if args.uri is None:
        if args.index_type or args.milvus:
            raise ValueError("--index_type and --milvus are Milvus's; name where that is with --uri.")
        return faiss_backend(**ours) if ours else None
    if ours:
        raise ValueError(f"--{next(iter(ours))} is FAISS's; with --uri, take --index_type and --milvus.")
    options = {}
    for text in args.milvus:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--milvus takes NAME=VALUE; got {text!r}.")
        options[name] = _plain(value)
    return milvus_backend(args.uri, args.index, args.index_type or "FLAT", **options)


def filter_of(texts: Sequence[str]) -> dict[str, list[Value]] | None:
    """
    `COLUMN=VALUE` texts as a filter: several of one column are any of these. A value that reads as a number or a
    truth value is looked for as such, and as text; one that no column can hold (NaN, more than 64 bits) as text only.

    Raises:
        ValueError: a text that is none.
    """
    found: dict[str, list[Value]] = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not equals or not column:
            raise ValueError(f"--where takes COLUMN=VALUE; got {text!r}.")
        values = found.setdefault(column, [])
        values.append(value)
        read = {"True": True, "False": False}.get(value, _plain(value))
        if _fits(read):
            values.append(read)
    return found or None


def _fits(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and -(2**63) <= value < 2**63  # a truth value is an int


def _plain(text: str) -> Any:
    """A JSON value, or the text as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text
