# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets joined: every row as it was, and the increments of data sets."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from joined_sets import SHOP, command, raw_rows
from raw_sets.myntra_shoes import make
from tiny_runs import INCREMENTS, SIZES

from data_scripts import joined, myntra
from modeling_mclfir.data.atelier import ATTRIBUTES
from modeling_mclfir.data.increments import check_increments, load_increments
from modeling_mclfir.data.table import load_tables

pytestmark = pytest.mark.usefixtures("one_thread")

SPLITS = ("train", "val", "query", "gallery")


# ---- what is written


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_is_that_of_its_source(both, tiny_data, shop, split):
    found, place = raw_rows(both, split), 0
    shop_attributes = list(raw_rows(shop, split)[0]["attributes"])
    for name, folder in (("drawn", tiny_data), ("shop", shop)):
        for number, row in enumerate(raw_rows(folder, split)):
            expected = {f"drawn_{own}": None for own in ATTRIBUTES} | {f"shop_{own}": None for own in shop_attributes}
            expected |= {f"{name}_{own}": value for own, value in row["attributes"].items()}
            product_id = row["product_id"]
            assert found[place] == {
                "image": {"bytes": row["image"]["bytes"], "path": f"{name}/{row['image']['path']}"},
                "attributes": expected,
                "caption": row["caption"],
                "product_id": product_id if product_id is None else f"{name}/{product_id}",
                "image_id": f"{name}/{number}",
            }
            place += 1
    assert len(found) == place > SIZES[split]


def test_the_vocabulary_is_that_of_the_sources(both, tiny_data, shop):
    table = load_tables(both)["train"]
    for name, folder in (("drawn", tiny_data), ("shop", shop)):
        source = load_tables(folder)["train"]
        for own in source.attributes:
            assert table.values(f"{name}_{own}") == source.values(own)
    assert len(table.attributes) == len(ATTRIBUTES) + 7


def test_increments_are_the_data_sets_and_their_increments_one_after_the_other(both):
    path, table = both / "increments.json", load_tables(both)["train"]
    learned = [f"drawn_{own}" for entry in INCREMENTS for own in entry["attributes"]]
    assert json.loads(path.read_text()) == {
        "data_sets": [
            {"name": "drawn", "attributes": learned},
            {
                "name": "shop",
                "attributes": ["shop_gender", "shop_subCategory", "shop_baseColour", "shop_articleType"],
            },
        ],
        "attributes": [
            {"name": "drawn_cut", "attributes": ["drawn_category", "drawn_sleeve_length"]},
            {"name": "drawn_surface", "attributes": ["drawn_colour"]},
            {"name": "drawn_details", "attributes": ["drawn_pocket", "drawn_closure"]},
            {"name": "shop_type", "attributes": ["shop_gender", "shop_subCategory"]},
            {"name": "shop_colour", "attributes": ["shop_baseColour", "shop_articleType"]},
        ],
    }
    for key, count in (("data_sets", 2), ("attributes", 5), (None, 5)):
        increments = load_increments(path, table.attributes, key=key)
        assert len(increments) == count
        check_increments(increments, table)


def test_a_list_is_chosen_for_each_source_and_its_conditions_are_renamed(tiny_data, shop, tmp_path):
    flags = "--names", "drawn", "shop", "--increments-key", "attributes", "values"
    command(*flags, sources=(tiny_data, shop), output=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "increments.json").read_text())
    assert content["data_sets"][1] == {"name": "shop", "attributes": ["shop_articleType"]}
    assert content["attributes"][3:] == [
        {
            "name": "shop_shoes",
            "attribute": "shop_articleType",
            "where": {"shop_subCategory": ["Shoes"], "shop_gender_not": ["Boys"]},
        },
        {"name": "shop_flat", "attribute": "shop_articleType", "values": ["Sandals", "Flip Flops"]},
    ]


def test_the_card_names_the_sources_their_licences_and_their_contents(both, tiny_data, shop):
    card = (both / "README.md").read_text()
    contents = []
    for folder in (both, tiny_data, shop):
        head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
        contents.append(re.fullmatch(r"content sha256:([0-9a-f]{64})", head["configs"][0]["description"])[1])
    assert len(set(contents)) == 3
    assert "# Tiny, then Myntra fashion products\n" in card
    assert f"**Licence:** drawn: cc0-1.0 / shop: {myntra.LICENCE}\n" in card
    assert f"`drawn` is Tiny (content sha256:{contents[1]}): train 64, val 16, query 16, gallery 32 rows." in card
    assert f"`shop` is Myntra fashion products (content sha256:{contents[2]}): train 27, " in card
    assert myntra.CITATION in card
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["license_name"]) == ("other", "see-below")


def test_a_licence_that_all_have_is_that_of_the_joined_set(tiny_data, tmp_path):
    command("--names", "a", "b", sources=(tiny_data, tiny_data), output=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense: cc0-1.0\n" in card and "**Licence:** cc0-1.0\n" in card
    assert "## Citation" not in card


def test_the_same_command_writes_the_same_bytes_and_overwrites_only_when_told(tiny_data, shop, tmp_path):
    sources = {"sources": (tiny_data, shop)}
    for output in (tmp_path / "a", tmp_path / "b"):
        command("--names", "one", "two", **sources, output=output)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 4 + 2
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        command("--names", "three", "four", **sources, output=tmp_path / "a")
    command("--names", "three", "four", "--overwrite", **sources, output=tmp_path / "a")
    assert load_tables(tmp_path / "a")["train"].attributes[0].startswith("three_")


def test_one_row_group_is_in_memory_at_a_time(both, monkeypatch, tmp_path):
    read, original = [], pq.ParquetFile.read_row_group

    def counted(self, group, *arguments, **settings):
        read.append(group)
        return original(self, group, *arguments, **settings)

    (source,) = [part for part in joined.open_sources([both, both], ["a", "b"]) if part.name == "a"]
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    rows = source.rows("train", ("image_id",))
    for _ in range(20):  # a shard has so many, in one group
        assert next(rows)["image_id"].startswith("a/drawn/")
        assert len(read) == 1
    next(rows)
    assert len(read) == 2


# ---- further columns


def test_tags_and_galleries_of_asens_sets_are_kept_by_their_new_names(prepared, tmp_path):
    folders = prepared("fashionai"), prepared("deepfashion")
    command("--names", "ai", "deep", sources=folders, output=tmp_path / "out")
    for split in SPLITS:
        rows = raw_rows(tmp_path / "out", split)
        expected = [(name, row) for name, folder in zip(("ai", "deep"), folders, strict=True)
                    for row in raw_rows(folder, split)]  # fmt: skip
        assert [row["tags"] for row in rows] == [[f"{name}_{tag}" for tag in row["tags"]] for name, row in expected]
        assert [row["galleries"] for row in rows] == [
            [f"{name}/{gallery}" for gallery in row["galleries"]] for name, row in expected
        ]
        assert len({row["image_id"] for row in rows}) == len(rows)
    assert any(not row["galleries"] for row in raw_rows(tmp_path / "out", "val"))


def test_labels_are_the_tags_of_a_set_without_and_galleries_of_one_set_alone_are_left_out(prepared, shop, tmp_path):
    folder = prepared("fashionai")
    command("--names", "ai", "shop", sources=(folder, shop), output=tmp_path / "out")
    rows, own = raw_rows(tmp_path / "out", "val"), raw_rows(shop, "val")
    assert len(rows) == len(raw_rows(folder, "val")) + len(own) and "galleries" not in rows[0]
    assert [row["tags"] for row in rows[-len(own) :]] == [
        [f"shop_{name}={value}" for name, value in row["attributes"].items() if value] for row in own
    ]
    assert any(None in row["attributes"].values() for row in own)
    notes = [line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if "Left out" in line]
    assert (
        len(notes) == 1 and notes[0].startswith("`ai` is ") and notes[0].endswith("Left out: its columns galleries.")
    )


# ---- what is refused


def without_split(folder: Path, split: str, copy: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(split):
            (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    return copy


def test_a_source_that_lacks_a_split_is_named_with_the_way_out(tiny_data, shop, tmp_path):
    lacking = without_split(shop, "val", tmp_path / "lacking")
    with pytest.raises(ValueError, match=r"lacking has no rows in val; .*split\.csv\), or leave it out"):
        command("--names", "a", "b", sources=(tiny_data, lacking), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_with_triplets_is_refused(prepared, tiny_data, tmp_path):
    with pytest.raises(ValueError, match="has the further tables triplets, which a joined set does not carry"):
        command("--names", "a", "b", sources=(tiny_data, prepared("myntra_shoes")), output=tmp_path / "out")


def test_a_source_without_images_or_that_is_not_prepared_is_refused(tiny_data, tmp_path):
    source = make(tmp_path / "raw", images=False)
    (source / "increments.json").write_text(json.dumps(SHOP))
    myntra.main(["--source", str(source), "--output", str(tmp_path / "bare"), "--annotations-only"])
    with pytest.raises(ValueError, match="bare has no images; prepare it without --annotations-only"):
        command("--names", "a", "b", sources=(tiny_data, tmp_path / "bare"), output=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="raw: no prepared data set"):
        command("--names", "a", "b", sources=(tiny_data, source), output=tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--names", "a"), "--names has 1 for 2 sources; expected one each"),
        (("--names", "a", "b c"), r"names \['b c'\]; expected letters"),
        (("--names", "a", "a"), "several sources are named a; expected names that differ"),
        (("--names", "a", "a_b"), "the name 'a_b' begins with 'a_'"),
        (("--names", "a", "b", "--increments-key", "data_sets"), "--increments-key has 1 for 2 sources"),
        (("--names", "a", "b", "--increments-key", "attributes", "none"), "has no list 'none'; choose one of: attr"),
        (("--names", "a", "b", "--increments-key", "attributes", "domains"), "increments footwear name no attributes"),
    ],
)
def test_names_and_keys_that_do_not_fit_are_told(tiny_data, shop, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        command(*flags, sources=(tiny_data, shop), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_source_or_an_output_that_is_a_source_is_refused(tiny_data, shop, tmp_path):
    with pytest.raises(ValueError, match="--sources has 1 folder; expected two at least"):
        command(sources=(tiny_data,), output=tmp_path / "out")
    with pytest.raises(ValueError, match="--output .* is one of the sources"):
        command("--names", "a", "b", "--overwrite", sources=(tiny_data, shop), output=shop)
    # Without --names a set is named as its folder.
    assert [source.name for source in joined.open_sources([tiny_data, shop])] == ["data", "set"]
