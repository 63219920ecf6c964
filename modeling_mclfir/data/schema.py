# SPDX-License-Identifier: Apache-2.0
"""The one row schema of all data sets: image; attribute → value or null; caption; product id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Features

SPLITS = ("train", "val", "query", "gallery")
COLUMNS = ("image", "attributes", "caption", "product_id")

_HOW_TO_MEND = (
    "Prepare the data with one of the data_scripts "
    "(`python -m data_scripts.folder --source DIR --output DIR` takes images and a CSV or Parquet of attributes)."
)


def row_features(attributes: Sequence[str]) -> Features:
    """The `datasets.Features` of a row.

    Args:
        attributes: names of the attributes, in order. Without any, the column `attributes` is left out (Parquet has
            no empty struct): such a set serves text-image retrieval only.

    Raises:
        ValueError: an attribute name is empty or given twice.
    """
    from datasets import Features, Image, Value

    names = list(attributes)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"attributes given twice: {', '.join(twice)}; expected each name once")
    if any(not isinstance(name, str) or not name.strip() for name in names):
        raise ValueError(f"attributes {names!r}: expected names that are non-empty strings")
    columns: dict = {"image": Image()}
    if names:
        columns["attributes"] = {name: Value("string") for name in names}
    return Features({**columns, "caption": Value("string"), "product_id": Value("string")})


def attribute_names(features: Features, where: str = "the data set") -> tuple[str, ...]:
    """Reads the attribute names off the features of a data set, in order.

    Further columns (an explicit negative, a modification text) are allowed.

    Args:
        features: of a loaded data set.
        where: what to call it in errors.

    Raises:
        ValueError: a column is missing or of another type.
    """
    from datasets import Image

    wanted = "image (Image), attributes (struct of strings), caption (string), product_id (string)"
    missing = [name for name in ("image", "caption", "product_id") if name not in features]
    if missing:
        raise ValueError(
            f"{where} has the columns {', '.join(features)}; expected {wanted}; missing: {', '.join(missing)}. "
            + _HOW_TO_MEND
        )
    wrong = [name for name in ("caption", "product_id") if not _is_string(features[name])]
    if not isinstance(features["image"], Image):
        wrong.append("image")
    attributes = features.get("attributes", {})
    if not isinstance(attributes, dict) or not all(_is_string(value) for value in attributes.values()):
        wrong.append("attributes")
    if wrong:
        given = ", ".join(f"{name}: {features[name]}" for name in wrong)
        raise ValueError(f"{where} has columns of another type ({given}); expected {wanted}. " + _HOW_TO_MEND)
    return tuple(attributes)


def check_data_dir(data_dir: Path) -> None:
    """Raises FileNotFoundError where `data_dir` holds no prepared data set."""
    if not any(data_dir.glob("data/*.parquet")):
        raise FileNotFoundError(
            f"{data_dir}: no prepared data set; expected a folder with data/*.parquet and increments.json. "
            + _HOW_TO_MEND
        )


def check_splits(names: Iterable[str], where: str) -> None:
    """Raises ValueError where a loaded data set has a split of another name,."""
    names = list(names)
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise ValueError(
            f"{where} has the splits {', '.join(names)}; expected {', '.join(SPLITS)} and not {', '.join(unknown)}. "
            + _HOW_TO_MEND
        )


def _is_string(feature: object) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")
