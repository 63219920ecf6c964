# SPDX-License-Identifier: Apache-2.0
"""Spaces are refined when an increment ends: by which rows, and where not."""

import json

import pytest
import torch
from tiny_runs import assert_equal_runs, assert_equal_weights, stopped_after, train, weights

from modeling_mclfir.continual import FineTuning
from modeling_mclfir.refinement_mclfir import SpaceRefinement

pytestmark = pytest.mark.usefixtures("one_thread")
PARTS = ("centre", "means", "whitening")


def refinements(tensors: dict[str, torch.Tensor]) -> list[str]:
    return sorted(name for name in tensors if ".refinement." in name)


def test_every_increment_is_refined_once_and_for_all(tiny_data, tmp_path):
    report = train(tiny_data, tmp_path / "run")
    without = train(tiny_data, tmp_path / "without", refine_spaces=False)
    first, last, bare = weights(tmp_path / "run", 0), weights(tmp_path / "run", 2), weights(tmp_path / "without", 2)
    assert refinements(last) == [f"heads.{place}.refinement.{part}" for place in range(3) for part in PARTS]
    assert_equal_weights({name: first[name] for name in refinements(first)}, {
        name: last[name] for name in refinements(first)
    })  # fmt: skip
    assert not refinements(bare)
    # What was learned is the same; an adapter begins at the one before, which no refinement touches.
    assert_equal_weights({name: last[name] for name in bare}, bare)
    assert all(report["cost"][name] == without["cost"][name] for name in ("samples", "steps"))
    assert without["cost"]["flops"] < report["cost"]["flops"] < 1.02 * without["cost"]["flops"]
    assert report["scores"] != without["scores"] and report["forgetting"] == 0
    # Room for every value of the attributes in the data, of the attribute that has most.
    config = json.loads((tmp_path / "run" / "increment-02" / "config.json").read_text())
    assert [entry["refined_values"] for entry in config["increments"]] == [
        last[f"heads.{place}.refinement.means"].shape[1] for place in range(3)
    ]


def test_the_maps_are_those_of_the_last_steps(tiny_data, tmp_path, monkeypatch):
    """Of two epochs the rows of the second, as they were when they were learned from."""
    seen, maps = [], []
    step, fit = FineTuning.doublet_loss, SpaceRefinement.fit

    def watched(self, embeds, batch, *others):
        seen.append((embeds.detach().clone(), batch["labels"]))
        return step(self, embeds, batch, *others)

    monkeypatch.setattr(FineTuning, "doublet_loss", watched)
    monkeypatch.setattr(SpaceRefinement, "fit", lambda self, *rows: (maps.append(rows), fit(self, *rows))[1])
    train(tiny_data, tmp_path / "run", epochs=2)
    first = seen[:8]  # 64 rows in batches of 16, twice
    embeds, labels = (torch.cat(parts) for parts in zip(*first[4:], strict=True))
    assert torch.equal(maps[0][0], embeds) and torch.equal(maps[0][1], labels)


def test_static_retraining_refines_all_its_spaces_anew(tiny_data, tmp_path):
    train(tiny_data, tmp_path / "run", method="static", adapter_policy="shared")
    first, last = weights(tmp_path / "run", 0), weights(tmp_path / "run", 2)
    assert len(refinements(last)) == 9
    name = "heads.0.refinement.whitening"
    assert not torch.equal(first[name], last[name])


@pytest.mark.parametrize("method", ["zero_shot", "simplecil"])
def test_what_nothing_is_learned_for_by_steps_is_left_alone(tiny_data, tmp_path, method):
    heads = {"head_type": "closed_form", "embed_dim": 16} if method == "simplecil" else {}
    train(tiny_data, tmp_path / "run", method=method, adapter_policy="frozen", **heads)
    assert not refinements(weights(tmp_path / "run", 2))


def test_a_run_from_before_there_were_refined_spaces_goes_on_without(tiny_data, tmp_path):
    train(tiny_data, tmp_path / "run", refine_spaces=False)
    again = stopped_after(1, tmp_path / "run", tmp_path / "again")
    state = again / "increment-00" / "training_state.json"
    saved = json.loads(state.read_text())
    del saved["settings"]["refine_spaces"], saved["settings"]["exemplar_means"]
    state.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="refine_spaces: False before, True now"):
        train(tiny_data, tmp_path / "run", "--resume", "--output_dir", str(again))
    train(tiny_data, tmp_path / "run", "--resume", "--output_dir", str(again), refine_spaces=False)
    assert not refinements(weights(again, 2))


def test_a_stream_is_refined_like_a_table(tiny_data, tmp_path):
    train(tiny_data, tmp_path / "run", streaming=True)
    last = weights(tmp_path / "run", 2)
    assert len(refinements(last)) == 9
    norms = torch.cat([last[name].norm(dim=-1).flatten() for name in refinements(last) if name.endswith("means")])
    torch.testing.assert_close(norms[norms > 0], torch.ones_like(norms[norms > 0]))
    assert (norms > 0).sum() > 12


def test_a_run_taken_up_between_increments_ends_as_an_unbroken_one(tiny_data, tmp_path):
    report = train(tiny_data, tmp_path / "run")
    again = stopped_after(1, tmp_path / "run", tmp_path / "again")
    resumed = train(tiny_data, tmp_path / "run", "--resume", "--output_dir", str(again))
    assert_equal_runs(report, resumed, (tmp_path / "run", again))
