# SPDX-License-Identifier: Apache-2.0
"""`mclfir index` from the first build to a picture of what was found."""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_mclfir.catalogue import picture
from modeling_mclfir.catalogue.picture import title_of
from modeling_mclfir.cli.index_flags import filter_of
from modeling_mclfir.cli.index_tables import search_text, table_text
from modeling_mclfir.cli.main import main
from modeling_mclfir.index.store import checked_filter


@pytest.fixture(scope="module")
def index(checkpoint, tiny_data, tmp_path_factory):
    """The gallery of the tiny data, embedded by the first increment and filled up by the last one."""
    folder = tmp_path_factory.mktemp("index") / "catalogue"
    first = checkpoint.parent / "increment-00"
    main(["index", "build", "--index", str(folder), "--checkpoint", str(first), "--dataset", str(tiny_data),
          "--batch_size", "16"])  # fmt: skip
    main(["index", "backfill", "--index", str(folder), "--checkpoint", str(checkpoint), "--batch_size", "16"])
    return folder


def run(verb: str, index, *flags) -> None:
    main(["index", verb, "--index", str(index), *map(str, flags)])


def test_build_and_backfill(index, capsys):
    run("info", index, "--json")
    info = json.loads(capsys.readouterr().out)
    assert info["items"] == 32 and len(info["spaces"]) == 5
    assert [event["event"] for event in info["events"]] == ["build", "backfill"]
    assert all(space["entries"] == 32 and space["share_filled"] == 1 for space in info["spaces"].values())
    run("info", index)
    text = capsys.readouterr().out
    assert (
        "32 items in 5 spaces; faiss (factory Flat)" in text and "colour@surface" in text and "increment-02." in text
    )


def test_search_by_a_photo_and_by_an_item(index, photos, tmp_path, capsys):
    run("search", index, "--image", photos / "inner" / "2.png", "--attributes", "colour", "pocket",
        "--weights", "2", "1", "--k", "4", "--json", "--picture", tmp_path / "sheet.png")  # fmt: skip
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert len(found) == 4 and [hit["score"] for hit in found] == sorted((hit["score"] for hit in found), reverse=True)
    assert "attributes.colour" in found[0]["metadata"] and "sheet.png" in shown.err
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 700 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    item, colour = found[0]["id"], found[0]["metadata"]["attributes.colour"]
    run("search", index, "--item", item, "--attributes", "colour", "--k", "32", "--json")
    others = json.loads(capsys.readouterr().out)
    assert len(others) == 31 and item not in [hit["id"] for hit in others]
    run("search", index, "--item", item, "--attributes", "colour", "--k", "32", "--json", "--include_self",
        "--where", f"colour={colour}", "--exclude", others[0]["id"])  # fmt: skip
    same = json.loads(capsys.readouterr().out)
    assert {hit["metadata"]["attributes.colour"] for hit in same} == {colour} and same[0]["id"] == item
    assert others[0]["id"] not in [hit["id"] for hit in same]
    run("search", index, "--item", item, "--attributes", "colour", "--k", "3", "--distinct")
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 4 and "score" in text.splitlines()[0]


def test_add_remove_and_export(index, photos, tmp_path, capsys):
    run("add", index, "--images", photos)
    run("export", index, "--output", tmp_path / "all.parquet", "--attributes", "colour")
    table = pq.read_table(tmp_path / "all.parquet")
    assert len(table) == 37 and set(table["space"].to_pylist()) == {"colour@surface"}
    (tmp_path / "ids.txt").write_text("inner/0.png\ninner/1.png\n\n")
    run("remove", index, "--ids", "inner/2.png", "--ids_file", tmp_path / "ids.txt")
    run("remove", index, "--ids", "inner/3.png", "inner/4.png", "nobody")
    told = capsys.readouterr().err
    assert "2 items removed; 32 are left" in told and "1 id is of no item: nobody\n" in told
    run("remove", index, "--ids", *"abcdefg")
    assert "7 ids are of no item: a, b, c, d, e …\n" in capsys.readouterr().err


def test_reindex_switch_and_roll_back(index, checkpoint, tmp_path, capsys):
    from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor

    model = MclfirForImageRetrieval.from_pretrained(checkpoint)
    for parameter in model.heads[1].parameters():
        parameter.data *= 1.5
    model.save_pretrained(tmp_path / "moved")
    MclfirImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "moved")
    with pytest.raises(SystemExit, match=r"error: .*moved makes other vectors .*\['colour@surface'\].*--policy full"):
        run("reindex", index, "--checkpoint", tmp_path / "moved", "--policy", "new_only")
    run("reindex", index, "--checkpoint", tmp_path / "moved", "--policy", "full")
    told = capsys.readouterr().err
    assert "building: colour@surface" in told and "mclfir index switch" in told and "unchanged: category@cut" in told
    run("switch", index)
    assert "colour@surface: moved." in capsys.readouterr().err
    run("roll_back", index)
    told = capsys.readouterr().err
    assert "colour@surface: increment-02." in told
    assert "answers again, with 32 items; what answered until now has 32" in told
    run("info", index, "--json")
    revisions = json.loads(capsys.readouterr().out)["spaces"]["colour@surface"]["revisions"]
    retired = next(revision["model_revision"] for revision in revisions if revision["state"] == "retired")
    run("drop", index, "--revision", retired)
    assert f"{retired} is dropped from colour@surface" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("search", ["--item", "nobody"], "nobody"),
        ("search", ["--item", "x", "--attributes", "hat"], "neither a space nor an attribute 'hat'"),
        ("search", ["--item", "x", "--where", "colour"], "--where takes COLUMN=VALUE"),
        ("search", ["--item", "x", "--distinct", "colour:near"], "--distinct takes a cosine"),
        ("search", ["--image", "nowhere.png"], "nowhere.png: no such image file"),
        ("reindex", ["--checkpoint", "/no/where", "--policy", "none"], "--checkpoint /no/where: no such folder"),
        ("remove", [], "--ids_file"),
        ("add", [], "--images FOLDER"),
        ("add", ["--images", "/no/where"], "/no/where: no such folder"),
        ("add", ["--dataset", "/no/where/at/all"], "no such folder"),
        ("drop", ["--revision", "nobody's"], "No space has a revision"),
        ("switch", [], "Nothing is being built"),
        ("search", ["--item", "x", "--where", "size=1"], "has a column 'size'; they have: attributes.category"),
        ("build", ["--checkpoint", "x", "--images", ".", "--index_type", "HNSW"], "--uri"),
        ("build", ["--checkpoint", "x", "--images", ".", "--uri", "a.db", "--nprobe", "3"], "--nprobe is FAISS's"),
        ("build", ["--checkpoint", "x", "--images", ".", "--uri", "http://me:pw@host"], "MCLFIR_MILVUS_TOKEN"),
        ("build", ["--checkpoint", "x", "--images", ".", "--uri", "http://host", "--milvus", "db"], "NAME=VALUE"),
        ("add", ["--images", ".", "--batch_size", "0"], "at least 1"),
    ],
)
def test_mistakes_end_in_one_line(index, verb, flags, message):
    with pytest.raises(SystemExit, match=message) as error:
        run(verb, index, *flags)
    assert str(error.value).startswith("error: ")


def test_an_index_that_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match="error: .*nothing holds no catalogue"):
        run("info", tmp_path / "nothing")


def test_a_search_by_an_item_needs_no_model(index):
    """Torch takes seconds to import."""
    import subprocess

    item = "import sys\nfrom modeling_mclfir.catalogue import Catalogue\n"
    item += f"with Catalogue.open({str(index)!r}) as catalogue:\n"
    item += "    name = next(catalogue.index.export('colour@surface')).ids[0]\n"
    item += "    assert len(catalogue.search(items=[name], attributes=['colour'])[0]) == 10\n"
    item += "assert 'torch' not in sys.modules, 'torch was imported'\n"
    done = subprocess.run([sys.executable, "-c", item], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_filters():
    texts = ["a=red", "a=blue", "b=3", "c=true", "d=1.5", "e=x=y"]
    expected = {
        "a": ["red", "blue"],
        "b": ["3", 3],
        "c": ["true", True],
        "d": ["1.5", 1.5],
        "e": ["x=y"],
    }
    assert filter_of(texts) == expected and filter_of([]) is None


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "4006381333931400638133393"])
def test_a_filter_of_what_no_column_can_hold_is_text(value):
    assert filter_of([f"code={value}"]) == {"code": [value]}
    assert checked_filter(filter_of([f"code={value}", "code=7"])) == {"code": (value, "7", 7)}


def test_a_build_of_nothing_writes_nothing(checkpoint, photos, tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("no photo")
    flags = ["--checkpoint", checkpoint, "--images"]
    with pytest.raises(SystemExit, match="error: No photo found in .*empty"):
        run("build", tmp_path / "index", *flags, tmp_path / "empty")
    with pytest.raises(SystemExit, match="error: .*nowhere: no such folder"):
        run("build", tmp_path / "index", *flags, tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="error: --checkpoint .*the folder of a run"):
        run("build", tmp_path / "index", "--checkpoint", checkpoint.parent, "--images", photos)
    assert not (tmp_path / "index").exists()


def test_a_catalogue_stays_in_its_backend(index, photos):
    with pytest.raises(SystemExit, match="error: .*is kept with"):
        run("build", index, "--checkpoint", "x", "--images", photos, "--factory", "HNSW8")


def test_help_says_what_scores_and_spreads_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # so that no word is cut
    told = {}
    for verb in ("search", "info"):
        with pytest.raises(SystemExit):
            main(["index", verb, "--help"])
        told[verb] = " ".join(capsys.readouterr().out.split())
    assert "grows with the number of attributes" in told["search"] and "within one search only" in told["search"]
    assert "log-likelihood ratio" in told["search"] and "spread: standard deviation" in told["info"]


def test_the_title_names_weights_that_are_not_1():
    assert title_of("a.jpg", {"colour": 1.0, "fit": 1.0}) == "Like a.jpg in colour, fit"
    assert title_of("a.jpg", {"colour": 2.0, "fit": 1.0}) == "Like a.jpg in colour × 2, fit × 1"
    assert title_of("a.jpg", {"colour": 0.5}) == "Like a.jpg in colour × 0.5"


def test_the_picture_of_a_weighted_search_says_so(index, photos, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(picture, "title_of", lambda *words: titles.append(title_of(*words)) or titles[-1])
    flags = ["--attributes", "colour", "pocket", "--weights", "2", "1", "--picture", tmp_path / "sheet.png"]
    run("search", index, "--image", photos / "inner" / "2.png", *flags)
    assert titles == ["Like 2.png in colour × 2, pocket × 1"]


def test_tables():
    assert table_text(["a", "b"], [["1", "xy"], ["22", ""]]) == "a   b\n1   xy\n22\n"
    assert search_text([], []) == "nothing found\n"
