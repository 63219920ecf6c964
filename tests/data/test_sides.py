# SPDX-License-Identifier: Apache-2.0
"""Who is searched for among whom."""

import pytest
from rows_for_tests import ATTRIBUTES, INCREMENTS, dataset_row

from modeling_mclfir.data.prepare import write_dataset
from modeling_mclfir.data.sides import search_sides
from modeling_mclfir.data.table import load_tables


def tables_of(folder, sizes, galleries=None):
    """Tables of splits of these sizes; `galleries`: of the rows of val, None for a set without that column."""

    def rows(split):
        for i in range(sizes[split]):
            more = {} if galleries is None else {"galleries": galleries[i] if split == "val" else ["test"]}
            yield {**dataset_row(i), **more}

    columns = {} if galleries is None else {"galleries": ["string"]}
    options = {"name": "Set", "licence": "cc0-1.0", "progress": False, "columns": columns}
    write_dataset(folder / "set", {split: rows(split) for split in sizes}, ATTRIBUTES, INCREMENTS, **options)
    return load_tables(folder / "set")


def test_queries_are_searched_for_in_the_gallery(tmp_path):
    tables = tables_of(tmp_path, {"train": 3, "query": 4, "gallery": 6})
    queries, gallery = search_sides(tables, "query")
    assert queries is tables["query"] and gallery is tables["gallery"]


def test_a_gallery_without_queries_is_searched_for_itself(tmp_path):
    tables = tables_of(tmp_path, {"train": 3, "gallery": 6})
    queries, gallery = search_sides(tables, "query")
    assert queries is gallery is tables["gallery"]


def test_with_neither_queries_nor_gallery_there_is_nothing_to_make_up(tmp_path):
    tables = tables_of(tmp_path, {"train": 3, "val": 4})
    queries, gallery = search_sides(tables, "query")
    assert (queries, gallery) == (tables["query"], tables["gallery"]) and not len(queries) and not len(gallery)


@pytest.mark.parametrize(
    "galleries",
    [None, [["val"]] * 5, [[]] * 5, [["a"], ["a", "b"], ["b"], ["a"], ["b"]]],
    ids=["none", "all", "empty", "two"],
)
def test_val_is_searched_for_itself_unless_it_has_queries_of_its_own(tmp_path, galleries):
    tables = tables_of(tmp_path, {"train": 3, "val": 5}, galleries)
    queries, gallery = search_sides(tables, "val")
    assert queries is gallery is tables["val"]


def test_images_of_val_in_no_gallery_are_its_queries(tmp_path):
    tables = tables_of(tmp_path, {"train": 3, "val": 5, "query": 2, "gallery": 2}, [["a"], [], ["a", "b"], ["b"], []])
    queries, gallery = search_sides(tables, "val")
    assert [captions for captions in (queries.captions, gallery.captions)] == [
        ["number 1", "number 4"],
        ["number 0", "number 2", "number 3"],
    ]
    assert queries.split == gallery.split == "val"
    # Those that could not be used were dropped before.
    queries, gallery = search_sides(tables | {"val": tables["val"].drop([0, 1])}, "val")
    assert queries.captions == ["number 4"] and gallery.captions == ["number 2", "number 3"]


@pytest.mark.parametrize("evaluate_on", ["gallery", "train", ""])
def test_another_split_is_refused(tmp_path, evaluate_on):
    with pytest.raises(ValueError, match=f"must be 'query' or 'val'; got '{evaluate_on}'"):
        search_sides(tables_of(tmp_path, {"train": 3}), evaluate_on)
