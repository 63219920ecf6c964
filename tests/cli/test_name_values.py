# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from accelerate import Accelerator
from PIL import Image as PilImage

from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor, ValueIndex
from modeling_mclfir.cli.main import main
from modeling_mclfir.data.increments import Increment
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.evaluation import Evaluator
from modeling_mclfir.metrics import average_precision
from modeling_mclfir.training.naming_heads import heads_figures, vote_shares
from modeling_mclfir.training.naming_report import mean_row, naming_markdown
from modeling_mclfir.voting_mclfir import vote

ATTRIBUTES = ["category", "sleeve_length", "colour", "pocket", "closure"]


@pytest.fixture(scope="session")
def text_checkpoint(tiny_data, tmp_path_factory):
    """The last increment of a tiny text-image run."""
    from tiny_text_runs import train_pairs

    folder = tmp_path_factory.mktemp("names") / "run"
    train_pairs(tiny_data, folder, epochs=1)
    return folder / "increment-01"


def name(checkpoint, data, *flags):
    main(["name-values", str(checkpoint), "--dataset", str(data), "--batch_size", "16", *map(str, flags)])


def test_a_table_a_report_and_a_picture(text_checkpoint, checkpoint, tiny_data, tmp_path, capsys):
    flags = ["--attributes", *ATTRIBUTES[:3], "--heads", checkpoint, "--k", "5", "--output", tmp_path / "out"]
    name(text_checkpoint, tiny_data, *flags)
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["attribute"] for row in report["attributes"]] == ATTRIBUTES[:3]
    assert report["spaces"] == ["tops", "rest"] and (report["num_photos"], report["num_gallery"]) == (16, 32)
    tables = load_tables(tiny_data)
    for row in report["attributes"]:
        labels = tables["query"].labels(row["attribute"])
        counts = torch.bincount(torch.from_numpy(labels[labels >= 0]))
        assert row["constant"]["accuracy_at_1"] == pytest.approx(float(counts.max() / counts.sum()))
        assert f"| {100 * row['text']['accuracy_at_1']:.2f} | {100 * row['heads']['accuracy_at_1']:.2f} |" in shown
        assert 0 < row["text"]["mean_reciprocal_rank"] <= 1 and 0 < row["retrieval"]["random_ranking"] < 1
    assert shown.startswith("## Values named by text") and shown in (tmp_path / "out" / "report.md").read_text()
    with PilImage.open(tmp_path / "out" / "named_values.png") as image:
        image.verify()


def test_every_attribute_on_val_without_heads(text_checkpoint, tiny_data, capsys):
    name(text_checkpoint, tiny_data, "--evaluate_on", "val", "--increment", "rest", "--template", "{value}")
    shown = capsys.readouterr().out
    assert "16 photos of val, 16 in the gallery; “{value}”; the space of rest." in shown
    assert all(f"| {attribute} |" in shown for attribute in load_tables(tiny_data)["val"].attributes)
    assert "heads" not in shown.lower() and "random, by photo" not in shown


def test_heads_score_as_the_evaluator_and_predict_values(checkpoint, tiny_data):
    model = MclfirForImageRetrieval.from_pretrained(checkpoint).eval()
    processor, tables = MclfirImageProcessor.from_pretrained(checkpoint), load_tables(tiny_data)
    evaluator = Evaluator(tables, "query", processor, None, Accelerator(cpu=True), 16)
    found = heads_figures(model, evaluator, ["pocket", "colour", "texture"], k=3)
    assert list(found) == ["pocket", "colour"]
    index = ValueIndex.from_table(model, tables["gallery"], processor, 16, ["pocket", "colour"])
    pixels = processor([tables["query"].image(row) for row in range(16)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        named = model.predict_values(pixels, index, k=3, attribute_ids=model.attribute_ids(["pocket", "colour"]))
    sides = evaluator.prepare(model)
    for attribute, figures in found.items():
        labels = tables["query"].labels(attribute)
        values = [index.values[attribute][code] if code >= 0 else None for code in labels]
        right = [one[attribute].value == value for one, value in zip(named, values, strict=True) if value is not None]
        assert figures["accuracy_at_1"] == pytest.approx(sum(right) / len(right))
        place = model.attribute_ids([attribute])[0]
        embeds = [evaluator.embed(model, side, None)[:, place : place + 1] for side in sides]
        row = evaluator.score(sides, embeds, Increment("one", (attribute,)))[0]
        assert figures["mean_average_precision"] == row["mean_average_precision"]


def test_several_spaces_of_an_attribute_are_fused(tiny_data, tmp_path):
    from tiny_runs import train, write_increments

    entries = [
        {"name": "tops", "attributes": ["category"], "where": {"category": ["shirt", "sweater", "jacket"]}},
        {"name": "rest", "attribute": "category", "where": {"category_not": ["shirt", "sweater", "jacket"]}},
    ]
    train(tiny_data, tmp_path / "run", "--increments", write_increments(tmp_path / "values.json", entries), epochs=0.5)
    folder, tables = tmp_path / "run" / "increment-01", load_tables(tiny_data)
    model = MclfirForImageRetrieval.from_pretrained(folder).eval()
    processor = MclfirImageProcessor.from_pretrained(folder)
    found = heads_figures(model, Evaluator(tables, "val", processor, None, Accelerator(cpu=True), 16), ["category"])
    table = tables["val"]
    pixels = processor([table.image(row) for row in range(16)], return_tensors="pt")["pixel_values"]
    labels, rows = torch.from_numpy(table.labels("category")), torch.arange(16)
    sides = model.fused_queries("category", pixels), model.fused_gallery("category", pixels)
    precision = average_precision(*sides, labels, labels, query_ids=rows, gallery_ids=rows)
    assert found["category"]["mean_average_precision"] == pytest.approx(float(precision.nanmean()), abs=1e-6)


def test_no_photo_votes_on_itself():
    # Each has its own value and a far neighbour of another: alone it would always vote right.
    embeds, labels = torch.eye(3), torch.tensor([0, 1, -1])
    assert vote_shares(embeds, embeds, labels, 2, 1, 0.1, same_side=False)[:2].argmax(1).tolist() == [0, 1]
    shares = vote_shares(embeds, embeds, labels, 2, 1, 0.1, same_side=True)
    assert shares[:2].argmax(1).tolist() == [1, 0]
    assert torch.equal(shares[2:], vote(embeds[2:], embeds, labels, 2, 1, 0.1))


def test_means_are_over_attributes_that_both_have():
    figures = {"accuracy_at_1": 0.5, "accuracy_at_5": None, "mean_reciprocal_rank": 0.5}
    found = {"mean_average_precision": 0.5, "random_ranking": 0.1, "mean_average_precision_by_shares": 0.2}
    counts = {"num_values": 3, "num_photos": 9, "num_queries": 3, "num_gallery": 9}
    row = counts | {"text": figures, "constant": figures, "retrieval": found}
    other = row | {"attribute": "b", "text": figures | {"accuracy_at_1": 0.1}, "heads": None}
    rows = [row | {"attribute": "a|a", "heads": {"accuracy_at_1": 0.9, "accuracy_at_5": None} | found}, other]
    mean = mean_row(rows)
    assert mean["num_attributes"] == 1 and mean["text"]["accuracy_at_1"] == 0.5
    assert mean["heads"]["accuracy_at_1"] == 0.9 and mean["text"]["accuracy_at_5"] is None
    assert mean_row([rows[1]] * 2)["text"]["accuracy_at_1"] == pytest.approx(0.1)
    page = naming_markdown({
        "attributes": rows, "mean": mean, "templates": ["{value}"], "num_photos": 9, "num_gallery": 9,
        "evaluate_on": "val", "spaces": ["a"], "k": 20,
    })  # fmt: skip
    assert "| a\\|a | 3 | 9 | 50.00 | 50.00 | 90.00 | – |" in page and "| **mean of the 1 with heads** |" in page
    assert "| b | 3 | 9 | 50.00 | 10.00 | – |" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attributes", "hat"], "no labels of hat; they have labels of category"),
        (["--template", "a photo"], "must have the field {value}"),
        (["--increment", "shoes"], "no increment 'shoes'"),
        (["--prompt_temperature", "0"], "prompt_temperature must be above 0; got 0.0"),
    ],
)
def test_mistakes_end_in_one_line(text_checkpoint, tiny_data, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        name(text_checkpoint, tiny_data, *flags, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_the_other_kind(text_checkpoint, checkpoint, tiny_data, tmp_path):
    with pytest.raises(SystemExit, match="is a checkpoint of 'mclfir', but must be one of text-image retrieval"):
        name(checkpoint, tiny_data)
    with pytest.raises(SystemExit, match="no such folder"):
        name(tmp_path / "nowhere" / "increment-00", tiny_data)
    with pytest.raises(SystemExit, match="'mclfir_text_image', but must be one of attribute retrieval"):
        name(text_checkpoint, tiny_data, "--heads", text_checkpoint)
