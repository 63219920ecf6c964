# SPDX-License-Identifier: Apache-2.0
"""Image files of a source → the bytes that a shard gets, in one process and in several."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rows_for_tests import picture

from modeling_mclfir.data.annotations import SourceImage
from modeling_mclfir.data.source_images import ImagePool, ImageSettings, prepare_image

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ImageSettings()


def noise(size=(40, 30), mode="RGB"):
    """A PIL picture of random pixels."""
    return Image.frombytes(mode, size, np.random.default_rng(1).bytes(size[0] * size[1] * len(mode)))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def kind_of(data):
    return Image.open(io.BytesIO(data)).format


# ---- one image


@pytest.mark.parametrize(
    "kind", ["source", "bytes", "bytearray", "memoryview", "path", "str", "dict bytes", "dict path"]
)
def test_every_kind_keeps_the_bytes_of_the_file(tmp_path, kind):
    data = picture(1)
    (tmp_path / "a b.jpg").write_bytes(data)
    image, name = {
        "source": (SourceImage(tmp_path, "a b.jpg"), "a b.jpg"),
        "bytes": (data, "val row 7"),
        "bytearray": (bytearray(data), "val row 7"),
        "memoryview": (memoryview(data), "val row 7"),
        "path": (tmp_path / "a b.jpg", "a b.jpg"),
        "str": (str(tmp_path / "a b.jpg"), "a b.jpg"),
        "dict bytes": ({"bytes": data, "path": "shop/1.jpg"}, "shop/1.jpg"),
        "dict path": ({"bytes": None, "path": str(tmp_path / "a b.jpg")}, "a b.jpg"),
    }[kind]
    prepared = prepare_image(image, "val row 7", PLAIN)
    assert prepared.data == data and isinstance(prepared.data, bytes)
    assert (prepared.path, prepared.cause) == (name, None)
    other = prepare_image(picture(2), "val row 8", PLAIN)
    assert prepared.digest == prepare_image(data, "elsewhere", PLAIN).digest != other.digest


def test_a_pil_image_is_kept_as_png():
    image = noise()
    prepared = prepare_image(image, "val row 7", PLAIN)
    assert kind_of(prepared.data) == "PNG" and prepared.path == "val row 7"
    assert (pixels(prepared.data) == np.asarray(image)).all()


@pytest.mark.parametrize("image", [3.5, ["a.jpg"], object()])
def test_another_kind_of_image_is_named_with_its_row(image):
    with pytest.raises(TypeError, match=f"val row 7: an image of type {type(image).__name__} is given; expected"):
        prepare_image(image, "val row 7", PLAIN)


@pytest.mark.parametrize(
    "image", [None, {}, {"bytes": None, "path": None}, {"path": "/no/such.jpg"}, "/no/such.jpg"], ids=str
)
def test_no_image_at_all_is_missing(image):
    prepared = prepare_image(image, "val row 7", PLAIN)
    assert (prepared.data, prepared.cause, prepared.digest) == (None, "missing", None)
    assert prepared.path == ("such.jpg" if "such" in str(image) else "val row 7")


@pytest.mark.parametrize(
    "listed, stored",
    [
        ("a/b.jpg", "a/b.jpg"),
        ("a\\b.jpg", "a/b.jpg"),
        ("my photos\\red dress é.jpg", "my photos/red dress é.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
    ],
)
def test_listed_paths_with_either_separator_and_spaces(tmp_path, listed, stored):
    (tmp_path / stored).parent.mkdir(parents=True)
    (tmp_path / stored).write_bytes(picture(3))
    prepared = prepare_image(SourceImage(tmp_path, listed), "x", PLAIN)
    assert prepared.data == picture(3) and prepared.path == stored


@pytest.mark.skipif(os.name == "nt", reason="a backslash separates folders there")
def test_a_backslash_that_is_part_of_the_name_comes_first(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").write_bytes(picture(1))
    (tmp_path / "a\\b.jpg").write_bytes(picture(2))
    assert prepare_image(SourceImage(tmp_path, "a\\b.jpg"), "x", PLAIN).data == picture(2)


def test_an_absent_file_is_missing_and_named_as_it_is_listed(tmp_path):
    prepared = prepare_image(SourceImage(tmp_path, "a\\no.jpg"), "x", PLAIN)
    assert (prepared.data, prepared.path, prepared.cause) == (None, "a/no.jpg", "missing")
    (tmp_path / "file").write_bytes(b"x")
    assert prepare_image(SourceImage(tmp_path, "file/no.jpg"), "x", PLAIN).cause == "missing"


def test_a_directory_in_the_place_of_a_file_is_unreadable(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    prepared = prepare_image(SourceImage(tmp_path, "a.jpg"), "x", PLAIN)
    assert (prepared.data, prepared.path, prepared.cause) == (None, "a.jpg", "unreadable")


@pytest.mark.parametrize(
    "listed", ["../a.jpg", "a/../../b.jpg", "..\\a.jpg", "/etc/passwd", "C:\\a.jpg", "\\\\s\\a", "a\0"]
)
@pytest.mark.parametrize("read", [True, False])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path, listed, read):
    (tmp_path / "a.jpg").write_bytes(picture(0))
    with pytest.raises(ValueError, match="leaves the source folder"):
        prepare_image(SourceImage(tmp_path / "inside", listed), "x", ImageSettings(read=read))


@pytest.mark.parametrize("data, cause", [(b"no image", "unreadable"), (picture(1)[:300], "truncated")])
def test_bad_files_are_told_by_cause_unless_they_are_not_checked(data, cause):
    assert prepare_image(data, "x", PLAIN)[:3] == (None, "x", cause)
    assert prepare_image(data, "x", ImageSettings(check=False))[:3] == (data, "x", None)
    assert prepare_image(None, "x", ImageSettings(check=False)) == (None, "x", None, None)


def test_too_small_an_image():
    assert prepare_image(encoded(noise((7, 40))), "x", PLAIN).cause == "too_small"


@pytest.mark.parametrize(
    "image, name",
    [
        (SourceImage(Path("/no/folder"), "a\\b.jpg", (0, 0, 9, 9)), "a/b.jpg"),
        ("/no/folder/a.jpg", "a.jpg"),
        ({"path": "/no/folder/a.jpg"}, "a.jpg"),
        (picture(1), "x"),
        (None, "x"),
    ],
)
def test_images_that_are_left_out_need_not_be_there(image, name):
    assert prepare_image(image, "x", ImageSettings(read=False, max_size=10)) == (None, name, None, None)


# ---- cut to a box


def boxed(folder, box, image=None, name="a.png", **settings):
    image = noise() if image is None else image
    (folder / name).write_bytes(image if isinstance(image, bytes) else encoded(image))
    return prepare_image(SourceImage(folder, name, box), "x", ImageSettings(**settings))


@pytest.mark.parametrize("check", [True, False])
def test_a_box_is_cut_to_the_pixel(tmp_path, check):
    prepared = boxed(tmp_path, (3, 5, 21, 17), check=check)
    assert kind_of(prepared.data) == "PNG" and prepared.cause is None
    assert (pixels(prepared.data) == np.asarray(noise())[5:17, 3:21]).all()


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((-5, -9, 20, 20), slice(0, 20), slice(0, 20)),
        ((30, 20, 400, 500), slice(20, 30), slice(30, 40)),
        ((-1, -1, 41, 31), slice(0, 30), slice(0, 40)),
    ],
)
def test_a_box_is_clipped_at_the_edges(tmp_path, box, rows, columns):
    assert (pixels(boxed(tmp_path, box).data) == np.asarray(noise())[rows, columns]).all()


@pytest.mark.parametrize(
    "box", [(40, 0, 60, 20), (0, 30, 20, 60), (-30, 0, 0, 20), (20, 20, 10, 10), (5, 5, 5, 25), (5, 5, 12, 25)]
)
def test_a_box_that_leaves_too_little_is_bad(tmp_path, box):
    assert boxed(tmp_path, box)[:3] == (None, "a.png", "bad_box")


def test_boxes_of_one_file_are_different_images(tmp_path):
    digests = {boxed(tmp_path, box).digest for box in (None, (0, 0, 20, 20), (0, 0, 20, 21))}
    assert len(digests) == 3 and boxed(tmp_path, (0, 0, 20, 20)).digest in digests


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_box_refers_to_the_upright_picture(tmp_path, orientation, kind):
    # Four areas of plain colour: what is cut out tells where the box was.
    stored = np.zeros((32, 48, 3), dtype=np.uint8)
    stored[:16, :24], stored[:16, 24:], stored[16:, :24], stored[16:, 24:] = (250, 0, 0), (0, 250, 0), (0, 0, 250), 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {1: stored, 3: stored[::-1, ::-1], 6: np.rot90(stored, -1), 8: np.rot90(stored)}[orientation]
    data = encoded(Image.fromarray(stored), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    height, width = upright.shape[:2]
    box = (width // 2 + 2, 2, width - 2, height // 2 - 2)  # inside the area at the upper right
    prepared = boxed(tmp_path, box, data)
    assert kind_of(prepared.data) == kind
    found = pixels(prepared.data).astype(int)
    assert found.shape == (height // 2 - 4, width // 2 - 4, 3)
    assert np.abs(found - upright[box[1] : box[3], box[0] : box[2]]).max() < (1 if kind == "PNG" else 40)
    # What is written needs no turning any more.
    assert Image.open(io.BytesIO(prepared.data)).getexif().get(0x0112, 1) == 1


# ---- made smaller


@pytest.mark.parametrize(
    "size, expected",
    [
        ((200, 100), (64, 32)),
        ((100, 200), (32, 64)),
        ((65, 65), (64, 64)),
        ((640, 101), (64, 10)),
        ((1000, 333), (64, 21)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_longest_side_is_exactly_that_and_the_kind_stays(size, expected, kind):
    prepared = prepare_image(encoded(noise(size), kind), "x", ImageSettings(max_size=64))
    small = Image.open(io.BytesIO(prepared.data))
    assert small.size == expected and small.format == kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(64, 64), (64, 20), (30, 64), (10, 10)])
def test_what_is_small_enough_is_kept_byte_for_byte(size, kind):
    data = encoded(noise(size), kind)
    assert prepare_image(data, "x", ImageSettings(max_size=64)).data == data


def test_it_still_shows_the_same():
    image = Image.linear_gradient("L").convert("RGB").resize((300, 150))
    small = pixels(prepare_image(encoded(image, "JPEG", quality=95), "x", ImageSettings(max_size=100)).data)
    assert np.abs(small.astype(int) - np.asarray(image.resize((100, 50))).astype(int)).max() < 12


def test_an_extreme_aspect_becomes_too_small():
    data = encoded(noise((400, 20)))
    assert prepare_image(data, "x", ImageSettings(max_size=160)).cause is None  # 160×8
    assert prepare_image(data, "x", ImageSettings(max_size=100))[:3] == (None, "x", "too_small")
    assert prepare_image(encoded(noise((2000, 8))), "x", ImageSettings(max_size=50)).cause == "too_small"


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "GIF"])
def test_another_kind_becomes_png(kind):
    prepared = prepare_image(encoded(noise((80, 40)), kind), "x", ImageSettings(max_size=40))
    assert kind_of(prepared.data) == "PNG"


def test_a_box_is_cut_before_it_is_made_smaller(tmp_path):
    prepared = boxed(tmp_path, (0, 0, 100, 50), noise((300, 200)), max_size=64)
    assert Image.open(io.BytesIO(prepared.data)).size == (64, 32)
    prepared = boxed(tmp_path, (0, 0, 60, 50), noise((300, 200)), max_size=64)
    assert (pixels(prepared.data) == np.asarray(noise((300, 200)))[:50, :60]).all()


# ---- several at a time


def rows_of(folder, number):
    """Rows of distinct images, some of them missing."""
    for i in range(number):
        if not i % 7:
            (folder / f"{i}.jpg").write_bytes(picture(i))
        yield {"image": SourceImage(folder, f"{i}.jpg") if not i % 7 or i % 3 else picture(i), "caption": str(i)}


@pytest.fixture(scope="module")
def pool_of_two():
    with ImagePool(ImageSettings(max_size=24), 2) as pool:
        yield pool


def test_two_processes_give_what_one_gives_in_the_same_order(tmp_path, pool_of_two):
    rows = list(rows_of(tmp_path, 150))
    with ImagePool(ImageSettings(max_size=24), 1) as pool:
        expected = list(pool.prepared(iter(rows), "val", first=5))
    found = list(pool_of_two.prepared(iter(rows), "val", first=5))
    assert [row["caption"] for row, _ in found] == [str(i) for i in range(150)]
    assert found == expected
    assert all(given is row for given, (row, _) in zip(rows, found, strict=True)), "the very same rows"
    assert {image.cause for _, image in found} == {None, "missing"}
    assert found[3][1].path == "val row 8", "rows are counted from `first`"


@pytest.mark.parametrize("number", [0, 1, 15, 16, 17])
def test_any_number_of_rows(number, pool_of_two):
    rows = [{"image": picture(i)} for i in range(number)]
    assert [image.path for _, image in pool_of_two.prepared(rows, "train")] == [
        f"train row {i}" for i in range(number)
    ]


def test_rows_are_read_ahead_by_a_window_only(tmp_path, pool_of_two):
    consumed = 0

    def endless():
        nonlocal consumed
        while True:
            consumed += 1
            yield {"image": None}

    for pool, bound in ((ImagePool(PLAIN, 1), 100), (pool_of_two, 200)):
        consumed = 0
        with pool if pool is not pool_of_two else nullcontext(pool):
            prepared = pool.prepared(endless(), "train")
            assert next(prepared)[1].cause == "missing"
            assert consumed < bound
            for _ in range(999):
                next(prepared)
            assert 1000 <= consumed < 1000 + bound


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize(
    "image, error, words",
    [
        (3.5, TypeError, "train row 20: an image of type float"),
        (SourceImage(Path("/tmp"), "../a.jpg"), ValueError, "leaves the source folder"),
    ],
    ids=["kind", "path"],
)
def test_an_error_of_a_row_is_raised_here(num_proc, image, error, words, pool_of_two):
    rows = [{"image": image if i == 20 else picture(i)} for i in range(40)]
    pool = ImagePool(PLAIN, 1)
    with nullcontext(pool_of_two) if num_proc == 2 else pool as pool:
        with pytest.raises(error, match=words):
            list(pool.prepared(rows, "train"))


def test_an_error_of_the_source_is_raised_here():
    def failing():
        yield {"image": picture(0)}
        raise OSError(28, "No space left on device")

    with ImagePool(PLAIN, 1) as pool, pytest.raises(OSError, match="No space left"):
        list(pool.prepared(failing(), "train"))


def children():
    """Ids of the processes that this one has started and that still run."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return {int(line.split()[0]) for line in found.stdout.splitlines() if not line.split()[1].startswith("Z")}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in the manner of Linux")
@pytest.mark.parametrize("when", ["while it is waited for", "between two rows"])
def test_a_killed_worker_is_told_with_a_hint(tmp_path, when):
    before = children()

    def rows():
        for i in range(2000):
            yield {"image": picture(i % 9)}

    with ImagePool(PLAIN, 2) as pool:
        prepared = pool.prepared(rows(), "train")
        next(prepared)
        workers = [process.pid for process in pool._executor._processes.values()]
        assert set(workers) <= children() - before and len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        if when == "between two rows":
            time.sleep(0.5)  # the pool notices before the next task is handed to it
        with pytest.raises(ChildProcessError, match="one of 2 processes was ended.*smaller --num-proc: it goes on"):
            list(prepared)
    assert not children() & set(workers)


PARENT = """
import sys, time
from modeling_mclfir.data.source_images import ImagePool, ImageSettings
if __name__ == "__main__":
    with ImagePool(ImageSettings(), 2) as pool:
        prepared = pool.prepared(({"image": b"no image"} for _ in iter(int, 1)), "train")
        for _ in range(200):
            next(prepared)
        print(*(process.pid for process in pool._executor._processes.values()), flush=True)
        time.sleep(60)
"""


def runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in the manner of Linux")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(runs, workers))
    finally:
        process.kill()
    process.wait()
    end = time.monotonic() + 10
    while any(map(runs, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    left = [pid for pid in workers if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
