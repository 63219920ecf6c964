# SPDX-License-Identifier: Apache-2.0
"""A preparation that is interrupted goes on where it stopped, and ends with the same bytes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row, picture, write_csv

from modeling_mclfir.data.annotations import SourceImage
from modeling_mclfir.data.folder import read_folder
from modeling_mclfir.data.journal import Journal, SeenImages
from modeling_mclfir.data.prepare import write_annotations, write_dataset

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"name": "Set", "licence": "cc0-1.0", "progress": False, "rows_per_shard": 30}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(start, stop):
    """Some are copies of others, and one in 50 is bad."""
    for i in range(start, stop):
        row = dataset_row(i % 90 if i < 300 else i)
        yield {**row, "image": b"no image" if i % 50 == 49 else row["image"]}


def write(output, end=None, error=None, **options):
    """Writes 300 train and 150 val rows; with `end`, the source fails at that row."""

    def failing(start, stop):
        for number, row in enumerate(rows(start, stop), start=start):
            if number == end:
                raise error
            yield row

    splits = {"train": failing(0, 300), "val": failing(300, 450)}
    options = {**OPTIONS, "keep_duplicates": False, "max_bad_fraction": 0.1, **options}
    return write_dataset(output, splits, ATTRIBUTES, INCREMENTS, **options)


@pytest.mark.parametrize("end", [191, 250, 299, 301, 449])
def test_the_same_bytes_whenever_it_stopped(tmp_path, end):
    expected = contents(write(tmp_path / "whole" / "set").path)
    for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(type(error)):
            write(tmp_path / "set", end, error)
        assert not (tmp_path / "set").exists()
        kept = contents(tmp_path / ".set.partial")
        assert not [name for name in kept if name.endswith(".new")] and any("train-00000" in name for name in kept)
    summary = write(tmp_path / "set")
    assert contents(tmp_path / "set") == expected
    assert 0 < summary.resumed_at <= end
    assert summary.counts == {"train": 90, "val": 147, "query": 0, "gallery": 0}
    assert summary.duplicates == {"train": 204} and summary.bad_rows.total == 9
    assert [path.name for path in tmp_path.iterdir() if "set" in path.name] == ["set"]


def test_rows_that_are_done_are_not_read_again(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i))
    splits = {"train": [{"image": SourceImage(tmp_path, f"{i}.jpg"), "attributes": {}} for i in range(300)]}

    def fail():
        yield from splits["train"][:200]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", {"train": fail()}, ATTRIBUTES, INCREMENTS, **OPTIONS)
    for i in range(60):
        (tmp_path / f"{i}.jpg").unlink()  # two shards hold them already
    summary = write_dataset(tmp_path / "set", splits, ATTRIBUTES, INCREMENTS, **OPTIONS)
    assert summary.resumed_at >= 60 and summary.counts["train"] == 300


def test_other_settings_begin_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", 250, KeyboardInterrupt())
    summary = write(tmp_path / "set", max_size=16)
    assert summary.resumed_at == 0
    assert contents(tmp_path / "set") == contents(write(tmp_path / "again" / "set", max_size=16).path)


def test_a_source_that_has_changed_is_told(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", 250, KeyboardInterrupt())
    changed = [{**row, "caption": "another"} for row in rows(0, 300)]
    with pytest.raises(ValueError, match="the source has changed since. Remove that folder"):
        options = {**OPTIONS, "keep_duplicates": False, "max_bad_fraction": 0.1}
        write_dataset(tmp_path / "set", {"train": changed}, ATTRIBUTES, INCREMENTS, **options)
    assert (tmp_path / ".set.partial").exists()  # hours of work are not removed over a question


def test_two_at_once_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    journal = Journal(tmp_path / ".set.partial", {})
    with pytest.raises(BlockingIOError, match="another process is preparing"):
        write(tmp_path / "set")
    journal.close()
    assert write(tmp_path / "set").counts["train"] == 90


def test_seen_images_forget_what_was_not_saved(tmp_path):
    seen = SeenImages(tmp_path / "seen")
    assert seen.keeps(b"a", "row 1") and seen.keeps(b"a", "row 1") and not seen.keeps(b"a", "row 2")
    seen.save()
    assert seen.keeps(b"b", "row 3")
    seen.close()
    seen = SeenImages(tmp_path / "seen")
    assert seen.keeps(b"b", "row 9") and not seen.keeps(b"a", "row 9")


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    lines = []
    for i in range(600):
        (folder / f"{i}.jpg").write_bytes(picture(i, size=(160, 160)))
        lines.append({"image": f"{i}.jpg", "colour": "red" if i % 2 else "blue", "split": "train"})
    write_csv(folder / "labels.csv", lines)
    return folder


def shards(folder):
    try:
        return sum(name.startswith("train-") for name in os.listdir(folder / ".set.partial" / "set" / "data"))
    except FileNotFoundError:  # not yet, or no longer
        return 0


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment(many_photos, tmp_path, processes):
    command = [sys.executable, "-m", "data_scripts.folder", "--source", many_photos, "--rows-per-shard", "50"]
    command += ["--name", "Many", "--num-proc", str(processes), "--output"]
    whole = tmp_path / "whole" / "set"
    subprocess.run([*command, whole], cwd=ROOT, check=True, capture_output=True)
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen([*command, tmp_path / "set"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        # Wait until another shard is there, then a little, each time another while.
        seen = shards(tmp_path)
        while process.poll() is None and shards(tmp_path) <= seen:
            time.sleep(0.002)
        time.sleep(0.01 * (attempt % 5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
            assert not (tmp_path / "set").exists() or contents(tmp_path / "set") == contents(whole)
        _, message = process.communicate()
        if process.returncode == 0:
            break
    assert kills >= 2 and process.returncode == 0, message
    assert "went on behind" in message
    assert contents(tmp_path / "set") == contents(whole)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_full_disk(many_photos, tmp_path):
    """A real one: the largest file that the process may write stands for it."""
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead of killing

    command = [sys.executable, "-m", "data_scripts.folder", "--source", many_photos, "--output", tmp_path / "set"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files)
    assert result.returncode == 2 and "Traceback" not in result.stderr and "error: " in result.stderr
    assert not (tmp_path / "set").exists() and not list(tmp_path.rglob("*.parquet*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(many_photos, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        write_annotations(tmp_path / "locked" / "set", read_folder(many_photos), name="n", licence="l")
    assert not list((tmp_path / "locked").iterdir())


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        write(tmp_path / "file" / "set")
    assert (tmp_path / "file").read_text() == "x"
