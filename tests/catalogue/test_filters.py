# SPDX-License-Identifier: Apache-2.0
"""Filters by the names that users see, and by names that there are not."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogue import photo_name

from modeling_mclfir.catalogue import Catalogue, ParquetSource, filters
from modeling_mclfir.catalogue.filling import FillSettings
from modeling_mclfir.catalogue.filters import resolved
from modeling_mclfir.index import FaissStore

FILL = FillSettings(batch_size=4, commit_size=32, progress=False)


@pytest.fixture
def store():
    """120 items in which columns come up later and later."""
    columns = [{"attributes.line": "tops", "brand": "one"} for _ in range(120)]
    columns[70]["attributes.late"] = "x"
    columns[75]["attributes.line"] = "hats"
    columns[80]["made_by"] = "a map"
    columns[90]["line"] = "bus"
    with FaissStore(None, 4) as found:
        found.add([str(place) for place in range(120)], np.ones((120, 4)), columns)
        yield found


@pytest.fixture
def few_looks(monkeypatch):
    monkeypatch.setattr(filters, "_BATCH", 5)


def test_a_label_goes_by_its_short_name(store):
    assert resolved(store, {"brand": "one", "late": "x"}, {}) == {"brand": ("one",), "attributes.late": ("x",)}
    assert resolved(store, {"attributes.line": ["tops", "hats"]}, {}) == {"attributes.line": ("tops", "hats")}


def test_a_column_of_the_very_name_comes_first(store, few_looks):
    """Among all items, not only among those that are looked at."""
    assert resolved(store, {"line": "bus"}, {}) == {"line": ("bus",)}
    assert resolved(store, {"line": "tops"}, {}) == {"attributes.line": ("tops",)}


def test_what_is_known_is_not_looked_for_again(store, monkeypatch):
    known = {}
    first = resolved(store, {"late": "x"}, known)
    monkeypatch.setattr(store, "scroll", None)
    assert resolved(store, {"late": "x"}, known) == first and known == {"late": "attributes.late"}


def test_values_of_earlier_searches_decide_nothing(store, few_looks):
    known = {}
    for values, column in (("tops", "attributes.line"), ("bus", "line"), ("tops", "attributes.line")):
        assert resolved(store, {"line": values}, known) == {column: (values,)}


def test_an_empty_store_says_nothing_of_later():
    known = {}
    with FaissStore(None, 4) as store:
        resolved(store, {"line": "tops"}, known)
        store.add(["a"], np.ones((1, 4)), [{"attributes.line": "tops"}])
        assert store.count(resolved(store, {"line": "tops"}, known)) == 1


def test_a_column_that_no_item_has(store):
    assert resolved(store, {"late": "y"}, {}) == {"attributes.late": ("y",)}
    with pytest.raises(ValueError) as error:
        resolved(store, {"colour": "red"}, {})
    assert str(error.value) == (
        "No item of the catalogue has a column 'colour'; they have: attributes.late, attributes.line, brand, line."
    )


def test_a_column_that_comes_late_in_a_large_catalogue(store, few_looks):
    """Of 120 items 50 are looked at; what they lack is looked for by its value."""
    assert resolved(store, {"late": "x"}, {}) == {"attributes.late": ("x",)}
    with pytest.raises(ValueError, match="No item .* has late=y or z, and none of the 50 .*: attributes.line, brand"):
        resolved(store, {"late": ["y", "z"]}, {})


def test_one_column_by_two_names(store):
    with pytest.raises(ValueError, match="'attributes.late' are the same column"):
        resolved(store, {"attributes.late": "x", "late": "x"}, {})


def test_an_empty_store_has_nothing_to_be_found():
    with FaissStore(None, 4) as store:
        assert resolved(store, {"line": "tops"}, {}) == {"line": ("tops",)}


def test_a_search_by_a_label(checkpoints, photos, tmp_path):
    names = [photo_name(number) for number in range(8)]
    labels = [{"line": ("tops", "hats")[number % 2]} for number in range(8)]
    table = {"id": names, "image": [str(photos / name) for name in names], "attributes": labels}
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), ParquetSource(tmp_path / "items.parquet"), fill=FILL)
        found = catalogue.search(items=[names[0]], where={"line": "tops"}, include_self=True)[0]
        assert {hit.id for hit in found} == set(names[::2])
        with pytest.raises(ValueError, match="has a column 'colour'; they have: attributes.line"):
            catalogue.search(items=[names[0]], where={"colour": "red"})
