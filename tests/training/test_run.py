# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped and resumed ends bit-equal to one that never was."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import LEARNED_SCALES, arguments, assert_equal_runs, train, write_increments

import train_mclfir
from modeling_mclfir.training import checkpoint, loop

KINDS = {
    "fine_tuning": {},
    "ema": {"method": "ema_distillation", "gradient_accumulation_steps": 2, "epochs": 4, "trunk": "vit"},
    "base": {"base_training": "first_increment", "method": "ema_distillation", "lora_dropout": 0.1},
    "shared": {"adapter_policy": "shared", "max_cache_gib": 0.0},
    "streaming": {"streaming": True, "shuffle_buffer": 24, "method": "ema_distillation", "epochs": 3},
    "learned_scales": {"method": "ema_distillation", "distill_on": "pooled", "epochs": 3, **LEARNED_SCALES},
    "replay": {"method": "replay", "adapter_policy": "shared", "exemplars": 24, "replay_batch_size": 8},
    "triplet": {"loss": "triplet", "learn_loss_weights": True},
    "lwf": {"method": "lwf", "adapter_policy": "shared"},
    "ewc": {"method": "ewc", "adapter_policy": "shared", "ewc_batches": 2},
    "o_lora": {"method": "o_lora", "adapter_policy": "stacked"},
    "l2p": {"method": "l2p", "adapter_policy": "prompts", "trunk": "vit"},
}


class Stopped(BaseException):
    """As a signal would: nothing in the program catches it."""


@pytest.fixture
def stop(monkeypatch):
    """`stop(owner, name, at)`: the call number `at` of a function ends the run."""

    def set_up(owner, name, at, after=False):
        real, calls = getattr(owner, name), []

        def stopping(*arguments, **settings):
            calls.append(0)
            if len(calls) == at and not after:
                raise Stopped
            result = real(*arguments, **settings)
            if len(calls) == at:
                raise Stopped
            return result

        monkeypatch.setattr(owner, name, stopping)
        return lambda: monkeypatch.setattr(owner, name, real)

    return set_up


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_data):
    """kind → report and folder of a run that is never stopped."""
    import torch

    torch.set_num_threads(1)
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("unbroken") / kind
            made[kind] = train(tiny_data, folder, save_steps=3, **KINDS[kind]), folder
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [5, 13])
def test_stopped_inside_an_increment(run, tmp_path, unbroken, stop, kind, step):
    """Step 5: in the first increment, two steps after a saved state. Step 13: in a later one."""
    restore = stop(loop._Steps, "one", step)
    with pytest.raises(Stopped):
        run(save_steps=3, **KINDS[kind])
    restore()
    assert (tmp_path / "run" / "last" / checkpoint.STATE_FILE).exists()
    report = run("--resume", save_steps=3, **KINDS[kind])
    expected, folder = unbroken(kind)
    assert_equal_runs(report, expected, (tmp_path / "run", folder))


@pytest.mark.parametrize("at, after", [(1, True), (2, False), (3, True)])
def test_stopped_between_increments(run, tmp_path, unbroken, stop, at, after):
    restore = stop(train_mclfir, "save_increment", at, after)
    with pytest.raises(Stopped):
        run(save_steps=0)
    restore()
    report = run("--resume", save_steps=0)
    assert_equal_runs(report, unbroken("fine_tuning")[0], (tmp_path / "run", unbroken("fine_tuning")[1]))
    assert (tmp_path / "run" / "report.json").exists() and (tmp_path / "run" / "report.md").exists()


@pytest.mark.parametrize("rename", [2, 3, 5])
def test_stopped_between_the_renames_of_a_state(run, tmp_path, unbroken, stop, rename):
    """The first saved state has one rename, later ones two: the old one away, the new one in."""
    restore = stop(os, "rename", rename)
    with pytest.raises(Stopped):
        run(save_steps=2, epochs=2)
    restore()
    report = run("--resume", save_steps=2, epochs=2)
    assert_equal_runs(report, unbroken("fine_tuning")[0], (tmp_path / "run", unbroken("fine_tuning")[1]))
    left = [path.name for path in (tmp_path / "run").iterdir() if path.suffix in (".old", ".partial")]
    assert not left


def test_stopped_and_stopped_again(run, tmp_path, unbroken, stop):
    for flags, steps in (([], 5), (["--resume"], 4), (["--resume"], 9)):
        restore = stop(loop._Steps, "one", steps)
        with pytest.raises(Stopped):
            run(*flags, save_steps=3, **KINDS["base"])
        restore()
    report = run("--resume", save_steps=3, **KINDS["base"])
    assert_equal_runs(report, unbroken("base")[0], (tmp_path / "run", unbroken("base")[1]))


KILLED = """
import json, os, signal, sys
import train_mclfir
from modeling_mclfir.training import loop
steps, one = [], loop._Steps.one
def counted(*arguments):
    steps.append(0)
    if len(steps) == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return one(*arguments)
loop._Steps.one = counted
train_mclfir.main(json.loads(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_killed(run, tmp_path, tiny_data, unbroken):
    import json

    flags = arguments(tiny_data, tmp_path / "run", save_steps=3, **KINDS["ema"])
    root = str(Path(train_mclfir.__file__).parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(flags)], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    report = run("--resume", save_steps=3, **KINDS["ema"])
    assert_equal_runs(report, unbroken("ema")[0], (tmp_path / "run", unbroken("ema")[1]))


def test_a_finished_run_is_not_overwritten_and_can_be_asked_again(run, tmp_path, unbroken):
    first = run(save_steps=3)
    with pytest.raises(FileExistsError, match="holds a run already. Add --resume"):
        run(save_steps=3)
    again = run("--resume", save_steps=3)
    assert_equal_runs(again, first, (tmp_path / "run", tmp_path / "run"))
    assert_equal_runs(first, unbroken("fine_tuning")[0], (tmp_path / "run", unbroken("fine_tuning")[1]))


def test_resume_in_an_empty_folder_starts_fresh(run, tmp_path, unbroken):
    report = run("--resume", save_steps=3)
    assert_equal_runs(report, unbroken("fine_tuning")[0], (tmp_path / "run", unbroken("fine_tuning")[1]))


@pytest.mark.parametrize("finished", [False, True])
def test_resume_with_other_settings(run, tmp_path, stop, finished):
    """Also where the run was stopped before any increment was finished."""
    restore = stop(loop._Steps, "one", 13 if finished else 5)
    with pytest.raises(Stopped):
        run(save_steps=3)
    restore()
    with pytest.raises(ValueError, match="learning_rate: 0.01 before, 0.02 now"):
        run("--resume", save_steps=3, learning_rate=0.02)
    other = write_increments(tmp_path / "other.json", [{"name": "cut", "attributes": ["category"]}])
    with pytest.raises(ValueError, match="increments: .* before, .* now"):
        run("--resume", save_steps=3, increments=other)
    for path in (tmp_path / "run").glob("*/training_state.json"):  # as an earlier version saved it
        state = json.loads(path.read_text())
        del state["settings"]["head_start"]
        path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="head_start: 'random' before, 'ridge' now"):
        run("--resume", save_steps=3, head_start="ridge")
    assert run("--resume", save_steps=5)["finished"]  # how often states are saved changes nothing


def test_a_nan_ends_the_run_and_is_not_saved(run, tmp_path):
    with pytest.raises(FloatingPointError, match="loss of increment 'cut' is not a number at step .*learning_rate"):
        run(learning_rate=float("inf"), save_steps=1)
    assert not (tmp_path / "run" / "increment-00").exists()


@pytest.mark.parametrize("size, replayed, processes", [(16, 12, 3), (18, 8, 2), (24, 16, 3)])
def test_a_batch_that_processes_cannot_share(monkeypatch, tmp_path, size, replayed, processes):
    from types import SimpleNamespace

    from modeling_mclfir.training import launch as module
    from modeling_mclfir.training.arguments import RunArguments

    fake = SimpleNamespace(num_processes=processes, process_index=0)
    monkeypatch.setattr(module, "Accelerator", lambda **_: fake)
    sizes = {"batch_size": size, "replay_batch_size": replayed}
    args = RunArguments(output_dir=str(tmp_path), mixed_precision="no", report_to="none", method="replay", **sizes)
    wrong = next(size for size in sizes.values() if size % (2 * processes))
    with pytest.raises(ValueError, match=f"batch_size {wrong} cannot be shared by {processes} processes"):
        module.start_accelerator(args)
