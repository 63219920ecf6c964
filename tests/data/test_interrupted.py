# SPDX-License-Identifier: Apache-2.0
"""A preparation that is interrupted goes on where it stopped, and ends with the same bytes."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row, picture, write_csv

from modeling_mclfir.data.annotations import SourceImage
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.journal import Journal, SeenImages, chain
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.source_images import ImageSettings, prepare_image

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


ROW = {
    "image": b"bytes",
    "attributes": {"colour": "red", "size": None},
    "caption": "a",
    "product_id": None,
    "tags": ["b"],
}
IMAGES = (
    b"bytes",
    b"other",
    None,
    "a.jpg",
    Path("b.jpg"),
    {"bytes": b"bytes", "path": "a.jpg"},
    {"bytes": b"bytes", "path": "b.jpg"},
    {"bytes": b"other", "path": "a.jpg"},
    {"bytes": None, "path": "a.jpg"},
    SourceImage(Path("/photos"), "a.jpg"),
    SourceImage(Path("/photos"), "b.jpg"),
    SourceImage(Path("/photos"), "a.jpg", (0, 0, 9, 9)),
    SourceImage(Path("/photos"), "a.jpg", (0, 0, 9, 8)),
    Image.new("RGB", (8, 12)),
    Image.new("RGB", (12, 8)),
    Image.new("L", (8, 36)),
    Image.new("RGB", (8, 12), "red"),
)


def test_the_digest_of_a_row_changes_with_any_part_of_it():
    rows = [ROW | {"image": image} for image in IMAGES]
    rows += [
        ROW | {"attributes": {"colour": "red", "size": "S"}},
        ROW | {"attributes": {"colour": None, "size": "red"}},
        ROW | {"attributes": {"colour": "red"}},
        ROW | {"attributes": {"shade": "red", "size": None}},
        ROW | {"caption": "b"},
        ROW | {"caption": None, "product_id": "a"},
        ROW | {"tags": ["b", "c"]},
        ROW | {"tags": None},
        {"image": b"bytes", "caption": "a"},
        {"image": b"bytes", "product_id": "a"},
        {"caption": "a"},
    ]
    assert len({chain("", row) for row in rows}) == len(rows)


def test_equal_rows_have_equal_digests_and_their_order_counts():
    assert all(chain("", ROW | {"image": image}) == chain("", ROW | {"image": image}) for image in IMAGES)
    for same in (bytearray(b"bytes"), memoryview(b"bytes")):
        assert chain("", ROW | {"image": same}) == chain("", ROW)
    moved = [SourceImage(Path(root), "a.jpg") for root in ("/photos", "/elsewhere")]
    assert chain("", {"image": moved[0]}) != chain("", {"image": moved[1]}), "another source has other images"
    other = ROW | {"caption": "b"}
    assert chain(chain("", ROW), other) != chain(chain("", other), ROW)
    assert chain(chain("", ROW), ROW) != chain("", ROW)
    assert chain("", {"image": None, "caption": "\ud800 lone"}) != chain("", {"image": None, "caption": "lone"})


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
        _, message = process.communicate()
        if (tmp_path / "set").exists():
            break
    assert kills >= 2 and contents(tmp_path / "set") == contents(whole), message
    # Killed after the last rename, it had come to its end and could not say so.
    assert process.returncode in (0, -signal.SIGKILL)
    if process.returncode == 0:
        assert "went on behind" in message
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


@contextlib.contextmanager
def nobody():
    """Root may write anywhere: for a while, it is somebody who may not."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_written():
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path, which nobody else may even enter
        os.chmod(folder, 0o555)
        with nobody(), pytest.raises(PermissionError):
            write(Path(folder) / "set")
        assert not os.listdir(folder)


def test_killed_between_the_last_rename_and_the_end(tmp_path):
    """The journal outlives the data set by a moment: it must not be believed then."""
    whole = contents(write(tmp_path / "whole" / "set").path)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", 449, KeyboardInterrupt())
    left = tmp_path / "left"
    shutil.copytree(tmp_path / ".set.partial", left)
    write(tmp_path / "set")
    shutil.rmtree(left / "set")
    left.rename(tmp_path / ".set.partial")
    summary = write(tmp_path / "set", overwrite=True)
    assert summary.resumed_at == 0 and contents(tmp_path / "set") == whole


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_shard_that_is_lost_or_cut_is_made_again(tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", 449, KeyboardInterrupt())
    shard = next((tmp_path / ".set.partial" / "set" / "data").glob("train-00001*"))
    shard.unlink() if damage == "lost" else shard.write_bytes(shard.read_bytes()[:-1])
    write(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(write(tmp_path / "whole" / "set").path)


def test_interrupted_while_tidying_up_it_is_done(tmp_path, monkeypatch):
    write(tmp_path / "set")
    remove, calls = shutil.rmtree, []

    def interrupted(path, *arguments, **options):
        if str(path).endswith(".old") and (tmp_path / "set").exists() and Path(path).exists():
            calls.append(path)
            raise KeyboardInterrupt
        remove(path, *arguments, **options)

    monkeypatch.setattr("modeling_mclfir.data.prepare.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", overwrite=True)
    monkeypatch.undo()
    assert calls and not (tmp_path / ".set.partial").exists()
    assert contents(write(tmp_path / "set", overwrite=True).path) == contents(write(tmp_path / "w" / "set").path)


def test_a_split_that_was_done_is_compared_as_well(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", 449, KeyboardInterrupt())  # train is done by then
    options = {**OPTIONS, "keep_duplicates": False, "max_bad_fraction": 0.1}
    for other in ([{**row, "caption": "another"} for row in rows(0, 300)], [*rows(0, 300), dataset_row(7)]):
        splits = {"train": other, "val": rows(300, 450)}
        with pytest.raises(ValueError, match="the train rows are not those of the interrupted run"):
            write_dataset(tmp_path / "set", splits, ATTRIBUTES, INCREMENTS, **options)


def test_a_slip_on_going_on_costs_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", 449, KeyboardInterrupt())
    kept = contents(tmp_path / ".set.partial")
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        write(tmp_path / "set", max_bad_fraction=2)
    assert contents(tmp_path / ".set.partial") == kept
    assert write(tmp_path / "set").resumed_at > 0


def test_text_that_utf_8_cannot_hold(tmp_path):
    splits = {"train": [{**dataset_row(0), "caption": "half \ud83d of a smile"}, dataset_row(1)]}
    path = write_dataset(tmp_path / "set", splits, ATTRIBUTES, INCREMENTS, **OPTIONS).path
    (shard,) = (path / "data").glob("*.parquet")
    assert pq.read_table(shard)["caption"].to_pylist() == ["half ? of a smile", "number 1"]


def test_the_reader_s_bad_rows_do_not_stop_a_run_that_may_go_on(tmp_path):
    bad_rows = BadRows()
    for i in range(95):
        bad_rows.add("malformed", f"line {i}")
    splits = {"train": [{"image": b"no image"}] * 10 + [dataset_row(i) for i in range(190)]}
    summary = write_dataset(
        tmp_path / "set", splits, ATTRIBUTES, INCREMENTS, bad_rows=bad_rows, num_rows={"train": 200},
        max_bad_fraction=0.5, **OPTIONS,
    )  # fmt: skip
    assert summary.counts["train"] == 190 and summary.bad_rows.total == 105


def test_an_output_that_is_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "real")
    write(tmp_path / "set")
    assert (tmp_path / "set").is_symlink() and (tmp_path / "disk" / "real" / "README.md").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "set"]


def test_an_output_that_is_a_mount_point(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "set"))
    with pytest.raises(FileExistsError, match="mount point.*give a folder inside it"):
        write(tmp_path / "set")


def test_a_project_is_not_taken_for_a_data_set(tmp_path):
    write(tmp_path / "set")
    for stray in ("data/photo.jpg", "data/notes.parquet", "data/train/1.jpg"):
        path = tmp_path / "set" / stray
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        with pytest.raises(FileExistsError, match="not a data set written before"):
            write(tmp_path / "set", overwrite=True)
        path.unlink()
        if path.parent.name == "train":
            path.parent.rmdir()
    (tmp_path / "set" / "README.md").write_text("# My project")
    with pytest.raises(FileExistsError, match="not a data set written before"):
        write(tmp_path / "set", overwrite=True)


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor, how):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert write(tmp_path / "set").counts["train"] == 90
    assert "has no locks" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_looks_like_a_file_and_is_none(tmp_path, kind):
    path = tmp_path / "0.jpg"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    found = prepare_image(SourceImage(tmp_path, "0.jpg"), "row 0", ImageSettings())
    assert found.cause == "unreadable" and found.path == "0.jpg"


def test_a_file_without_measure(tmp_path):
    with open(tmp_path / "0.jpg", "wb") as file:
        file.truncate(2**30)  # takes no room on the disk
    assert prepare_image(SourceImage(tmp_path, "0.jpg"), "row 0", ImageSettings()).cause == "oversized"


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        write(tmp_path / "file" / "set")
    assert (tmp_path / "file").read_text() == "x"
