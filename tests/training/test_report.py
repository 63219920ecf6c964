# SPDX-License-Identifier: Apache-2.0
"""report.json and report.md."""

import json
import os

import numpy as np
import pytest
import torch

from modeling_mclfir.training.report import plain, report_markdown, write_report


def bill(**more) -> dict:
    return {
        "samples": 12800, "steps": 100, "flops": 3.2e14, "seconds": 187.2, "waiting_seconds": 1.872,
        "peak_memory_bytes": 2**30,
    } | more  # fmt: skip


def make_report() -> dict:
    summary = {
        "mean_average_precision": 0.71234,
        "random_ranking": 0.3125,
        "prior": 0.3,
        "gain_over_random": 0.5,
        "gain_over_prior": 0.51,
        "mean_average_precision_by_queries": 0.7,
        "mean_average_precision_by_increments": 0.72,
    }
    row = {
        "mean_average_precision": 0.654321, "random_ranking": 0.25, "prior": 0.24, "gain_over_random": 0.5391,
        "num_queries": 1234, "num_queries_without_positives": 7, "num_gallery": 5678, "num_values": 4,
    }  # fmt: skip
    rows = [
        {"increment": "cut", "attribute": "sleeve_length", **row},
        {"increment": "surface", "attribute": "pattern|print", **row},
    ]
    before = [rows[0] | {"mean_average_precision": 0.674321}]
    return {
        "increments": ["cut", "surface", "details"],
        "scores": [[0.8, 0.4567, None], [0.79, 0.7001, 0.3456]],
        "average": summary,
        "forgetting": 0.01,
        "backward_transfer": -0.01,
        "forward_transfer": float("nan"),
        "initial_trunk": summary | {"mean_average_precision": 0.4321},
        "cost": bill(steps=200, flops=1.6e15, seconds=3725.0),
        "cost_per_increment": [bill(increment="cut"), bill(increment="surface")],
        "attributes": rows,
        "history": [before, rows],
        "loss": [{"increment": "cut", "step": 1, "loss": 2.0, "contrastive": 2.0}],
        "parameters": {
            "trunk": 2_000_000, "added": {"cut": 50_000, "surface": 70_000}, "added_per_attribute": 60_000.0,
            "share_of_trunk": 0.03,
        },
        "data": {"name": "shop", "splits": {"train": 1100}, "bad_rows": {"truncated": 2}, "evaluate_on": "query"},
        "arguments": {"trunk": "some/trunk", "epochs": 10.0},
        "versions": {"mclfir": "0.1.0"},
        "finished": False,
    }  # fmt: skip


def test_markdown_holds_the_numbers():
    page = report_markdown(make_report())
    for text in (
        "**MAP 71.23 %**", "31.25", "43.21",
        "| after cut | 80.00 | *45.67* |  |",
        "| after surface | 79.00 | 70.01 | *34.56* |",
        "| cut | sleeve_length | 65.43 | -2.00 | 25.00 | 24.00 | 53.91 | 1,234 | 5,678 | 4 |",
        "| surface | pattern\\|print | 65.43 | +0.00 |",
        "| forgetting | 1.00 |", "| backward transfer | -1.00 |", "| forward transfer | – |",
        "| cut | 12,800 | 100 | 320.00 TFLOP | 3 min 07 s | 1.00 | 1,024 MiB |",
        "| **all** | 12,800 | 200 | 1.60 PFLOP | 1 h 02 min | 0.05 | 1,024 MiB |",
        "| added by cut | 50,000 | 2.50 |", "| **added per attribute** | 60,000 | 3.00 |",
        "1,100 train", "| truncated | 2 |", 'trunk: "some/trunk"', "mclfir: ",
        'no_positives="skip"', "holds 0–1", "14 here", "not finished", "still to come: details", "*query*",
    ):  # fmt: skip
        assert text in page, text


def test_tables_are_whole():
    table = []
    for line in [*report_markdown(make_report()).splitlines(), ""]:
        if line.startswith("|"):
            table.append(line.replace("\\|", "").count("|"))
        elif table:
            assert len(set(table)) == 1
            table = []


def test_a_finished_run_does_not_say_otherwise():
    assert "not finished" not in report_markdown(make_report() | {"finished": True})


def test_val_is_named_as_no_final_result():
    report = make_report()
    report["data"]["evaluate_on"] = "val"
    assert "not a final result" in report_markdown(report)


@pytest.mark.parametrize("report", [{}, {"increments": ["cut"], "scores": [], "average": None, "finished": False}])
def test_nothing_learned_yet(report):
    assert "Nothing is scored yet" in report_markdown(report)


def test_nulls_anywhere():
    report = make_report()
    for key in list(report):
        report_markdown(report | {key: None})
    report["attributes"][0] = dict.fromkeys(report["attributes"][0]) | {"increment": "cut", "attribute": "sleeve"}
    report["cost"] = dict.fromkeys(report["cost"])
    report["average"] = dict.fromkeys(report["average"], float("nan"))
    assert "| **all** | – | – | – | – | – | – |" in report_markdown(report)


def test_pictures_are_shown_where_they_exist(tmp_path):
    assert "![" not in report_markdown(make_report(), tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "score_matrix.png").write_bytes(b"")
    (tmp_path / "plots" / "attention.png").write_bytes(b"")
    page = report_markdown(make_report(), tmp_path)
    assert page.count("![") == 2
    assert "](plots/score_matrix.png)" in page and "](plots/attention.png)" in page


def test_json_is_strict_and_complete(tmp_path):
    report = make_report()
    report["scores"][0][0] = np.float32(0.5)
    report["average"]["prior"] = torch.tensor(float("inf"))
    write_report(report, tmp_path / "run")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / "run" / "report.json").read_text(), parse_constant=refuse)
    assert content["forward_transfer"] is None and content["average"]["prior"] is None
    assert content["scores"][0] == [0.5, 0.4567, None]
    assert list(content) == list(report)
    assert (tmp_path / "run" / "report.md").read_text() == report_markdown(report)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.json", "report.md"]


def test_plain_keeps_numbers_exact():
    value = {"a": (0.1, True, 2**60, "x", None), 3: np.arange(2), "path": os.PathLike}
    assert plain(value) | {"path": None} == {"a": [0.1, True, 2**60, "x", None], "3": [0, 1], "path": None}


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    write_report(make_report(), tmp_path)
    old = (tmp_path / "report.json").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(make_report() | {"finished": True}, tmp_path)
    assert (tmp_path / "report.json").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_files_are_readable_by_others(tmp_path):
    write_report(make_report(), tmp_path)
    (tmp_path / "other").touch()
    assert (tmp_path / "report.json").stat().st_mode == (tmp_path / "other").stat().st_mode
