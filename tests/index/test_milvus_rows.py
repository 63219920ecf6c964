# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_mclfir.index.milvus_rows import chunks, decoded_id, encoded_id, expression, rows_of, tag
from modeling_mclfir.index.store import checked_filter, matches

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
VALUES = TEXTS | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3) | st.booleans() | st.floats(-4, 4, width=16)
VALUES |= st.floats(allow_nan=False, allow_infinity=False)


@given(TEXTS)
def test_an_id_comes_back_and_needs_no_escape(name):
    assert decoded_id(encoded_id(name)) == name
    assert not re.search(r"""["'\\%]""", re.sub(r"%[0-9A-F]{2}", "", encoded_id(name)))
    assert encoded_id(name).isascii() and encoded_id(name).isprintable()


@given(VALUES, VALUES)
def test_tags_are_equal_where_the_contract_says_so(one, other):
    assert (tag("column", one) == tag("column", other)) == matches({"column": (one,)}, {"column": other})


@given(TEXTS, TEXTS, VALUES)
def test_tags_of_other_columns_differ(one, other, value):
    assert (tag(one, value) == tag(other, value)) == (one == other)


def test_a_value_is_not_taken_for_a_column():
    assert tag("a", "b=t=c") != tag("a=t=b", "c")
    assert tag("a", "1") != tag("a", 1) != tag("a", True) and tag("a", 1) == tag("a", 1.0)


@given(st.dictionaries(TEXTS.filter(bool), st.lists(VALUES, max_size=3), max_size=3))
def test_nothing_gets_out_of_its_quotes(filter):
    found = expression(checked_filter(filter))
    assert (found is None) == (not all(filter.values()))
    if found:
        text = r'"[A-Za-z0-9\-._~/: @=%#]*"'
        one = rf"array_contains\(tags, {text}\)"
        several = rf"array_contains_any\(tags, \[{text}(, {text})+\]\)"
        assert re.fullmatch(rf"({one}|{several})( and ({one}|{several}))*", found)


def test_requests_are_bounded_in_number_and_size():
    vectors = np.zeros((100, 256), dtype=np.float32)
    rows = rows_of([f"item-{place}" for place in range(100)], vectors, [{"note": "x" * 1000}] * 100)
    for max_rows, max_bytes in ((7, 2**20), (1000, 10_000), (1000, 1)):
        parts = list(chunks(rows, max_rows, max_bytes))
        assert [row for part in parts for row in part] == rows
        assert max(map(len, parts)) <= max_rows
        # A row takes 1 KB of vector and 1 KB of note, at least.
        assert max(map(len, parts)) <= max(1, max_bytes // 2024)
    assert list(chunks([], 3, 3)) == []


@pytest.mark.parametrize(
    "name, metadata, message",
    [
        ("n" * 5000, {}, "at most 4096 bytes.*takes 5000"),
        ("é" * 1000, {}, "takes 6000"),
        ("a", {"note": "x" * 70_000}, "metadata of 'a' takes 70"),
        ("a", {str(place): 1 for place in range(4097)}, "4097 columns"),
    ],
)
def test_what_milvus_cannot_hold(name, metadata, message):
    with pytest.raises(ValueError, match=message):
        rows_of([name], np.zeros((1, 4)), [metadata])
