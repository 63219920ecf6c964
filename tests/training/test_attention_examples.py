# SPDX-License-Identifier: Apache-2.0
"""Heat maps' content: where a small real model looks, and what the gallery takes the photos for."""

import numpy as np
import pytest
import torch
from drawn_tables import INCREMENTS, VALUES, embed, make_evaluator, make_model

from modeling_mclfir.data.increments import Increment
from modeling_mclfir.modeling_mclfir import HEADS
from modeling_mclfir.training.attention_examples import Voters, attention_examples, has_spatial_attention, photo_maps

EVERYWHERE = [("cut", "sleeve"), ("cut", "neck"), ("surface", "colour")]


def examples_of(tables, model, evaluate_on="query", increments=INCREMENTS, **settings):
    """(evaluator, sides, embeds, examples)"""
    evaluator = make_evaluator(tables, evaluate_on)
    sides = evaluator.prepare(model)
    embeds = embed(model, evaluator, sides, increments)
    return evaluator, sides, embeds, attention_examples(model, evaluator, sides, embeds, increments, **settings)


def rows_of(examples, table) -> list[int]:
    """The row that each example shows: a small photo is its own thumbnail."""
    photos = [table.image(row).tobytes() for row in range(len(table))]
    assert len(set(photos)) == len(photos)
    return [photos.index(example["image"].tobytes()) for example in examples]


def slow_prediction(query, gallery, labels, values, k=20, temperature=0.1):
    """(value, confidence, chance) of numpy's float64; items with a label below 0 do not vote."""
    gallery, labels = gallery[labels >= 0], labels[labels >= 0]
    cosines = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
    nearest = np.argsort(-cosines)[:k]
    weights = np.exp(cosines[nearest] / temperature)
    votes = [weights[labels[nearest] == code].sum() / weights.sum() for code in range(len(values))]
    best = int(np.argmax(votes))
    return values[best], votes[best], (labels == best).mean()


@pytest.mark.parametrize("evaluate_on", ["query", "val"])
def test_predictions_equal_a_slow_vote_without_the_photo_itself(tables, model, evaluate_on):
    evaluator, sides, embeds, examples = examples_of(tables, model, evaluate_on, num_images=8)
    assert evaluator.same_side == (evaluate_on == "val") and len(examples) == 8
    judged = []
    for row, example in zip(rows_of(examples, sides[0].table), examples, strict=True):
        assert [(entry["increment"], entry["attribute"]) for entry in example["maps"]] == EVERYWHERE
        for entry in example["maps"]:
            increment = next(some for some in INCREMENTS if some.name == entry["increment"])
            place = increment.attributes.index(entry["attribute"])
            query, gallery = (side[:, place].double().numpy() for side in embeds[increment.name])
            labels = sides[1].table.labels(entry["attribute"]).copy()
            if evaluate_on == "val":
                labels[row] = -1
            values = VALUES[entry["attribute"]]
            value, confidence, chance = slow_prediction(query[row], gallery, labels, values)
            assert entry["predicted"] == value
            assert entry["confidence"] == pytest.approx(confidence, abs=1e-4)
            assert entry["chance"] == pytest.approx(chance, abs=1e-6)
            label = sides[0].table.labels(entry["attribute"])[row]
            assert entry["value"] == (None if label < 0 else values[label])
            assert entry["correct"] == (None if label < 0 else values[label] == value)
            judged.append(entry["correct"])
    assert {True, False} <= set(judged)


def test_no_photo_votes_on_itself(tables, model):
    # Two photos of different values: each can only be taken for the other.
    neck = tables["val"].labels("neck")
    pair = [int(np.flatnonzero(neck == code)[0]) for code in (0, 1)]
    both = tables["val"].select(pair)
    _, _, _, examples = examples_of(tables | {"val": both}, model, "val")
    found = {row: example["maps"][1] for row, example in zip(rows_of(examples, both), examples, strict=True)}
    assert [found[row]["predicted"] for row in (0, 1)] == ["v", "round"]
    assert all(found[row]["correct"] is False and found[row]["confidence"] == 1 for row in (0, 1))


def test_on_new_values_all_of_the_gallery_votes_and_their_own_photos_are_judged(tables):
    model = make_model()
    model.add_increment("reds", ["colour"], new_values=True)
    model.eval()
    reds = Increment("reds", ("colour",), values=("red",), new_values=True)
    _, sides, _, examples = examples_of(tables, model, increments=[*INCREMENTS, reds], num_images=12)
    assert len(examples) == 12
    table = sides[0].table
    for row, example in zip(rows_of(examples, table), examples, strict=True):
        old, new = example["maps"][2:]
        assert (old["increment"], new["increment"]) == ("surface", "reds") and old["attribute"] == new["attribute"]
        assert new["predicted"] in VALUES["colour"] and new["chance"] < 1
        is_red = table.labels("colour")[row] == VALUES["colour"].index("red")
        assert (new["value"], new["correct"]) == (("red", new["predicted"] == "red") if is_red else (None, None))
        assert not np.allclose(old["attention"], new["attention"], atol=1e-7)
    for place in (2, 3):
        assert {example["maps"][place]["predicted"] for example in examples} == {"$blue$", "red"}


def test_without_a_label_nothing_is_judged(tables, model):
    query = tables["query"]
    unlabelled = query.select(np.flatnonzero(query.labels("neck") < 0))
    _, _, _, examples = examples_of(tables | {"query": unlabelled}, model)
    for example in examples:
        entry = example["maps"][1]
        assert entry["predicted"] in VALUES["neck"] and entry["value"] is None and entry["correct"] is None


def test_a_gallery_without_labels_votes_for_nothing(tables, model):
    gallery = tables["gallery"]
    unlabelled = gallery.select(np.flatnonzero(gallery.labels("neck") < 0))
    _, sides, _, examples = examples_of(tables | {"gallery": unlabelled}, model, num_images=12)
    entries = [example["maps"][1] for example in examples]
    assert {(entry["predicted"], entry["confidence"], entry["correct"]) for entry in entries} == {(None, 0.0, None)}
    assert any(entry["value"] is not None for entry in entries)


def test_what_is_embedded_is_not_embedded_again(tables, model, monkeypatch):
    evaluator = make_evaluator(tables)
    sides = evaluator.prepare(model)
    embeds = embed(model, evaluator, sides)
    embedded = []
    whole = evaluator.embed
    monkeypatch.setattr(evaluator, "embed", lambda *given: embedded.append(given[2]) or whole(*given))
    expected = attention_examples(model, evaluator, sides, embeds, INCREMENTS)
    assert embedded == []
    again = attention_examples(model, evaluator, sides, {"cut": embeds["cut"]}, INCREMENTS)
    assert embedded == [1, 1]  # what is missing, on both sides
    for one, two in zip(expected, again, strict=True):
        for first, second in zip(one["maps"], two["maps"], strict=True):
            assert first["predicted"] == second["predicted"]


def test_photos_and_maps(tables, model):
    _, sides, _, examples = examples_of(tables, model, num_images=3)
    assert len(examples) == 3
    for row, example in zip(rows_of(examples, sides[0].table), examples, strict=True):
        assert example["image"].size in ((40, 60), (70, 50))  # the photo's own aspect, not the model's
        pixels = make_evaluator(tables).processor(sides[0].table.image(row), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixel_values=pixels, output_attentions=True).attentions[0].numpy()
        for entry, attention in zip(example["maps"], expected, strict=True):
            assert entry["attention"].ndim == 2
            assert entry["attention"].sum() == pytest.approx(1, abs=1e-4)
            np.testing.assert_allclose(entry["attention"], attention, atol=1e-5)


def test_increments_that_the_model_does_not_know_take_no_part(tables, model):
    later = Increment("later", ("colour",))
    evaluator, sides, embeds, _ = examples_of(tables, model)
    examples = attention_examples(model, evaluator, sides, embeds, [*INCREMENTS, later])
    assert [(entry["increment"], entry["attribute"]) for entry in examples[0]["maps"]] == EVERYWHERE


def test_one_vector_for_all_attributes(tables, model):
    evaluator = make_evaluator(tables)
    sides = evaluator.prepare(model)
    generator = torch.Generator().manual_seed(3)
    pooled = tuple(3 * torch.randn(len(side.table), 1, 6, generator=generator) for side in sides)
    examples = attention_examples(model, evaluator, sides, {"cut": pooled}, INCREMENTS[:1])
    query, gallery = (side[:, 0].double().numpy() for side in pooled)
    for row, example in zip(rows_of(examples, sides[0].table), examples, strict=True):
        for entry in example["maps"]:
            labels = sides[1].table.labels(entry["attribute"])
            expected = slow_prediction(query[row], gallery, labels, VALUES[entry["attribute"]])
            assert entry["predicted"] == expected[0]
            assert entry["confidence"] == pytest.approx(expected[1], abs=1e-4)


def test_the_vote_is_as_asked_for():
    generator = torch.Generator().manual_seed(1)
    gallery, queries = torch.randn(7, 8, generator=generator), torch.randn(3, 8, generator=generator)
    voters = Voters("cut", "neck", 1, gallery, torch.tensor([0, 1, 0, -1, 1, 1, 0]), ("round", "v"))
    attentions = torch.rand(3, 1, 2, 2, generator=generator)
    for k, temperature in ((1, 0.1), (3, 0.5)):
        for photo, maps in enumerate(photo_maps(attentions, [queries], [voters], k=k, temperature=temperature)):
            known = gallery.double().numpy(), voters.labels.numpy(), voters.values
            expected = slow_prediction(queries[photo].double().numpy(), *known, k, temperature)
            assert maps[0]["predicted"] == expected[0]
            assert (maps[0]["confidence"], maps[0]["chance"]) == pytest.approx(expected[1:], abs=1e-5)
            assert np.array_equal(maps[0]["attention"], attentions[photo, 0].numpy())


@pytest.mark.parametrize("head_type", list(HEADS))
def test_no_maps_where_the_heads_have_no_spatial_attention(tables, head_type):
    attentive = head_type not in ("linear", "csn", "closed_form")
    for settings in ({}, {"use_spatial_attention": False})[: 1 + attentive]:
        model = make_model(head_type=head_type, **settings)
        with torch.no_grad():
            attentions = model(torch.zeros(1, 3, 48, 32), output_attentions=True).attentions
        assert has_spatial_attention(model) == (attentions is not None) == (attentive and not settings)
        assert bool(examples_of(tables, model, num_images=1)[-1]) == (attentive and not settings)
