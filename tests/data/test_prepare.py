# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import subprocess
import sys

import pytest
from PIL import Image
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row, picture

from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.schema import attribute_names, row_features

CARD = {"name": "Set", "licence": "cc0-1.0", "progress": False}


def write(output, rows=20, **options):
    options = {**CARD, **options}
    splits = options.pop("splits", {"train": map(dataset_row, range(rows))})
    increments = options.pop("increments", INCREMENTS)
    return write_dataset(output, splits, options.pop("attributes", ATTRIBUTES), increments, **options)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_and_summary(tmp_path):
    summary = write(tmp_path / "a" / "set")
    assert set(contents(tmp_path / "a" / "set")) == {
        "README.md",
        "increments.json",
        "data/train-00000-of-00001.parquet",  # and none for a split without rows
    }
    assert summary.counts == {"train": 20, "val": 0, "query": 0, "gallery": 0}
    assert summary.value_counts["colour"] == {"red": 7, "blue": 7, "green": 6}
    assert summary.value_counts["size"] == {"S": 10, "M": 5} and summary.null_counts["size"] == 5
    assert json.loads((summary.path / "increments.json").read_text()) == INCREMENTS
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["set"]  # nothing is left beside it


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_gives_the_rows_of_all_splits(prepared, streaming):
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    loaded = load_dataset(str(prepared), streaming=streaming)
    assert list(loaded) == ["train", "val", "query"]  # the gallery has no rows
    for split in loaded:
        assert loaded[split].features == row_features(ATTRIBUTES)
        assert attribute_names(loaded[split].features) == ATTRIBUTES
    assert {split: sum(1 for _ in rows) for split, rows in loaded.items()} == {
        "train": 250,
        "val": 10,
        "query": 6,
    }
    row = next(iter(loaded["val"]))
    expected = dataset_row(250)
    assert isinstance(row["image"], Image.Image) and row["attributes"] == expected["attributes"]
    assert row["caption"] == "number 250" and row["product_id"] == "125"
    raw = next(iter(loaded["val"].cast_column("image", ImageFeature(decode=False))))
    assert raw["image"] == expected["image"]  # bytes are kept as they are


def test_equal_rows_give_equal_bytes(tmp_path):
    assert contents(write(tmp_path / "a").path) == contents(write(tmp_path / "b").path)


def test_shards_and_row_groups(tmp_path):
    import pyarrow.parquet as pq
    from datasets import load_dataset

    summary = write(tmp_path / "set", rows=450, rows_per_shard=200)
    files = sorted(path.name for path in (summary.path / "data").glob("train*"))
    assert files == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    sizes = [pq.ParquetFile(summary.path / "data" / name) for name in files]
    assert [file.metadata.num_rows for file in sizes] == [200, 200, 50]
    assert all(file.metadata.row_group(i).num_rows <= 100 for file in sizes for i in range(file.num_row_groups))
    rows = load_dataset(str(summary.path), split="train")
    assert rows["caption"] == [f"number {i}" for i in range(450)]
    odd = write(tmp_path / "odd", rows=250, rows_per_shard=30)
    assert sum(name.startswith("data/train") for name in odd.shards) == 9
    assert load_dataset(str(odd.path), split="train")["caption"] == [f"number {i}" for i in range(250)]


def test_large_images_make_small_groups(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    from modeling_mclfir.data import shards

    size = len(dataset_row(0)["image"]["bytes"])
    monkeypatch.setattr(shards, "BYTES_PER_GROUP", 8 * size)
    monkeypatch.setattr(shards, "BYTES_PER_SHARD", 20 * size)
    summary = write(tmp_path / "set", rows=50)
    groups = [
        file.metadata.row_group(i).num_rows
        for file in map(pq.ParquetFile, sorted((summary.path / "data").glob("train*")))
        for i in range(file.num_row_groups)
    ]
    assert sum(groups) == 50 and max(groups) <= 10 and len(summary.shards) >= 2


def test_every_kind_of_image(tmp_path):
    from datasets import load_dataset

    (tmp_path / "x.jpg").write_bytes(picture(1))
    images = [picture(1), tmp_path / "x.jpg", str(tmp_path / "x.jpg"), {"path": str(tmp_path / "x.jpg")}]
    images += [{"bytes": picture(1), "path": None}, Image.new("RGB", (20, 20), "red")]
    summary = write(tmp_path / "set", splits={"val": [{"image": image} for image in images]})
    assert summary.counts["val"] == 6
    rows = load_dataset(str(summary.path), split="val")
    assert rows[5]["image"].getpixel((0, 0)) == (255, 0, 0) and rows[0]["attributes"] == {"colour": None, "size": None}
    assert str(tmp_path).encode() not in b"".join(contents(summary.path).values())  # no path of this machine


def test_the_card(tmp_path):
    import yaml

    splits = {"query": [dataset_row(0, size="a|b")], "val": [dataset_row(1)]}
    summary = write(tmp_path / "set", citation="@misc{us}", description="Tiny pictures.", splits=splits)
    text = (summary.path / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc0-1.0" and head["pretty_name"] == "Set"
    files = head["configs"][0]["data_files"]
    assert [entry["split"] for entry in files] == ["val", "query"] and files[0]["path"] == "data/val-*.parquet"
    for words in ("Tiny pictures.", "| query | 1 |", "| all | 2 |", "a\\|b 1", "@misc{us}", "No row was left out"):
        assert words in text
    for name, digest in summary.shards.items():
        assert hashlib.sha256((summary.path / name).read_bytes()).hexdigest() == digest
        assert f"| {name} | {digest} |" in text


def test_a_licence_in_words(tmp_path):
    text = (write(tmp_path / "set", licence="Ask the authors: x@y").path / "README.md").read_text()
    assert "license: other" in text and "Ask the authors: x@y" in text


def bad_and_good(good=300):
    jpeg = picture(0)
    images = [jpeg[: len(jpeg) // 2], picture(1, size=(1, 1), kind="PNG"), None, {"path": "/no/such.jpg"}, b"no image"]
    return [*({"image": image} for image in images), *map(dataset_row, range(good))]


def test_bad_rows_are_left_out_counted_and_told(tmp_path):
    bad_rows = BadRows()
    bad_rows.add("unknown_value", "row 7")  # by the reader
    splits = {"train": bad_and_good()}
    summary = write(tmp_path / "set", splits=splits, bad_rows=bad_rows, max_bad_fraction=0.02)
    assert summary.counts["train"] == 300 and summary.bad_rows is bad_rows
    assert bad_rows.counts == {"truncated": 1, "too_small": 1, "missing": 2, "unreadable": 1, "unknown_value": 1}
    text = (summary.path / "README.md").read_text()
    assert "Left out as bad: 6." in text and "| missing | 2 | train row 2, such.jpg |" in text


def test_too_many_bad_rows_stop_the_run(tmp_path, caplog):
    message = r"5 of 305 rows are bad, more than the 1.00% allowed(.|\n)*truncated: 1"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", splits={"train": bad_and_good()})
    assert not (tmp_path / "set").exists() and "305 rows are done and kept in" in caplog.text
    # What was done is of use to the same call with a larger share allowed.
    summary = write(tmp_path / "set", splits={"train": bad_and_good()}, max_bad_fraction=0.02)
    assert summary.resumed_at == 305 and summary.counts["train"] == 300 and summary.bad_rows.total == 5
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_run_that_fails_before_its_first_shard_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="5 of 500 rows are bad"):
        write(tmp_path / "set", splits={"train": bad_and_good(495)}, num_rows={"train": 500}, max_bad_fraction=0.002)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_bound_to_fail_stops_early(tmp_path):
    def rows():
        yield from bad_and_good(200)
        pytest.fail("read on")

    with pytest.raises(ValueError, match="5 of 400 rows are bad"):
        write(tmp_path / "set", splits={"train": rows()}, num_rows={"train": 400})


def test_without_the_check_rows_are_written_as_they_are(tmp_path):
    summary = write(tmp_path / "set", splits={"train": bad_and_good(1)}, check_images=False)
    assert summary.counts["train"] == 6 and summary.bad_rows.total == 0


def test_an_error_midway_leaves_what_was_there(tmp_path):
    def rows():
        yield from map(dataset_row, range(300))
        raise OSError(28, "No space left on device")

    before = contents(write(tmp_path / "set").path)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "set", splits={"train": rows()}, overwrite=True)
    assert contents(tmp_path / "set") == before and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_a_killed_run_left_is_no_obstacle(tmp_path):
    (tmp_path / ".set.partial" / "data").mkdir(parents=True)
    (tmp_path / ".set.partial" / "data" / "train-00000.parquet").write_bytes(b"half")
    assert write(tmp_path / "set").counts["train"] == 20
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_existing_folder(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")  # empty: fine
    with pytest.raises(FileExistsError, match="not empty; give another folder, or --overwrite"):
        write(tmp_path / "set")
    assert write(tmp_path / "set", rows=30, overwrite=True).counts["train"] == 30
    for other in ("holiday photos", "set/data"):
        (tmp_path / other).mkdir(exist_ok=True)
        (tmp_path / other / "1.jpg").write_bytes(b"x")
        with pytest.raises(FileExistsError, match="not a data set written before"):
            write(tmp_path / other, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        write(tmp_path / "file", overwrite=True)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"splits": {"test": []}}, "unknown splits 'test'"),
        ({"splits": {"train": []}}, "no rows at all"),
        ({"splits": {"train": [dataset_row(0, fit="slim")]}}, "0.jpg: unknown attributes 'fit'; known: colour, size"),
        ({"increments": [{"name": "a", "attributes": ["fit"]}]}, "unknown attribute 'fit'"),
        ({"attributes": ("colour", "size", "size")}, "attributes given twice: size"),
        ({"rows_per_shard": 0}, "expected 1 or more"),
    ],
)
def test_wrong_arguments(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "set", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", [dataset_row(0, size=3), {**dataset_row(0), "product_id": 7}, {"image": 3.5}])
def test_wrong_types(tmp_path, row):
    with pytest.raises(TypeError, match="expected"):
        write(tmp_path / "set", splits={"train": [row]})


def test_a_set_without_attributes(tmp_path):
    from datasets import load_dataset

    row = {"image": picture(0), "caption": "a dress"}
    summary = write(tmp_path / "set", splits={"train": [row]}, attributes=(), increments=[])
    loaded = load_dataset(str(summary.path), split="train")
    assert loaded[0]["caption"] == "a dress" and attribute_names(loaded.features) == ()


def test_attribute_names_of_another_schema():
    from datasets import Features, Value

    with pytest.raises(ValueError, match="has the columns image, label; expected.*missing: caption, product_id"):
        attribute_names(Features({"image": Value("string"), "label": Value("int64")}))
    wrong = {**row_features(["a"]), "image": Value("string"), "attributes": Value("string")}
    with pytest.raises(ValueError, match="another type.*image.*attributes"):
        attribute_names(Features(wrong))


def test_importing_the_package_is_cheap():
    script = "import sys\nfrom modeling_mclfir.data import images, increments\nprint('datasets' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"
