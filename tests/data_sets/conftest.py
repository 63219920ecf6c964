# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from joined_sets import command, prepare_shop


@pytest.fixture(scope="module")
def shop(one_thread, tmp_path_factory) -> Path:
    """A prepared set of made-up products; see joined_sets.py."""
    return prepare_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def both(tiny_data, shop, tmp_path_factory) -> Path:
    """The drawn set and the shop's, in shards of 20 rows."""
    output = tmp_path_factory.mktemp("joined") / "set"
    summary = command("--names", "drawn", "shop", "--rows-per-shard", "20", sources=(tiny_data, shop), output=output)
    assert not summary.bad_rows.total and len(summary.shards) == 5 + 2 + 2 + 3
    return output
