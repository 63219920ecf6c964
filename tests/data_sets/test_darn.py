# SPDX-License-Identifier: Apache-2.0
"""DARN: rows of ASEN's lists, images that were never downloaded, the way through the command to a loaded data set."""

from collections import Counter
from pathlib import Path

import pytest
from raw_sets.darn import SIZES, make

from data_scripts.darn import main, read

REAL = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "asen_meta"
COUNTS = {"train": 12, "val": 54, "query": 18, "gallery": 36}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("darn"))


def unmatched(annotations) -> list[str]:
    return [c.what for c in annotations.checks if c.published is not None and c.counted != c.published]


def test_rows_of_the_lists_have_one_label_and_rows_of_train_all_of_them(source):
    annotations = read(source)
    assert annotations.attributes == tuple(SIZES)
    assert annotations.counts == COUNTS and not annotations.bad_rows.total and not annotations.notes
    rows = {split: list(items) for split, items in annotations.splits.items()}
    assert {split: len(items) for split, items in rows.items()} == COUNTS
    assert Counter(sum(v is not None for v in row["attributes"].values()) for row in rows["train"]) == {9: 12}
    evaluation = [row for split in ("val", "query", "gallery") for row in rows[split]]
    assert {sum(v is not None for v in row["attributes"].values()) for row in evaluation} == {1}
    assert rows["train"][1]["image"] == (source, "pic/50025233/1_47_1.jpg", None)
    assert rows["train"][1]["attributes"]["clothes button"] == "0"
    assert Counter(tuple(row["galleries"]) for row in rows["val"]) == {(): 18, ("val",): 36}
    assert {tuple(row["galleries"]) for row in rows["query"]} == {()}
    assert {tuple(row["galleries"]) for row in rows["gallery"]} == {("test",)}
    # A second time the same: the writer goes over them again after an interruption.
    assert list(annotations.splits["gallery"]) == rows["gallery"]


def test_without_its_lists_train_is_empty_and_the_note_says_why(tmp_path):
    annotations = read(make(tmp_path, train=False, images=False))
    assert annotations.counts == COUNTS | {"train": 0}
    assert not list(annotations.splits["train"])
    assert "filenames_train.txt and label_train.txt" in annotations.notes[0] and "empty" in annotations.notes[0]


def test_lists_may_be_elsewhere_and_images_beside_the_lists(source, tmp_path):
    lists = make(tmp_path / "lists", images=False)
    assert next(iter(read(source, meta=lists).splits["val"]))["image"].root == source
    (source / "pic").rename(tmp_path / "lists" / "DARN" / "pic")
    try:
        assert next(iter(read(lists).splits["val"]))["image"].root == lists / "DARN"
    finally:
        (tmp_path / "lists" / "DARN" / "pic").rename(source / "pic")


def test_images_never_downloaded_are_left_out_and_told_of_where_a_url_list_is_given(tmp_path):
    source = make(tmp_path / "darn")
    gallery = [row["image"].listed for row in read(source).splits["gallery"]]
    for listed in gallery[:3]:
        (source / listed).unlink()
    urls = tmp_path / "urls.txt"
    urls.write_text(
        f"{gallery[0]}\thttp://img.example.org/1.jpg\r\n{gallery[1]}, https://img.example.org/a,b 2.jpg\r\n"
        "pic/50000000/Größe M_1.jpg //img.example.org/3.jpg\r\npic/no_address.jpg\r\n",
        encoding="utf-8-sig",
    )
    annotations = read(source, urls=urls)
    assert annotations.counts == COUNTS | {"gallery": 33}
    assert [row["image"].listed for row in annotations.splits["gallery"]] == gallery[3:]
    addresses = annotations.bad_lines["address"]
    assert (addresses.counter.counts, addresses.total) == ({"malformed": 1}, 4)
    assert not annotations.bad_rows.total
    assert "3 of 120 listed images" in annotations.notes[-1] and "address for 2 of them" in annotations.notes[-1]
    assert {c.what: c.counted for c in annotations.checks}["listed images that are absent"] == 3
    # What was published is compared with the lists, not with what is left of them.
    assert {c.what: c.counted for c in annotations.checks}["test candidates"] == 36


def test_with_no_image_at_all_every_row_stays_for_its_annotations(tmp_path):
    source = make(tmp_path / "darn", images=False)
    (tmp_path / "urls.txt").write_text("pic/1/1.jpg http://img.example.org/1.jpg")
    annotations = read(source, urls=tmp_path / "urls.txt")
    assert annotations.counts == COUNTS and "None of 120" in annotations.notes[-1]


def test_a_url_list_whose_path_leaves_the_folder_is_refused(source, tmp_path):
    (tmp_path / "urls.txt").write_text("../../x.jpg http://img.example.org/1.jpg\n")
    with pytest.raises(ValueError, match="leaves the source folder"):
        read(source, urls=tmp_path / "urls.txt")


def test_a_wrong_folder_names_every_list_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        main(["--source", str(tmp_path), "--annotations-only"])
    stems = [f"{kind}_{part}" for kind in ("query", "candidate", "filenames") for part in ("valid", "test")]
    assert all(f"DARN/{stem}.txt" in str(error.value) for stem in stems) and "meta.json" in str(error.value)


def test_the_command_writes_a_set_that_loads_and_streams(source, tmp_path):
    from datasets import load_dataset

    summary = main(["--source", str(source), "--output", str(tmp_path / "set")])
    assert summary.counts == COUNTS and not summary.bad_rows.total
    loaded = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == COUNTS
    first = loaded["query"][0]
    assert first["image"].size == (24, 24)
    assert {k: v for k, v in first["attributes"].items() if v is not None} == {"sleeve shape": "1"}
    assert first["galleries"] == []
    stream = load_dataset(str(tmp_path / "set"), split="val", streaming=True)
    galleries = Counter(tuple(row["galleries"]) for row in stream)
    assert galleries == {(): 18, ("val",): 36}


def test_without_images_the_command_counts_and_writes_labels(tmp_path):
    from datasets import load_dataset

    source = make(tmp_path / "darn", images=False)
    assert main(["--source", str(source), "--annotations-only"]).counts == COUNTS
    main(["--source", str(source), "--annotations-only", "--output", str(tmp_path / "set")])
    loaded = load_dataset(str(tmp_path / "set"), split="gallery", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 36 and loaded[0]["attributes"]["clothes category"] == "0"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real lists are not on this machine")
def test_the_real_lists_give_the_published_counts():
    annotations = read(REAL)
    assert annotations.counts == {"train": 0, "val": 21_461, "query": 4_293, "gallery": 17_168}
    assert not annotations.bad_rows.total and not unmatched(annotations)
    queries = Counter(name for row in annotations.splits["query"] for name, v in row["attributes"].items() if v)
    assert [queries[name] for name in annotations.attributes] == [476, 448, 491, 448, 463, 533, 509, 483, 442]
