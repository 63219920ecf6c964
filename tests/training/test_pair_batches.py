# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training.pair_batches import PairBatches


class Captions:
    """What batches ask of `CaptionTokens`: row r has the captions 3r, 3r + 1 and 3r + 2."""

    def __init__(self, num_rows: int, per_row: int = 3):
        self.codes = [np.arange(per_row * row, per_row * (row + 1)) for row in range(num_rows)]

    def inputs(self, codes):
        return {"input_ids": torch.from_numpy(codes)[:, None], "attention_mask": torch.ones(len(codes), 1).long()}


@pytest.fixture
def make(tiny_data):
    table = load_tables(tiny_data)["train"]

    def build(rows=None, *, rank=0, world=1, batch_size=16, per_row=3, **settings):
        rows = np.arange(20) if rows is None else rows
        accelerator = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
        processor = MclfirImageProcessor.for_trunk(None, 16, 16)
        settings = {"plan_seed": (0, 0), "increment_id": 0} | settings
        return PairBatches(
            table, rows, Captions(len(table), per_row), None, 3, processor, Augmentation(), accelerator,
            batch_size=batch_size, **settings,
        )  # fmt: skip

    return build


def test_a_batch_is_captions_and_their_images_in_turns(make):
    batch = make()[0]
    assert batch["labels"].shape == (16, 1) and batch["sides"].tolist() == [0, 1] * 8
    assert len(batch["image_ids"].unique()) == 16
    assert torch.equal(batch["labels"][::2], batch["labels"][1::2]) and len(batch["labels"].unique()) == 8
    # The caption is one of its image's.
    rows = batch["image_ids"][1::2] // 2
    assert torch.equal(batch["inputs"]["input_ids"][:, 0] // 3, rows)
    assert batch["inputs"]["pixel_values"].shape == (8, 3, 16, 16) and batch["inputs"]["increment_id"] == 0


def test_every_pair_once_an_epoch_in_an_order_of_its_own(make):
    rows = np.array([3, 5, 8, 13, 21, 34, 55, 60, 61, 62])
    batches = make(rows, batch_size=8)
    drawn = np.concatenate([batches.draw(step) for step in range(5)])  # two epochs of ten
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == rows.tolist()
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert batches.num_rows == 20


def test_captions_change_from_epoch_to_epoch_and_the_teacher_gets_another(make):
    batches = make(np.arange(8), teacher=True)
    seen = set()
    for step in range(12):
        batch = batches[step]
        codes, others = (batch[name]["input_ids"][:, 0] for name in ("inputs", "teacher_inputs"))
        assert (codes != others).all() and torch.equal(codes // 3, others // 3)
        assert not torch.equal(batch["inputs"]["pixel_values"], batch["teacher_inputs"]["pixel_values"])
        seen |= set(codes.tolist())
    assert seen == set(range(24))
    single = make(np.arange(8), teacher=True, per_row=1)[0]
    assert torch.equal(single["inputs"]["input_ids"], single["teacher_inputs"]["input_ids"])


def test_processes_share_the_batch_of_one(make):
    whole, parts = make(teacher=True), [make(rank=rank, world=2, teacher=True) for rank in range(2)]
    for step in range(3):
        batch, halves = whole[step], [part[step] for part in parts]
        for name in ("labels", "image_ids", "sides"):
            assert torch.equal(batch[name], torch.cat([half[name] for half in halves]))
        for name in ("inputs", "teacher_inputs"):
            for key in ("input_ids", "pixel_values"):
                assert torch.equal(batch[name][key], torch.cat([half[name][key] for half in halves]))


def test_a_batch_larger_than_the_increment_runs_through_it_again(make):
    """So a step is the same for any number of processes, and an epoch as many rows as there are."""
    whole, halves = make(np.arange(5))[0], [make(np.arange(5), rank=rank, world=2)[0] for rank in range(2)]
    rows = whole["image_ids"][1::2] // 2
    assert len(rows) == 8 and set(rows.tolist()) == set(range(5))
    for name in ("labels", "image_ids"):
        assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))


def test_pairs_that_are_each_others_are_labelled_alike(make):
    batches = make(np.arange(20))
    batches.captions.codes = [np.array([10, 11]), np.array([12]), np.array([11]), np.array([13, 12]), np.array([14])]
    batches.table = SimpleNamespace(image_ids=np.array([5, 6, 7, 8, 6]))
    for codes, expected in (
        ([10, 12, 11, 12, 14], [0, 1, 0, 1, 1]),  # 0 and 2: a caption of the one; 1 and 4: the same photo
        ([11, 12, 11, 13, 14], [0, 1, 0, 1, 1]),  # 1 and 3: 12 is a caption of 3, too
    ):
        assert batches._groups(np.arange(5), np.array(codes)).tolist() == expected
    # The same photo twice in a batch, with another caption each time.
    assert batches._groups(np.array([0, 4, 0]), np.array([10, 14, 11])).tolist() == [0, 1, 0]
    # A caption that nobody drew joins nobody.
    batches.captions.codes[3] = np.array([13, 99])
    assert batches._groups(np.array([3, 4]), np.array([13, 14])).tolist() == [0, 1]


@pytest.mark.parametrize("size", [2, 6, 130])
def test_any_even_batch_will_do(make, size):
    assert len(make(np.arange(20), batch_size=size)[0]["labels"]) == size


def test_exemplars_take_turns(make):
    old = [make(np.arange(20, 24), batch_size=4), make(np.arange(30, 34), batch_size=4)]
    batches = make(replay=old)
    rows = [set((batches[step]["replay"]["image_ids"] // 2).tolist()) for step in range(4)]
    assert all(group <= set(range(20, 24)) for group in rows[::2])
    assert all(group <= set(range(30, 34)) for group in rows[1::2])


def test_chunks_hold_every_row_once_as_it_is(make):
    rows = np.array([1, 4, 9, 16, 25])
    chunks = list(make(rows).chunks(size=2))
    assert torch.cat([chunk["rows"] for chunk in chunks]).tolist() == rows.tolist()
    assert all((chunk["labels"] == 0).all() for chunk in chunks)
    assert torch.cat([chunk["text_inputs"]["input_ids"] for chunk in chunks])[:, 0].tolist() == (3 * rows).tolist()
    assert [len(chunk["rows"]) for chunk in make(rows).chunks(size=2, most=3)] == [2, 1]


def test_no_rows(make):
    with pytest.raises(ValueError, match="no pair of a caption and an image"):
        make(np.array([], dtype=np.int64))
