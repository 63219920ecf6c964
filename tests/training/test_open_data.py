# SPDX-License-Identifier: Apache-2.0
"""Bad input is told before any training starts."""

import csv
import json
import shutil

import pytest
from accelerate import Accelerator
from tiny_runs import INCREMENTS, write_increments

from modeling_mclfir.data.atelier import ATTRIBUTES, generate_split
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.training.arguments import DataArguments
from modeling_mclfir.training.open_data import open_data


@pytest.fixture
def opened(tmp_path, tiny_data):
    def make(**settings):
        args = DataArguments(**{"dataset": str(tiny_data)} | settings)
        return open_data(args, tmp_path / "out", 0, Accelerator())

    return make


def write_photos(folder, num_rows=120, bad=(), columns=None):
    """A folder of images with a labels.csv, some of them cut."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns or ["image", "category", "colour"])
        for i, row in enumerate(generate_split("train", num_rows=num_rows, image_size=32)):
            data = row["image"]["bytes"]
            (folder / "images" / f"{i}.jpg").write_bytes(data[: len(data) // 2] if i in bad else data)
            writer.writerow([f"images/{i}.jpg", row["attributes"]["category"], row["attributes"]["colour"]])
    return folder


def test_a_prepared_data_set(opened):
    data = opened()
    assert [increment.name for increment in data.increments] == [entry["name"] for entry in INCREMENTS]
    assert data.describe("query") == {
        "name": str(data.folder),
        "splits": {"train": 64, "val": 16, "query": 16, "gallery": 32},
        "bad_rows": {},
        "evaluate_on": "query",
    }
    backwards = opened(reverse_increments=True)
    assert [increment.name for increment in backwards.increments] == ["details", "surface", "cut"]


def test_streaming_leaves_the_training_images_where_they_are(opened):
    table, streamed = opened().tables["train"], opened(streaming=True).tables["train"]
    assert "image" not in streamed.dataset.column_names and len(streamed) == len(table)
    assert streamed.vocabulary == table.vocabulary
    for name in ATTRIBUTES:
        assert (streamed.labels(name) == table.labels(name)).all()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "entry, message",
    [
        ({"name": "a", "attributes": ["colour"], "where": {"category": ["hat"]}}, "'a' has no rows in split 'train'"),
        ({"name": "a", "attributes": ["collar"]}, "collar.*"),
        (
            {"name": "a", "attributes": ["category"], "where": {"category": ["dress"]}},
            "attribute 'category' of increment 'a' has the single value 'dress'",
        ),
        ({"name": "a", "where": {"category": ["dress"]}}, r"increments \['a'\] name no attributes"),
    ],
)
def test_increments_that_cannot_be_learned(opened, tmp_path, entry, message, streaming):
    path = write_increments(tmp_path / "increments.json", [entry])
    with pytest.raises(ValueError, match=message):
        opened(increments=path, streaming=streaming)


def test_an_attribute_that_cannot_be_scored(opened, tmp_path):
    def rows(split, size):
        for i, row in enumerate(generate_split(split, num_rows=size, image_size=32)):
            row["attributes"]["fit"] = f"{split} {i // 2 if split == 'val' else i % 3}"
            yield row

    sizes = {"train": 12, "val": 8, "query": 8, "gallery": 8}
    splits = {split: rows(split, size) for split, size in sizes.items()}
    entries = [{"name": "a", "attributes": ["fit"]}]
    write_dataset(tmp_path / "set", splits, tuple(ATTRIBUTES), entries, name="Odd", licence="cc0-1.0", progress=False)
    with pytest.raises(ValueError, match="'fit' of increment 'a' cannot be scored: no image of split 'query' has one"):
        opened(dataset=str(tmp_path / "set"))
    assert opened(dataset=str(tmp_path / "set"), evaluate_on="val").increments


def test_files_that_are_not_there(opened, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder. Name 'atelier'"):
        opened(dataset=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none.json: no such file"):
        opened(increments=str(tmp_path / "none.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match="labels"):
        opened(dataset=str(tmp_path / "empty"))


def write_with_bad(folder, num_bad, num_rows=120):
    def rows(split, size):
        for i, row in enumerate(generate_split(split, num_rows=size, image_size=32)):
            if split == "train" and i < num_bad:
                row["image"]["bytes"] = row["image"]["bytes"][:200]
            yield row

    sizes = {"train": num_rows, "val": 20, "query": 20, "gallery": 20}
    splits = {split: rows(split, size) for split, size in sizes.items()}
    write_dataset(
        folder,
        splits,
        tuple(ATTRIBUTES),
        INCREMENTS,
        name="Bad",
        licence="cc0-1.0",
        check_images=False,
        progress=False,
    )
    return str(folder)


def test_bad_images_of_a_prepared_set(opened, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)5 of 160 rows are bad, more than.*truncated: 5 \(train row 0"):
        opened(dataset=write_with_bad(tmp_path / "many", 5))
    data = opened(dataset=write_with_bad(tmp_path / "few", 1))
    assert len(data.tables["train"]) == 119 and data.describe("query")["bad_rows"] == {"truncated": 1}
    # A stream skips and counts them while it is read.
    assert opened(dataset=str(tmp_path / "many"), streaming=True).describe("query")["bad_rows"] == {}


def test_bad_images_of_a_folder_of_photos(opened, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)\d of 120 rows are bad.*truncated: \d \(images/0.jpg"):
        opened(dataset=str(write_photos(tmp_path / "many", bad=range(5))))
    data = opened(dataset=str(write_photos(tmp_path / "few", bad=[3])))
    assert data.describe("query")["bad_rows"] == {"truncated": 1}
    assert sum(len(table) for table in data.tables.values()) == 119


def test_a_missing_photo_is_counted_too(opened, tmp_path):
    photos = write_photos(tmp_path / "photos")
    (photos / "images" / "7.jpg").unlink()
    assert opened(dataset=str(photos)).describe("query")["bad_rows"] == {"missing": 1}


def test_labels_without_an_image_column(opened, tmp_path):
    photos = write_photos(tmp_path / "photos", num_rows=4, columns=["file", "category", "colour"])
    with pytest.raises(ValueError, match="image"):
        opened(dataset=str(photos))


def test_the_embedded_data_set_is_drawn_once(tmp_path, monkeypatch):
    from modeling_mclfir.training import prepared_folder as module

    monkeypatch.setattr(
        module,
        "generate_split",
        lambda split, seed: generate_split(split, seed=seed, num_rows=60 if split == "train" else 30, image_size=32),
    )
    args, accelerator = DataArguments(), Accelerator()
    first = open_data(args, tmp_path, 3, accelerator)
    monkeypatch.setattr(module, "generate_split", None)
    again = open_data(args, tmp_path, 3, accelerator)
    assert first.folder == again.folder == tmp_path / "data" and len(again.tables["train"]) == 60
    assert json.loads((tmp_path / "data" / "increments.json").read_text())
    shutil.rmtree(tmp_path / "data")
