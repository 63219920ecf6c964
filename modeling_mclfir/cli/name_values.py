# SPDX-License-Identifier: Apache-2.0
"""`mclfir name-values`: values of photos by text alone, scored beside heads that learned the attributes."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from ..data.sides import search_sides
from ..data.table import ImageTable, load_tables
from ..evaluation import Evaluator
from ..training.naming_heads import heads_figures
from ..training.naming_report import mean_row, naming_examples, naming_markdown, plot_names
from ..training.report import write_atomically
from ..value_naming import (
    PROMPT_TEMPERATURE,
    TEMPLATES,
    Embedded,
    ValueNamer,
    constant_figures,
    naming_figures,
    naming_scores,
    retrieval_figures,
    retrieval_scores,
)
from .checkpoint import open_checkpoint, open_text_image_checkpoint


def main(arguments: list[str]) -> None:
    """
    Print how well a text-image model names the values of a data set's photos and finds photos by them; with --output
    report.json, report.md and named_values.png as well.

    Raises:
        FileNotFoundError: no such checkpoint or data set.
        ValueError: a checkpoint of another kind, an unknown attribute or increment, a template without {value}, no
            photo or none with a label.
    """
    args = _parse(arguments)
    tables = load_tables(args.dataset)
    sides = search_sides(tables, args.evaluate_on)
    attributes = _attributes(args.attributes, sides)
    model, processor = open_text_image_checkpoint(args.checkpoint)
    namer = ValueNamer(model, processor, args.template, args.increment, args.prompt_temperature)
    trained = _heads(args, tables, attributes) if args.heads else {}
    rows, scores = _score(namer, sides, attributes, args.batch_size)
    rows = [row | {"heads": trained.get(row["attribute"])} for row in rows]
    report = {
        "checkpoint": args.checkpoint, "dataset": str(args.dataset), "evaluate_on": args.evaluate_on,
        "heads": args.heads, "k": args.k, "temperature": args.temperature, "templates": list(args.template),
        "prompt_temperature": args.prompt_temperature,
        "spaces": [model.config.increment_names[space] for space in namer.spaces], "num_photos": len(sides[0]),
        "num_gallery": len(sides[1]), "attributes": rows, "mean": mean_row(rows),
    }  # fmt: skip
    page = naming_markdown(report)
    sys.stdout.write(page)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output / "report.json", (json.dumps(report, indent=1) + "\n").encode())
        write_atomically(args.output / "report.md", (page + "\n![](named_values.png)\n").encode())
        plot_names(naming_examples(sides[0], scores), args.output / "named_values.png")


def _attributes(wanted: Sequence[str] | None, sides: Sequence[ImageTable]) -> list[str]:
    known = [name for name in sides[0].attributes if all((side.labels(name) >= 0).any() for side in sides)]
    named = [name for name in known if len(sides[0].values(name)) > 1]
    unknown = [name for name in wanted or () if name not in known]
    if unknown or not (wanted or named):
        what = f"labels of {', '.join(unknown)}" if unknown else "attribute with labels of several values"
        raise ValueError(
            f"The photos to be scored have no {what}; they have labels of {', '.join(known) or 'nothing'}."
        )
    return list(dict.fromkeys(wanted or named))


def _score(
    namer: ValueNamer, sides: Sequence[ImageTable], attributes: Sequence[str], batch_size: int
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """A row of the report an attribute; attribute → what every value scores for every photo."""
    photos = namer.embed_table(sides[0], batch_size)
    gallery = photos if sides[0] is sides[1] else namer.embed_table(sides[1], batch_size)
    rows, scores = [], {}
    for attribute in attributes:
        values = sides[0].values(attribute)
        prompts = namer.embed_values(attribute, values)
        labels, theirs = (torch.from_numpy(side.labels(attribute)) for side in sides)
        scores[attribute] = naming_scores(photos, prompts, namer.scales)
        shown = Embedded(*(part[theirs >= 0] for part in gallery))
        retrieval = retrieval_figures(retrieval_scores(prompts, shown, namer.scales), theirs[theirs >= 0])
        by_shares = retrieval_figures(naming_scores(shown, prompts, namer.scales).T, theirs[theirs >= 0])
        retrieval["mean_average_precision_by_shares"] = by_shares["mean_average_precision"]
        known = labels >= 0
        rows.append({
            "attribute": attribute,
            "num_values": len(values),
            "num_photos": int(known.sum()),
            "num_queries": retrieval.pop("num_queries"),
            "num_gallery": int((theirs >= 0).sum()),
            "text": naming_figures(scores[attribute][known], labels[known]),
            "constant": constant_figures(labels[known], len(values)),
            "retrieval": retrieval,
        })  # fmt: skip
    return rows, scores


def _heads(args: argparse.Namespace, tables: Mapping[str, ImageTable], attributes: Sequence[str]) -> dict[str, dict]:
    model, processor = open_checkpoint(args.heads)
    if not set(attributes) & set(model.config.attributes):
        raise ValueError(
            f"--heads {args.heads} has heads of {', '.join(model.config.attributes)}; none of {', '.join(attributes)}."
        )
    accelerator = Accelerator()
    evaluator = Evaluator(tables, args.evaluate_on, processor, None, accelerator, args.batch_size)
    return heads_figures(model.to(accelerator.device), evaluator, attributes, args.k, args.temperature)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mclfir name-values", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("checkpoint", help="an increment-XX folder of text-image retrieval, or a Hub id")
    parser.add_argument("--dataset", required=True, type=Path, help="data set as data_scripts write it")
    parser.add_argument("--attributes", nargs="+", help="only these; default: all that have several values")
    parser.add_argument("--heads", help="checkpoint of attribute retrieval, to compare with")
    parser.add_argument("--evaluate_on", default="query", choices=("query", "val"),
                        help="query: photos of query, gallery beside them. val: its photos are both")  # fmt: skip
    parser.add_argument("--template", nargs="+", default=list(TEMPLATES),
                        help="what is said of a value, with {value}, {attribute}; several are averaged")  # fmt: skip
    parser.add_argument("--increment", help="ask this increment's space alone; default: all, weighed by the routers")
    parser.add_argument("--prompt_temperature", type=float, default=PROMPT_TEMPERATURE,
                        help="of the router of prompts; inf: every value counts alike in every space")  # fmt: skip
    parser.add_argument("--k", type=int, default=20, help="gallery items that vote, with --heads")
    parser.add_argument("--temperature", type=float, default=0.1, help="a vote weighs exp(cosine / temperature)")
    parser.add_argument("--batch_size", type=int, default=64, help="photos at a time")
    parser.add_argument("--output", type=Path, help="folder for report.json, report.md and a picture of some photos")
    return parser.parse_args(arguments)
