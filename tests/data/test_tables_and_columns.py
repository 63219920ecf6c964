# SPDX-License-Identifier: Apache-2.0
"""Further columns of rows, further tables, and what the card says of both."""

import pytest
import yaml
from datasets import Image as ImageFeature
from datasets import List, Value, load_dataset
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row, picture

from modeling_mclfir.data.annotations import Again, Annotations, Check, SourceImage, Table
from modeling_mclfir.data.images import BadRows
from modeling_mclfir.data.prepare import write_annotations, write_dataset
from modeling_mclfir.data.schema import COMPOSED, FURTHER_COLUMNS, TRIPLETS, attribute_names, table_features
from modeling_mclfir.data.table import load_tables

CARD = {"name": "Set", "licence": "cc0-1.0", "progress": False}
COUNTS = {"train": 30, "val": 6, "gallery": 8}
NOTE = "An image is in one split only."


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def row(split, i):
    tags = {0: [], 1: ["colour=red", "colour=blue"], 2: None}[i % 3]
    return {
        **dataset_row(i),
        "image_id": f"{split}/{i}",
        "galleries": [] if i % 2 else ["dress/val", "all é"],
        "captions": [f"number {i}", "a dress"],
        "tags": tags,
    }


def rows(split):
    yield from (row(split, i) for i in range(COUNTS[split]))


def query(i, **other):
    content = {
        "query_id": f"q{i}", "reference": f"gallery/{i}", "target": f"gallery/{i + 1}", "gallery": "dress",
        "modification_texts": [f"is redder {i}", "with a bow"], "subset": [f"gallery/{i + 1}", "gallery/7"],
        "soft_targets": ["gallery/7"], "soft_scores": [0.5], "wanted": ["colour=red", "size=S"], "hit": "target",
    }  # fmt: skip
    return {**content, **other}


QUERIES = {
    "train": [query(0, reference="train/0", target="train/3"), query(1, reference="train/1", target=None)],
    "query": [query(i) for i in range(5)] + [query(5, target="gallery/99"), query(6, reference="nowhere")],
    "val": [],
}
TRIPLET_ROWS = {
    "train": [
        {"condition": "heel", "anchor": f"train/{i}", "positive": f"train/{i + 1}", "negative": f"train/{i + 2}"}
        for i in range(28)
    ],
    "query": [{"condition": "heel", "anchor": "gallery/0", "positive": "gallery/1", "negative": "gallery/2"}],
}


def annotations(**other):
    content = {
        "attributes": ATTRIBUTES,
        "increments": INCREMENTS,
        "splits": {split: Again(rows, split) for split in COUNTS},
        "counts": COUNTS,
        "columns": FURTHER_COLUMNS,
        "tables": {
            "composed": Table(table_features(COMPOSED), QUERIES),
            "triplets": Table(table_features(TRIPLETS), TRIPLET_ROWS),
        },
        "checks": [Check("train images", 30, 30), Check("val | images", 6, 7), Check("queries", 9)],
        "notes": [NOTE, "A second word."],
    }
    return Annotations(**{**content, **other})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "set"
    return folder, write_annotations(folder, annotations(), **CARD)


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_files(written):
    folder, summary = written
    assert set(contents(folder)) == {
        "README.md",
        "increments.json",
        "data/train-00000-of-00001.parquet",
        "data/val-00000-of-00001.parquet",
        "data/gallery-00000-of-00001.parquet",
        "composed/train-00000-of-00001.parquet",
        "composed/query-00000-of-00001.parquet",  # and none for val, which has no rows
        "triplets/train-00000-of-00001.parquet",
        "triplets/query-00000-of-00001.parquet",
    }
    assert summary.tables == {
        "composed": {"train": 2, "query": 7, "val": 0},
        "triplets": {"train": 28, "query": 1},
    }
    assert set(summary.shards) == {name for name in contents(folder) if name.endswith(".parquet")}


@pytest.mark.parametrize("streaming", [False, True])
def test_further_columns_come_back(written, streaming):
    loaded = load_dataset(str(written[0]), streaming=streaming)
    assert list(loaded) == ["train", "val", "gallery"]
    for split, part in loaded.items():
        assert attribute_names(part.features) == ATTRIBUTES
        assert part.features["image_id"] == Value("string")
        assert part.features["tags"] == part.features["galleries"] == List(Value("string"))
        found = list(part)
        assert len(found) == COUNTS[split]
        for given, back in zip(rows(split), found, strict=True):
            for name in (*FURTHER_COLUMNS, "attributes", "caption", "product_id"):
                assert back[name] == given[name], name


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "table, content, kinds", [("composed", QUERIES, COMPOSED), ("triplets", TRIPLET_ROWS, TRIPLETS)]
)
def test_tables_are_configurations_of_the_data_set(written, table, content, kinds, streaming):
    loaded = load_dataset(str(written[0]), table, streaming=streaming)
    assert set(loaded) == {split for split, given in content.items() if given}
    for split, part in loaded.items():
        assert part.features == table_features(kinds)
        assert list(part) == content[split]
    one = load_dataset(str(written[0]), table, split="query", streaming=streaming)
    assert list(one) == content["query"]


def test_a_split_of_a_table_that_has_no_rows_is_not_listed(written):
    with pytest.raises(ValueError, match="val"):
        load_dataset(str(written[0]), "composed", split="val")


def test_a_table_without_any_row_is_no_configuration(tmp_path):
    empty = {"composed": Table(table_features(COMPOSED), {"query": []})}
    summary = write_annotations(tmp_path / "set", annotations(tables=empty), **CARD)
    assert summary.tables == {"composed": {"query": 0}}
    head = yaml.safe_load(card_of(tmp_path / "set").split("---\n")[1])
    assert [config["config_name"] for config in head["configs"]] == ["default"]
    assert len(load_dataset(str(tmp_path / "set"))["train"]) == 30
    assert "| composed | query | 0 |" in card_of(tmp_path / "set")


def test_image_bytes_and_names_are_those_given(written):
    part = load_dataset(str(written[0]), split="gallery").cast_column("image", ImageFeature(decode=False))
    assert part["image"][:] == [row("gallery", i)["image"] for i in range(8)]


def test_the_table_of_images_knows_its_columns(written):
    gallery = load_tables(written[0])["gallery"]
    assert gallery.image_names == [f"gallery/{i}" for i in range(8)]
    assert gallery.galleries[:2] == [["dress/val", "all é"], []] and gallery.tags[:3] == [
        [],
        ["colour=red", "colour=blue"],
        None,
    ]
    some = gallery.select([5, 2])
    assert some.image_names == ["gallery/5", "gallery/2"] and some.galleries == [[], ["dress/val", "all é"]]


def test_a_set_without_further_columns_has_none_of_them(prepared):
    table = load_tables(prepared)["train"]
    assert (table.image_names, table.galleries, table.tags) == (None, None, None)


def test_rows_that_name_absent_images_are_counted_and_stay(written):
    folder, summary = written
    assert summary.dangling == {"composed": 2, "triplets": 0}
    card = card_of(folder)
    assert "Rows of `composed` that name an image that is not in the data set: 2." in card
    assert "Rows of `triplets` that name an image that is not in the data set: 0." in card
    assert len(load_dataset(str(folder), "composed", split="query")) == 7


def test_images_left_out_as_bad_count_as_absent(tmp_path):
    def damaged(split):
        for i, given in enumerate(rows(split)):
            yield {**given, "image": b"no image"} if (split, i) == ("gallery", 2) else given

    made = annotations(splits={split: Again(damaged, split) for split in COUNTS}, bad_rows=BadRows())
    summary = write_annotations(tmp_path / "set", made, max_bad_fraction=0.1, **CARD)
    # Queries 1 and 2 name gallery/2 as target and reference.
    assert summary.dangling == {"composed": 4, "triplets": 1} and summary.bad_rows.counts == {"unreadable": 1}


def test_what_tables_name_is_not_looked_for_where_images_have_no_names(tmp_path):
    splits = {"train": map(dataset_row, range(4))}
    table = {"triplets": Table(table_features(TRIPLETS), TRIPLET_ROWS)}
    summary = write_dataset(tmp_path / "set", splits, ATTRIBUTES, INCREMENTS, tables=table, **CARD)
    assert summary.dangling == {}
    assert len(load_dataset(str(tmp_path / "set"), "triplets", split="train")) == 28


def test_the_card_tells_columns_tables_checks_and_notes(written):
    card = card_of(written[0])
    for words in (
        "`product_id`; `image_id`; `galleries`; `captions`; `tags`. Read with",
        f"{NOTE}\n",
        "A second word.\n",
        "| composed | query | 7 |",
        "| composed | val | 0 |",
        "| triplets | train | 28 |",
        "| train images | 30 | 30 |",
        "| val \\| images | 6 | 7 |",
        "| queries | 9 | – |",
        "| gallery | 8 |",
        "No row was left out as bad.",
    ):
        assert words in card, words
    assert "Without images" not in card and "pixels long" not in card
    head = yaml.safe_load(card.split("---\n")[1])
    assert [config["config_name"] for config in head["configs"]] == ["default", "composed", "triplets"]


def test_a_reader_s_bad_rows_are_in_the_card(tmp_path):
    bad = BadRows()
    bad.add("several_values", "label.csv line 7")
    summary = write_annotations(tmp_path / "set", annotations(bad_rows=bad), max_bad_fraction=0.1, **CARD)
    assert summary.bad_rows.counts == {"several_values": 1}
    assert "| several_values | 1 | label.csv line 7 |" in card_of(tmp_path / "set")


def on_disk(folder):
    """The same rows, their images files of a folder; those of val are not there."""
    for i in range(30):
        (folder / f"{i}.jpg").write_bytes(picture(i, size=(40, 60)))

    def from_files(split):
        name = {"val": "no{}.jpg"}.get(split, "{}.jpg")
        for i, given in enumerate(rows(split)):
            yield {**given, "image": SourceImage(folder, name.format(i))}

    return annotations(splits={split: Again(from_files, split) for split in COUNTS}, bad_rows=BadRows())


def test_annotations_only_writes_null_images_and_says_so(tmp_path):
    summary = write_annotations(tmp_path / "set", on_disk(tmp_path), annotations_only=True, **CARD)
    assert summary.counts == {"train": 30, "val": 6, "query": 0, "gallery": 8} and not summary.bad_rows.total
    assert summary.dangling == {"composed": 2, "triplets": 0}
    assert "**Without images:**" in card_of(tmp_path / "set")
    for streaming in (False, True):
        found = list(load_dataset(str(tmp_path / "set"), split="val", streaming=streaming))
        assert [back["image"] for back in found] == [None] * 6
        assert found[3]["attributes"] == row("val", 3)["attributes"] and found[3]["image_id"] == "val/3"
    assert (load_tables(tmp_path / "set")["train"].labels("colour") >= 0).all()


def test_max_size_is_in_the_card(tmp_path):
    options = {"max_size": 30, "max_bad_fraction": 0.2, **CARD}
    summary = write_annotations(tmp_path / "set", on_disk(tmp_path), **options)
    assert summary.bad_rows.counts == {"missing": 6}
    assert "Images are at most 30 pixels long" in card_of(tmp_path / "set")
    assert {image.size for image in load_dataset(str(tmp_path / "set"), split="train")["image"]} == {(20, 30)}


@pytest.mark.parametrize("options", [{}, {"max_size": 30, "rows_per_shard": 7}, {"annotations_only": True}], ids=str)
def test_two_processes_write_the_bytes_of_one(tmp_path, options):
    options = {"max_bad_fraction": 0.2, **options, **CARD}
    source = on_disk(tmp_path)
    one = write_annotations(tmp_path / "one", source, **options)
    two = write_annotations(tmp_path / "two", on_disk(tmp_path), num_proc=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one.bad_rows.examples == two.bad_rows.examples


def test_a_set_with_tables_can_be_overwritten(tmp_path):
    write_annotations(tmp_path / "set", annotations(), **CARD)
    write_annotations(tmp_path / "set", annotations(tables={}), overwrite=True, **CARD)
    assert {name.split("/")[0] for name in contents(tmp_path / "set")} == {"README.md", "increments.json", "data"}


@pytest.mark.parametrize("name", ["image", "attributes", "caption"])
def test_a_further_column_with_a_name_that_is_taken(tmp_path, name):
    with pytest.raises(ValueError, match=f"further columns {name}: these names are taken"):
        write_annotations(tmp_path / "set", annotations(columns={name: "string"}), **CARD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, what", [(0, "max_size"), (-1, "max_size"), (0, "num_proc"), (0, "rows_per_shard")])
def test_numbers_below_one_are_refused(tmp_path, number, what):
    with pytest.raises(ValueError, match=f"{what} is {number}; expected 1 or more"):
        write_annotations(tmp_path / "set", annotations(), **{what: number}, **CARD)
    assert not list(tmp_path.iterdir())
