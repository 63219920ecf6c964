# SPDX-License-Identifier: Apache-2.0
"""The report's pictures."""

import numpy as np
import pytest
from drawn_tables import INCREMENTS, embed, make_evaluator
from PIL import Image as PilImage

from modeling_mclfir.training import plots
from modeling_mclfir.training.attention_examples import attention_examples
from modeling_mclfir.training.examples import retrieval_examples

GREEN, RED = (0, 158, 115), (213, 94, 0)


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


def test_draw_plots_draws_everything(tables, model, tmp_path):
    evaluator = make_evaluator(tables)
    sides = evaluator.prepare(model)
    embeds = embed(model, evaluator, sides)
    examples = {
        "retrievals": retrieval_examples(model, evaluator, sides, embeds, INCREMENTS, num_queries=3),
        "attentions": attention_examples(model, evaluator, sides, embeds, INCREMENTS, num_images=2),
    }
    paths = plots.draw_plots(make_report({"cut": 2, "surface": 1}), examples, tmp_path / "plots")
    assert [path.stem for path in paths] == ["score_matrix", "attributes", "loss", "retrievals", "attention"]
    assert sorted(paths) == sorted((tmp_path / "plots").iterdir())
    for path in paths:
        width, height = size_of(path)
        assert 300 < width < 2500 and 300 < height < 2500


def test_more_attributes_than_the_page_of_attention_shows_have_a_page_of_their_own(tmp_path):
    entry = {"increment": "cut", "attribute": "a", "attention": np.full((2, 2), 0.25, dtype=np.float32)}
    entry |= {"predicted": "x", "confidence": 0.5, "chance": 0.5, "value": None, "correct": None}
    for number, pages in ((6, ["attention"]), (7, ["attention", "attention_photo"])):
        examples = {"attentions": [{"image": tile(), "maps": [dict(entry) for _ in range(number)]}]}
        assert [path.stem for path in plots.draw_plots({}, examples, tmp_path)] == pages


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


@pytest.mark.parametrize(("total", "note"), [(9, "2 of 9 attributes are shown."), (0, None)])
def test_the_page_of_queries_says_how_many_attributes_it_shows(total, note, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(plots, "save", lambda figure, path, title, given: notes.extend(given))
    other = retrieval(True) | {"attribute": "another"}
    report = {"attributes": [{"increment": "cut", "attribute": f"a{k}"} for k in range(total)]}
    monkeypatch.setattr(plots, "plot_attributes", lambda report, path: None)
    plots.draw_plots(report, {"retrievals": [retrieval(True), retrieval(False), other]}, tmp_path)
    assert notes[1:] == ([note] if note else [])


def test_page_of_few_results(tmp_path):
    plots.plot_retrievals([retrieval(True, False, True), retrieval(True)], tmp_path / "page.png")
    size_of(tmp_path / "page.png")


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
