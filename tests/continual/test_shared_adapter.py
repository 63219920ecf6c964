# SPDX-License-Identifier: Apache-2.0
"""What holds for every method against forgetting in a shared adapter."""

from copy import deepcopy

import pytest
import torch
from shared_adapter import build, learn_all, make_student
from tiny_runs import assert_equal_runs, stopped_after, train
from torch import distributed, multiprocessing

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHT_ZERO = {"lwf": {"distillation_weight": 0.0}, "ewc": {"ewc_weight": 0.0}}


@pytest.mark.parametrize("name", WEIGHT_ZERO)
def test_weight_zero_is_fine_tuning_step_for_step(make_model, name):
    """Bit for bit, over three increments."""
    runs = []
    for method in (build("fine_tuning"), build(name, **WEIGHT_ZERO[name])):
        model = make_student(make_model)
        assert not method.learns_old_heads
        runs.append((learn_all(model, method, increments=3), model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][key]) for key, value in runs[0][1].items())


# ---- several processes

TWO = {
    "lwf": {"distillation_weight": 2.0},
    "ewc": {"ewc_weight": 1e4, "ewc_batches": 2},
    "o_lora": {"orthogonality_weight": 2.0},
    "l2p": {"key_weight": 2.0},
}
STUDENTS = {"o_lora": {"adapter_policy": "stacked"}, "l2p": {"adapter_policy": "prompts", "family": "vit"}}


def learned_by(model, name: str, rows: slice = slice(None)) -> dict:
    """Everything that two increments leave, as tensors."""
    method = build(name, **TWO[name])
    told = learn_all(model, method, rows=rows)
    left = {f"told {step}": torch.tensor(list(parts.values())) for step, parts in enumerate(told)}
    return left | {
        key: value.detach().clone() for key, value in (model.state_dict() | method.kept_state_dict()).items()
    }


def one_of_two(rank: int, folder: str, students: dict) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    # A copy: tensors that come from another process are shared with it.
    rows = slice(4 * rank, 4 * rank + 4)
    found = {name: learned_by(deepcopy(model), name, rows) for name, model in students.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_learn_as_one(make_model, tmp_path):
    """Fisher terms too: gradients are added up before they are squared; and penalties count once."""
    students = {name: make_student(make_model, **STUDENTS.get(name, {})) for name in TWO}
    multiprocessing.spawn(one_of_two, (str(tmp_path), students), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in TWO:
        expected = learned_by(students[name], name)
        for found in two:
            assert found[name].keys() == expected.keys()
            for key, value in expected.items():
                told = f"{name} {key}: {found[name][key]} {value}"
                torch.testing.assert_close(found[name][key], value, atol=1e-5, rtol=1e-3, msg=told)


# ---- whole runs

SHARED = {"adapter_policy": "shared", "epochs": 1}
KINDS = {
    "lwf": {"method": "lwf"},
    "ewc": {"method": "ewc", "ewc_batches": 2},
    "online, of a stream": {
        "method": "ewc", "ewc_batches": 2, "ewc_online": True, "streaming": True, "shuffle_buffer": 24,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_between_increments_ends_as_the_unbroken_one(tiny_data, tmp_path, kind):
    settings = SHARED | KINDS[kind]
    report = train(tiny_data, tmp_path / "unbroken", **settings)
    term = {"lwf": "distillation", "ewc": "penalty"}[settings["method"]]
    assert [term in row for row in report["loss"]] == [row["increment"] != "cut" for row in report["loss"]]
    for left in (2, 1):
        folder = stopped_after(left, tmp_path / "unbroken", tmp_path / f"left{left}")
        resumed = train(tiny_data, folder, "--resume", **settings)
        assert_equal_runs(report, resumed, (tmp_path / "unbroken", folder))


@pytest.mark.parametrize("name", WEIGHT_ZERO)
def test_an_adapter_an_increment_has_nothing_to_forget(tiny_data, tmp_path, name):
    with pytest.raises(ValueError, match=f"method '{name}' needs adapter_policy 'shared'; got 'per_increment'"):
        train(tiny_data, tmp_path / "run", method=name)
