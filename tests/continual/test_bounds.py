# SPDX-License-Identifier: Apache-2.0
"""The two bounds: retraining on everything, and learning nothing."""

import pytest
import torch
from tiny_runs import assert_equal_runs, stopped_after, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")
STATIC = {"method": "static", "adapter_policy": "shared", "epochs": 1}


@pytest.fixture(scope="module")
def static(tmp_path_factory, tiny_data, one_thread):
    folder = tmp_path_factory.mktemp("static") / "run"
    return train(tiny_data, folder, **STATIC), folder


def test_static_learns_the_heads_of_all_increments_anew_each_time(static):
    report, folder = static
    first, second = weights(folder, 0), weights(folder, 1)
    old_heads = [name for name in first if name.startswith("heads.0.")]
    assert old_heads and all(not torch.equal(first[name], second[name]) for name in old_heads if "prompts" in name)
    adapters = [name for name in first if ".lora_B." in name]
    assert adapters and any(not torch.equal(first[name], second[name]) for name in adapters)
    # One pass over the 64 rows at each of the three increments, whatever the number of attributes.
    assert [row["samples"] for row in report["cost_per_increment"]] == [64, 64, 64]
    assert [len(row) for row in report["history"]] == [2, 3, 5]


def test_a_static_run_that_was_stopped_goes_on_as_if_it_had_not(static, tiny_data, tmp_path):
    """Stopped between increments: the model of before is put aside, the new one is drawn from the same seeds."""
    report, folder = static
    again = stopped_after(1, folder, tmp_path / "again")
    resumed = train(tiny_data, again, "--resume", **STATIC)
    assert_equal_runs(report, resumed, (folder, again))


def test_zero_shot_scores_the_trunk_as_it_is(tiny_data, tmp_path):
    report = train(tiny_data, tmp_path / "run", method="zero_shot", adapter_policy="frozen")
    assert report["cost"]["steps"] == 0 == report["cost"]["samples"] and not report["loss"]
    assert report["average"]["mean_average_precision"] == report["initial_trunk"]["mean_average_precision"]
    assert report["forgetting"] == report["forward_transfer"] == 0.0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "static"}, "method 'static' needs adapter_policy 'shared' or 'frozen'; got 'per_increment'"),
        ({**STATIC, "head_type": "closed_form"}, "method 'static' learns by steps, and heads of head_type 'closed"),
        ({**STATIC, "streaming": True}, "--method static looks at the rows of an increment again"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_data, tmp_path / "run", **settings)
