# SPDX-License-Identifier: Apache-2.0
"""The figures of a study, from reports whose figures can be worked out by hand."""

import json

import numpy as np
import pytest

from modeling_mclfir.study.continual import STUDIED, figures, study_runs
from modeling_mclfir.study.plots import _apart, _labels
from modeling_mclfir.study.report import write_study


def report(scores, *, flops=100, exemplars=0, forward=0.0):
    """What build_report gives of a run over two increments with these scores."""
    (first, ahead), (last_first, last) = scores
    return {
        "increments": ["cut", "look"],
        "scores": [[first, ahead], [last_first, last]],
        "forgetting": first - last_first,
        "backward_transfer": last_first - first,
        "forward_transfer": forward,
        "cost": {"samples": 10, "steps": 2, "flops": flops, "seconds": 1.0, "peak_memory_bytes": 5},
        "cost_per_increment": [{"stored_bytes": 1, "exemplars": 0}, {"stored_bytes": 2500, "exemplars": exemplars}],
        "finished": True,
    }


REPORTS = {
    ("canonical", "fine_tuning", 0): report([[0.6, 0.2], [0.4, 0.7]], flops=50),
    ("canonical", "fine_tuning", 1): report([[0.8, 0.2], [0.4, 0.9]], flops=70, exemplars=4),
    ("canonical", "static", 0): report([[0.7, 0.2], [0.7, 0.9]], flops=120),
}


def test_figures_by_hand():
    row, static = figures(REPORTS)
    assert (row.method, row.order, row.num_seeds) == ("fine_tuning", "canonical", 2)
    assert row.scores == [[pytest.approx(0.7), None], [pytest.approx(0.4), pytest.approx(0.8)]]
    assert row.after_each == pytest.approx([0.7, 0.6])
    # Seeds: 0.55 and 0.65.
    assert row.average == pytest.approx((0.6, np.std([0.55, 0.65], ddof=1)))
    assert row.forgetting == pytest.approx((0.3, np.std([0.2, 0.4], ddof=1)))
    assert row.backward_transfer[0] == pytest.approx(-0.3)
    # Static is 0.7 and 0.9 on the increments when they come: short by (0.1 + 0.2) / 2 and (-0.1 + 0) / 2.
    assert row.intransigence == pytest.approx((0.05, np.std([0.15, -0.05], ddof=1)))
    assert row.cost["flops"] == 60 and row.cost_ratio["flops"] == 0.5 and row.cost_ratio["samples"] == 1.0
    assert row.stored_bytes == 2500 and row.exemplars == 2
    assert static.cost_ratio["flops"] == 1.0 and static.intransigence == (0.0, 0.0) and static.average[1] == 0.0


def test_without_static_there_is_nothing_to_relate_to():
    (row,) = figures({name: content for name, content in REPORTS.items() if name[1] != "static"})
    assert row.cost_ratio is None and row.intransigence is None


def test_where_the_increment_is_not_told_that_is_what_methods_are_compared_by(tmp_path):
    unknown = {"scores_unknown_increment": [[0.6, None], [0.3, 0.5]]}
    reports = {
        ("canonical", "fine_tuning", 0): report([[0.6, 0.2], [0.6, 0.9]]) | unknown,
        ("canonical", "static", 0): report([[0.7, 0.2], [0.7, 0.6]])
        | {"scores_unknown_increment": [[0.7, None], [0.7, 0.6]]},
    }
    row, static = figures(reports)
    assert row.average[0] == pytest.approx(0.75) and row.headline == row.unknown_average == (pytest.approx(0.4), 0.0)
    assert row.unknown_forgetting[0] == pytest.approx(0.3) and row.after_each == pytest.approx([0.6, 0.4])
    assert static.unknown_average == static.average and static.unknown_forgetting == static.forgetting
    write_study([row, static], ["cut", "look"], tmp_path, "A study")
    page = (tmp_path / "report.md").read_text()
    assert "| average, not told | forgetting, not told |" in page
    assert page.index("| static | 65.00 | 0.00 | 65.00 | 0.00 |") < page.index(
        "| fine_tuning | 75.00 | 0.00 | 40.00 | 30.00 |"
    )
    assert "not told" not in _page(tmp_path / "told", figures(REPORTS))
    # Where one run lacks them (it began with an earlier version), nobody's count.
    del reports["canonical", "static", 0]["scores_unknown_increment"]
    assert [row.headline for row in figures(reports)] == [row.average for row in figures(reports)]


def _page(folder, rows):
    write_study(rows, ["cut", "look"], folder, "A study")
    return (folder / "report.md").read_text()


def test_the_report_has_tables_and_pictures(tmp_path):
    reports = REPORTS | {("reversed", *name[1:]): content for name, content in REPORTS.items()}
    write_study(figures(reports), ["cut", "look"], tmp_path, "A study")
    page = (tmp_path / "report.md").read_text()
    assert "| static | 80.00 | 0.00 | 0.00 | 0.00 | 0.00 | 1.00 | 1.00 | 1.00 | 1.00 | 2 | 0 | 1 |" in page
    assert "| fine_tuning | 60.00 ± 7.07 | 30.00 ± 14.14 |" in page and "| 0.50 |" in page
    assert "### fine_tuning: a[i][j], reversed\n\n| after | look | cut |" in page
    assert "| cut | 70.00 | – |" in page
    content = json.loads((tmp_path / "report.json").read_text())
    assert [row["method"] for row in content] == ["fine_tuning", "static"] * 2
    for picture in ("after_each_canonical", "cost_canonical", "after_each_reversed", "cost_reversed"):
        assert f"({picture}.png)" in page
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_points_that_nearly_meet_stand_one_above_the_other():
    # The second lies near the first; the third is as high, but far to the right; the fourth is above them.
    places = [(0.2, 80.0), (0.25, 80.1), (1.0, 80.0), (0.2, 84.0)]
    labels = _labels(places, 1.2)
    assert labels[2:] == [pytest.approx((1.02, 80.0)), pytest.approx((0.22, 84.0))]
    assert [x for x, _ in labels[:2]] == pytest.approx([0.27, 0.27])
    assert labels[1][1] - labels[0][1] == pytest.approx(4 / 22) and labels[0][1] + labels[1][1] == pytest.approx(160.1)


def test_labels_lie_apart_about_the_middle_of_those_that_would_overlap():
    assert _apart([1.0, 1.1, 5.0, 1.05], 0.5) == pytest.approx([0.55, 1.55, 5.0, 1.05])
    assert _apart([3.0, 2.0], 0.5) == [3.0, 2.0] and _apart([], 0.5) == []
    # Two groups that grow into each other become one.
    assert _apart([0.0, 0.1, 0.9, 1.0], 0.6) == pytest.approx([-0.4, 0.2, 0.8, 1.4])


def test_runs_of_a_study():
    runs = study_runs(["fine_tuning", "static"], ["canonical", "reversed"], range(2), {"epochs": "3"})
    assert len(runs) == 8 and len({run.name for run in runs}) == 8
    run = next(run for run in runs if run.name == "reversed/static/seed1")
    assert run.settings["reverse_increments"] is True and run.settings["seed"] == 1
    assert run.settings["method"] == "static" and run.settings["adapter_policy"] == "shared"
    words = run.flags()
    assert words[words.index("--epochs") + 1] == "3"
    with pytest.raises(ValueError, match=r"Unknown methods \['magic'\]; known are"):
        study_runs(["magic"], ["canonical"], [0], {})
    with pytest.raises(ValueError, match=r"Unknown orders \['random'\]"):
        study_runs(["static"], ["random"], [0], {})


def test_a_share_of_the_epochs_is_of_those_that_all_others_have():
    def epochs(**settings):
        runs = study_runs(["lora_tenth", "lora_per_increment"], ["canonical"], [0], settings)
        assert "share" not in runs[0].settings
        return [run.settings.get("epochs") for run in runs]

    (first, _) = study_runs(["static_tenth", "static"], ["canonical"], [0], {"recipe": "stanford-then-myntra"})
    assert (first.settings["first_epochs"], first.settings["epochs"]) == pytest.approx((2.0, 0.6))  # of 20 and 6
    assert epochs(recipe="mobilenetv2-myntra", epochs="2") == [0.2, "2"]
    assert epochs(recipe="mobilenetv2-myntra") == [pytest.approx(0.6), None]  # the recipe has 6
    assert epochs() == [1.0, None]


def test_every_studied_method_can_be_trained():
    from modeling_mclfir.training.arguments import parse_arguments

    for name, settings in STUDIED.items():
        settings = {key: value for key, value in settings.items() if key != "share"}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        assert parse_arguments(words)[2].method == settings["method"], name
