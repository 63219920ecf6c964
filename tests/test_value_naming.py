# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from tiny_text_runs import train_pairs

from modeling_mclfir import MclfirForTextImageRetrieval
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.processing_mclfir_text import MclfirProcessor
from modeling_mclfir.value_naming import (
    Embedded,
    ValueNamer,
    attribute_words,
    best_values,
    constant_figures,
    naming_figures,
    naming_scores,
    retrieval_figures,
    retrieval_scores,
    value_prompts,
    value_words,
)

COLOURS = ("black", "navy_blue", "red")


def on_circle(*degrees) -> torch.Tensor:
    """(N, 1, 2): unit vectors of one space."""
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)[:, None]


def alone(embeds: torch.Tensor) -> Embedded:
    return Embedded(embeds, torch.ones(len(embeds), 1))


# ---- prompts


@pytest.mark.parametrize(
    ("name", "words"),
    [("articleType", "article type"), ("baseColour", "base colour"), ("sleeve_length", "sleeve length"),
     ("neck-line", "neck line"), ("SKUCode", "sku code"), ("usage", "usage"), ("heel2Height", "heel2 height")],
)  # fmt: skip
def test_names_of_attributes_are_words(name, words):
    assert attribute_words(name) == words


def test_values_keep_their_letters():
    assert [value_words(value) for value in ("T-Shirts", "navy_blue", " McQueen ", "NA")] == [
        "T Shirts", "navy blue", "McQueen", "NA"]  # fmt: skip
    assert value_prompts("baseColour", ["off-white"]) == [["a photo of a off white base colour"]]
    assert value_prompts("fit", ["{slim}"], ["{value} in {{braces}}"]) == [["{slim} in {braces}"]]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "Expected a list of templates"),
        ("{value}", "Expected a list of templates"),
        (["a photo"], "must have the field {value}"),
        (["{value} of {brand}"], "nothing else in braces"),
        (["{value} {}"], "nothing else in braces"),
        (["{value.__class__}"], "must have the field {value}"),
        (["{value!r}"], "nothing else in braces"),
        (["{value"], "cannot be read"),
    ],
)
def test_bad_templates(templates, message):
    with pytest.raises(ValueError, match=message):
        value_prompts("colour", ["red"], templates)


# ---- scores


def test_one_space_names_by_the_softmax_of_scaled_cosines():
    photos, prompts = alone(on_circle(0, 80)), alone(on_circle(10, 90, 180))
    scores = naming_scores(photos, prompts, torch.tensor([5.0]))
    logits = [5 * math.cos(math.radians(angle)) for angle in (10, 90, 180)]
    total = sum(map(math.exp, logits))
    assert scores[0].exp().tolist() == pytest.approx([math.exp(logit) / total for logit in logits], abs=1e-6)
    assert [guess.value for guess in best_values(scores[1], COLOURS, 2)] == ["navy_blue", "black"]
    assert best_values(scores[0], COLOURS, 9)[0].confidence == pytest.approx(math.exp(logits[0]) / total, abs=1e-6)


def test_spaces_are_weighed_photo_by_photo():
    # The spaces disagree: in one every photo looks like the first value, in the other like the second.
    photos = Embedded(torch.cat([on_circle(0, 0)] * 2, dim=1), torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    prompts = Embedded(torch.cat([on_circle(0, 90), on_circle(90, 0)], dim=1), torch.full((2, 2), 0.5))
    scores = naming_scores(photos, prompts, torch.tensor([3.0, 6.0]))
    first, second = (math.exp(scale) / (math.exp(scale) + 1) for scale in (3, 6))
    assert scores[0, 0].exp() == pytest.approx(first, abs=1e-6)
    assert scores[1, 1].exp() == pytest.approx(0.25 * (1 - first) + 0.75 * second, abs=1e-6)
    assert scores.exp().sum(1).tolist() == pytest.approx([1, 1])
    # Where both agree about all, the mixture is the one space.
    twice = [Embedded(part.embeds[:, :1].repeat(1, 2, 1), part.weights) for part in (photos, prompts)]
    single = [alone(part.embeds[:, :1]) for part in (photos, prompts)]
    same = naming_scores(*twice, torch.tensor([3.0, 3.0]))
    assert torch.allclose(same, naming_scores(*single, torch.tensor([3.0])))


def test_a_value_counts_in_the_space_where_it_belongs():
    # The photo is of the first space, which has never learned the second value and takes it for nearer.
    photos = Embedded(torch.cat([on_circle(0)] * 2, dim=1), torch.tensor([[1.0, 0.0]]))
    prompts = Embedded(torch.cat([on_circle(10, 0)] * 2, dim=1), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    alike = prompts._replace(weights=torch.full((2, 2), 0.5))
    assert naming_scores(photos, alike, torch.tensor([9.0, 9.0]))[0].argmax() == 1
    scores = naming_scores(photos, prompts, torch.tensor([9.0, 9.0]))[0]
    first, second = (weight * math.exp(9 * math.cos(math.radians(a))) for a, weight in ((10, 0.9), (0, 0.1)))
    assert scores.exp().tolist() == pytest.approx([first / (first + second), second / (first + second)], abs=1e-6)


def test_a_photo_is_found_in_the_space_where_it_belongs():
    one = alone(on_circle(30, 0, 60))
    scores = retrieval_scores(alone(on_circle(0)), one, torch.tensor([9.0]))
    assert scores[0].argsort(descending=True).tolist() == [1, 0, 2]
    # The prompt belongs to the second space; there the first photo is nearer, but it belongs to the first.
    prompt = Embedded(torch.cat([on_circle(0)] * 2, dim=1), torch.tensor([[0.01, 0.99]]))
    photos = Embedded(torch.cat([on_circle(90, 90), on_circle(0, 20)], dim=1), torch.eye(2))
    assert retrieval_scores(prompt, photos, torch.tensor([9.0, 9.0]))[0].argmax() == 1
    lost = photos._replace(weights=torch.full((2, 2), 0.5))
    assert retrieval_scores(prompt, lost, torch.tensor([9.0, 9.0]))[0].argmax() == 0


def test_a_weight_of_nothing_is_finite():
    photos = Embedded(torch.cat([on_circle(0, 90)] * 2, dim=1), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    for scores in (naming_scores, retrieval_scores):
        assert scores(photos, photos, torch.tensor([2.0, 2.0])).isfinite().all()


def test_spaces_that_do_not_fit():
    with pytest.raises(ValueError, match=r"in the same spaces .*\(1, 2\), \(2, 2\) and 1 scales"):
        naming_scores(alone(on_circle(0)), Embedded(torch.ones(1, 2, 2), torch.ones(1, 2)), torch.ones(1))
    with pytest.raises(ValueError, match="and 2 scales"):
        naming_scores(alone(on_circle(0)), alone(on_circle(0)), torch.ones(2))


# ---- figures


def test_figures_of_places_known():
    scores = torch.tensor(
        [[9.0, 1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0, 0]]
    )
    found = naming_figures(scores, torch.tensor([0, 3, 1, 1]))  # places 1, 5, 7 and, of equals, 2
    assert found == {
        "accuracy_at_1": 0.25,
        "accuracy_at_5": 0.75,
        "mean_reciprocal_rank": pytest.approx((1 + 1 / 5 + 1 / 7 + 1 / 2) / 4),
    }
    assert naming_figures(scores[:, :5], torch.tensor([0, 3, 1, 1]))["accuracy_at_5"] is None


def test_the_best_answer_that_does_not_look():
    labels = torch.tensor([2, 2, 2, 0, 0, 1])
    found = constant_figures(labels, 4)
    assert found["accuracy_at_1"] == 0.5
    assert found["mean_reciprocal_rank"] == pytest.approx((3 * 1 + 2 / 2 + 1 / 3) / 6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"got \(3, 2\), \(2,\)"),
        ([0, 1, 2], "got 0 to 2"),
        ([0, 1, -1], "Leave photos without a value out"),
    ],
)
def test_figures_refuse(labels, message):
    with pytest.raises(ValueError, match=message):
        naming_figures(torch.zeros(3, 2), torch.tensor(labels))


def test_retrieval_is_a_mean_over_values_that_are_there():
    scores = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    found = retrieval_figures(scores, torch.tensor([0, 1, 1]))  # AP 1 and (1/2 + 2/3) / 2; nobody has the third
    assert found["num_queries"] == 2
    assert found["mean_average_precision"] == pytest.approx((1 + 7 / 12) / 2)
    # One of three: (1 + 1/2 + 1/3) / 3; two of three: the mean over the three orders, (1 + 5/6 + 7/12) / 3.
    assert found["random_ranking"] == pytest.approx((11 / 18 + 29 / 36) / 2)


# ---- a model


@pytest.fixture(scope="module")
def trained(tiny_data, one_thread, tmp_path_factory):
    """Two increments with a space each: the model, its processor, photos of val."""
    folder = tmp_path_factory.mktemp("naming") / "run"
    train_pairs(tiny_data, folder, epochs=1)
    model = MclfirForTextImageRetrieval.from_pretrained(folder / "increment-01").eval()
    processor = MclfirProcessor.from_pretrained(folder / "increment-01")
    return model, processor, load_tables(tiny_data)["val"]


def pixels_of(processor, table, rows=range(4)):
    return processor(images=[table.image(row) for row in rows])["pixel_values"]


def test_a_named_space_is_that_of_the_model(trained):
    model, processor, table = trained
    namer = ValueNamer(model, processor, increment="tops")
    assert namer.spaces == [0]
    pixels, values = pixels_of(processor, table), table.values("colour")
    with torch.no_grad():
        images = model.get_image_features(pixels, increment_id=0)
        prompts = [f"a photo of a {value_words(value)} colour" for value in values]
        texts = model.get_text_features(**processor(text=prompts), increment_id=0)
    expected = (images @ texts.T * model.heads[0].logit_scale.exp()).softmax(dim=1)
    named = namer.name_values(pixels, "colour", values, top=2)
    for row, guesses in zip(expected, named, strict=True):
        best = row.topk(2)
        assert [guess.confidence for guess in guesses] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert guesses[0].value == values[best.indices[0]]


def test_spaces_of_both_increments_are_weighed_as_the_routers_say(trained):
    model, processor, table = trained
    namer = ValueNamer(model, processor)
    photos = namer.embed_table(table, batch_size=5)
    assert photos.embeds.shape == (len(table), 2, 8) and namer.spaces == [0, 1]
    pixels = pixels_of(processor, table)
    with torch.no_grad():
        expected = model.route(model.mclfir(pixels).pooled, "image")
    assert torch.allclose(photos.weights[:4], expected, atol=1e-5)
    prompts = namer.embed_values("category", table.values("category"))
    alike = ValueNamer(model, processor, prompt_temperature=math.inf).embed_values("category", ["shirt"])
    assert alike.weights.tolist() == [[0.5, 0.5]]
    assert torch.allclose(prompts.weights.sum(1), torch.ones(len(table.values("category"))))
    # The routers see other things in photos and in prompts, and not the same in all of them.
    assert prompts.weights.std(dim=0).max() > 1e-4
    for place in (0, 1):
        single = ValueNamer(model, processor, increment=model.config.increment_names[place])
        assert torch.allclose(single.embed_photos(pixels).embeds[:, 0], photos.embeds[:4, place], atol=1e-5)


def test_templates_are_averaged(trained):
    model, processor, _ = trained
    several = ValueNamer(model, processor, ["{value}", "{value} {attribute}"]).embed_values("sleeve_length", ["long"])
    parts = [ValueNamer(model, processor, [one]).embed_values("sleeve_length", ["long"])
             for one in ("{value}", "{value} {attribute}")]  # fmt: skip
    mean = torch.nn.functional.normalize(parts[0].embeds + parts[1].embeds, dim=-1)
    assert torch.allclose(several.embeds, mean, atol=1e-6)
    assert torch.allclose(several.weights, (parts[0].weights + parts[1].weights) / 2, atol=1e-6)
    assert not torch.allclose(parts[0].embeds, parts[1].embeds, atol=1e-4)


def test_a_model_that_cannot_name(trained, monkeypatch):
    model, processor, table = trained
    with pytest.raises(ValueError, match="no increment 'shoes'; the model has tops, rest"):
        ValueNamer(model, processor, increment="shoes")
    with pytest.raises(ValueError, match="must have the field {value}"):
        ValueNamer(model, processor, ["a photo"])
    with pytest.raises(ValueError, match="'colour' has no values"):
        ValueNamer(model, processor).embed_values("colour", [])
    with pytest.raises(ValueError, match="'val' of the data set has no photos"):
        ValueNamer(model, processor).embed_table(table.select([]))
    bare = [{name: part for name, part in one.items() if name != "router"} for one in model.config.increments]
    monkeypatch.setattr(model.config, "increments", bare)
    with pytest.raises(ValueError, match="Nothing tells the space of increment 'tops'"):
        ValueNamer(model, processor)
    assert ValueNamer(model, processor, increment="rest").spaces == [1]
