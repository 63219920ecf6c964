# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage
from tiny_runs import TRUNKS
from transformers import AutoConfig

from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor
from modeling_mclfir.cli import attend as command
from modeling_mclfir.cli.main import main


@pytest.fixture(scope="module")
def index(checkpoint, photos, tiny_data, tmp_path_factory):
    """The gallery, embedded once."""
    folder = tmp_path_factory.mktemp("index")
    main(["tag", "--checkpoint", str(checkpoint), "--images", str(photos), "--output", str(folder / "tags.parquet"),
          "--gallery", str(tiny_data), "--index", str(folder / "index"), "--k", "5"])  # fmt: skip
    return folder


def attend(checkpoint, images, output, *flags):
    images = images if isinstance(images, list) else [images]
    main(["attend", "--checkpoint", str(checkpoint), "--images", *map(str, images), "--output", str(output), *flags])


@pytest.fixture
def pages(monkeypatch):
    """What is drawn, by title, in place of the pictures."""
    drawn = {}
    monkeypatch.setattr(command, "plot_photo", lambda example, path, title: drawn.update({title: example["maps"]}))
    return drawn


def test_a_figure_a_photo(checkpoint, photos, tiny_data, tmp_path, capsys):
    flags = ["--gallery", str(tiny_data), "--index", str(tmp_path / "index")]
    attend(checkpoint, photos, tmp_path / "heat", *flags)
    found = sorted(path.relative_to(tmp_path / "heat") for path in (tmp_path / "heat").rglob("*.*"))
    assert [str(path) for path in found] == [f"inner/{row}.png.png" for row in range(5)]
    with PilImage.open(tmp_path / "heat" / found[0]) as image:
        image.verify()
        assert image.format == "PNG"
    assert "5 photos, 5 attributes" in capsys.readouterr().err
    assert (tmp_path / "index").is_dir()


def test_values_are_those_that_tag_gives(checkpoint, photos, index, tmp_path, pages):
    attend(checkpoint, photos, tmp_path, "--index", str(index / "index"), "--k", "5")
    tags = pq.read_table(index / "tags.parquet").to_pylist()
    assert len(tags) == 25
    for row in tags:
        maps = {entry["attribute"]: entry for entry in pages[f"Where the model looks in {row['image']}"]}
        assert maps[row["attribute"]]["predicted"] == row["value"]
        assert maps[row["attribute"]]["confidence"] == pytest.approx(row["confidence"], abs=1e-4)
    order = [(entry["increment"], entry["attribute"]) for entry in next(iter(pages.values()))]
    assert order == [("cut", "category"), ("cut", "sleeve_length"), ("surface", "colour"), ("details", "pocket"),
                     ("details", "closure")]  # fmt: skip
    assert all(np.isclose(entry["attention"].sum(), 1, atol=1e-4) for maps in pages.values() for entry in maps)


def test_some_attributes_of_single_photos(checkpoint, photos, index, tmp_path, pages):
    some = [photos / "inner" / "3.png", photos / "inner" / "1.png"]
    attend(checkpoint, some, tmp_path, "--index", str(index / "index"), "--attributes", "closure", "colour")
    assert sorted(pages) == ["Where the model looks in 1.png", "Where the model looks in 3.png"]
    for maps in pages.values():
        assert [entry["attribute"] for entry in maps] == ["closure", "colour"]


def test_an_attribute_that_the_index_lacks_has_no_value(checkpoint, photos, tiny_data, tmp_path, pages):
    flags = ["--index", str(tmp_path / "colours")]
    attend(checkpoint, photos, tmp_path, "--gallery", str(tiny_data), *flags, "--attributes", "colour")
    assert all(maps[0]["predicted"] is not None for maps in pages.values())
    attend(checkpoint, photos, tmp_path, *flags, "--attributes", "colour", "pocket")
    for maps in pages.values():
        assert maps[0]["predicted"] is not None and maps[1]["predicted"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_type": "csn"}, "head_type 'csn' have no spatial attention"),
        ({"use_spatial_attention": False}, "head_type 'mclfir' without use_spatial_attention have no"),
    ],
)
def test_heads_without_spatial_attention_are_an_error(photos, tiny_data, tmp_path, settings, message):
    trunk = dict(TRUNKS["vit"])
    trunk = AutoConfig.for_model(trunk.pop("model_type"), **trunk)
    model = MclfirForImageRetrieval.from_trunk(trunk, embed_dim=16, **settings)
    model.add_increment("cut", ["colour"])
    model.save_pretrained(tmp_path / "checkpoint")
    MclfirImageProcessor.for_trunk(None, 32, 32).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(SystemExit, match=message):
        attend(tmp_path / "checkpoint", photos, tmp_path / "heat", "--gallery", str(tiny_data))
    assert not (tmp_path / "heat").exists()


def test_mistakes(checkpoint, photos, index, tmp_path):
    flags = ["--index", str(index / "index")]
    with pytest.raises(SystemExit, match="nowhere: no such folder or image"):
        attend(checkpoint, tmp_path / "nowhere", tmp_path / "heat", *flags)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty holds no image"):
        attend(checkpoint, tmp_path / "empty", tmp_path / "heat", *flags)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.png").write_bytes((photos / "inner" / "1.png").read_bytes())
    with pytest.raises(SystemExit, match="would both be named 1.png; give the folder above"):
        attend(checkpoint, [photos / "inner", tmp_path / "other" / "1.png"], tmp_path / "heat", *flags)
    with pytest.raises(SystemExit, match="Unknown attributes .*'hat'"):
        attend(checkpoint, photos, tmp_path / "heat", *flags, "--attributes", "hat")
    (tmp_path / "other" / "1.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="1 of 1 rows are bad"):
        attend(checkpoint, tmp_path / "other", tmp_path / "heat", *flags)
    assert not (tmp_path / "heat").exists()
