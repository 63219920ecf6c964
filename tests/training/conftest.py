# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture(scope="module")
def tables():
    """split → a small drawn table; see drawn_tables.py."""
    from drawn_tables import make_tables

    return make_tables()


@pytest.fixture(scope="module")
def model():
    """A small real model of its increments, in eval mode."""
    from drawn_tables import make_model

    return make_model()
