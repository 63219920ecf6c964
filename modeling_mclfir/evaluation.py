# SPDX-License-Identifier: Apache-2.0
"""Evaluation (floor 5): embed query and gallery, rank, score every attribute seen so far."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from .data.augmentation import Augmentation
from .data.increments import Increment, gallery_rows, select_rows
from .data.sides import search_sides
from .data.table import ImageTable
from .metrics import (
    average_precision,
    average_precision_by_relevance,
    count_relevant,
    expected_average_precision,
    label_prior,
    mean_over_queries,
    triplet_accuracy,
)
from .training.feature_cache import FeatureCache, load_pixels


@dataclass
class Side:
    """One side of the search: its rows, and their shared features where they were cached."""

    table: ImageTable
    features: np.ndarray | None


class Evaluator:
    """
    Scores a model on query against gallery, or on val; where both sides are one, each image is left out of its own
    ranking.

    Args:
        tables: split → table.
        evaluate_on: "query" or "val"; see `search_sides`.
        triplets: attribute → (T, 3), rows of the queries and then of the gallery (of the one table, where both are
            one): anchor, positive, negative.

    Raises:
        ValueError: another `evaluate_on`.
    """

    primary_metric = "mean_average_precision"
    greater_is_better = True

    def __init__(
        self,
        tables: dict[str, ImageTable],
        evaluate_on: str,
        processor,
        cache: FeatureCache | None,
        accelerator: Accelerator,
        batch_size: int = 64,
        triplets: dict[str, np.ndarray] | None = None,
    ):
        self.tables = search_sides(tables, evaluate_on)
        self.same_side = self.tables[0] is self.tables[1]
        self.triplets = triplets or {}
        self.processor, self.cache, self.accelerator, self.batch_size = processor, cache, accelerator, batch_size

    def prepare(self, model) -> list[Side]:
        """Both sides, with the shared features of the model's trunk cached where the cap allows (once a trunk)."""
        sides = []
        for table in self.tables[:1] if self.same_side else self.tables:
            features = None
            if self.cache is not None and not model.mclfir.units.opaque:
                features = self.cache.open(
                    model, self.processor, table, 0, self.accelerator,
                    augmentation=Augmentation(), seed=0, dtype="float32",
                )  # fmt: skip
            sides.append(Side(table, features))
        return sides * 2 if self.same_side else sides

    @torch.no_grad()
    def embed(self, model, side: Side, increment_id: int | None, pooled: bool = False) -> torch.Tensor:
        """
        Embeddings of every row, (N, A, D) on the CPU: of one increment's attributes, or (None) of all.

        With `pooled`, the trunk's pooled features as they are, (N, 1, C): what a model without heads would rank by.
        """
        model.eval()
        # Every process embeds everything: batches of the same shape give the same bits, whoever computes them.
        found = []
        starts = range(0, len(side.table), self.batch_size)
        progress = tqdm(starts, desc=f"embedding {side.table.split}", unit="batch", leave=False,
                        disable=not self.accelerator.is_main_process)  # fmt: skip
        for start in progress:
            rows = range(start, min(start + self.batch_size, len(side.table)))
            inputs = self._inputs(model, side, rows)
            if pooled:
                found.append(model.mclfir(**inputs, increment_id=increment_id).pooled[:, None].float().cpu())
            else:
                found.append(model(**inputs, increment_id=increment_id).embeds.float().cpu())
        return torch.cat(found)

    def _inputs(self, model, side: Side, rows: range) -> dict[str, torch.Tensor]:
        device = self.accelerator.device
        if side.features is not None:
            block = torch.from_numpy(np.array(side.features[rows.start : rows.stop]))
            return {"shared_features": block.to(device)}
        pixels = load_pixels(side.table, rows, 0, self.processor, Augmentation(), 0)
        return {"pixel_values": pixels.to(device)}

    def score(self, sides: list[Side], embeds: list[torch.Tensor], increment: Increment) -> list[dict]:
        """
        One row of the report an attribute of the increment; `embeds` of both sides are (N, A, D), or (N, 1, C) for
        one vector that serves all attributes. Queries are rows of the increment; see `gallery_rows` for the others.

        Raises:
            ValueError: embeds of other attributes than the increment's, or none labelled on one of the sides.
        """
        num_attributes = len(increment.attributes)
        for side, vectors in zip(sides, embeds, strict=True):
            if vectors.ndim != 3 or len(vectors) != len(side.table) or vectors.shape[1] not in (1, num_attributes):
                raise ValueError(
                    f"embeds of {side.table.split} must be ({len(side.table)}, {num_attributes} or 1, D) for "
                    f"increment {increment.name!r}; got {tuple(vectors.shape)}."
                )
        kept = [select_rows(increment, sides[0].table), gallery_rows(increment, sides[1].table)]
        rows = []
        for position, attribute in enumerate(increment.attributes):
            labels = [torch.from_numpy(side.table.labels(attribute))[kept[i]] for i, side in enumerate(sides)]
            position = min(position, embeds[0].shape[1] - 1)
            row = {"increment": increment.name, "attribute": attribute}
            if len(self.triplets.get(attribute, ())):
                every = [side[:, position] for side in embeds[: 1 if self.same_side else 2]]
                row |= _score_triplets(torch.cat(every), torch.from_numpy(self.triplets[attribute]))
            vectors = [embeds[i][kept[i], position] for i in range(2)]
            known = [label >= 0 for label in labels]
            labels = [label[mask] for label, mask in zip(labels, known, strict=True)]
            vectors = [vector[mask] for vector, mask in zip(vectors, known, strict=True)]
            ids = {}
            if self.same_side:
                numbers = [torch.from_numpy(rows)[mask] for rows, mask in zip(kept, known, strict=True)]
                ids = dict(zip(("query_ids", "gallery_ids"), numbers, strict=True))
            empty = [side.table.split for side, label in zip(sides, labels, strict=True) if not len(label)]
            if empty and "triplet_accuracy" in row:
                rows.append(row | _NOT_RANKED)
                continue
            if empty:
                raise ValueError(
                    f"Attribute {attribute!r} of increment {increment.name!r} has no labelled image in split "
                    f"{empty[0]!r}, so it cannot be scored. Leave it out of increments.json, or add images."
                )
            row |= _score_attribute(vectors, labels, ids)
            if sides[1].table.tags is not None:
                tagged = _tagged(sides[1].table, attribute, kept[1][known[1].numpy()])
                row |= _score_tags(vectors, tagged[labels[0]], ids)
            rows.append(row)
        return rows


# An attribute that is known by triplets alone.
_NOT_RANKED = {
    "mean_average_precision": float("nan"), "random_ranking": float("nan"), "prior": float("nan"),
    "gain_over_random": float("nan"), "num_queries": 0, "num_queries_without_positives": 0, "num_gallery": 0,
    "num_values": 0,
}  # fmt: skip


def _score_triplets(vectors: torch.Tensor, triplets: torch.Tensor) -> dict:
    parts = triplets.split(10_000)
    scores = [triplet_accuracy(*(vectors[rows] for rows in part.T)) for part in parts]
    return {
        "triplet_accuracy": float(np.average(scores, weights=[len(part) for part in parts])),
        "num_triplets": len(triplets),
    }


def _tagged(table: ImageTable, attribute: str, rows: np.ndarray) -> torch.Tensor:
    """(values, rows) bool: which of the rows have which value of the attribute among all their tags."""
    places = {f"{attribute}={value}": place for place, value in enumerate(table.values(attribute))}
    tagged = torch.zeros(len(places), len(rows), dtype=torch.bool)
    for column, row in enumerate(rows):
        for tag in table.tags[row] or ():
            if tag in places:
                tagged[places[tag], column] = True
    return tagged


def _score_tags(vectors: list[torch.Tensor], relevant: torch.Tensor, ids: dict) -> dict:
    """The same ranking judged by all tags of an image, not by the one that it is labelled with."""
    precision = average_precision_by_relevance(*vectors, relevant, **ids)
    gallery = torch.full((len(relevant),), relevant.shape[1])
    if ids:  # an image is not among its own results
        itself = ids["query_ids"][:, None] == ids["gallery_ids"]
        relevant, gallery = relevant & ~itself, gallery - itself.sum(1)
    random_ranking = mean_over_queries(expected_average_precision(relevant.sum(1), gallery))
    return {
        "mean_average_precision_all_tags": mean_over_queries(precision),
        "random_ranking_all_tags": random_ranking,
    }


def _score_attribute(vectors: list[torch.Tensor], labels: list[torch.Tensor], ids: dict) -> dict:
    precision = average_precision(*vectors, *labels, **ids)
    relevant, gallery = count_relevant(*labels, **ids)
    score = mean_over_queries(precision)
    random_ranking = mean_over_queries(expected_average_precision(relevant, gallery))
    return {
        "mean_average_precision": score,
        "random_ranking": random_ranking,
        "prior": mean_over_queries(label_prior(*labels, **ids)),
        "gain_over_random": (score - random_ranking) / (1 - random_ranking) if random_ranking < 1 else 0.0,
        "num_queries": len(precision),
        "num_queries_without_positives": int(precision.isnan().sum()),
        "num_gallery": len(labels[1]),
        "num_values": len(torch.unique(labels[1])),
    }


def summarise(rows: list[dict]) -> dict:
    """
    Means over attributes, unweighted, of the rows of `Evaluator.score`; beside them the mean weighted by queries
    (as ASEN's code prints it) and, over increments, the mean of their means. Where there are triplets, the accuracy
    over all of them; where there are tags, the means by all tags. 0–1.
    """
    pooled = {}
    triplets = [row for row in rows if "triplet_accuracy" in row]
    if triplets:
        accuracies, counts = [row["triplet_accuracy"] for row in triplets], [row["num_triplets"] for row in triplets]
        pooled["triplet_accuracy"] = float(np.average(accuracies, weights=counts))
    # An attribute that no query has a positive for has no score (NaN) and takes no part in the means.
    rows = [row for row in rows if row["num_queries"] > row["num_queries_without_positives"]]
    if not rows and pooled:
        return pooled
    if not rows:
        raise ValueError("No attribute has a query with a positive in the gallery; there is nothing to score.")
    for name in ("mean_average_precision_all_tags", "random_ranking_all_tags"):
        if all(name in row for row in rows):
            pooled[name] = float(np.mean([row[name] for row in rows]))
    numbers = ("mean_average_precision", "random_ranking", "prior", "gain_over_random")
    summary = {name: float(np.mean([row[name] for row in rows])) for name in numbers}
    summary["gain_over_prior"] = float(
        np.mean([(row["mean_average_precision"] - row["prior"]) / max(1 - row["prior"], 1e-9) for row in rows])
    )
    scored = [row["num_queries"] - row["num_queries_without_positives"] for row in rows]
    total = sum(row["mean_average_precision"] * count for row, count in zip(rows, scored, strict=True))
    # Here a query without a positive counts as 0, as in the papers' code.
    summary["mean_average_precision_by_queries"] = float(total / sum(row["num_queries"] for row in rows))
    names = dict.fromkeys(row["increment"] for row in rows)
    groups = [[row["mean_average_precision"] for row in rows if row["increment"] == name] for name in names]
    summary["mean_average_precision_by_increments"] = float(np.mean([np.mean(group) for group in groups]))
    return summary | pooled


def mean_score(rows: list[dict]) -> float:
    """
    Mean over attributes of MAP, 0–1: an entry a[i][j] of the score matrix. Where attributes are known by triplets
    alone, the share of triplets in the right order, of all that there are.
    """
    summary = summarise(rows)
    return summary.get("mean_average_precision", summary.get("triplet_accuracy"))
