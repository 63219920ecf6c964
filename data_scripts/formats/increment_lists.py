# SPDX-License-Identifier: Apache-2.0
"""The two lists of increments that most data sets have."""

import re
from collections.abc import Sequence


def attribute_increments(attributes: Sequence[str]) -> dict[str, list]:
    """Content of increments.json: "attributes" is one after the other as in the papers, "all" is all at once."""
    return {
        "attributes": [{"name": re.sub(r"[^A-Za-z0-9_-]+", "_", name), "attributes": [name]} for name in attributes],
        "all": [{"name": "all", "attributes": list(attributes)}],
    }
