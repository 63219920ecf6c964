# SPDX-License-Identifier: Apache-2.0
"""`mclfir study` over real runs, as tiny as they come."""

import json
import multiprocessing
import threading

import pytest
from tiny_runs import arguments, write_increments
from tqdm import tqdm

from modeling_mclfir.cli import main as cli
from modeling_mclfir.study.runs import StudyRun, StudyRuns

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = [{"name": "cut", "attributes": ["category", "sleeve_length"]}, {"name": "surface", "attributes": ["colour"]}]


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_data):
    """`study(*flags)` runs a study into one folder, which it gives."""
    folder = tmp_path_factory.mktemp("study")
    increments = write_increments(folder / "two.json", TWO)
    recipe = arguments(tiny_data, folder / "unused", increments=increments)[1]

    def run(*flags):
        cli.main(["study", recipe, "--output", str(folder / "out"), *flags])
        return folder / "out"

    return run


def test_methods_are_compared_and_no_run_is_repeated(study):
    methods = ["fine_tuning", "lora_per_increment", "static", "zero_shot"]
    folder = study("--methods", *methods, "--epochs", "1")
    rows = {row["method"]: row for row in json.loads((folder / "report.json").read_text())}
    assert rows.keys() == set(methods)
    assert rows["lora_per_increment"]["forgetting"] == [0.0, 0.0]
    assert rows["zero_shot"]["cost"]["steps"] == 0 and rows["zero_shot"]["forgetting"] == [0.0, 0.0]
    # Static: 64 rows at each of two increments, as the others; its second model has nothing of the first.
    assert rows["static"]["cost"]["samples"] == rows["fine_tuning"]["cost"]["samples"] == 128
    assert rows["fine_tuning"]["cost_ratio"]["samples"] == 1.0
    assert not list(folder.glob("canonical/*/seed0/increment-*/*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("canonical/*/seed0/report.json")}
    assert len(before) == 4
    study("--methods", *methods, "--epochs", "1")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_study_out_of_time_begins_nothing_and_says_so(study, capsys):
    folder = study("--methods", "fine_tuning", "--orders", "reversed", "--epochs", "1", "--minutes", "0")
    assert not (folder / "reversed").exists()
    assert "1 of 1 runs are still to come" in capsys.readouterr().err


def test_a_run_that_fails_is_told_with_its_log(study):
    with pytest.raises(SystemExit, match=r"error: the run reversed/static/seed0 failed \(.*temperature.*log.txt"):
        study("--methods", "static", "--orders", "reversed", "--temperature", "-1")


def test_a_run_begun_while_the_studys_bar_is_drawn_is_not_held_up(tiny_data, tmp_path):
    """A process forked off this one would have the bars' lock as it is then: held by a thread it does not have."""
    recipe = arguments(tiny_data, tmp_path / "unused", method="zero_shot", adapter_policy="frozen")[1]
    reports = []
    run = StudyRun("one", {"recipe": recipe})
    thread = threading.Thread(target=lambda: reports.extend(StudyRuns(tmp_path).reports([run])), daemon=True)
    with tqdm.get_lock():
        thread.start()
        thread.join(120)
        held_up = thread.is_alive()
        for child in multiprocessing.active_children():
            child.kill()
    assert not held_up and reports[0][1]["finished"]


def test_what_is_no_flag_is_refused(study):
    with pytest.raises(SystemExit, match="error: Expected flags of the training as --name value"):
        study("--methods", "static", "--epochs")
