# SPDX-License-Identifier: Apache-2.0
"""The evaluator against a slow loop over its definition, on tables that live in memory."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from modeling_mclfir import MclfirImageProcessor
from modeling_mclfir.data.increments import Increment
from modeling_mclfir.evaluation import Evaluator, mean_score, summarise

COLOURS = ("blue", "green", "red")
SHAPE = Increment("shape", ("colour", "hem"))


class Table:
    """What the evaluator needs of an `ImageTable`."""

    attributes = ("colour", "hem", "season")

    def __init__(self, split: str, num_rows: int, seed: int):
        rng = np.random.default_rng(seed)
        self.split = split
        self.codes = {
            "colour": rng.integers(-1, 3, num_rows),
            "hem": rng.integers(-1, 2, num_rows),
            "season": rng.integers(0, 2, num_rows),
        }
        self.image_ids = np.arange(num_rows)
        self._pixels = rng.integers(0, 256, (num_rows, 64, 64, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.image_ids)

    def labels(self, attribute):
        return self.codes[attribute].astype(np.int64)

    def values(self, attribute):
        return {"colour": COLOURS, "hem": ("long", "short"), "season": ("summer", "winter")}[attribute]

    def image(self, index):
        return Image.fromarray(self._pixels[index])


@pytest.fixture
def tables():
    sizes = {"query": 13, "gallery": 29, "val": 21}
    return {split: Table(split, size, seed) for seed, (split, size) in enumerate(sizes.items())}


def evaluator_of(tables, evaluate_on="query", batch_size=8):
    processor = MclfirImageProcessor(size={"height": 64, "width": 64})
    return Evaluator(tables, evaluate_on, processor, None, Accelerator(cpu=True), batch_size)


def embeds_of(table, num_attributes=2, seed=0):
    return torch.randn(len(table), num_attributes, 6, generator=torch.Generator().manual_seed(seed + len(table)))


def slow_scores(queries, gallery, query_labels, gallery_labels, leave_out=False) -> dict:
    """MAP, the expected AP of a random order and the prior, one query and one place at a time."""
    precisions, priors, num_queries, without = [], [], 0, 0
    for q, query in enumerate(queries):
        if query_labels[q] < 0:
            continue
        num_queries += 1
        others = [g for g in range(len(gallery)) if gallery_labels[g] >= 0 and not (leave_out and g == q)]
        scores = [float(torch.cosine_similarity(query.double(), gallery[g].double(), dim=0)) for g in others]
        order = [others[place] for place in np.argsort([-score for score in scores], kind="stable")]
        relevant = [gallery_labels[g] == query_labels[q] for g in order]
        if not any(relevant):
            without += 1
            continue
        hits = [sum(relevant[: place + 1]) / (place + 1) for place, hit in enumerate(relevant) if hit]
        precisions.append(sum(hits) / len(hits))
        priors.append(sum(relevant) / len(relevant))
    return {
        "mean_average_precision": np.mean(precisions),
        "prior": np.mean(priors),
        "num_queries": num_queries,
        "num_queries_without_positives": without,
        "num_gallery": sum(label >= 0 for label in gallery_labels),
    }


def check(row: dict, expected: dict):
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-9), name
    # A random order is a little better than the share of relevant images, and 1 - random is what is left to gain.
    assert row["prior"] <= row["random_ranking"] < 1
    gain = (row["mean_average_precision"] - row["random_ranking"]) / (1 - row["random_ranking"])
    assert row["gain_over_random"] == pytest.approx(gain)


def sides_of(evaluator):
    return evaluator.prepare(SimpleNamespace(mclfir=None))


def test_query_against_gallery_equals_a_slow_loop(tables):
    evaluator = evaluator_of(tables)
    sides = sides_of(evaluator)
    assert [side.table.split for side in sides] == ["query", "gallery"]
    embeds = [embeds_of(side.table) for side in sides]
    rows = evaluator.score(sides, embeds, SHAPE)
    assert [(row["increment"], row["attribute"]) for row in rows] == [("shape", "colour"), ("shape", "hem")]
    for position, row in enumerate(rows):
        labels = [side.table.labels(row["attribute"]).tolist() for side in sides]
        assert min(labels[0]) == min(labels[1]) == -1, "there are nulls on both sides"
        check(row, slow_scores(embeds[0][:, position], embeds[1][:, position], *labels))


def test_val_leaves_each_image_out_of_its_own_ranking(tables):
    evaluator = evaluator_of(tables, "val")
    sides = sides_of(evaluator)
    assert [side.table.split for side in sides] == ["val", "val"]
    embeds = [embeds_of(tables["val"])] * 2
    for position, row in enumerate(evaluator.score(sides, embeds, SHAPE)):
        labels = [tables["val"].labels(row["attribute"]).tolist()] * 2
        vectors = [vector[:, position] for vector in embeds]
        check(row, slow_scores(*vectors, *labels, leave_out=True))
        with_itself = slow_scores(*vectors, *labels)["mean_average_precision"]
        assert row["mean_average_precision"] < with_itself


@pytest.mark.parametrize(
    "increment",
    [
        Increment("winter", ("colour",), where={"season": ("winter",)}, new_values=True),
        Increment("new-colours", ("colour",), values=("green", "red"), new_values=True),
        Increment("not-winter", ("colour",), where_not={"season": ("winter",)}, new_values=True),
    ],
    ids=lambda increment: increment.name,
)
@pytest.mark.parametrize("evaluate_on", ["query", "val"])
def test_increments_of_new_values_are_scored_on_their_own_rows(tables, increment, evaluate_on):
    evaluator = evaluator_of(tables, evaluate_on)
    sides = sides_of(evaluator)
    embeds = [embeds_of(side.table, num_attributes=1) for side in sides]
    row = evaluator.score(sides, embeds, increment)[0]
    kept = []
    for side in sides:
        labels = []
        for index, colour in enumerate(side.table.labels("colour").tolist()):
            season = side.table.values("season")[side.table.codes["season"][index]]
            inside = {
                "winter": season == "winter",
                "new-colours": colour >= 1,
                "not-winter": season != "winter",
            }[increment.name]
            labels.append(colour if inside else -1)
        kept.append(labels)
    assert sum(label < 0 for label in kept[1]) > 5
    check(row, slow_scores(embeds[0][:, 0], embeds[1][:, 0], *kept, leave_out=evaluate_on == "val"))


def test_one_vector_may_serve_all_attributes(tables):
    evaluator = evaluator_of(tables)
    sides = sides_of(evaluator)
    pooled = [embeds_of(side.table, num_attributes=1) for side in sides]
    twice = [vectors.repeat(1, 2, 1) for vectors in pooled]
    assert evaluator.score(sides, pooled, SHAPE) == evaluator.score(sides, twice, SHAPE)


@pytest.mark.parametrize("num_attributes", [3, 5])
def test_embeddings_of_other_attributes_are_refused(tables, num_attributes):
    evaluator = evaluator_of(tables)
    sides = sides_of(evaluator)
    with pytest.raises(ValueError, match="increment 'shape'"):
        evaluator.score(sides, [embeds_of(side.table, num_attributes) for side in sides], SHAPE)


def test_embeddings_of_another_number_of_rows_are_refused(tables):
    evaluator = evaluator_of(tables)
    sides = sides_of(evaluator)
    with pytest.raises(ValueError, match="embeds of gallery"):
        evaluator.score(sides, [embeds_of(sides[0].table), embeds_of(sides[0].table)], SHAPE)


def test_a_side_without_labels_names_the_attribute(tables):
    tables["gallery"].codes["hem"][:] = -1
    evaluator = evaluator_of(tables)
    sides = sides_of(evaluator)
    with pytest.raises(ValueError, match="'hem' of increment 'shape' has no labelled image in split 'gallery'"):
        evaluator.score(sides, [embeds_of(side.table) for side in sides], SHAPE)


def test_only_query_and_val_can_be_evaluated(tables):
    with pytest.raises(ValueError, match="'query' or 'val'; got 'test'"):
        evaluator_of(tables, "test")


@pytest.mark.parametrize("batch_size", [4, 100])
def test_embeds_are_those_of_the_model_in_evaluation_mode(tables, make_model, batch_size):
    model = make_model("resnet")
    model.add_increment("shape", ["colour", "hem"])
    model.add_increment("look", ["season"])
    evaluator = evaluator_of(tables, "val", batch_size)
    side = sides_of(evaluator)[0]
    model.set_trainable(1)
    model.train()
    found = evaluator.embed(model, side, None)
    assert found.shape == (21, 3, 16) and not found.requires_grad
    pixels = torch.cat(
        [evaluator.processor(side.table.image(row), return_tensors="pt")["pixel_values"] for row in range(21)]
    )
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(pixels).embeds, atol=1e-5, rtol=0)
        pooled = evaluator.embed(model, side, None, pooled=True)
        torch.testing.assert_close(pooled[:, 0], model.mclfir(pixels).pooled, atol=1e-5, rtol=1e-5)
    own = evaluator.embed(model, side, 1)
    torch.testing.assert_close(own, found[:, 2:], atol=1e-5, rtol=0)


def test_means_over_attributes_queries_and_increments():
    def row(increment, score, random, prior, queries, without=0):
        return {
            "increment": increment,
            "mean_average_precision": score,
            "random_ranking": random,
            "prior": prior,
            "gain_over_random": (score - random) / (1 - random),
            "num_queries": queries,
            "num_queries_without_positives": without,
        }

    rows = [row("a", 0.8, 0.2, 0.1, 10), row("a", 0.6, 0.5, 0.4, 40, 10), row("b", 0.4, 0.2, 0.2, 40)]
    found = summarise(rows)
    assert found["mean_average_precision"] == mean_score(rows) == pytest.approx(0.6)
    assert found["mean_average_precision_by_queries"] == pytest.approx((8 + 18 + 16) / 80)
    assert found["mean_average_precision_by_increments"] == pytest.approx((0.7 + 0.4) / 2)
    assert found["random_ranking"] == pytest.approx(0.3) and found["prior"] == pytest.approx(0.7 / 3)
    assert found["gain_over_random"] == pytest.approx((0.75 + 0.2 + 0.25) / 3)
    assert found["gain_over_prior"] == pytest.approx((0.7 / 0.9 + 0.2 / 0.6 + 0.2 / 0.8) / 3)
