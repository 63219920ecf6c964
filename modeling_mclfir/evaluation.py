# SPDX-License-Identifier: Apache-2.0
"""Evaluation (floor 5): embed query and gallery, rank, score every attribute seen so far."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from .data.augmentation import Augmentation
from .data.increments import Increment, select_rows
from .data.table import ImageTable
from .metrics import average_precision, count_relevant, expected_average_precision, label_prior, mean_over_queries
from .training.feature_cache import FeatureCache, load_pixels


@dataclass
class Side:
    """One side of the search: its rows, and their shared features where they were cached."""

    table: ImageTable
    features: np.ndarray | None


class Evaluator:
    """
    Scores a model on query against gallery, or on val against itself (each image left out of its own ranking).

    Args:
        tables: split → table.
        evaluate_on: "query" or "val".

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
    ):
        if evaluate_on not in ("query", "val"):
            raise ValueError(f"evaluate_on must be 'query' or 'val'; got {evaluate_on!r}.")
        names = ("query", "gallery") if evaluate_on == "query" else ("val", "val")
        self.tables = tables[names[0]], tables[names[1]]
        self.same_side = names[0] == names[1]
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
        one vector that serves all attributes. Rows outside the increment (of new values) take no part.

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
        kept = [select_rows(increment, side.table) for side in sides]
        rows = []
        for position, attribute in enumerate(increment.attributes):
            labels = [torch.from_numpy(side.table.labels(attribute))[kept[i]] for i, side in enumerate(sides)]
            position = min(position, embeds[0].shape[1] - 1)
            vectors = [embeds[i][kept[i], position] for i in range(2)]
            known = [label >= 0 for label in labels]
            labels = [label[mask] for label, mask in zip(labels, known, strict=True)]
            vectors = [vector[mask] for vector, mask in zip(vectors, known, strict=True)]
            ids = {}
            if self.same_side:
                number = torch.arange(len(labels[0]))
                ids = {"query_ids": number, "gallery_ids": number}
            empty = [side.table.split for side, label in zip(sides, labels, strict=True) if not len(label)]
            if empty:
                raise ValueError(
                    f"Attribute {attribute!r} of increment {increment.name!r} has no labelled image in split "
                    f"{empty[0]!r}, so it cannot be scored. Leave it out of increments.json, or add images."
                )
            rows.append({"increment": increment.name, "attribute": attribute} | _score_attribute(vectors, labels, ids))
        return rows


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
    (as ASEN's code prints it) and, over increments, the mean of their means. 0–1.
    """
    # An attribute that no query has a positive for has no score (NaN) and takes no part in the means.
    rows = [row for row in rows if row["num_queries"] > row["num_queries_without_positives"]]
    if not rows:
        raise ValueError("No attribute has a query with a positive in the gallery; there is nothing to score.")
    numbers = ("mean_average_precision", "random_ranking", "prior", "gain_over_random")
    summary = {name: float(np.mean([row[name] for row in rows])) for name in numbers}
    summary["gain_over_prior"] = float(
        np.mean([(row["mean_average_precision"] - row["prior"]) / max(1 - row["prior"], 1e-9) for row in rows])
    )
    counts = [row["num_queries"] - row["num_queries_without_positives"] for row in rows]
    scores = [row["mean_average_precision"] for row in rows]
    summary["mean_average_precision_by_queries"] = float(np.average(scores, weights=counts))
    names = dict.fromkeys(row["increment"] for row in rows)
    groups = [[row["mean_average_precision"] for row in rows if row["increment"] == name] for name in names]
    summary["mean_average_precision_by_increments"] = float(np.mean([np.mean(group) for group in groups]))
    return summary


def mean_score(rows: list[dict]) -> float:
    """Mean over attributes of MAP, 0–1: an entry a[i][j] of the score matrix."""
    return summarise(rows)["mean_average_precision"]
