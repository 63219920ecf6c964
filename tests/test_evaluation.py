# SPDX-License-Identifier: Apache-2.0
"""The evaluator against a slow loop over its definition, on tables that live in memory."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from modeling_mclfir import MclfirImageProcessor
from modeling_mclfir.data.increments import Increment
from modeling_mclfir.evaluation import Evaluator, mean_score, summarise
from modeling_mclfir.metrics import expected_average_precision

COLOURS = ("blue", "green", "red")
SHAPE = Increment("shape", ("colour", "hem"))


class Table:
    """What the evaluator needs of an `ImageTable`."""

    attributes = ("colour", "hem", "season")
    tags = galleries = None

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

    def select(self, indices):
        part = copy.copy(self)
        part.codes = {name: codes[indices] for name, codes in self.codes.items()}
        part.image_ids, part._pixels = self.image_ids[indices], self._pixels[indices]
        part.tags, part.galleries = (
            None if column is None else [column[index] for index in indices] for column in (self.tags, self.galleries)
        )
        return part


@pytest.fixture
def tables():
    sizes = {"query": 13, "gallery": 29, "val": 21}
    return {split: Table(split, size, seed) for seed, (split, size) in enumerate(sizes.items())}


def evaluator_of(tables, evaluate_on="query", batch_size=8, triplets=None):
    processor = MclfirImageProcessor(size={"height": 64, "width": 64})
    return Evaluator(tables, evaluate_on, processor, None, Accelerator(cpu=True), batch_size, triplets)


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
def test_queries_of_new_values_are_searched_among_the_whole_gallery(tables, increment, evaluate_on):
    evaluator = evaluator_of(tables, evaluate_on)
    sides = sides_of(evaluator)
    embeds = [embeds_of(side.table, num_attributes=1) for side in sides]
    row = evaluator.score(sides, embeds, increment)[0]
    asked, table = [], sides[0].table
    for index, colour in enumerate(table.labels("colour").tolist()):
        season = table.values("season")[table.codes["season"][index]]
        inside = {
            "winter": season == "winter",
            "new-colours": colour >= 1,
            "not-winter": season != "winter",
        }[increment.name]
        asked.append(colour if inside else -1)
    gallery = sides[1].table.labels("colour").tolist()
    assert sum(label < 0 for label in asked) > sum(label < 0 for label in gallery[: len(asked)])
    check(row, slow_scores(embeds[0][:, 0], embeds[1][:, 0], asked, gallery, leave_out=evaluate_on == "val"))


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
    # A query without a positive counts as 0 here.
    assert found["mean_average_precision_by_queries"] == pytest.approx((8 + 18 + 16) / 90)
    assert found["mean_average_precision_by_increments"] == pytest.approx((0.7 + 0.4) / 2)
    assert found["random_ranking"] == pytest.approx(0.3) and found["prior"] == pytest.approx(0.7 / 3)
    assert found["gain_over_random"] == pytest.approx((0.75 + 0.2 + 0.25) / 3)
    assert found["gain_over_prior"] == pytest.approx((0.7 / 0.9 + 0.2 / 0.6 + 0.2 / 0.8) / 3)


# ---- one table for both sides, and queries among the rows of val


def test_a_gallery_without_queries_is_searched_for_itself(tables):
    tables["query"] = tables["query"].select([])
    evaluator = evaluator_of(tables)
    sides = sides_of(evaluator)
    assert sides[0] is sides[1] and sides[0].table is tables["gallery"] and evaluator.same_side
    embeds = [embeds_of(tables["gallery"])] * 2
    for position, row in enumerate(evaluator.score(sides, embeds, SHAPE)):
        labels = [tables["gallery"].labels(row["attribute"]).tolist()] * 2
        check(row, slow_scores(*(vectors[:, position] for vectors in embeds), *labels, leave_out=True))
        assert row["num_queries"] == row["num_gallery"]


def test_images_of_val_in_no_gallery_are_searched_for_among_the_others(tables):
    val = tables["val"]
    val.galleries = [[] if i % 3 == 0 else ["val"] for i in range(len(val))]
    evaluator = evaluator_of(tables, "val")
    sides = sides_of(evaluator)
    assert [len(side.table) for side in sides] == [7, 14] and not evaluator.same_side
    embeds = [embeds_of(side.table) for side in sides]
    for position, row in enumerate(evaluator.score(sides, embeds, SHAPE)):
        codes = val.labels(row["attribute"])
        labels = codes[0::3].tolist(), np.delete(codes, np.s_[0::3]).tolist()
        check(row, slow_scores(embeds[0][:, position], embeds[1][:, position], *labels))


# ---- triplets


def made_triplets(num_rows, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(num_rows)[:3] for _ in range(count)])


def slow_triplets(vectors, triplets):
    """Share of triplets whose anchor is nearer to the positive, one at a time."""
    right = 0
    for anchor, positive, negative in triplets.tolist():
        near, far = (
            torch.cosine_similarity(vectors[anchor].double(), vectors[i].double(), dim=0) for i in (positive, negative)
        )
        right += bool(near > far)
    return right / len(triplets)


@pytest.mark.parametrize("case", ["query", "val", "val with queries", "gallery alone"])
def test_triplets_equal_a_slow_loop(tables, case):
    if case == "val with queries":
        tables["val"].galleries = [["val"] if i % 3 else [] for i in range(21)]
    if case == "gallery alone":
        tables["query"] = tables["query"].select([])
    evaluate_on = "val" if "val" in case else "query"
    # Rows of the queries and then of the gallery; of the one table, where both are one.
    size = {"query": 13 + 29, "gallery alone": 29}.get(case, 21)
    triplets = {"hem": made_triplets(size, 60), "fit": made_triplets(size, 5)}
    evaluator = evaluator_of(tables, evaluate_on, triplets=triplets)
    sides = sides_of(evaluator)
    embeds = [embeds_of(side.table, seed=number) for number, side in enumerate(sides)]
    if evaluator.same_side:
        embeds[1] = embeds[0]
    rows = evaluator.score(sides, embeds, SHAPE)
    every = embeds[0] if evaluator.same_side else torch.cat(embeds)
    assert len(every) == size
    assert rows[1]["triplet_accuracy"] == pytest.approx(slow_triplets(every[:, 1], triplets["hem"]))
    assert rows[1]["num_triplets"] == 60 and 0 < rows[1]["triplet_accuracy"] < 1
    assert "triplet_accuracy" not in rows[0] and "num_triplets" not in rows[0]
    # What is found by labels stays what it was.
    plain = evaluator_of(tables, evaluate_on).score(sides, embeds, SHAPE)
    assert rows[0] == plain[0] and {name: rows[1][name] for name in plain[1]} == plain[1]


def test_one_vector_serves_the_triplets_of_all_attributes(tables):
    triplets = {"colour": made_triplets(42, 30, 1), "hem": made_triplets(42, 30, 2)}
    evaluator = evaluator_of(tables, triplets=triplets)
    sides = sides_of(evaluator)
    pooled = [embeds_of(side.table, num_attributes=1) for side in sides]
    rows = evaluator.score(sides, pooled, SHAPE)
    for row in rows:
        expected = slow_triplets(torch.cat(pooled)[:, 0], triplets[row["attribute"]])
        assert row["triplet_accuracy"] == pytest.approx(expected)


def test_many_triplets_are_scored_in_parts(tables):
    triplets = made_triplets(42, 12_345)
    evaluator = evaluator_of(tables, triplets={"hem": triplets})
    sides = sides_of(evaluator)
    embeds = [embeds_of(side.table) for side in sides]
    vectors = torch.nn.functional.normalize(torch.cat(embeds)[:, 1].double(), dim=-1)
    anchor, positive, negative = (vectors[rows] for rows in triplets.T)
    right = ((anchor * positive).sum(1) > (anchor * negative).sum(1)).double().mean()
    row = evaluator.score(sides, embeds, SHAPE)[1]
    assert row["triplet_accuracy"] == pytest.approx(float(right), abs=1e-12) and row["num_triplets"] == 12_345


@pytest.mark.parametrize("side", ["query", "gallery", "both"])
def test_an_attribute_known_by_triplets_alone_has_no_ranking(tables, side):
    for split in ("query", "gallery") if side == "both" else (side,):
        tables[split].codes["hem"][:] = -1
    evaluator = evaluator_of(tables, triplets={"hem": made_triplets(42, 20)})
    sides = sides_of(evaluator)
    colour, hem = evaluator.score(sides, [embeds_of(table) for table in (tables["query"], tables["gallery"])], SHAPE)
    for name in ("mean_average_precision", "random_ranking", "prior", "gain_over_random"):
        assert np.isnan(hem[name])
    assert set(colour) <= set(hem), "a report's rows are of one form"
    assert hem["num_queries"] == hem["num_gallery"] == hem["num_values"] == 0 and hem["num_triplets"] == 20
    found = summarise([colour, hem])
    assert found["mean_average_precision"] == colour["mean_average_precision"] == mean_score([colour, hem])
    assert found["triplet_accuracy"] == hem["triplet_accuracy"] == mean_score([hem])
    assert summarise([hem]) == {"triplet_accuracy": hem["triplet_accuracy"]}


def test_triplets_of_an_attribute_that_has_none_left(tables):
    tables["gallery"].codes["hem"][:] = -1
    evaluator = evaluator_of(tables, triplets={"hem": np.empty((0, 3), dtype=np.int64)})
    sides = sides_of(evaluator)
    with pytest.raises(ValueError, match="'hem' of increment 'shape' has no labelled image in split 'gallery'"):
        evaluator.score(sides, [embeds_of(side.table) for side in sides], SHAPE)


# ---- all tags of an image


def tag(table, seed):
    """Gives the rows of a table several tags each, among them their labels and what no value is called."""
    rng = np.random.default_rng(seed)
    table.tags = []
    for i in range(len(table)):
        tags = {"brand=é", "colour=purple", "hem"} if i % 4 else set()
        for name in table.attributes:
            own = table.codes[name][i]
            tags |= {f"{name}={table.values(name)[own]}"} if own >= 0 else set()
            tags |= {f"{name}={value}" for value in table.values(name) if rng.random() < 0.3}
        table.tags.append(sorted(tags) if tags else None)


@pytest.mark.parametrize("evaluate_on", ["query", "val"])
@pytest.mark.parametrize(
    "increment", [SHAPE, Increment("winter", ("colour",), where={"season": ("winter",)}, new_values=True)]
)
def test_all_tags_equal_a_slow_loop(tables, evaluate_on, increment):
    for seed, table in enumerate(tables.values()):
        tag(table, seed)
    evaluator = evaluator_of(tables, evaluate_on)
    sides = sides_of(evaluator)
    embeds = [embeds_of(side.table, len(increment.attributes)) for side in sides]
    for position, row in enumerate(evaluator.score(sides, embeds, increment)):
        name = row["attribute"]
        inside = [
            [i for i in range(len(sides[0].table)) if increment is SHAPE or sides[0].table.codes["season"][i] == 1],
            range(len(sides[1].table)),
        ]
        asked, found = (
            [i for i in rows if side.table.codes[name][i] >= 0] for rows, side in zip(inside, sides, strict=True)
        )
        precisions, randoms = [], []
        for q in asked:
            wanted = f"{name}={sides[0].table.values(name)[sides[0].table.codes[name][q]]}"
            others = [g for g in found if not (evaluate_on == "val" and g == q)]
            scores = [
                float(torch.cosine_similarity(embeds[0][q, position].double(), embeds[1][g, position].double(), dim=0))
                for g in others
            ]
            order = np.argsort([-score for score in scores], kind="stable")
            hits = [wanted in (sides[1].table.tags[others[place]] or ()) for place in order]
            if any(hits):
                at = [sum(hits[:place]) / place for place, hit in enumerate(hits, start=1) if hit]
                precisions.append(sum(at) / len(at))
                counts = torch.tensor([sum(hits)]), torch.tensor([len(hits)])
                randoms.append(expected_average_precision(*counts).item())
        assert row["mean_average_precision_all_tags"] == pytest.approx(np.mean(precisions), abs=1e-9)
        assert row["random_ranking_all_tags"] == pytest.approx(np.mean(randoms), abs=1e-9)
        assert row["mean_average_precision_all_tags"] != pytest.approx(row["mean_average_precision"])


def test_tags_that_only_repeat_the_labels_change_no_score(tables):
    for table in tables.values():
        codes = {name: table.labels(name) for name in table.attributes}
        table.tags = [
            [f"{name}={table.values(name)[code[i]]}" for name, code in codes.items() if code[i] >= 0]
            for i in range(len(table))
        ]
    for evaluate_on in ("query", "val"):
        evaluator = evaluator_of(tables, evaluate_on)
        sides = sides_of(evaluator)
        for row in evaluator.score(sides, [embeds_of(side.table) for side in sides], SHAPE):
            assert row["mean_average_precision_all_tags"] == pytest.approx(row["mean_average_precision"], abs=1e-12)
            assert row["random_ranking_all_tags"] == pytest.approx(row["random_ranking"], abs=1e-12)


# ---- pooled over attributes


def ranked(increment, score, **more):
    numbers = {"random_ranking": 0.2, "prior": 0.1, "gain_over_random": (score - 0.2) / 0.8}
    counts = {"num_queries": 10, "num_queries_without_positives": 2}
    return {"increment": increment, "mean_average_precision": score, **numbers, **counts, **more}


def by_triplets(increment, accuracy, count):
    nothing = dict.fromkeys(("mean_average_precision", "random_ranking", "prior", "gain_over_random"), float("nan"))
    counts = {"num_queries": 0, "num_queries_without_positives": 0}
    return {"increment": increment, **nothing, **counts, "triplet_accuracy": accuracy, "num_triplets": count}


def test_triplets_are_pooled_over_all_of_them():
    rows = [by_triplets("a", 0.5, 100), by_triplets("b", 0.9, 300)]
    assert summarise(rows) == {"triplet_accuracy": pytest.approx(0.8)} and mean_score(rows) == pytest.approx(0.8)
    rows.append(ranked("b", 0.6, triplet_accuracy=0.7, num_triplets=100))
    found = summarise(rows)
    assert found["triplet_accuracy"] == pytest.approx((50 + 270 + 70) / 500)
    assert found["mean_average_precision"] == found["mean_average_precision_by_increments"] == mean_score(rows) == 0.6
    assert not any(np.isnan(value) for value in found.values())


def test_scores_by_all_tags_are_means_where_every_attribute_has_them():
    tags = [{"mean_average_precision_all_tags": value, "random_ranking_all_tags": value / 2} for value in (0.9, 0.5)]
    rows = [ranked("a", 0.6, **tags[0]), ranked("b", 0.4, **tags[1]), by_triplets("c", 0.5, 9)]
    found = summarise(rows)
    assert found["mean_average_precision_all_tags"] == pytest.approx(0.7)
    assert found["random_ranking_all_tags"] == pytest.approx(0.35)
    assert found["mean_average_precision"] == pytest.approx(0.5)
    assert "mean_average_precision_all_tags" not in summarise([*rows, ranked("d", 0.3)])


def test_nothing_to_score_at_all_is_an_error():
    row = ranked("a", float("nan")) | {"num_queries_without_positives": 10}
    with pytest.raises(ValueError, match="nothing to score"):
        summarise([row])
    assert summarise([row, by_triplets("b", 0.75, 4)]) == {"triplet_accuracy": 0.75}
