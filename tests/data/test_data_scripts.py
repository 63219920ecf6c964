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
    with pytest.raises(FileNotFoundError, match="missing: split.csv, increments.json .expected: images, labels.csv"):
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
