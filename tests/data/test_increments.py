# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from modeling_mclfir.data.increments import (
    Increment,
    check_increments,
    count_outside,
    increments_keys,
    load_increments,
    reverse_increments,
    select_rows,
)

ROWS = [
    {"kind": "top", "article": "shirt", "colour": "red"},
    {"kind": "top", "article": "tee", "colour": "blue"},
    {"kind": "top", "article": "tee", "colour": None},
    {"kind": "shoe", "article": "boot", "colour": "red"},
    {"kind": "shoe", "article": "boot", "colour": "red"},
    {"kind": None, "article": "sock", "colour": "red"},
    {"kind": "free", "article": None, "colour": "red"},
]
CONTENT = {
    "attributes": [{"name": "kind", "attributes": ["kind", "article"]}, {"name": "colour", "attributes": ["colour"]}],
    "values": [
        {"name": "tops", "attribute": "article", "where": {"kind": ["top"]}},
        {"name": "shoes", "attribute": "article", "values": ["boot", "sock"]},
    ],
    "domains": [{"name": "tops", "where": {"kind": "top"}}, {"name": "others", "where": {"kind_not": ["top"]}}],
}


class Table:
    """The labels of rows, as `ImageTable` gives them."""

    def __init__(self, rows):
        self.rows = rows
        self.attributes = tuple(rows[0]) if rows else ("kind", "article", "colour")

    def __len__(self):
        return len(self.rows)

    def values(self, attribute):
        return tuple(sorted({row[attribute] for row in self.rows} - {None}))

    def labels(self, attribute):
        names = self.values(attribute)
        values = [row[attribute] for row in self.rows]
        return np.array([-1 if value is None else names.index(value) for value in values], dtype=np.int64)


def load(content=CONTENT, known=("kind", "article", "colour"), **options):
    return load_increments(content, known, **options)


def error(content, known=("kind", "article", "colour"), **options):
    with pytest.raises(ValueError) as caught:
        load_increments(content, known, **options)
    return str(caught.value)


def test_a_list_a_dict_and_a_file_say_the_same(tmp_path):
    path = tmp_path / "increments.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CONTENT).encode())  # with the mark that editors put first
    plain = load(CONTENT["attributes"])
    assert plain == load() == load(path) == load(str(path), key="attributes") == load({"only": CONTENT["attributes"]})
    assert [increment.name for increment in plain] == ["kind", "colour"]
    assert plain[0].attributes == ("kind", "article") and not plain[0].new_values
    assert increments_keys(CONTENT) == ("attributes", "values", "domains") and increments_keys([]) == (None,)


def test_values_and_domains():
    tops, shoes = load(key="values")
    assert tops.attributes == shoes.attributes == ("article",) and tops.new_values
    assert tops.where == {"kind": ("top",)} and shoes.values == ("boot", "sock")
    domain, others = load(key="domains")
    assert domain.attributes == () and domain.where == {"kind": ("top",)} and others.where_not == {"kind": ("top",)}


@pytest.mark.parametrize("key", CONTENT)
def test_to_dict_and_back(key):
    increments = load(key=key)
    assert load([increment.to_dict() for increment in increments]) == load(increments) == increments


@pytest.mark.parametrize(
    "key, rows",
    [
        ("attributes", [range(7)] * 2),
        ("values", [[0, 1, 2], [3, 4, 5]]),
        ("domains", [[0, 1, 2], [3, 4, 5, 6]]),
    ],
)
def test_rows_of_an_increment(key, rows):
    table = Table(ROWS)
    for increment, expected in zip(load(key=key), rows, strict=True):
        chosen = select_rows(increment, table)
        assert chosen.dtype == np.int64 and chosen.tolist() == list(expected)
        assert [i for i, row in enumerate(ROWS) if increment.matches(row)] == list(expected)
    assert count_outside(load(key=key), table) == (1 if key == "values" else 0)


def test_where_and_values_together():
    (both,) = load([{"name": "a", "attribute": "article", "values": ["shirt", "boot"], "where": {"kind": ["top"]}}])
    assert select_rows(both, Table(ROWS)).tolist() == [0]
    (own,) = load([{"name": "a", "attribute": "article", "values": ["shirt"], "where": {"article": ["tee", "shirt"]}}])
    assert select_rows(own, Table(ROWS)).tolist() == [0]


def test_a_column_whose_name_ends_in_not():
    (increment,) = load([{"name": "a", "where": {"if_not": ["x"]}}], known=("if_not", "if"))
    assert increment.where == {"if_not": ("x",)} and not increment.where_not


def test_reverse():
    increments = load()
    assert reverse_increments(increments) == increments[::-1] and increments == load()


def test_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; expected an increments.json"):
        load(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("[{")
    assert "bad.json is not JSON" in error(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "content, words",
    [
        ([], "expected a non-empty list"),
        (["shape"], "expected an object"),
        ([{"attributes": ["kind"]}], "name None"),
        ([{"name": "a b", "attributes": ["kind"]}], "letters, digits"),
        ([{"name": "../up", "attributes": ["kind"]}], "letters, digits"),
        ([{"name": "a\n", "attributes": ["kind"]}], "letters, digits"),
        ([{"name": "a", "attributes": ["kind"]}, {"name": "a", "attributes": ["colour"]}], "same name: a"),
        ([{"name": "a", "attributes": ["kinds"]}], "unknown attribute 'kinds'; known: kind, article, colour"),
        ([{"name": "a", "attributes": ["kind"], "where": {"kinds": ["x"]}}], "'where': unknown attribute 'kinds'"),
        ([{"name": "a", "where": {"kinds_not": ["x"]}}], "unknown attribute 'kinds'"),
        ([{"name": "a", "attributes": ["kind", "kind"]}], "lists an attribute twice"),
        ([{"name": "a", "attributes": ["kind"]}, {"name": "b", "attributes": ["kind"]}], "in increments 'a' and 'b'"),
        ([{"name": "a", "attributes": ["kind"], "attribute": "kind"}], "both 'attribute' and 'attributes'"),
        ([{"name": "a", "attributes": ["kind"], "values": ["top"]}], "'values' without 'attribute'"),
        ([{"name": "a"}], "neither attributes nor 'where'"),
        ([{"name": "a", "attribute": ["kind", "article"]}], "the name of one attribute"),
        ([{"name": "a", "attributes": [3]}], "list of non-empty strings"),
        ([{"name": "a", "where": {"kind": [1]}}], "list of non-empty strings"),
        ([{"name": "a", "where": ["kind"]}], "expected an object, attribute → list of values"),
        ([{"name": "a", "atributes": ["kind"]}], "unknown keys atributes"),
    ],
)
def test_wrong_entries(content, words):
    assert words in error(content)


def test_wrong_key():
    assert "no list 'domain'; choose one of: attributes, values, domains" in error(CONTENT, key="domain")
    assert "nothing to choose from" in error(CONTENT["attributes"], key="values")
    assert "choose one of: a, b" in error({"a": [], "b": []})


def test_new_values_may_share_an_attribute_with_the_increment_that_learned_it():
    assert len(load([{"name": "first", "attributes": ["article"]}, *CONTENT["values"]])) == 3


def test_check_passes_what_can_be_learned():
    rows = ROWS * 2
    check_increments(load(), Table(rows))
    check_increments(load(key="values"), Table(rows))
    check_increments(load(key="domains"), Table(ROWS))
    check_increments(load(), Table(ROWS[:1]), split="query", min_values=1)


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"name": "a", "attributes": ["colour"], "where": {"kind": ["hat"]}}, "'a' has no rows in split 'train'"),
        ({"name": "a", "attributes": ["colour"], "where": {"kind": ["shoe"]}}, "the single value 'red' in the 2 rows"),
        ({"name": "a", "attributes": ["article"], "where": {"kind": ["free"]}}, "no label at all"),
        ({"name": "a", "attributes": ["kind"], "where": {"article": ["shirt"], "colour": ["blue"]}}, "no rows"),
        ({"name": "a", "attribute": "article", "values": ["tee", "boot", "hat"]}, "split 'train' has: 'hat'"),
    ],
)
def test_check_stops_before_training(entry, words):
    with pytest.raises(ValueError) as caught:
        check_increments(load([entry]), Table(ROWS))
    assert words in str(caught.value)


def test_an_id_is_no_attribute():
    rows = [{"id": str(i)} for i in range(5)]
    with pytest.raises(ValueError, match="each on one row only"):
        check_increments([Increment("a", ("id",))], Table(rows))


def test_empty_table():
    with pytest.raises(ValueError, match="no rows"):
        check_increments(load(), Table([]))
