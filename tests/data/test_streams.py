# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
from PIL import Image
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row, picture

from modeling_mclfir.data import streams
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.streams import open_stream


def captions(rows):
    return [row["caption"] for row in rows]


NUMBERS = [f"number {i}" for i in range(250)]


def test_rows(prepared):
    stream = open_stream(prepared, "train", shuffle_buffer=0)
    assert stream.attributes == ATTRIBUTES
    rows = list(stream)
    assert captions(rows) == NUMBERS and rows[9] == dataset_row(9)
    assert list(open_stream(prepared, "gallery")) == []
    (row, *_) = open_stream(prepared, "val", decode=True)
    assert isinstance(row["image"], Image.Image) and row["image"].mode == "RGB"


@pytest.mark.parametrize("many_groups", [1, 50])
@pytest.mark.parametrize("shuffle_buffer", [0, 7, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_row_once_over_the_ranks(prepared, world_size, shuffle_buffer, many_groups, monkeypatch):
    monkeypatch.setattr(streams, "_MANY_GROUPS", many_groups)
    options = {"world_size": world_size, "shuffle_buffer": shuffle_buffer, "seed": 1}
    opened = [open_stream(prepared, "train", rank=rank, **options) for rank in range(world_size)]
    for _ in range(2):
        shares = [captions(stream) for stream in opened]
        assert sorted(sum(shares, [])) == sorted(NUMBERS)
        if many_groups == 50:
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= 1


def test_the_order_depends_on_seed_and_epoch_only(prepared):
    first = open_stream(prepared, "train", seed=3)
    epochs = [captions(first), captions(first)]
    assert first.epoch == 2 and epochs[0] != epochs[1] and epochs[0] != NUMBERS
    again = open_stream(prepared, "train", seed=3)
    again.set_epoch(1)
    assert captions(again) == epochs[1]
    again.set_epoch(0)
    assert captions(again) == epochs[0]
    assert captions(open_stream(prepared, "train", seed=4)) != epochs[0]


def test_a_small_buffer_still_mixes_the_row_groups(prepared):
    order = [int(name.split()[1]) for name in captions(open_stream(prepared, "train", shuffle_buffer=10, seed=2))]
    assert len({number // 100 for number in order[:50]}) == 1  # a group is read as a whole …
    firsts = set()
    for seed in range(8):
        (row, *_) = open_stream(prepared, "train", shuffle_buffer=10, seed=seed)
        firsts.add(int(row["caption"].split()[1]) // 100)
    assert len(firsts) > 1  # … but any of them may come first


@pytest.mark.parametrize("shuffle_buffer", [0, 30, 1000])
@pytest.mark.parametrize("rank, world_size, many_groups", [(0, 1, 50), (1, 2, 50), (1, 2, 1)])
def test_resumes_exactly(prepared, shuffle_buffer, rank, world_size, many_groups, monkeypatch):
    monkeypatch.setattr(streams, "_MANY_GROUPS", many_groups)

    def opened():
        return open_stream(prepared, "train", rank=rank, world_size=world_size, shuffle_buffer=shuffle_buffer, seed=5)

    whole = opened()
    expected = [captions(whole), captions(whole)]
    for stop in (0, 1, 29, 30, 31, 70, len(expected[0]) - 1, len(expected[0])):
        stream = opened()
        rows = iter(stream)
        before = captions(next(rows) for _ in range(stop))
        state = stream.state_dict()
        rows.close()
        resumed = opened()
        resumed.load_state_dict(state)
        assert before + captions(resumed) == expected[0], stop
        assert captions(resumed) == expected[1], stop


def test_a_state_is_plain_data(prepared):
    import json

    stream = open_stream(prepared, "train", shuffle_buffer=20)
    rows = iter(stream)
    for _ in range(33):
        next(rows)
    assert json.loads(json.dumps(stream.state_dict())) == stream.state_dict()
    rows.close()


def test_a_state_of_another_stream_is_refused(prepared):
    state = open_stream(prepared, "train", seed=1).state_dict()
    with pytest.raises(ValueError, match="opened with .*'seed': 1"):
        open_stream(prepared, "train", seed=2).load_state_dict(state)


def test_bad_rows_are_skipped_and_counted_once(tmp_path):
    rows = [dataset_row(i) for i in range(50)]
    for i in (4, 20):
        rows[i]["image"]["bytes"] = rows[i]["image"]["bytes"][:300]
    rows[30]["image"] = None
    rows[31]["image"] = picture(0, size=(1, 1), kind="PNG")
    options = {"name": "n", "licence": "l", "progress": False, "check_images": False}
    write_dataset(tmp_path / "set", {"train": rows}, ATTRIBUTES, INCREMENTS, **options)
    stream = open_stream(tmp_path / "set", "train", shuffle_buffer=16)
    names = captions(stream)
    assert len(names) == 46 and "number 4" not in names
    assert stream.bad_rows.counts == {"truncated": 2, "missing": 1, "too_small": 1}
    half = open_stream(tmp_path / "set", "train", shuffle_buffer=16)
    source = iter(half)
    before = captions(next(source) for _ in range(25))
    resumed = open_stream(tmp_path / "set", "train", shuffle_buffer=16)
    resumed.load_state_dict(half.state_dict())
    source.close()
    assert before + captions(resumed) == names and resumed.bad_rows.counts == stream.bad_rows.counts


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": -1}, "rank -1"),
        ({"shuffle_buffer": -1}, "shuffle_buffer"),
        ({"split": "test"}, "no split 'test'; expected one of train"),
    ],
)
def test_wrong_arguments(prepared, options, words):
    with pytest.raises(ValueError, match=words):
        open_stream(prepared, **{"split": "train", **options})


def test_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prepared data set"):
        open_stream(tmp_path, "train")


def test_a_program_that_leaves_a_stream_midway_ends_well(prepared):
    start = "import sys\nfrom modeling_mclfir.data.streams import open_stream\n"
    start += "stream = open_stream(sys.argv[1], 'train', shuffle_buffer=20)\n"
    for end in ("for row in stream:\n    break\n", "rows = iter(stream)\nnext(rows)\n"):
        script = start + end
        result = subprocess.run([sys.executable, "-c", script, str(prepared)], capture_output=True, text=True)
        assert result.returncode == 0 and not result.stderr, result.stderr


def test_a_rank_of_a_small_set_meets_other_rows_in_the_next_epoch(prepared):
    stream = open_stream(prepared, "train", rank=0, world_size=2, shuffle_buffer=50)
    first, second = ({row["caption"] for row in stream} for _ in range(2))
    assert len(first) == len(second) == 125 and not first & second
