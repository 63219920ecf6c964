# SPDX-License-Identifier: Apache-2.0
import pytest
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row, write_csv


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Arrow files of a test go to a folder of its own, and nothing is looked for on the network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def photos(tmp_path):
    """A folder of 40 photos of 20 products, labels.csv and nothing else."""
    folder = tmp_path / "my photos"
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(40):
        row = dataset_row(i)
        (folder / "images" / f"{i}.jpg").write_bytes(row["image"]["bytes"])
        labels = {name: value or "" for name, value in row["attributes"].items()}
        rows.append({"image": f"images/{i}.jpg", **labels, "title": row["caption"], "product": row["product_id"]})
    write_csv(folder / "labels.csv", rows)
    return folder


@pytest.fixture
def prepared(tmp_path):
    """A data set of 250 train, 10 val, 6 query and 0 gallery rows, written by `write_dataset`."""
    from modeling_mclfir.data.prepare import write_dataset

    starts = {"train": (0, 250), "val": (250, 260), "query": (260, 266), "gallery": (0, 0)}
    splits = {split: map(dataset_row, range(*ends)) for split, ends in starts.items()}
    write_dataset(tmp_path / "set", splits, ATTRIBUTES, INCREMENTS, name="Set", licence="cc0-1.0", progress=False)
    return tmp_path / "set"
