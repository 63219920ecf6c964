# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_scripts import atelier, folder, stanford_clothing
from modeling_mclfir.data.increments import check_increments, load_increments
from modeling_mclfir.data.table import load_tables

ROOT = Path(__file__).resolve().parents[2]


def command(name, *arguments):
    line = [sys.executable, "-m", f"data_scripts.{name}", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_folder(photos, tmp_path):
    arguments = ["--caption-column", "title", "--product-id-column", "product", "--licence", "cc0-1.0"]
    result = command("folder", "--source", photos, "--output", tmp_path / "out", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'out'}: train " in result.stderr and "no bad rows" in result.stderr
    assert "# my photos\n" in (tmp_path / "out" / "README.md").read_text()
    tables = load_tables(tmp_path / "out")
    assert sum(map(len, tables.values())) == 40
    check_increments(load_increments(tmp_path / "out" / "increments.json", ("colour", "size")), tables["train"])


def test_a_mistake_is_one_message_and_status_2(photos, tmp_path):
    result = command("folder", "--source", photos, "--output", tmp_path / "out", "--image-column", "file")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") and "its columns are: image, colour, size" in result.stderr
    assert not (tmp_path / "out").exists()


def test_bad_rows(photos, tmp_path):
    (photos / "images" / "3.jpg").write_bytes((photos / "images" / "3.jpg").read_bytes()[:300])
    (photos / "images" / "4.jpg").unlink()
    arguments = ["--source", str(photos), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"2 of 40 rows are bad(.|\n)*missing: 1(.|\n)*truncated: 1"):
        folder.main(arguments)
    summary = folder.main([*arguments, "--max-bad-fraction", "0.1"])
    assert sum(summary.counts.values()) == 38


def test_overwrite(photos, tmp_path):
    arguments = ["--source", str(photos), "--output", str(tmp_path / "out")]
    folder.main(arguments)
    with pytest.raises(FileExistsError, match="--overwrite"):
        folder.main(arguments)
    folder.main([*arguments, "--overwrite"])
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="not a data set written before"):
        folder.main(["--source", str(photos), "--output", str(photos), "--overwrite"])
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_increments_key(photos, tmp_path):
    lists = {
        "attributes": [{"name": "all", "attributes": ["colour", "size"]}],
        "values": [{"name": "warm", "attribute": "colour", "values": ["red"]}],
    }
    (photos / "increments.json").write_text(json.dumps(lists))
    arguments = ["--source", str(photos), "--output", str(tmp_path / "out")]
    folder.main(arguments)
    assert json.loads((tmp_path / "out" / "increments.json").read_text()) == lists
    with pytest.raises(ValueError, match="--increments-key domains.*attributes, values"):
        folder.main([*arguments, "--overwrite", "--increments-key", "domains"])
    folder.main([*arguments, "--overwrite", "--increments-key", "values"])
    assert json.loads((tmp_path / "out" / "increments.json").read_text()) == lists["values"]


def test_the_wrong_folder_is_told_by_what_is_missing(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="of 4 files 2 are missing: split.csv, increments.json. Mend --source"):
        stanford_clothing.main(["--source", str(photos), "--output", str(tmp_path / "out")])


def test_atelier(tmp_path):
    sizes = ["--num-train", "24", "--num-val", "4", "--num-query", "4", "--num-gallery", "8"]
    summary = atelier.main(["--output", str(tmp_path / "a"), *sizes])
    assert summary.counts == {"train": 24, "val": 4, "query": 4, "gallery": 8}
    tables = load_tables(tmp_path / "a")
    increments = load_increments(tmp_path / "a" / "increments.json", tables["train"].attributes)
    assert {name for increment in increments for name in increment.attributes} == set(tables["train"].attributes)
    assert all(tables["train"].captions) and tables["train"].image(0).size == (96, 96)
    assert atelier.main(["--output", str(tmp_path / "b"), *sizes]).shards == summary.shards


# ---- the flags that all commands with a --source share


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_annotations_only_without_output_counts_and_writes_nothing(photos, tmp_path):
    for path in (photos / "images").iterdir():
        path.unlink()  # they need not be there
    before, around = contents(photos), sorted(path.name for path in tmp_path.iterdir())
    result = command("folder", "--source", photos, "--annotations-only")
    assert result.returncode == 0 and result.stdout == "", result.stderr
    assert result.stderr.startswith("counted only, nothing is written: train ")
    assert result.stderr.endswith("; no bad rows\n")
    assert sum(int(part.split()[1]) for part in result.stderr.split(": ")[1].split(";")[0].split(", ")) == 40
    assert contents(photos) == before and sorted(path.name for path in tmp_path.iterdir()) == around


def test_annotations_only_with_output_writes_rows_without_images(photos, tmp_path):
    for path in (photos / "images").iterdir():
        path.unlink()
    result = command("folder", "--source", photos, "--annotations-only", "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'out'}: train " in result.stderr
    from datasets import load_dataset

    loaded = load_dataset(str(tmp_path / "out"))
    assert sum(map(len, loaded.values())) == 40
    assert {row["image"] for part in loaded.values() for row in part} == {None}
    assert "**Without images:**" in (tmp_path / "out" / "README.md").read_text()


def test_max_size_and_two_processes(photos, tmp_path):
    from datasets import load_dataset

    arguments = ["--source", photos, "--max-size", "24", "--output"]
    for name, processes in (("one", "1"), ("two", "2")):
        result = command("folder", *arguments, tmp_path / name, "--num-proc", processes)
        assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    images = [row["image"] for part in load_dataset(str(tmp_path / "two")).values() for row in part]
    assert len(images) == 40 and {image.size for image in images} == {(18, 24)}  # of 24×32
    assert {image.format for image in images} == {"JPEG"}


def test_without_output_and_annotations_only_nothing_can_be_done(photos):
    result = command("folder", "--source", photos)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --output is missing; expected the folder to write, or --annotations-only")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--max-size", "0"], "error: max_size is 0; expected 1 or more"),
        (["--num-proc", "0"], "error: num_proc is 0; expected 1 or more"),
        (["--rows-per-shard", "-3"], "error: rows_per_shard is -3; expected 1 or more"),
        (["--max-bad-fraction", "7"], "error: max_bad_fraction is 7.0; expected a share"),
        (["--max-size", "wide"], "argument --max-size: invalid int value"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--labels", "none.csv"], "none.csv"),
    ],
    ids=" ".join,
)
def test_wrong_flags_are_told_in_a_message(photos, tmp_path, flags, words):
    result = command("folder", "--source", photos, "--output", tmp_path / "out", *flags)
    assert result.returncode == 2 and "Traceback" not in result.stderr and words in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_report_names_bad_rows_and_copies(photos, tmp_path):
    (photos / "images" / "4.jpg").unlink()
    (photos / "images" / "6.jpg").write_bytes((photos / "images" / "5.jpg").read_bytes())
    result = command("folder", "--source", photos, "--output", tmp_path / "out", "--max-bad-fraction", "0.1")
    assert result.returncode == 0, result.stderr
    assert "left out: 1 byte-identical copies (the first of each is kept)\n" in result.stderr
    assert result.stderr.endswith("1 bad row:\n  missing: 1 (images/4.jpg)\n")


COUNTS_OF_A_SET = """
from data_scripts.command import run, write_annotations, parser
from modeling_mclfir.data.annotations import Annotations, Check, Table
from modeling_mclfir.data.schema import TRIPLETS, table_features

def main(arguments):
    options = parser("made", "A set made up.", source="any folder").parse_args(arguments)
    rows = [{"image": b"none", "attributes": {}, "image_id": "a"}]
    triplet = {"condition": "c", "anchor": "a", "positive": "a", "negative": "b"}
    annotations = Annotations(
        attributes=("c",), increments=[], splits={"train": rows}, counts={"train": 1}, columns={"image_id": "string"},
        tables={"triplets": Table(table_features(TRIPLETS), {"train": [triplet] * 1200, "query": []})},
        checks=[Check("images", 1, 1), Check("queries", 6346, 6347), Check("twice", 12345)],
    )
    return write_annotations(annotations, options, name="Made", licence="cc0-1.0", citation="")

run(main)
"""


@pytest.mark.parametrize("output", [True, False])
def test_the_report_tells_counts_beside_the_published_ones(tmp_path, output):
    line = [sys.executable, "-c", COUNTS_OF_A_SET, "--source", str(tmp_path), "--annotations-only"]
    line += ["--output", str(tmp_path / "out")] if output else []
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    where = (
        f"{tmp_path / 'out'}: train 1, val 0, query 0, gallery 0"
        if output
        else "counted only, nothing is written: train 1"
    )
    expected = [
        "images: 1  (published: 1)",
        "queries: 6,346  (published: 6,347 – DIFFERENT)",
        "twice: 12,345",
        "table triplets: train 1,200, query 0",
        *(["table triplets: 1,200 rows name an image that is not there"] if output else []),
        f"{where}; no bad rows",
    ]
    assert result.stderr.splitlines() == expected
