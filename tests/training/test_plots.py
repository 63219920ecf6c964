# SPDX-License-Identifier: Apache-2.0
"""Pictures and their examples, with a small real model on a small drawn table."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage
from transformers import ResNetConfig

from modeling_mclfir.data.increments import Increment
from modeling_mclfir.data.table import ImageTable
from modeling_mclfir.evaluation import Evaluator
from modeling_mclfir.metrics import average_precision
from modeling_mclfir.modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training import plots
from modeling_mclfir.training.examples import attention_examples, retrieval_examples

INCREMENTS = [Increment("cut", ("sleeve", "neck")), Increment("surface", ("colour",))]
VALUES = {"sleeve": ("long", "none", "short"), "neck": ("round", "v"), "colour": ("$blue$", "red")}
GREEN, RED = (0, 158, 115), (213, 94, 0)


def make_table(split: str, num_rows: int, seed: int, missing: float = 0.2) -> ImageTable:
    rng = np.random.default_rng(seed)
    images = []
    for row in range(num_rows):
        buffer = io.BytesIO()
        size = (40, 60) if row % 2 else (70, 50)
        PilImage.new("RGB", size, tuple(int(value) for value in rng.integers(100, 140, 3))).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{split}{row}.png"})
    features = Features({"image": Image(decode=False), "caption": Value("string"), "product_id": Value("string")})
    columns = {"image": images, "caption": [None] * num_rows, "product_id": [None] * num_rows}
    codes = {}
    for name, values in VALUES.items():
        code = rng.integers(0, len(values), num_rows)
        codes[name] = np.where(rng.random(num_rows) < missing, -1, code).astype(np.int32)
    dataset = Dataset.from_dict(columns, features=features)
    return ImageTable(split, dataset, np.arange(num_rows), codes, VALUES)


@pytest.fixture(scope="module")
def tables():
    names = {"query": (12, 0), "gallery": (30, 1), "val": (20, 2)}
    return {split: make_table(split, rows, seed) for split, (rows, seed) in names.items()}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    trunk = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = MclfirForImageRetrieval.from_trunk(trunk, embed_dim=8, lora_rank=2, head_rank=2, gate_dim=4)
    for increment in INCREMENTS:
        model.add_increment(increment.name, list(increment.attributes))
    return model.eval()


def make_evaluator(tables, evaluate_on="query") -> Evaluator:
    processor = MclfirImageProcessor(size={"height": 48, "width": 32})
    return Evaluator(tables, evaluate_on, processor, None, Accelerator(cpu=True))


def embed(model, evaluator, sides) -> dict:
    return {
        increment.name: tuple(evaluator.embed(model, side, i) for side in sides)
        for i, increment in enumerate(INCREMENTS)
    }


@pytest.fixture(scope="module", params=["query", "val"])
def found(request, tables, model):
    """(evaluator, sides, embeds, examples) where query and gallery differ, and where they are the same."""
    evaluator = make_evaluator(tables, request.param)
    sides = evaluator.prepare(model)
    embeds = embed(model, evaluator, sides)
    return evaluator, sides, embeds, retrieval_examples(model, evaluator, sides, embeds, INCREMENTS)


def make_report(groups: dict[str, int], done: int | None = None) -> dict:
    names = list(groups)
    done = len(names) if done is None else done
    scores = [
        [0.8 - 0.01 * (i - j) if j <= i else 0.4 if j == i + 1 else None for j in range(len(names))]
        for i in range(done)
    ]
    attributes = [
        {"increment": name, "attribute": f"a_{k}", "mean_average_precision": 0.9 - 0.01 * k, "random_ranking": 0.3}
        for name in names[:done]
        for k in range(groups[name])
    ]
    loss = [
        {"increment": name, "step": step, "loss": 3 / step, "contrastive": 2 / step, "distillation": 1 / step}
        for name in names[:done]
        for step in range(1, 31)
    ]
    return {"increments": names, "scores": scores, "attributes": attributes, "loss": loss}


def size_of(path) -> tuple[int, int]:
    with PilImage.open(path) as image:
        image.verify()
        assert image.format == "PNG"
        return image.size


def has_colour(path, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(PilImage.open(path).convert("RGB")) == colour).all(-1).sum() > 50)


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


def test_attention_examples(tables, model):
    evaluator = make_evaluator(tables)
    examples = attention_examples(model, evaluator, evaluator.prepare(model)[0], INCREMENTS, num_images=3)
    assert len(examples) == 3
    for example in examples:
        assert [entry["attribute"] for entry in example["maps"]] == ["sleeve", "neck", "colour"]
        assert example["image"].size in ((40, 60), (70, 50))  # the photo's own aspect, not the model's
        for entry in example["maps"]:
            assert entry["attention"].ndim == 2
            assert entry["attention"].sum() == pytest.approx(1, abs=1e-4)
            assert entry["value"] is None or entry["value"] in VALUES[entry["attribute"]]
    fewer = attention_examples(model, evaluator, evaluator.prepare(model)[0], INCREMENTS, max_attributes=2)
    # By turns: one of each increment, not two of the first.
    assert [entry["attribute"] for entry in fewer[0]["maps"]] == ["sleeve", "colour"]


def test_attention_is_each_attributes_own(tables, model):
    evaluator = make_evaluator(tables)
    side = evaluator.prepare(model)[0]
    example = attention_examples(model, evaluator, side, INCREMENTS, num_images=1)[0]
    rows = [row for row in range(len(side.table)) if side.table.image(row).tobytes() == example["image"].tobytes()]
    pixels = evaluator.processor(side.table.image(rows[0]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels, output_attentions=True).attentions[0].numpy()
    for entry, attention in zip(example["maps"], expected, strict=True):
        np.testing.assert_allclose(entry["attention"], attention, atol=1e-5)


def test_no_attention_where_the_heads_have_none(tables):
    trunk = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    plain = MclfirForImageRetrieval.from_trunk(trunk, embed_dim=8, use_spatial_attention=False)
    plain.add_increment("cut", ["sleeve", "neck"])
    evaluator = make_evaluator(tables)
    assert attention_examples(plain, evaluator, evaluator.prepare(plain)[0], INCREMENTS) == []


def test_draw_plots_draws_everything(tables, model, tmp_path):
    evaluator = make_evaluator(tables)
    sides = evaluator.prepare(model)
    examples = {
        "retrievals": retrieval_examples(model, evaluator, sides, {}, INCREMENTS, num_queries=3),
        "attentions": attention_examples(model, evaluator, sides[0], INCREMENTS, num_images=2),
    }
    paths = plots.draw_plots(make_report({"cut": 2, "surface": 1}), examples, tmp_path / "plots")
    assert [path.stem for path in paths] == ["score_matrix", "attributes", "loss", "retrievals", "attention"]
    assert sorted(paths) == sorted((tmp_path / "plots").iterdir())
    for path in paths:
        width, height = size_of(path)
        assert 300 < width < 2500 and 300 < height < 2500


def test_draw_plots_leaves_out_what_there_is_nothing_for(tmp_path):
    report = {"increments": ["cut"], "scores": [], "attributes": [], "loss": []}
    assert plots.draw_plots(report, {"retrievals": [], "attentions": []}, tmp_path) == []


@pytest.mark.parametrize(
    "groups", [{"only": 1}, {f"season_{i}": 10 for i in range(6)}, {f"s{i}": 1 for i in range(20)}]
)
def test_plots_of_any_size(groups, tmp_path):
    report = make_report(groups)
    for draw in (plots.plot_score_matrix, plots.plot_attributes, plots.plot_loss):
        draw(report, tmp_path / "picture.png")
        width, height = size_of(tmp_path / "picture.png")
        assert 300 < width < 2600 and 300 < height < 3000


def test_plots_of_an_unfinished_run_with_nan(tmp_path):
    report = make_report({"cut": 2, "surface": 1, "details": 3}, done=2)
    report["scores"][1][0] = float("nan")
    report["attributes"][0]["mean_average_precision"] = float("nan")
    report["attributes"][1]["random_ranking"] = None
    report["loss"][3]["loss"] = float("nan")
    report["loss"][4] = {"increment": "cut", "step": 5, "loss": 1.0}
    assert len(plots.draw_plots(report, {}, tmp_path)) == 3


def tile(colour=(128, 128, 128), size=(30, 40)):
    return PilImage.new("RGB", size, colour)


def retrieval(*correct: bool) -> dict:
    results = [{"image": tile(), "value": "a" if right else "b", "correct": right, "score": 0.5} for right in correct]
    names = {"increment": "cut", "attribute": "a_very_long_attribute_name, with $5 and $6", "value": "a"}
    return names | {"image": tile(), "num_relevant": 3, "num_gallery": 9, "results": results}


@pytest.mark.parametrize("correct", [(True, True), (False, False), (True, False)])
def test_frames_tell_right_from_wrong(correct, tmp_path):
    plots.plot_retrievals([retrieval(*correct)], tmp_path / "page.png")
    assert has_colour(tmp_path / "page.png", GREEN) == any(correct)
    assert has_colour(tmp_path / "page.png", RED) == (not all(correct))


def test_frames_are_in_their_places(tmp_path):
    plots.plot_retrievals([retrieval(True, False, False, False)], tmp_path / "page.png")
    pixels = np.asarray(PilImage.open(tmp_path / "page.png").convert("RGB"))
    green, red = ((pixels == colour).all(-1).any(0).nonzero()[0] for colour in (GREEN, RED))
    assert green.max() < red.min()


def test_page_of_few_results(tmp_path):
    plots.plot_retrievals([retrieval(True, False, True), retrieval(True)], tmp_path / "page.png")
    size_of(tmp_path / "page.png")


def test_overlay_is_hot_where_the_attention_is():
    attention = np.zeros((4, 4), dtype=np.float32)
    attention[0, 3] = 1
    picture = plots.overlay(tile(size=(80, 120)), attention)
    assert picture.shape == (120, 80, 3) and picture.min() >= 0 and picture.max() <= 1
    grey = np.full(3, 128 / 255)
    np.testing.assert_allclose(picture[-10, 5], grey, atol=1e-3)  # far corner: the photo itself
    yellow = picture[15, 70]
    assert yellow[0] > 0.6 and yellow[1] > 0.6 and yellow[2] < 0.4


def test_overlay_shows_no_peak_where_there_is_none():
    even = plots.overlay(tile(size=(80, 120)), np.full((4, 4), 1 / 16, dtype=np.float32))
    assert np.ptp(even.reshape(-1, 3), axis=0).max() < 1e-3
    assert even[0, 0, 1] < 0.5  # not the yellow of a peak


def test_a_picture_without_content_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no retrieval examples"):
        plots.plot_retrievals([], tmp_path / "page.png")
    with pytest.raises(ValueError, match="no scores"):
        plots.plot_score_matrix({"increments": [], "scores": []}, tmp_path / "page.png")


def test_global_backend_is_left_alone(tmp_path):
    import sys

    before = "matplotlib.pyplot" in sys.modules
    plots.plot_loss(make_report({"cut": 1}), tmp_path / "loss.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_one_vector_for_all_attributes(tables, model):
    evaluator = make_evaluator(tables)
    sides = evaluator.prepare(model)
    pooled = {"cut": tuple(torch.randn(len(side.table), 1, 6) for side in sides)}
    examples = retrieval_examples(SimpleNamespace(), evaluator, sides, pooled, INCREMENTS[:1])
    assert {example["attribute"] for example in examples} == {"sleeve", "neck"}
