# SPDX-License-Identifier: Apache-2.0
"""The verbs and flags of `mclfir index`."""

import argparse
from pathlib import Path

from .index_flags import add_backend_flags, add_common_flags, add_fill_flags, add_source_flags

_ABOUT = """\
A catalogue is a folder: vectors of each photo in every space that a checkpoint has, with the photo's metadata.
On several processes or GPUs: accelerate launch --num_processes N -m modeling_mclfir.cli.index build …
(build, add, backfill and reindex share the work; on a machine without GPUs add --cpu.)"""


_SCORE = """\
score: the larger, the better. In one attribute it is the cosine, at most 1. In several it is the sum of the cosines,
each times its weight and divided by its space's spread (see `info`), so that it grows with the number of attributes.
Of captions it is a log-likelihood ratio: how much likelier than another item this one is what was looked for. Scores
can be compared within one search only."""
_INFO = """\
filled: share of the catalogue's items that have their vector. spread: standard deviation of the cosines of different
items in the space; searches in several attributes divide by it, so that no space outweighs another one."""


def parser() -> argparse.ArgumentParser:
    """Of all verbs."""
    form = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="mclfir index", description=_ABOUT, formatter_class=form)
    verbs = found.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, about: str, more: str | None = None) -> argparse.ArgumentParser:
        form = argparse.ArgumentDefaultsHelpFormatter
        one = verbs.add_parser(name, help=about, description=about, epilog=more, formatter_class=form)
        add_common_flags(one)
        return one

    one = verb("build", "embed all photos of a source; again, it embeds what is missing")
    one.add_argument("--checkpoint", required=True, help="an increment-XX folder, or a Hub id")
    one.add_argument("--attributes", nargs="+", help="only these; default: all of the checkpoint")
    add_source_flags(one)
    add_fill_flags(one)
    add_backend_flags(one)

    one = verb("add", "embed new photos; one with an id that is there takes the old one's place")
    one.add_argument("--checkpoint", help="default: the one that was used last and fits")
    one.add_argument("--keep_present", action="store_true", help="leave photos alone whose ids are there")
    add_source_flags(one)
    add_fill_flags(one)

    one = verb("remove", "remove items from every space")
    one.add_argument("--ids", nargs="+", help="of items")
    one.add_argument("--ids_file", type=Path, help="text file, an id a line")

    one = verb("search", "find items like a photo or an item, in some attributes, or by a caption", _SCORE)
    _add_search_flags(one)

    one = verb("reindex", "take up a new checkpoint, and say what becomes of the old vectors")
    one.add_argument("--checkpoint", required=True, help="an increment-XX folder, or a Hub id")
    one.add_argument("--policy", required=True, choices=("full", "none", "new_only", "drift_compensated"),
                     help="embed every photo again | search old vectors as they are | only new spaces, refuse changed "
                     "ones | map queries to the old vectors")  # fmt: skip
    one.add_argument("--drift_map", choices=("procrustes", "mean_drift"), default="procrustes", help="of the queries")
    one.add_argument("--mix", type=float, default=1.0, help="1: mapped queries, 0: as they are, between on the sphere")
    one.add_argument("--calibration", type=int, default=500, help="photos that are embedded again for the drift map")
    one.add_argument("--switch", action="store_true", help="full: switch when all is embedded")
    one.add_argument(
        "--allow_pending", action="store_true", help="switch also where photos are not to be had any more"
    )
    add_source_flags(one)
    add_fill_flags(one)

    one = verb("backfill", "give old items their vectors in new spaces, or go on with a full reindex")
    one.add_argument("--checkpoint", help="a new one opens its new spaces; default: the one that was used last")
    add_source_flags(one)
    add_fill_flags(one)

    one = verb("switch", "make what was built answer, all of it at one moment")
    one.add_argument("--allow_pending", action="store_true", help="also where items are missing in it")
    verb("roll_back", "undo the last switch")
    one = verb("drop", "give up a revision that does not answer, and its vectors")
    one.add_argument("--revision", required=True, help="its name in `info`")
    one = verb("info", "what the catalogue consists of", _INFO)
    one.add_argument("--json", action="store_true", help="everything, as JSON")
    one = verb("export", "write the entries as Parquet, for other stores")
    one.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    one.add_argument("--attributes", nargs="+", help="or spaces; default: all")
    return found


def _add_search_flags(one: argparse.ArgumentParser) -> None:
    from ..catalogue.searching import DISTINCT_COSINE

    query = one.add_mutually_exclusive_group(required=True)
    query.add_argument("--image", type=Path, help="photo to search by")
    query.add_argument("--item", help="or id of an item, which is left out of its own results")
    query.add_argument("--text", help="or a caption; needs a catalogue of a text-image checkpoint")
    one.add_argument("--attributes", nargs="+", help="to be alike in, or spaces; default: all")
    one.add_argument("--weights", nargs="+", type=float, help="one an attribute; default: 1 each")
    one.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE",
                     help="only such items; of several values of one column any will do; colour is also "
                     "attributes.colour")  # fmt: skip
    one.add_argument("--exclude", nargs="+", help="ids never to be found")
    one.add_argument("--include_self", action="store_true", help="let --item find itself")
    one.add_argument("--distinct", nargs="?", const=str(DISTINCT_COSINE), metavar="COSINE",
                     help="of near-duplicates only the best: mean cosine over all spaces above this (alone: "
                     f"{DISTINCT_COSINE}), or SPACE:COSINE")  # fmt: skip
    one.add_argument("--k", type=int, default=10, help="results")
    one.add_argument("--checkpoint", help="that embeds the query; default: the one that was used last and fits")
    one.add_argument("--json", action="store_true", help="JSON instead of a table")
    one.add_argument("--picture", type=Path, help="PNG of the query and what was found")
