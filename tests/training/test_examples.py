# SPDX-License-Identifier: Apache-2.0
"""What some queries find, with a small real model on a small drawn table."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_tables import INCREMENTS, VALUES, embed, make_evaluator

from modeling_mclfir.metrics import average_precision
from modeling_mclfir.training.examples import retrieval_examples


@pytest.fixture(scope="module", params=["query", "val"])
def found(request, tables, model):
    """(evaluator, sides, embeds, examples) where query and gallery differ, and where they are the same."""
    evaluator = make_evaluator(tables, request.param)
    sides = evaluator.prepare(model)
    embeds = embed(model, evaluator, sides)
    return evaluator, sides, embeds, retrieval_examples(model, evaluator, sides, embeds, INCREMENTS)


def test_retrieval_examples_follow_the_metric(found):
    evaluator, sides, embeds, examples = found
    assert len(examples) == 8
    assert {example["attribute"] for example in examples} == set(VALUES)
    places = [["cut", "surface"].index(example["increment"]) for example in examples]
    assert places == sorted(places)
    for example in examples:
        assert example["num_relevant"] > 0
        assert len(example["results"]) == 5
        assert all(r["correct"] == (r["value"] == example["value"]) for r in example["results"])
        scores = [result["score"] for result in example["results"]]
        assert scores == sorted(scores, reverse=True)


def test_photos_are_those_of_their_rows(found):
    _, sides, _, examples = found
    for example in examples:
        for side, shown in zip(sides, ([example], example["results"]), strict=True):
            values = side.table.values(example["attribute"])
            labels = side.table.labels(example["attribute"])
            photos = {side.table.image(row).tobytes(): labels[row] for row in range(len(side.table))}
            assert [values[photos[entry["image"].tobytes()]] for entry in shown] == [entry["value"] for entry in shown]


def test_full_ranking_gives_the_average_precision_of_the_metric(found, model):
    evaluator, sides, embeds, _ = found
    examples = retrieval_examples(model, evaluator, sides, embeds, INCREMENTS, num_queries=6, k=1000)
    for example in examples:
        hits = np.array([result["correct"] for result in example["results"]])
        assert len(hits) == example["num_gallery"] and hits.sum() == example["num_relevant"]
        precision = (hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean()
        increment = next(i for i in INCREMENTS if i.name == example["increment"])
        position = increment.attributes.index(example["attribute"])
        labels = [torch.from_numpy(side.table.labels(example["attribute"])) for side in sides]
        known = [label >= 0 for label in labels]
        vectors = [embeds[increment.name][i][known[i], position] for i in range(2)]
        labels = [label[mask] for label, mask in zip(labels, known, strict=True)]
        number = torch.arange(len(labels[0]))
        ids = {"query_ids": number, "gallery_ids": number} if evaluator.same_side else {}
        same_value = labels[0] == VALUES[example["attribute"]].index(example["value"])
        expected = average_precision(*vectors, *labels, **ids)[same_value]
        assert np.abs(expected.numpy() - precision).min() < 1e-9


def test_query_is_left_out_of_its_own_ranking(tables, model):
    evaluator = make_evaluator(tables, "val")
    sides = evaluator.prepare(model)
    examples = retrieval_examples(model, evaluator, sides, embed(model, evaluator, sides), INCREMENTS, k=1000)
    for example in examples:
        # Without the query there is one labelled image less.
        assert len(example["results"]) == (tables["val"].labels(example["attribute"]) >= 0).sum() - 1


def test_examples_are_the_same_every_time(found, model):
    evaluator, sides, embeds, examples = found
    again = retrieval_examples(model, evaluator, sides, embeds, INCREMENTS)
    assert [strip(example) for example in again] == [strip(example) for example in examples]


def strip(example: dict) -> tuple:
    return example["attribute"], example["value"], example["image"].tobytes(), str(example["results"][0]["score"])


def test_missing_embeds_are_made_by_the_model(found, model):
    evaluator, sides, embeds, examples = found
    again = retrieval_examples(model, evaluator, sides, {"surface": embeds["surface"]}, INCREMENTS)
    assert [strip(example) for example in again] == [strip(example) for example in examples]


def test_no_more_queries_than_there_are(tables, model):
    few = tables | {"query": tables["query"].select([0, 1])}
    evaluator = make_evaluator(few)
    sides = evaluator.prepare(model)
    examples = retrieval_examples(model, evaluator, sides, {}, INCREMENTS)
    assert 0 < len(examples) <= 2


def test_queries_without_relevant_images_are_not_shown(tables, model):
    # One gallery image: only its values can be asked for.
    row = int(np.flatnonzero(tables["gallery"].labels("neck") == 1)[0])
    one = tables | {"gallery": tables["gallery"].select([row])}
    evaluator = make_evaluator(one)
    for example in retrieval_examples(model, evaluator, evaluator.prepare(model), {}, INCREMENTS):
        assert [result["correct"] for result in example["results"]] == [True]


def test_one_vector_for_all_attributes(tables, model):
    evaluator = make_evaluator(tables)
    sides = evaluator.prepare(model)
    pooled = {"cut": tuple(torch.randn(len(side.table), 1, 6) for side in sides)}
    examples = retrieval_examples(SimpleNamespace(), evaluator, sides, pooled, INCREMENTS[:1])
    assert {example["attribute"] for example in examples} == {"sleeve", "neck"}
