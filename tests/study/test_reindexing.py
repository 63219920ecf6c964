# SPDX-License-Identifier: Apache-2.0
"""Reindex policies compared: by snapshots whose drift is known, and on a tiny run of the training itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import train, write_increments

from modeling_mclfir.cli import main as cli
from modeling_mclfir.data.increments import Increment, select_rows
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.evaluation import Evaluator
from modeling_mclfir.index import SpaceRevision
from modeling_mclfir.study.reindexing import STUDIED_POLICIES, ReindexStudy
from modeling_mclfir.study.reindexing_report import summarise_policies, write_reindexing
from modeling_mclfir.study.snapshots import Snapshot, open_run

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 8
CUT, LOOK = Increment("cut", ("category", "sleeve_length")), Increment("look", ("colour",))
FIRST = Increment("first", ("category",), values=("dress", "shirt", "sweater"), new_values=True)
SECOND = Increment("second", ("category",), values=("jumpsuit", "skirt", "trousers"), new_values=True)


@pytest.fixture(scope="module")
def evaluator(one_thread, tiny_data):
    return Evaluator(load_tables(tiny_data), "query", None, None, None)


@pytest.fixture(scope="module")
def turned_study(evaluator, tmp_path_factory):
    """A study of a second model whose vectors are the first's, turned; its rows and landings."""
    folder = tmp_path_factory.mktemp("turned")
    study = attributes_study(evaluator, turned)
    found = study, *study.compare(folder)
    assert not list(folder.iterdir())
    return found


def vectors(count, spaces, seed):
    rows = np.random.default_rng(seed).standard_normal((count, spaces, DIM))
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def turned(rows, seed=5):
    return rows @ np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0].astype(np.float32)


def snapshot(names, embeds, fingerprint):
    spaces = [name.split("@") for name in names]
    return Snapshot(
        tuple(SpaceRevision("@".join(one), *one, f"of {fingerprint}", fingerprint, DIM) for one in spaces), embeds
    )


def attributes_study(evaluator, drift, fingerprints=("old", "new"), **settings):
    """Two increments; the second model's old vectors are `drift(the first's)`."""
    first = tuple(vectors(len(table), 2, seed) for seed, table in enumerate(evaluator.tables))
    colour = tuple(vectors(len(table), 1, 9 + seed) for seed, table in enumerate(evaluator.tables))
    later = tuple(np.concatenate([drift(old), new], axis=1) for old, new in zip(first, colour, strict=True))
    old = ["category@cut", "sleeve_length@cut"]
    snapshots = [snapshot(old, first, fingerprints[0]), snapshot([*old, "colour@look"], later, fingerprints[1])]
    return ReindexStudy([CUT, LOOK], snapshots, evaluator, **({"num_calibration": 24} | settings))


def values_study(evaluator):
    """One space that learns new values: the second model's vectors are turned."""
    first = tuple(vectors(len(table), 1, seed) for seed, table in enumerate(evaluator.tables))
    pair = first, tuple(turned(rows) for rows in first)
    snapshots = [snapshot(["category@first"], one, mark) for one, mark in zip(pair, ("old", "new"), strict=True)]
    return ReindexStudy([FIRST, SECOND], snapshots, evaluator, num_calibration=24)


def expected(study, increment, queries, gallery):
    """MAP of each attribute by the evaluator alone, from arrays (N, D) of each."""
    sides = [torch.from_numpy(np.stack(side, axis=1)) for side in (queries, gallery)]
    return [row["mean_average_precision"] for row in study.evaluator.score(study.sides, sides, increment)]


def scores(rows, policy, increment, after=1):
    return [
        row["mean_average_precision"]
        for row in rows
        if (row["policy"], row["increment"], row["after"]) == (policy, increment, after)
    ]


def test_each_policy_ranks_what_it_says(turned_study):
    study, rows, landings = turned_study
    assert list(landings) == [
        name for name, one in STUDIED_POLICIES.items() if not one.new_items and name != "new_only"
    ]
    (old, new), places = (one.embeds for one in study.snapshots), (0, 1)
    for policy, queries, gallery in (("full", new, new), ("none", new, old), ("old_model", old, old)):
        sides = [queries[0][:, place] for place in places], [gallery[1][:, place] for place in places]
        assert scores(rows, policy, "cut") == expected(study, CUT, *sides), policy
        assert scores(rows, policy, "look") == expected(study, LOOK, [new[0][:, 2]], [new[1][:, 2]])
    before = scores(rows, "full", "cut", after=0)
    assert all(scores(rows, policy, "cut", after=0) == before for policy in landings)
    # A turn of all vectors changes no ranking within a model, ruins it between two, and is what Procrustes finds.
    assert scores(rows, "full", "cut") == scores(rows, "procrustes", "cut") == pytest.approx(before)
    assert np.abs(np.subtract(scores(rows, "none", "cut"), before)).min() > 0.01
    assert scores(rows, "procrustes_mix", "cut") != pytest.approx(before)
    assert [landing.images_again for landing in landings["full"]] == [0, 32]
    assert [landing.images_again for landing in landings["none"]] == [0, 0]
    assert [landing.images_again for landing in landings["procrustes"]] == [0, 24]
    assert (landings["none"][1].changed, landings["none"][1].unchanged) == (2, 0)
    assert landings["procrustes"][1].cosine_after == pytest.approx(1)
    assert landings["procrustes"][1].cosine_before < 0.5


def test_a_shift_is_what_the_mean_drift_finds(evaluator, tmp_path):
    shift = np.linspace(-1, 1, DIM).astype(np.float32)
    rows, landings = attributes_study(evaluator, lambda old: old + shift).compare(tmp_path)
    before = scores(rows, "old_model", "cut")
    assert scores(rows, "mean_drift", "cut") == pytest.approx(before) != scores(rows, "full", "cut")
    assert landings["mean_drift"][1].cosine_after == pytest.approx(1)


def test_first_results_are_the_indexs_own(turned_study):
    study, rows, _ = turned_study
    queries, gallery = (side.table.labels("category") for side in study.sides)
    ranked = np.argsort(-(study.snapshots[1].embeds[0][:, 0] @ study.snapshots[0].embeds[1][:, 0].T), axis=1)[:, :10]
    shares = [(gallery[found] == label).mean() for found, label in zip(ranked, queries, strict=True)]
    (row,) = (row for row in rows if (row["policy"], row["attribute"], row["after"]) == ("none", "category", 1))
    assert row["precision_at_10"] == pytest.approx(np.mean([share for share, label in zip(shares, queries, strict=True)
                                                            if label in gallery]))  # fmt: skip


def test_an_image_is_not_among_its_own_first_results(tiny_data, tmp_path):
    tables = load_tables(tiny_data)
    evaluator = Evaluator(tables | {"val": tables["gallery"]}, "val", None, None, None)
    study = attributes_study(evaluator, turned)
    same = [replace(one, embeds=(one.embeds[1], one.embeds[1])) for one in study.snapshots]
    study = ReindexStudy(study.increments, same, evaluator)
    rows, _ = study.compare(tmp_path)
    labels, embeds = tables["gallery"].labels("category"), same[0].embeds[0][:, 0]
    products = embeds @ embeds.T
    np.fill_diagonal(products, -2)
    shares = (labels[np.argsort(-products, axis=1)[:, :10]] == labels[:, None]).mean(axis=1)
    kept = [np.sum(labels == label) > 0 for label in labels]
    (row,) = (row for row in rows if (row["policy"], row["attribute"], row["after"]) == ("full", "category", 0))
    assert row["precision_at_10"] == pytest.approx(shares[kept].mean())


def test_where_old_spaces_stay_every_policy_is_exact_and_costs_nothing(evaluator, tmp_path):
    study = attributes_study(evaluator, lambda old: old, fingerprints=("same", "same"))
    rows, landings = study.compare(tmp_path)
    assert "new_only" in landings
    before = scores(rows, "full", "cut", after=0)
    for policy, found in landings.items():
        assert scores(rows, policy, "cut") == before, policy
        assert [landing.images_again for landing in found] == [0, 0] and found[1].unchanged == 2
    write_reindexing(study, rows, landings, {"method": "fine_tuning", "adapter_policy": "per_increment"}, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "No increment changed the encoder of an old space" in page and "How far old spaces moved" not in page
    assert summarise_policies(rows, landings)[-1]["share_of_full"] is None


def test_items_of_new_values_can_be_embedded_again(evaluator, tmp_path):
    study = values_study(evaluator)
    assert study.spaces_learn_on
    rows, landings = study.compare(tmp_path)
    (old, new), renewed = (one.embeds for one in study.snapshots), select_rows(SECOND, evaluator.tables[1])
    mixed = old[1].copy()
    mixed[renewed] = new[1][renewed]
    for increment in (FIRST, SECOND):
        name = increment.name
        assert scores(rows, "none", name) == expected(study, increment, [new[0][:, 0]], [old[1][:, 0]])
        assert scores(rows, "new_items", name) == expected(study, increment, [new[0][:, 0]], [mixed[:, 0]])
        # Turned back, queries and items both: as if nothing had moved.
        back = expected(study, increment, [old[0][:, 0]], [old[1][:, 0]])
        assert scores(rows, "procrustes_new_items", name) == pytest.approx(back)
        assert scores(rows, "new_items", name) != pytest.approx(back)
    assert landings["new_items"][1].images_again == len(renewed) == 12
    assert 24 <= landings["procrustes_new_items"][1].images_again <= 32
    # Where every increment has spaces of its own, there is nothing to tell of it.
    assert not any(one.new_items for one in attributes_study(evaluator, turned).policies().values())


def test_what_cannot_be_studied_is_refused(evaluator):
    with pytest.raises(ValueError, match="two increments at least.*got 1 of 2"):
        ReindexStudy([CUT, LOOK], attributes_study(evaluator, turned).snapshots[:1], evaluator)
    with pytest.raises(ValueError, match="at least 1 item"):
        attributes_study(evaluator, turned, num_calibration=0)


def test_the_report_has_a_table_after_each_increment(turned_study, tmp_path):
    study, rows, landings = turned_study
    summary = {(row["policy"], row["after"]): row for row in summarise_policies(rows, landings)}
    none, full = summary["none", 1], summary["full", 1]
    assert none["old_mean_average_precision"] == pytest.approx(np.mean(scores(rows, "none", "cut")))
    assert none["new_mean_average_precision"] == scores(rows, "none", "look")[0]
    assert (none["images_again"], none["share_of_full"], full["share_of_full"]) == (0, 0.0, 1.0)
    assert summary["procrustes", 1]["share_of_full"] == 0.75 and full["not_below_full"] == full["num_old"] == 2
    assert summary["none", 0]["old_mean_average_precision"] is None
    write_reindexing(study, rows, landings, {"method": "fine_tuning", "adapter_policy": "shared"}, tmp_path)
    page = (tmp_path / "report.md").read_text()
    against = 100 * (none["old_mean_average_precision"] - full["old_mean_average_precision"])
    assert "## After look\n\n| policy | old | against full |" in page
    assert f"| none | {100 * none['old_mean_average_precision']:.2f} | {against:+.2f} | " in page
    assert "| 24 | 0.75 |" in page and "## How far old spaces moved" in page
    assert (tmp_path / "old_attributes.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "report.json").read_text())
    assert len(content["rows"]) == 6 * (2 + 3) and content["increments"] == ["cut", "look"]


@pytest.fixture(scope="module")
def shared_run(one_thread, tiny_data, tmp_path_factory):
    """A run of two increments whose trunk goes on learning, and its report."""
    folder = tmp_path_factory.mktemp("reindexing")
    two = [{"name": "cut", "attributes": ["category"]}, {"name": "surface", "attributes": ["colour"]}]
    increments = write_increments(folder / "two.json", two)
    report = train(tiny_data, folder / "run", increments=increments, adapter_policy="shared", epochs=1, num_views=1)
    return folder / "run", report


def test_full_is_what_the_training_reports(shared_run, tmp_path):
    run, report = shared_run
    cli.main(["study-index", str(run), "--output", str(tmp_path), "--calibration", "16"])
    content = json.loads((tmp_path / "report.json").read_text())
    for after, increment, expected in ((0, "cut", (0, 0)), (1, "cut", (1, 0)), (1, "surface", (1, 1))):
        assert scores(content["rows"], "full", increment, after) == [report["scores"][expected[0]][expected[1]]]
    assert content["landings"]["full"][1]["changed"] == 1
    assert scores(content["rows"], "none", "cut") != scores(content["rows"], "full", "cut")
    assert not list(tmp_path.glob("index-*"))


def test_no_image_is_embedded_twice(shared_run, tmp_path, monkeypatch):
    _, _, first, _ = open_run(shared_run[0], tmp_path)
    calls = []
    monkeypatch.setattr(Evaluator, "embed", lambda *given: calls.append(given))
    _, _, again, _ = open_run(shared_run[0], tmp_path)
    assert not calls
    for one, other in zip(first, again, strict=True):
        assert [revision.fingerprint for revision in one.revisions] == [
            revision.fingerprint for revision in other.revisions
        ]
        assert all(np.array_equal(*pair) for pair in zip(one.embeds, other.embeds, strict=True))


def test_mistakes_are_told(shared_run, tiny_data, tmp_path):
    run, _ = shared_run
    with pytest.raises(SystemExit, match="holds no run: it has no increment-00"):
        cli.main(["study-index", str(tmp_path), "--output", str(tmp_path / "out")])
    state = json.loads((run / "increment-00" / "training_state.json").read_text())
    empty = tmp_path / "empty" / "increment-00"
    empty.mkdir(parents=True)
    (empty / "training_state.json").write_text(json.dumps(state))
    with pytest.raises(SystemExit, match="increment-00 have no weights"):
        cli.main(["study-index", str(tmp_path / "empty"), "--output", str(tmp_path / "out")])
    (empty / "heads.safetensors").touch()
    state["settings"]["method"] = "zero_shot"
    (empty / "training_state.json").write_text(json.dumps(state))
    with pytest.raises(SystemExit, match="'zero_shot', which searches by pooled features"):
        cli.main(["study-index", str(tmp_path / "empty"), "--output", str(tmp_path / "out")])
    state["settings"]["method"] = "fine_tuning"
    state["learned_from"]["rows"]["gallery"] = 31
    (empty / "training_state.json").write_text(json.dumps(state))
    with pytest.raises(SystemExit, match="is not what the run in .* learned from: rows: .*31"):
        cli.main(["study-index", str(tmp_path / "empty"), "--output", str(tmp_path / "out"), "--dataset",
                  str(tiny_data)])  # fmt: skip
