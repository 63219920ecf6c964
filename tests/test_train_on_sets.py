# SPDX-License-Identifier: Apache-2.0
"""From the raw files of a data set to a report: each script's output is learned from, on tiny images."""

import json
import math
import shutil

import pytest
from tiny_runs import assert_equal_weights, train, weights, write_increments

from modeling_mclfir.data.increments import load_increments

pytestmark = pytest.mark.usefixtures("one_thread")

# Data set → what it can be evaluated on.
SETS = {
    "fashionai": ("query", "val"),
    "darn": ("query", "val"),
    "deepfashion": ("query", "val"),
    "zappos50k": ("query", "val"),
    "fashioniq": ("query",),
    "fashion200k": ("query",),
    "shopping100k": ("query",),
    "secoco": ("query", "val"),
    "sevige": ("query", "val"),
}
RUN = {"epochs": 0.25, "num_views": 1}
CONDITIONS = ("class", "closure", "gender", "heel")


def first_increments(folder, path, number=2):
    """A file with the first increments that are learned by default."""
    increments = load_increments(folder / "increments.json", key=None)[:number]
    return write_increments(path, [increment.to_dict() for increment in increments]), increments


def check_report(report, names):
    assert report["finished"] and [row["attribute"] for row in report["attributes"]] == names
    assert report["cost"]["steps"] == len(report["loss"]) >= len(report["increments"])
    assert all(math.isfinite(row["loss"]) for row in report["loss"])
    for i, row in enumerate(report["scores"]):
        assert all(0 <= value <= 1 for value in row[: i + 1])
    assert all(0 <= value <= 1 for name, value in report["average"].items() if "gain" not in name)
    assert set(report["initial_trunk"]) == set(report["average"])


@pytest.mark.parametrize("name", SETS)
def test_a_prepared_set_is_learned_and_scored(prepared, tmp_path, name):
    folder = prepared(name)
    path, increments = first_increments(folder, tmp_path / "increments.json")
    for evaluate_on in SETS[name]:
        flags = "--increments", path, "--evaluate_on", evaluate_on
        report = train(folder, tmp_path / evaluate_on, *flags, **RUN)
        check_report(report, [attribute for increment in increments for attribute in increment.attributes])
        assert report["data"]["evaluate_on"] == evaluate_on
        for row in report["attributes"]:
            assert 0 <= row["mean_average_precision"] <= 1 and row["num_gallery"] > 0
        with_tags = name in ("fashionai", "deepfashion", "zappos50k", "shopping100k")
        assert ("mean_average_precision_all_tags" in report["average"]) == with_tags
        assert ("triplet_accuracy" in report["average"]) == (name == "zappos50k")


def test_galleries_of_val_are_searched_by_its_queries(prepared, tmp_path):
    folder = prepared("darn")
    path, _ = first_increments(folder, tmp_path / "increments.json", number=1)
    report = train(folder, tmp_path / "run", "--increments", path, "--evaluate_on", "val", **RUN)
    # As in ASEN's lists: two queries of each attribute, four candidates.
    assert [(row["num_queries"], row["num_gallery"]) for row in report["attributes"]] == [(2, 4)]


def test_a_gallery_without_queries_is_searched_for_itself(prepared, tmp_path):
    report = train(prepared("fashioniq"), tmp_path / "run", **RUN)
    (row,) = report["attributes"]
    # Two of the 35 are in the lists of several categories and have none of their own.
    assert row["num_queries"] == row["num_gallery"] == 33 and report["data"]["splits"]["gallery"] == 35
    assert "- Each image of the split *gallery* is searched for" in (tmp_path / "run" / "report.md").read_text()


def test_a_list_of_all_attributes_at_once(prepared, tmp_path):
    report = train(prepared("fashionai"), tmp_path / "run", "--increments_key", "all", **RUN)
    assert report["increments"] == ["all"] and len(report["attributes"]) == 8
    check_report(report, [row["attribute"] for row in report["attributes"]])


# ---- triplets


@pytest.fixture(scope="module")
def by_triplets(prepared, tmp_path_factory):
    """A run with pictures on conditions of which only the class has labels; (prepared, run's folder, report)."""
    folder, output = prepared("zappos50k", meta=False), tmp_path_factory.mktemp("triplets") / "run"
    return folder, output, train(folder, output, plots=True, **RUN | {"epochs": 1, "temperature": 1.0})


def test_attributes_known_by_triplets_alone_are_learned_and_scored(by_triplets):
    _, output, report = by_triplets
    assert report["increments"] == list(CONDITIONS)
    check_report(report, list(CONDITIONS))
    assert all(0 <= row["triplet_accuracy"] <= 1 and row["num_triplets"] == 48 for row in report["attributes"])
    labelled = [row["attribute"] for row in report["attributes"] if not math.isnan(row["mean_average_precision"])]
    assert labelled == ["class"]
    accuracies = [row["triplet_accuracy"] for row in report["attributes"]]
    assert report["average"]["triplet_accuracy"] == pytest.approx(sum(accuracies) / 4)
    # A score of an increment: MAP where there is one, else the share of triplets in order.
    last = report["scores"][-1]
    assert last == [report["attributes"][0]["mean_average_precision"], *accuracies[1:]]
    assert report["forgetting"] == 0


def test_their_report_and_pictures(by_triplets):
    _, output, report = by_triplets
    on_disk = json.loads((output / "report.json").read_text())
    assert [row["mean_average_precision"] is None for row in on_disk["attributes"]] == [False, True, True, True]
    assert [row["triplet_accuracy"] for row in on_disk["attributes"]] == [
        row["triplet_accuracy"] for row in report["attributes"]
    ]
    page = (output / "report.md").read_text()
    assert f"Triplet accuracy {100 * report['average']['triplet_accuracy']:.2f} %" in page
    assert "over 1 attribute of 4 increments" in page
    for row in report["attributes"][1:]:
        assert f"| {row['attribute']} | {row['attribute']} | – | – |" in page
        assert f"| 0 | 0 | 0 | – | {100 * row['triplet_accuracy']:.2f} | 48 |" in page
    pictures = {path.stem for path in (output / "plots").glob("*.png")}
    assert pictures == {"score_matrix", "attributes", "loss", "retrievals", "attention"}


def test_losses_of_triplets_are_those_of_triplets(by_triplets):
    # Two candidates a row: without any learning the loss is about log 2; with whole batches as negatives log 15 (at a
    # temperature of 1, where cosines drawn at random change little).
    _, _, report = by_triplets
    for name in CONDITIONS[1:]:
        first = next(row for row in report["loss"] if row["increment"] == name)
        assert 0 < first["contrastive"] < 2 and first["prototypes"] == 0


def test_a_run_on_triplets_goes_on_where_it_was_stopped(by_triplets, tmp_path):
    folder, output, report = by_triplets
    shutil.copytree(output, tmp_path / "run")
    for increment_id in (2, 3):
        shutil.rmtree(tmp_path / "run" / f"increment-{increment_id:02d}")
    again = train(folder, tmp_path / "run", "--resume", plots=False, **RUN | {"epochs": 1, "temperature": 1.0})
    assert again["loss"] == report["loss"] and again["scores"] == report["scores"]
    assert_equal_weights(weights(output, 3), weights(tmp_path / "run", 3))


@pytest.mark.parametrize("method", ["fine_tuning", "ema_distillation"])
@pytest.mark.parametrize("evaluate_on", ["query", "val"])
def test_labels_and_triplets_in_one_increment(prepared, tmp_path, method, evaluate_on):
    folder = prepared("zappos50k", meta=False)
    flags = "--increments_key", "all", "--evaluate_on", evaluate_on, "--method", method
    report = train(folder, tmp_path / "run", *flags, batch_size=24, **RUN)
    check_report(report, list(CONDITIONS))
    assert report["average"]["triplet_accuracy"] > 0 and report["average"]["mean_average_precision"] > 0
    assert report["scores"] == [[report["average"]["mean_average_precision"]]]


def test_only_triplets_are_enough(prepared, tmp_path):
    increments = write_increments(tmp_path / "i.json", [{"name": "look", "attributes": ["gender", "heel"]}])
    folder = prepared("zappos50k", meta=False)
    report = train(folder, tmp_path / "run", "--increments", increments, plots=True, **RUN)
    check_report(report, ["gender", "heel"])
    assert set(report["average"]) == {"triplet_accuracy"}
    assert report["scores"] == [[report["average"]["triplet_accuracy"]]]
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Triplet accuracy" in page and "**MAP" not in page


def test_a_batch_too_small_for_triplets_of_all_attributes(prepared, tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at least 24 for 4 attributes; got 16"):
        train(prepared("zappos50k", meta=False), tmp_path / "run", "--increments_key", "all", **RUN)


def test_a_stream_has_no_triplets(prepared, tmp_path):
    with pytest.raises(ValueError, match="closure, gender, heel are known by triplets alone.*without --streaming"):
        train(prepared("zappos50k", meta=False), tmp_path / "run", "--streaming", **RUN)


# ---- what cannot be learned


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_without_attributes_says_what_it_is_for(prepared, tmp_path, streaming):
    folder = prepared("cirr")
    words = "has no attributes, so there is nothing to learn for attribute retrieval.*composed retrieval.*Choose a set"
    with pytest.raises(ValueError, match=words):
        train(folder, tmp_path / "run", streaming=streaming, **RUN)


def test_a_split_without_rows_is_named(prepared, tmp_path):
    with pytest.raises(ValueError, match="split 'val' of the data set has no rows.*another --evaluate_on"):
        train(prepared("fashioniq"), tmp_path / "run", "--evaluate_on", "val", **RUN)
    with pytest.raises(ValueError, match="split 'train' of the data set has no rows"):
        train(prepared("darn", train=False), tmp_path / "other", **RUN)
