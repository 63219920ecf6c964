# SPDX-License-Identifier: Apache-2.0
"""Replay: which rows are kept, what they do to the loss, and runs of the main script with it."""

from copy import deepcopy
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import assert_equal_runs, assert_equal_weights, stopped_after, train, weights
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from modeling_mclfir.continual import FineTuning, Replay
from modeling_mclfir.continual.herding import herd
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.losses import InfoNCE, world_size
from modeling_mclfir.training.arguments import RunArguments
from modeling_mclfir.training.space_refinement import refresh_means

REPLAY = {"method": "replay", "adapter_policy": "shared", "exemplars": 24, "replay_batch_size": 8, "epochs": 1}
NUM_VALUES = [2, 2]


def settings(**changes):
    return SimpleNamespace(**(asdict(RunArguments(temperature=0.2)) | {"method": "replay"} | changes))


class Rows:
    """An increment of `LABELS`, in chunks; `embed` is what stands in for the model."""

    def __init__(self, labels, image_ids=None, dim=4, seed=0, first=100):
        rng = np.random.default_rng(seed)
        self.labels = torch.tensor(labels)
        self.embeds = torch.tensor(rng.normal(size=(*self.labels.shape, dim)), dtype=torch.float32)
        self.rows = torch.arange(first, first + len(labels))
        self.image_ids = self.rows.clone() if image_ids is None else torch.tensor(image_ids)

    def chunks(self):
        for part in torch.arange(len(self.rows)).split(3):
            yield {
                "inputs": {"shared_features": self.embeds[part]},
                "labels": self.labels[part],
                "image_ids": self.image_ids[part],
                "rows": self.rows[part],
            }


class Embedder(torch.nn.Module):
    device = torch.device("cpu")

    def forward(self, shared_features):
        assert not self.training and not torch.is_grad_enabled()
        return SimpleNamespace(embeds=shared_features)


def end(method, increment_id, rows):
    method.increment_id = increment_id
    method.end_increment(Embedder(), rows)


LABELS = [[0, 1], [0, -1], [0, 1], [1, 0], [1, 0], [1, 1], [0, -1], [2, 1], [1, -1], [0, 0]]


# ---- which rows are kept


@pytest.mark.parametrize(
    "per, exemplars, quota", [("value", 2, 2), ("value", 3, 3), ("total", 12, 3), ("total", 9, 2)]
)
def test_each_attribute_and_value_has_its_list_herded_in_its_own_space(per, exemplars, quota):
    rows, method = Rows(LABELS), Replay(settings(exemplars=exemplars, exemplars_per=per))
    end(method, 0, rows)
    expected = {}
    # Value 2 of the first attribute has a single image.
    for place, value in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inside = np.flatnonzero(rows.labels[:, place].numpy() == value)
        best = inside[herd(rows.embeds[inside, place].numpy(), quota)]
        expected[0, place, value] = (100 + best).tolist()
    assert {key: best.tolist() for key, best in method.lists.items()} == expected
    union = sorted({row for best in expected.values() for row in best})
    assert {key: kept.tolist() for key, kept in method.exemplars.items()} == {0: union}
    assert all(len(best) >= 2 for best in expected.values())


def test_a_fixed_total_cuts_old_lists_from_their_ends():
    method = Replay(settings(exemplars=17))
    end(method, 0, Rows(LABELS))
    before = dict(method.lists)
    assert [len(best) for best in before.values()] == [4, 4, 3, 4], "17 // 4, where there are as many"
    end(method, 1, Rows([[0], [0], [1], [1], [1], [1]], first=300))
    assert {len(best) for best in method.lists.values()} == {2}, "17 // 6"
    for key, best in before.items():
        assert method.lists[key].tolist() == best[:2].tolist()
    assert list(method.exemplars) == [0, 1] and set(method.exemplars[1]) <= set(range(300, 306))
    assert sum(map(len, method.exemplars.values())) <= 17


def test_as_many_per_value_cut_nothing():
    method = Replay(settings(exemplars=3, exemplars_per="value"))
    end(method, 0, Rows(LABELS))
    before = {key: best.tolist() for key, best in method.lists.items()}
    end(method, 1, Rows([[0], [0], [1], [1]], first=300))
    assert {key: best.tolist() for key, best in method.lists.items() if key[0] == 0} == before
    assert len(method.lists) == 6


def test_a_total_too_small_for_all_keeps_pairs_by_turns_of_increments():
    method = Replay(settings(exemplars=7))
    end(method, 0, Rows(LABELS))
    # The first value of each attribute, then the second of the first: three pairs fit into seven.
    assert list(method.lists) == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert {len(best) for best in method.lists.values()} == {2}
    end(method, 1, Rows([[0], [0], [1], [1]], first=300))
    assert sorted(method.lists) == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    assert sum(map(len, method.exemplars.values())) <= 7


def test_copies_of_an_image_count_once():
    method = Replay(settings(exemplars=10, exemplars_per="value"))
    end(method, 0, Rows([[0], [0], [0], [1], [1], [-1]], image_ids=[5, 5, 6, 7, 7, 8]))
    assert {key: sorted(best) for key, best in method.lists.items()} == {(0, 0, 0): [100, 102]}


def test_rows_without_labels_leave_nothing_behind():
    method = Replay(settings())
    end(method, 0, Rows([[-1, -1], [-1, -1]]))
    assert method.exemplars == {} and method.kept_state_dict() == {}


def test_what_is_kept_outlives_a_checkpoint():
    method, other = Replay(settings(exemplars=14)), Replay(settings(exemplars=14))
    end(method, 0, Rows(LABELS))
    state = method.kept_state_dict()
    assert list(state) == ["exemplars.0.0.0", "exemplars.0.0.1", "exemplars.0.1.0", "exemplars.0.1.1"]
    other.load_kept_state_dict({name: value.clone() for name, value in state.items()})
    for one in (method, other):
        end(one, 1, Rows([[0], [0], [1], [1]], first=300))
    assert method.lists.keys() == other.lists.keys()
    assert all(np.array_equal(best, other.lists[key]) for key, best in method.lists.items())


# ---- the loss

PAIRS = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])


def batch_of(step: int, replayed: int | None, rows: slice = slice(None)) -> dict:
    pixels = torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(step))
    batch = {
        "inputs": {"pixel_values": pixels[0, rows], "increment_id": 2},
        "labels": PAIRS[rows, :1],
        "image_ids": torch.arange(4)[rows],
    }
    if replayed is not None:
        batch["replay"] = {
            "inputs": {"pixel_values": pixels[1, rows], "increment_id": replayed},
            "labels": PAIRS[rows, : 2 - replayed],
            "image_ids": torch.arange(4)[rows],
        }
    return batch


@pytest.fixture
def make_student(make_model):
    def make():
        model = make_model("resnet", adapter_policy="shared")
        for name, attributes in (("shape", ["type", "hem"]), ("look", ["colour"]), ("trim", ["button"])):
            model.add_increment(name, attributes)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.set_trainable(2, old_heads=True)
        return model.train()

    return make


def begin(model, **changes):
    method = Replay(settings(**changes))
    torch.manual_seed(1)
    method.begin_increment(model, 2, [2])
    return method


def test_the_exemplars_loss_is_the_contrastive_one_of_their_own_increment(make_student):
    model = make_student()
    method, batch = begin(model, replay_weight=0.7), batch_of(0, replayed=0)
    assert method.learns_old_heads and method.prototypes is not None
    parts = method.compute_loss(model, batch)
    plain = begin(model, replay_weight=0.0).compute_loss(model, batch_of(0, None))
    embeds = model(**batch["replay"]["inputs"]).embeds
    expected = InfoNCE(0.2)(embeds, PAIRS, torch.arange(4)).item()
    assert set(parts) == {*plain, "replay"} and parts["contrastive"] == plain["contrastive"]
    assert parts["replay"].item() == pytest.approx(expected, rel=1e-5) and expected > 0.1
    assert parts["loss"].item() == pytest.approx(plain["loss"].item() + 0.7 * expected, rel=1e-5)


@pytest.mark.parametrize("replayed, moved", [(0, {0, 2}), (1, {1, 2}), (None, {2})])
def test_every_parameter_has_a_gradient_and_only_the_replayed_heads_one_that_moves_them(make_student, replayed, moved):
    model = make_student()
    begin(model).compute_loss(model, batch_of(0, replayed))["loss"].backward()
    free = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all(value.grad is not None for value in free.values())
    assert {int(name.split(".")[1]) for name, value in free.items() if "heads" in name and value.grad.any()} == moved
    assert any("lora" in name and value.grad.any() for name, value in free.items())


def steps_of(model, rows: slice, bare=None) -> dict:
    method = begin(bare or model)
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([*free, *method.parameters()], lr=0.05)
    for step in range(3):
        parts = method.compute_loss(model, batch_of(step, replayed=step % 2, rows=rows))
        parts["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": parts["loss"].detach() / world_size()} | (bare or model).state_dict()


def one_of_two(rank, folder, model):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = deepcopy(model)
    # It refuses parameters without a gradient at the second step.
    found = steps_of(DistributedDataParallel(model), slice(2 * rank, 2 * rank + 2), model)
    method = Replay(settings(exemplars=2, exemplars_per="value"))
    end(method, 0, Rows(LABELS, seed=rank))  # embeddings that differ between processes
    kept = method.kept_state_dict()
    torch.save(found | kept, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_learn_as_one_and_keep_the_same_rows(make_student, tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path), make_student()), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected, start = steps_of(make_student(), slice(None)), make_student().state_dict()
    assert any(not torch.equal(expected[name], value) for name, value in start.items() if "heads.0" in name)
    for found in two:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    kept = [name for name in two[0] if name.startswith("exemplars")]
    assert len(kept) == 4 and all(torch.equal(two[0][name], two[1][name]) for name in kept)


@pytest.mark.parametrize("changes", [{"exemplars": 0}, {"replay_weight": 0.0}])
def test_without_exemplars_or_weight_it_is_fine_tuning_step_for_step(make_student, changes):
    found = []
    for method in (Replay(settings(**changes)), FineTuning(settings())):
        assert not method.learns_old_heads and method.exemplars == {}
        model = make_student()
        model.set_trainable(2)
        torch.manual_seed(1)
        method.begin_increment(model, 2, [2])
        optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
        losses = [method.compute_loss(model, batch_of(step, None))["loss"] for step in range(2)]
        sum(losses).backward()
        optimizer.step()
        method.end_increment(model, rows=None)  # not even looked at
        found.append((losses, model.state_dict()))
    (losses, state), (expected, other) = found
    assert losses == expected and all(torch.equal(value, other[name]) for name, value in state.items())


# ---- runs of the main script


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_data, one_thread):
    folder = tmp_path_factory.mktemp("replay") / "run"
    return train(tiny_data, folder, **REPLAY), folder


def test_a_run_replays_rows_of_earlier_increments(unbroken, tiny_data):
    report, folder = unbroken
    from safetensors.torch import load_file

    labels = load_tables(tiny_data)["train"]
    names = [["category", "sleeve_length"], ["colour"], ["pocket", "closure"]]
    kept = load_file(folder / "increment-02" / "method.safetensors")
    assert {int(name.split(".")[1]) for name in kept} == {0, 1, 2}
    for name, rows in kept.items():
        increment_id, place, value = map(int, name.split(".")[1:])
        assert len(rows) == 2 and (labels.labels(names[increment_id][place])[rows] == value).all(), name
    assert sum(map(len, kept.values())) <= 24
    parts = {row["increment"]: "replay" in row for row in report["loss"]}
    assert parts == {"cut": False, "surface": True, "details": True}
    # A batch has 16 rows and, from the second increment on, 8 of exemplars beside them.
    assert [row["samples"] / row["steps"] for row in report["cost_per_increment"]] == [16, 24, 24]
    moved = [
        any(not torch.equal(value, weights(folder, 2)[name]) for name, value in weights(folder, place).items())
        for place in (0, 1)
    ]
    assert moved == [True, True]


def test_old_heads_learn_on_with_the_adapter(unbroken):
    first, last = weights(unbroken[1], 0), weights(unbroken[1], 2)
    learns = [name for name in first if name.startswith("heads.0.") and ".refinement." not in name]
    assert learns and not any(torch.equal(first[name], last[name]) for name in learns)


def test_a_run_stopped_between_increments_goes_on_as_if_it_had_not(unbroken, tiny_data, tmp_path):
    report, folder = unbroken
    again = stopped_after(1, folder, tmp_path / "again")
    resumed = train(tiny_data, again, "--resume", **REPLAY)
    assert_equal_runs(report, resumed, (folder, again))
    states = [(place / "increment-02" / "method.safetensors").read_bytes() for place in (folder, again)]
    assert states[0] == states[1]


def test_without_weight_it_is_fine_tuning_bit_for_bit(one_thread, tiny_data, tmp_path, unbroken):
    plain = train(tiny_data, tmp_path / "plain", **(REPLAY | {"method": "fine_tuning"}))
    folder = tmp_path / "weight zero"
    assert_equal_runs(train(tiny_data, folder, **REPLAY, replay_weight=0.0), plain, (folder, tmp_path / "plain"))
    assert not (folder / "increment-02" / "method.safetensors").exists()
    assert_equal_weights(weights(unbroken[1], 0), weights(tmp_path / "plain", 0))
    with pytest.raises(AssertionError):
        assert_equal_weights(weights(unbroken[1], 1), weights(tmp_path / "plain", 1))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"adapter_policy": "per_increment"}, "method 'replay' needs adapter_policy 'shared'; got 'per_increment'"),
        ({"adapter_policy": "frozen"}, "method 'replay' needs adapter_policy 'shared'; got 'frozen'"),
        ({"streaming": True}, "--method replay looks at the rows of an increment again"),
        ({"exemplars": 1}, "exemplars must be 0, or at least 2 for a doublet; got 1"),
        ({"exemplars": -3}, "exemplars must be 0, or at least 2 for a doublet; got -3"),
        ({"exemplars_per": "attribute"}, r"exemplars_per must be one of \('total', 'value'\); got 'attribute'"),
        ({"replay_weight": -1.0}, "replay_weight must be at least 0; got -1.0"),
        ({"replay_weight": float("nan")}, "replay_weight must be at least 0; got nan"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_data, tmp_path / "run", **(REPLAY | changes))


def test_old_spaces_learn_on_unrefined(tiny_data, tmp_path, monkeypatch):
    seen, step = [], Replay.compute_loss

    def watched(self, model, batch):
        seen.append([heads.refinement is None for heads in self.student.heads])
        return step(self, model, batch)

    monkeypatch.setattr(Replay, "compute_loss", watched)
    train(tiny_data, tmp_path / "run", **REPLAY)
    assert len(seen[-1]) == 3 and all(map(all, seen))
    assert sum(name.endswith("refinement.means") for name in weights(tmp_path / "run", 2)) == 3


def test_a_space_without_a_map_gets_none_from_its_exemplars(make_model, images):
    model = make_model("resnet").eval()
    model.add_increment("cut", ["neckline", "sleeve"])
    embeds = model.eval()(images).embeds.detach()
    labels = torch.tensor([[0, 1], [0, 0], [0, 1], [0, 0]])  # one neckline
    model.refine_increment(0, embeds, labels, num_values=2)
    whitening, means = (getattr(model.heads[0].refinement, name).clone() for name in ("whitening", "means"))
    inputs = {"pixel_values": images.flip(0), "increment_id": 0}
    batch = {"inputs": inputs, "labels": torch.tensor([[0, 1], [1, 0]] * 2)}
    refresh_means(model, 0, SimpleNamespace(chunks=lambda: [batch]))
    assert torch.equal(model.heads[0].refinement.whitening, whitening)
    changed = (model.heads[0].refinement.means != means).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True]


def test_means_are_kept_up_by_exemplars_of_refined_spaces_only():
    for changes in ({"method": "fine_tuning"}, {"refine_spaces": False}):
        with pytest.raises(ValueError, match="exemplar_means keeps the means of refined spaces"):
            Replay(settings(exemplar_means=True, **changes))


def test_means_of_old_values_follow_their_exemplars(tiny_data, tmp_path):
    """As in iCaRL: after the last increment they are those of the exemplars, as the model embeds them then."""
    from modeling_mclfir import MclfirForImageRetrieval
    from modeling_mclfir.data.augmentation import Augmentation
    from modeling_mclfir.data.table import load_tables
    from modeling_mclfir.processing_mclfir import MclfirImageProcessor
    from modeling_mclfir.training.feature_cache import load_pixels

    train(tiny_data, tmp_path / "plain", **REPLAY)
    train(tiny_data, tmp_path / "means", **REPLAY, exemplar_means=True)
    name = "heads.0.refinement.means"
    plain, first, last = (weights(tmp_path / run, at) for run, at in (("plain", 2), ("means", 0), ("means", 2)))
    assert torch.equal(first[name], plain[name]) and not torch.equal(last[name], plain[name])
    for part in ("whitening", "centre"):
        assert torch.equal(last[f"heads.0.refinement.{part}"], plain[f"heads.0.refinement.{part}"])

    folder = tmp_path / "means" / "increment-02"
    kept = load_file(folder / "method.safetensors")
    rows = sorted({int(row) for key, best in kept.items() if key.startswith("exemplars.0.") for row in best})
    table, model = load_tables(tiny_data)["train"], MclfirForImageRetrieval.from_pretrained(folder).eval()
    pixels = load_pixels(table, rows, 0, MclfirImageProcessor.from_pretrained(folder), Augmentation(), 0)
    with torch.no_grad(), model.unrefined():
        embeds = model(pixels, increment_id=0).embeds
    attributes = model.config.increments[0]["attributes"]
    labels = torch.stack([torch.from_numpy(table.labels(attribute))[rows] for attribute in attributes], dim=1)
    model.refine_increment(0, embeds, labels)
    # Cached features are rounded to half precision.
    torch.testing.assert_close(model.heads[0].refinement.means, last[name], atol=2e-2, rtol=0)
