# SPDX-License-Identifier: Apache-2.0
import pyarrow.parquet as pq
import pytest
import torch

from modeling_mclfir.cli.main import main
from modeling_mclfir.data.table import load_tables


def embed(checkpoint, photos, output, *flags):
    main(["embed", "--checkpoint", str(checkpoint), "--images", str(photos), "--output", str(output), *flags])
    return pq.read_table(output)


def test_embed_gives_every_attribute_of_every_image(checkpoint, photos, tmp_path):
    from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor
    from modeling_mclfir.data.images import decode_image

    table = embed(checkpoint, photos, tmp_path / "vectors.parquet")
    model = MclfirForImageRetrieval.from_pretrained(checkpoint)
    processor = MclfirImageProcessor.from_pretrained(checkpoint)
    images = [decode_image(photos / "inner" / f"{row}.png") for row in range(5)]
    with torch.no_grad():
        expected = model(processor(images, return_tensors="pt")["pixel_values"]).embeds
    known = model.config.attributes
    assert table["image"].to_pylist() == [f"inner/{row}.png" for row in range(5) for _ in known]
    assert table["attribute"].to_pylist() == known * 5
    assert torch.equal(torch.tensor(table["embed"].to_pylist()), expected.flatten(0, 1))


def test_embed_some_attributes_and_says_what_is_wrong(checkpoint, photos, tmp_path):
    table = embed(checkpoint, photos, tmp_path / "some.parquet", "--attributes", "colour")
    assert table["attribute"].to_pylist() == ["colour"] * 5
    with pytest.raises(SystemExit, match="Unknown attributes .*'hat'.*colour"):
        embed(checkpoint, photos, tmp_path / "none.parquet", "--attributes", "hat")
    (photos / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="broken.jpg"):
        embed(checkpoint, photos, tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()
    assert len(embed(checkpoint, photos, tmp_path / "rest.parquet", "--max_bad_fraction", "0.5")) == len(table) * 5
    (photos / "broken.jpg").unlink()


def test_tag_names_values_by_a_labelled_gallery_or_a_saved_index(checkpoint, photos, tiny_data, tmp_path):
    common = ["tag", "--checkpoint", str(checkpoint), "--images", str(photos), "--k", "5"]
    gallery = ["--gallery", str(tiny_data), "--index", str(tmp_path / "index"), "--attributes", "colour", "pocket"]
    main([*common, *gallery, "--output", str(tmp_path / "tags.parquet")])
    table = pq.read_table(tmp_path / "tags.parquet")
    assert table["image"].to_pylist() == [f"inner/{row}.png" for row in range(5) for _ in range(2)]
    assert table["attribute"].to_pylist() == ["colour", "pocket"] * 5
    known = load_tables(tiny_data)["gallery"]
    for row in table.to_pylist():
        assert row["value"] in known.values(row["attribute"]) and 0 < row["confidence"] <= 1
    main([*common, "--index", str(tmp_path / "index"), "--output", str(tmp_path / "again.parquet")])
    assert pq.read_table(tmp_path / "again.parquet").equals(table)
    with pytest.raises(SystemExit, match="--gallery .*or --index"):
        main([*common, "--output", str(tmp_path / "none.parquet")])
    with pytest.raises(SystemExit, match="no split 'shelf'.*gallery"):
        main([*common, "--gallery", str(tiny_data), "--split", "shelf", "--output", str(tmp_path / "none.parquet")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "no command 'dance'"),
        (["prepare", "nothing"], "stanford_clothing"),
        (["embed", "--checkpoint", "x", "--images", "nowhere", "--output", "y"], "Hub|connect|x"),
        (["attend", "--checkpoint", "x", "--images", "nowhere", "--output", "y"], "--gallery .*or --index"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_help_lists_the_commands(capsys):
    main([])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("train", "embed", "tag", "attend", "prepare"))


@pytest.mark.parametrize(
    "command, words", [("train", "--resume"), ("index build", "same command goes on"), ("index search", "stopped.\n")]
)
def test_ctrl_c_ends_in_a_line_that_says_how_to_go_on(monkeypatch, capsys, command, words):
    def stopped(arguments):
        raise KeyboardInterrupt

    for name in ("train", "index"):
        monkeypatch.setattr(f"modeling_mclfir.cli.{name}.main", stopped)
    with pytest.raises(SystemExit) as error:
        main(command.split())
    said = capsys.readouterr().err
    assert error.value.code == 130 and words in said and ("goes on" in said) is (command != "index search")
