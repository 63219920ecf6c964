# SPDX-License-Identifier: Apache-2.0
"""`mclfir index` on a text-image checkpoint: from training to a picture of what a caption finds."""

import json

import numpy as np
import pytest
from PIL import Image

from modeling_mclfir.cli.main import main


@pytest.fixture(scope="module")
def run_folder(tiny_data, tmp_path_factory):
    """Two increments of captions and images."""
    from tiny_text_runs import pair_arguments

    folder = tmp_path_factory.mktemp("pairs") / "run"
    main(["train", *pair_arguments(tiny_data, folder, epochs=0.5)])
    return folder


@pytest.fixture(scope="module")
def index(run_folder, tiny_data, tmp_path_factory):
    """The gallery of the tiny data, embedded by the first increment and filled up by the second one."""
    folder = tmp_path_factory.mktemp("text_index") / "catalogue"
    main(["index", "build", "--index", str(folder), "--checkpoint", str(run_folder / "increment-00"),
          "--dataset", str(tiny_data), "--batch_size", "16"])  # fmt: skip
    main(["index", "backfill", "--index", str(folder), "--checkpoint", str(run_folder / "increment-01")])
    return folder


def run(verb: str, index, *flags) -> None:
    main(["index", verb, "--index", str(index), *map(str, flags)])


def found(capsys) -> list[dict]:
    return json.loads(capsys.readouterr().out)


def test_a_caption_finds_photos(index, tmp_path, capsys):
    run("search", index, "--text", "a red $5 shirt", "--k", "5", "--json", "--picture", tmp_path / "sheet.png")
    hits = found(capsys)
    assert len(hits) == 5 and [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 700 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    orders = []
    for space in ("text@tops", "text@rest"):
        run("search", index, "--text", "a red shirt", "--attributes", space, "--k", "32", "--json")
        orders.append([hit["id"] for hit in found(capsys)])
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    run("search", index, "--item", orders[0][0], "--k", "40", "--json")
    assert sorted([orders[0][0], *(hit["id"] for hit in found(capsys))]) == sorted(orders[0])


def test_where_it_stands(index, run_folder, capsys):
    run("info", index)
    text = capsys.readouterr().out
    assert "32 items in 2 spaces" in text and "text@tops" in text and "text@rest" in text
    assert str(run_folder / "increment-01") in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", " "], "A caption must have words"),
        (["--text", "shirt", "--attributes", "colour"], "neither a space nor an attribute 'colour'"),
        (["--text", "shirt", "--checkpoint", "/no/where"], "--checkpoint /no/where: no such folder"),
    ],
)
def test_mistakes_end_in_one_line(index, flags, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run("search", index, *flags)


def test_one_kind_of_query(index, capsys):
    with pytest.raises(SystemExit):
        run("search", index, "--text", "shirt", "--item", "x")
    assert "not allowed with" in capsys.readouterr().err


def test_a_catalogue_of_attributes_reads_no_captions(checkpoint, tiny_data, tmp_path):
    run("build", tmp_path / "index", "--checkpoint", checkpoint, "--dataset", tiny_data)
    with pytest.raises(SystemExit, match="error: .*increment-02 is an attribute model.*--image or --item.*text-image"):
        run("search", tmp_path / "index", "--text", "a red shirt")
