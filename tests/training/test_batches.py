# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_mclfir.data.atelier import ATTRIBUTES, generate_split
from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.images import DistinctBadRows
from modeling_mclfir.data.increments import load_increments
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training.batches import IncrementBatches, StreamBatches, draw_views, to_device

WHERE = {"category": ["dress", "shirt", "skirt"]}


@pytest.fixture
def make(tiny_data):
    """The batches of one process: `make(StreamBatches, rank=1, world=2, entry={...}, …)`."""

    def build(kind=IncrementBatches, *, rank=0, world=1, entry=None, data=tiny_data, num_views=3, **settings):
        table = load_tables(data, labels_only=() if kind is IncrementBatches else ("train",))["train"]
        increments = load_increments([entry or {"name": "a", "attributes": ["category", "sleeve_length"]}])
        first = (table, increments, None) if kind is IncrementBatches else (data, table, increments)
        settings = {"plan_seed": (0, 0), "batch_size": 8, "increment_id": 0} | settings
        if kind is StreamBatches:
            settings = {"shuffle_buffer": 24} | settings
        processor = MclfirImageProcessor.for_trunk(None, 16, 16)
        accelerator = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
        return kind(*first, num_views, processor, Augmentation(), accelerator, **settings)

    return build


def take(batches, first, last):
    return list(batches.loader(first, last, 0))


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["inputs"]["pixel_values"], b["inputs"]["pixel_values"])
        assert torch.equal(a["labels"], b["labels"]) and torch.equal(a["image_ids"], b["image_ids"])


@pytest.mark.parametrize("kind", [IncrementBatches, StreamBatches])
def test_a_batch(make, kind):
    batches = make(kind, teacher=True)
    for batch in take(batches, 0, 9):
        assert batch["inputs"]["pixel_values"].shape == batch["teacher_inputs"]["pixel_values"].shape == (8, 3, 16, 16)
        assert not torch.equal(batch["inputs"]["pixel_values"], batch["teacher_inputs"]["pixel_values"])
        assert batch["labels"].shape == (8, 2) and batch["labels"].dtype == torch.int64
        # Anchor and positive have a value in common and are different images.
        anchors, positives = batch["labels"][::2], batch["labels"][1::2]
        assert ((anchors == positives) & (anchors >= 0)).any(dim=1).all()
        assert (batch["image_ids"][::2] != batch["image_ids"][1::2]).all()


def test_processes_share_one_global_batch(make):
    whole = take(make(teacher=True), 0, 4)
    parts = [take(make(rank=rank, world=2, teacher=True), 0, 4) for rank in range(2)]
    for one, *two in zip(whole, *parts, strict=True):
        for name in ("inputs", "teacher_inputs"):
            assert torch.equal(one[name]["pixel_values"], torch.cat([part[name]["pixel_values"] for part in two]))
        assert torch.equal(one["image_ids"], torch.cat([part["image_ids"] for part in two]))
    with pytest.raises(ValueError, match="batch_size 6 cannot be shared by 2 processes"):
        make(world=2, batch_size=6)


def test_a_batch_of_a_table_depends_on_its_step_alone(make):
    assert_equal_batches(take(make(), 0, 6)[3:], take(make(), 3, 6))
    with_workers = list(make().loader(0, 3, 1))
    assert_equal_batches(take(make(), 0, 3), with_workers)


@pytest.mark.parametrize("kind", [IncrementBatches, StreamBatches])
def test_only_rows_of_the_increment(make, tiny_data, kind):
    table = load_tables(tiny_data)["train"]
    categories = dict(zip(table.image_ids.tolist(), table.labels("category").tolist(), strict=True))
    batches = make(kind, entry={"name": "a", "attributes": ["colour"], "where": WHERE})
    wanted = {table.values("category").index(name) for name in WHERE["category"]}
    seen = torch.cat([batch["image_ids"] for batch in take(batches, 0, 20)])
    assert {categories[number] for number in seen.tolist()} == wanted
    assert batches.num_rows == sum(code in wanted for code in categories.values()) < len(table)


def test_labels_and_ids_of_a_stream_are_those_of_the_table(make, tiny_data):
    table = load_tables(tiny_data)["train"]
    place = {number: row for row, number in enumerate(table.image_ids.tolist())}
    columns = np.stack([table.labels(name) for name in ("category", "sleeve_length")], axis=1)
    for batch in take(make(StreamBatches), 0, 12):
        rows = [place[number] for number in batch["image_ids"].tolist()]
        np.testing.assert_array_equal(batch["labels"].numpy(), columns[rows])


def test_teacher_and_student_see_different_views():
    views, others = draw_views((1, 2, 3), 500, 4)
    assert set(views) == set(others) == set(range(4)) and (views != others).all()
    views, others = draw_views((1, 2, 3), 50, 1)
    assert set(views) == set(others) == {0}


def test_to_device():
    batch = {
        "inputs": {"shared_features": torch.ones(2, 3, 4, 4, dtype=torch.float16)},
        "labels": torch.ones(2).long(),
    }
    moved = to_device(batch, torch.device("cpu"), torch.float32)
    assert moved["inputs"]["shared_features"].dtype == torch.float32 and moved["labels"].dtype == torch.int64


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 11, 20])
@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2)])
def test_a_stream_goes_on_exactly(make, stop, rank, world):
    import json

    settings = {
        "rank": rank,
        "world": world,
        "batch_size": 8 * world,
        "entry": {"name": "a", "attributes": ["colour"]},
    }
    whole = take(make(StreamBatches, **settings), 0, 24)
    first = make(StreamBatches, **settings)
    take(first, 0, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = make(StreamBatches, **settings)
    second.load_state_dict(state)
    assert_equal_batches(whole[stop:], take(second, stop, 24))


def test_the_state_of_another_number_of_processes(make):
    batches = make(StreamBatches)
    take(batches, 0, 2)
    with pytest.raises(ValueError, match="opened with"):
        make(StreamBatches, world=2).load_state_dict(batches.state_dict())


def test_a_stream_holds_a_pool_at_a_time(make, monkeypatch):
    batches, sizes, read = make(StreamBatches, shuffle_buffer=12), [], []
    keep = batches.doublets.stream.keep
    batches.doublets.stream.keep = lambda labels: read.append(0) or keep(labels)
    for number, _ in enumerate(batches.loader(0, 16, 0)):
        sizes.append(len(batches.doublets._pool))
        assert len(read) <= 12 * (number + 2)  # rows are read as they are needed
    assert max(sizes) == 12 and min(sizes) >= 8
    # All rows come up in turn, once an epoch or so.
    batches = make(StreamBatches, shuffle_buffer=12)
    assert len(set(torch.cat([batch["image_ids"] for batch in take(batches, 0, 40)]).tolist())) > 55


def test_ranks_of_a_stream_have_rows_of_their_own(make):
    settings = {"world": 2, "batch_size": 16, "shuffle_buffer": 100}
    seen = [
        set(
            torch.cat(
                [batch["image_ids"] for batch in take(make(StreamBatches, rank=rank, **settings), 0, 2)]
            ).tolist()
        )
        for rank in range(2)
    ]
    assert seen[0] and seen[1] and not seen[0] & seen[1]


@pytest.fixture
def odd_data(tmp_path):
    """Rows of which few have a fit, and no two the same pocket; three images are cut."""

    def rows(split, size):
        for i, row in enumerate(generate_split(split, num_rows=size, image_size=32)):
            if i >= 4:
                row["attributes"]["fit"] = None
            row["attributes"]["pocket"] = f"pocket {i}"
            if split == "train" and i in (10, 20, 30):
                row["image"]["bytes"] = row["image"]["bytes"][:100]
            yield row

    splits = {split: rows(split, size) for split, size in {"train": 48, "query": 12, "gallery": 24}.items()}
    write_dataset(
        tmp_path / "odd",
        splits,
        tuple(ATTRIBUTES),
        [{"name": "a", "attributes": ["colour"]}],
        name="Odd",
        licence="cc0-1.0",
        check_images=False,
        progress=False,
    )
    return tmp_path / "odd"


def test_pools_without_pairs(make, odd_data):
    settings = {"data": odd_data, "max_bad_fraction": 0.1, "batch_size": 2, "shuffle_buffer": 4}
    # Pools have no pair of pockets ever: colour alone takes its turns.
    batches = make(StreamBatches, entry={"name": "a", "attributes": ["pocket", "colour"]}, **settings)
    for batch in take(batches, 0, 30):
        assert batch["labels"][0, 1] == batch["labels"][1, 1] >= 0
    # Four rows have a fit, two of each product: they are found, if in one pool.
    for batch in take(make(StreamBatches, entry={"name": "a", "attributes": ["fit"]}, **settings), 0, 5):
        assert batch["labels"][0, 0] == batch["labels"][1, 0] >= 0
    batches = make(StreamBatches, entry={"name": "lone", "attributes": ["pocket"]}, **settings)
    with pytest.raises(ValueError, match="increment 'lone': a whole epoch .* same value of pocket.*--shuffle_buffer"):
        take(batches, 0, 1)


def test_bad_rows_of_a_stream_are_counted_once(make, odd_data):
    bad_rows = DistinctBadRows()
    batches = make(StreamBatches, data=odd_data, max_bad_fraction=0.1, bad_rows=bad_rows)
    take(batches, 0, 40)
    assert dict(bad_rows.counts) == {"truncated": 3}
    with pytest.raises(ValueError, match=r"of 48 rows are bad, more than the 1.00% allowed"):
        take(make(StreamBatches, data=odd_data), 0, 40)


def test_a_run_on_a_stream(run, odd_data, tmp_path):
    report = run(
        dataset=str(odd_data),
        streaming=True,
        shuffle_buffer=16,
        max_bad_fraction=0.1,
        method="ema_distillation",
        epochs=3,
    )
    assert report["finished"] and report["data"]["bad_rows"] == {"truncated": 3}
    assert not list((tmp_path / "run" / "cache").glob("train*"))  # nothing of a stream is cached
    assert report["cost_per_increment"][0]["samples"] >= 3 * 48


def test_attributes_that_meet_no_negatives_are_named(make):
    entry = {"name": "a", "attributes": ["category"]}
    assert make(entry=entry, batch_size=16).without_negatives() == []
    assert make(entry=entry, batch_size=2).without_negatives() == ["category"]  # one doublet is of one value
