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
        "data": {"name": "shop", "splits": {"train": 1100}, "bad_rows": {"truncated": 2}, "evaluate_on": "query"},
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
        "| % of the towers |", "| **added per increment** | 50,000 | 2.50 |", "| **all** | 12,800 |", "1,100 train",
    ):  # fmt: skip
        assert text in page, text
    assert "not finished" not in page and "*In italics" not in page and "plots/" not in page


def test_nothing_forgotten():
    page = text_image_markdown(make_report(lost=0.0))
    assert "| none | 61.00 | +0.00 | 60.50 |" in page and "| forgetting | 0.00 | 0.00 |" in page
    assert "| top\\|wear | 0.000 | 0.000 | – | 0.000 | 0.500 | 0.500 |" in page


def test_an_unfinished_run():
    page = text_image_markdown(make_report(done=1))
    assert "not finished" in page and "still to come: foot$wear, bags" in page
    assert "*5.00*" in page and "*In italics: the increment before it was learned, in the newest space.*" in page
    assert "Why it forgets" not in page and "– earlier ones" not in page
    assert "| full | 60.00 |  | – |" in page
    empty = text_image_markdown(make_report(done=0) | {"cost_per_increment": [], "loss": []})
    assert "Nothing is scored yet." in empty and "How to read" not in empty


def test_a_run_without_scores_of_unknown_increments():
    page = text_image_markdown(make_report() | {"scores_unknown_increment": None})
    assert "| forgetting | 15.00 | – |" in page and "The same, increment unknown" not in page


def test_files_and_pictures(tmp_path):
    report = make_report()
    paths = draw_text_image_plots(report, tmp_path / "plots")
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
    assert [path.stem for path in draw_text_image_plots(report, tmp_path)] == ["score_matrix", "policies"]
    for draw, message in ((plot_policies, "no policies"), (plot_drift, "no figures of drift")):
        with pytest.raises(ValueError, match=message):
            draw({"increments": [], "drift": [[]]}, tmp_path / "page.png")
