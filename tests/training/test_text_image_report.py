# SPDX-License-Identifier: Apache-2.0
"""Page and pictures of a text-image run, from made-up numbers."""

import json

import pytest
from PIL import Image

from modeling_mclfir.metrics import backward_transfer, forgetting
from modeling_mclfir.metrics.cross_modal import both_directions
from modeling_mclfir.training.text_image_plots import draw_text_image_plots, plot_drift, plot_policies
from modeling_mclfir.training.text_image_policies import average_policies
from modeling_mclfir.training.text_image_report import text_image_markdown, write_text_image_report

NAMES = ["top|wear", "foot$wear", "bags"]


def figures(recall: float) -> dict:
    way = {"recall_at_1": recall, "recall_at_5": recall, "recall_at_10": recall, "median_rank": 12.5}
    return both_directions(way, dict(way))


def drift(by: float) -> dict:
    return {
        "increment": "a", "image_drift": by, "text_drift": by / 2, "drift_cosine": 0.25 if by else None,
        "drift_difference": by, "alignment_before": 0.5, "alignment_now": 0.5 - by, "alignment_loss": by,
        "image_neighbours_kept": 1 - by, "text_neighbours_kept": 1.0, "image_cka": 1.0, "text_cka": 1.0,
        "text_overlap": None if not by else 0.125, "image_overlap": 0.25, "overlap_by_chance": 0.5,
        "text_separation": 1.5, "image_separation": None,
    }  # fmt: skip


def random_order(recall: float) -> dict:
    """As figures, without a median."""
    figures_of = figures(recall)
    return {key: part if key == "mean_recall" else {name: part[name] for name in part if name != "median_rank"}
            for key, part in figures_of.items()}  # fmt: skip


def make_tests(done: int) -> list[dict]:
    return [
        {"increment": name, "captions": 1200 + place, "photos": 400 + place, "random_order": {
            "known": random_order(0.03), "unknown": random_order(0.01) if place < done else None,
        }}
        for place, name in enumerate(NAMES)
    ]  # fmt: skip


def make_report(done: int = 3, lost: float = 0.1) -> dict:
    """Recall falls by `lost` an increment where galleries are embedded again, by half of it where they are not."""
    history = [
        [
            {"increment": NAMES[j]} | {
                policy: {
                    "known": figures(0.6 + 0.01 * j - fall * (i - j)),
                    "unknown": figures(0.5 + 0.01 * j - fall * (i - j)),
                }
                for policy, fall in (("full", lost), ("none", lost / 2), ("drift_compensated", lost / 4))
            }
            for j in range(i + 1)
        ]
        for i in range(done)
    ]  # fmt: skip
    square = {
        kind: [[rows[j]["full"][kind]["mean_recall"] if j < len(rows) else None for j in range(done)]
               for rows in history]
        for kind in ("known", "unknown")
    }  # fmt: skip
    policies = [average_policies(rows) for rows in history]
    bill = {"samples": 12800, "steps": 100, "flops": 3.2e14, "seconds": 187.2, "waiting_seconds": 1.872}
    return {
        "increments": NAMES,
        "scores": [row + [0.05 if i == done - 1 else None] * (3 - done) for i, row in enumerate(square["known"])],
        "scores_unknown_increment": [row + [None] * (3 - done) for row in square["unknown"]],
        "policies": policies,
        "policies_per_increment": history,
        "average": policies[-1]["full"]["known"] if policies else None,
        "tests": make_tests(done),
        "random_order": {"known": random_order(0.03), "unknown": random_order(0.01)} if done else None,
        "drift": [[drift(lost * (i - j)) for j in range(i)] for i in range(done)],
        "forgetting": forgetting(square["known"]) if done else None,
        "backward_transfer": backward_transfer(square["known"]) if done else None,
        "forward_transfer": float("nan"),
        "initial_trunk": figures(0.0625),
        "cost": bill,
        "cost_per_increment": [bill | {"increment": name} for name in NAMES[:done]],
        "loss": [{"increment": NAMES[i], "step": step, "loss": 3 / step} for i in range(done) for step in (1, 2, 3)],
        "parameters": {
            "trunk": 2_000_000, "added": {"bags": 50_000}, "added_per_attribute": 50_000.0, "share_of_trunk": 0.025,
        },
        "data": {"name": "shop", "splits": {"train": 1100}, "bad_rows": {"truncated": 2}, "evaluate_on": "query",
                 "captioned": {"train": 1058}},
        "arguments": {"trunk": "some/trunk"},
        "versions": {"mclfir": "0.1.0"},
        "finished": done == 3,
    }  # fmt: skip


def test_the_page_holds_the_numbers():
    page = text_image_markdown(make_report())
    for text in (
        "# shop: 3 increments learned", "**Mean recall 51.00 %**", "**41.00 %**", "6.25 % before any training",
        "| **increment unknown** | 41.00 | 41.00 | 41.00 | 41.00 | 12.5 |",
        "| forgetting | 15.00 | 15.00 |", "| backward transfer | -15.00 | -15.00 |", "| forward transfer | – |",
        "| after foot$wear | 50.00 | 61.00 |  |", "| after foot$wear | 40.00 | 51.00 |  |",  # known, unknown
        # Policy, mean, against full, earlier increments: (0.6 - 0.1 + 0.61 - 0.05) / 2.
        "| full | 51.00 |  | 45.50 |", "| none | 56.00 | +5.00 | 53.00 |", "| none | 46.00 | +5.00 | 43.00 |",
        "| drift_compensated | 58.50 | +7.50 | 56.75 |",
        "| – earlier ones | 50.00 | 55.00 | 57.50 | 40.00 | 45.00 | 47.50 |",
        "| top\\|wear | 40.00 | 50.00 | 55.00 | 30.00 | 40.00 | 45.00 |",
        "| top\\|wear | 0.200 | 0.100 | 0.250 | 0.200 | 0.500 | 0.300 | 0.800 | 1.000 |",
        "| after bags | 0.150 | 0.075 | 0.250 |",
        "| % of the towers |", "| **added per increment** | 50,000 | 2.50 |", "| **all** | 12,800 |",
        "shop, images: 1,100 train, 1,058 with a caption.", "The test: 3,603 captions of 1,203 photos.",
        "| random order, known | 3.00 | 3.00 | 3.00 | 3.00 | – |", "| random order, unknown | 1.00 |",
        "| top\\|wear | 1,200 | 400 | 40.00 | 3.00 | 30.00 | 1.00 |",
        "| bags | 1,202 | 402 | 62.00 | 3.00 | 52.00 | 1.00 |",
    ):  # fmt: skip
        assert text in page, text
    assert "not finished" not in page and "*In italics" not in page and "plots/" not in page


def test_nothing_forgotten():
    page = text_image_markdown(make_report(lost=0.0))
    assert "| forgetting | 0.00 | 0.00 |" in page
    assert "No vector of an earlier increment ever changed" in page and "all policies (*full*, *none*, " in page
    assert "No vector moved: drift is 0" in page
    assert "| none |" not in page and "0.000" not in page and "*CKA*" not in page


@pytest.mark.parametrize("where", ["policies_per_increment", "drift"])
def test_a_single_figure_that_differs_brings_the_tables(where):
    report = make_report(lost=0.0)
    if where == "drift":
        report["drift"][2][1]["text_drift"] = 0.001
    else:
        report["policies_per_increment"][1][0]["none"] = {kind: figures(0.59) for kind in ("known", "unknown")}
    page = text_image_markdown(report)
    assert "| none | 61.00 | +0.00 | 60.50 |" in page and "*CKA*" in page and "ever changed" not in page


def test_an_unfinished_run():
    page = text_image_markdown(make_report(done=1))
    assert "not finished" in page and "still to come: foot$wear, bags" in page
    assert "*5.00*" in page and "*In italics: the increment before it was learned, in the newest space.*" in page
    assert "Why it forgets" not in page and "– earlier ones" not in page
    assert "One increment is learned so far" in page and "| full |" not in page
    assert "| foot$wear | 1,201 | 401 | – | 3.00 | – | – |" in page  # the test of what is still to come
    empty = text_image_markdown(make_report(done=0) | {"cost_per_increment": [], "loss": []})
    assert "Nothing is scored yet." in empty and "How to read" not in empty


def test_a_report_of_an_earlier_version():
    report = make_report()
    for key in ("tests", "random_order"):
        del report[key]
    del report["data"]["captioned"]
    page = text_image_markdown(report)
    assert "1,100 train." in page and "andom order, " not in page and "Increment by increment" not in page


def test_pictures_of_what_is_found_are_shown(tmp_path):
    (tmp_path / "plots").mkdir()
    report = make_report(done=2) | {"increments": ["tops", "shoes", "bags"]}
    for name in ("tops", "bags"):
        (tmp_path / "plots" / f"retrievals_{name}.png").write_bytes(b"")
    page = text_image_markdown(report, tmp_path)
    assert "## What it finds" in page and "(plots/retrievals_tops.png)" in page
    assert "retrievals_bags" not in page and "retrievals_shoes" not in page  # not learned, not drawn


def test_a_run_without_scores_of_unknown_increments():
    page = text_image_markdown(make_report() | {"scores_unknown_increment": None})
    assert "| forgetting | 15.00 | – |" in page and "The same, increment unknown" not in page


def test_files_and_pictures(tmp_path):
    report = make_report()
    paths = draw_text_image_plots(report, {}, tmp_path / "plots")
    write_text_image_report(report, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert [path.stem for path in paths] == ["score_matrix", "policies", "drift", "loss"]
    for path in paths:
        assert f"(plots/{path.name})" in page
        with Image.open(path) as image:
            assert 300 < image.width < 2500 and 300 < image.height < 2500
    held = json.loads((tmp_path / "report.json").read_text())
    assert held["forward_transfer"] is None and held["policies"] == report["policies"]


def test_pictures_that_have_nothing_to_show_are_left_out(tmp_path):
    report = make_report(done=1) | {"loss": []}
    assert [path.stem for path in draw_text_image_plots(report, {}, tmp_path)] == ["score_matrix", "policies"]
    for draw, message in ((plot_policies, "no policies"), (plot_drift, "no figures of drift")):
        with pytest.raises(ValueError, match=message):
            draw({"increments": [], "drift": [[]]}, tmp_path / "page.png")


def drawn(draw, report, path, monkeypatch):
    """The figure that is saved, with its notes."""
    from modeling_mclfir.training import text_image_plots

    kept = []
    monkeypatch.setattr(text_image_plots, "save", lambda figure, path, title, notes=(): kept.append((figure, notes)))
    draw(report, path)
    return kept[0]


def test_every_policy_is_explained(tmp_path, monkeypatch):
    report = make_report()
    for found in report["policies"]:
        found["mean_drift"] = found["none"]
    notes = " ".join(drawn(plot_policies, report, tmp_path / "page.png", monkeypatch)[1])
    for name in report["policies"][-1]:
        assert f"{name}: " in notes


def test_single_points_of_images_and_texts_look_different(tmp_path, monkeypatch):
    figure, _ = drawn(plot_drift, make_report(done=2), tmp_path / "page.png", monkeypatch)
    overlap = next(axes for axes in figure.axes if axes.get_title() == "overlap")
    single = [line for line in overlap.lines if len(line.get_xdata()) == 1]
    assert len(single) == 3  # images, texts, by chance
    assert len({line.get_marker() for line in single}) == 3
    handles = {text.get_text(): line for text, line in zip(figure.legends[0].texts, figure.legends[0].legend_handles,
                                                           strict=True)}  # fmt: skip
    markers = [handles[name].get_marker() for name in ("images", "texts", "by chance")]
    assert sorted(markers) == sorted(line.get_marker() for line in single)
