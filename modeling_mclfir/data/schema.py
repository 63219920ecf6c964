# SPDX-License-Identifier: Apache-2.0
"""The one row schema of all data sets: image; attribute → value or null; caption; product id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features

SPLITS = ("train", "val", "query", "gallery")
COLUMNS = ("image", "attributes", "caption", "product_id")
# Further columns of a row, by the one name and `datasets` type that each has in every data set.
#   image_id    string: names the row for the tables below, unique within its split;
#   galleries   list of strings: the galleries by name that the image belongs to. In the split val, a row with an empty
#               list is a query and any other one an item of the gallery;
#   captions    list of strings: all captions of the image, where there are several (`caption` is the first);
#   tags        list of strings, "attribute=value": all that hold, where `attributes` has room for one only.
FURTHER_COLUMNS = {"image_id": "string", "galleries": ["string"], "captions": ["string"], "tags": ["string"]}
# A query of composed retrieval: an image and what to change in it. Images are named by image_id.
#   gallery       name of the gallery to search, or the part before "/" where there are several (dress → dress/val);
#   target        the image to find, None where it is not published or any image with `wanted` will do;
#   subset        the only images that recall_subset_at_k ranks, without the reference (CIRR);
#   soft_targets, soft_scores: further images and how well they fit (CIRR);
#   wanted        list of "attribute=value", where a kind of image is looked for rather than one image;
#   hit           what counts: "target" (that image), "caption" (any image with the target's caption, Fashion200K) or
#                 "wanted" (any image whose labels are just `wanted`: an attribute that is not in it has none there
#                 either, Shopping100K).
COMPOSED = {
    "query_id": "string",
    "reference": "string",
    "target": "string",
    "modification_texts": ["string"],
    "gallery": "string",
    "subset": ["string"],
    "soft_targets": ["string"],
    "soft_scores": ["float32"],
    "wanted": ["string"],
    "hit": "string",
}
# A triplet: by the condition (an attribute), anchor and positive are closer than anchor and negative.
TRIPLETS = {"condition": "string", "anchor": "string", "positive": "string", "negative": "string"}
TABLES = ("composed", "triplets")

_HOW_TO_MEND = (
    "Prepare the data with one of the data_scripts "
    "(`python -m data_scripts.folder --source DIR --output DIR` takes images and a CSV or Parquet of attributes)."
)


def row_features(attributes: Sequence[str], further: Mapping[str, Any] | None = None) -> Features:
    """The `datasets.Features` of a row.

    Args:
        attributes: names of the attributes, in order. Without any, the column `attributes` is left out (Parquet has
            no empty struct): such a set serves text-image retrieval only.
        further: name → feature, or type as in `FURTHER_COLUMNS`, of further columns.

    Raises:
        ValueError: an attribute name is empty or given twice, or a further column has a name that is taken.
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
    taken = sorted(set(further or ()) & set(COLUMNS))
    if taken:
        raise ValueError(f"further columns {', '.join(taken)}: these names are taken; expected others")
    columns |= {"caption": Value("string"), "product_id": Value("string")}
    return Features({**columns, **table_features(further or {})})


def table_features(types: Mapping[str, Any]) -> Features:
    """`datasets.Features` of columns such as `COMPOSED`: a type, a list of one type, or a feature each."""
    from datasets import Features, List, Value

    features: dict[str, Any] = {}
    for name, kind in types.items():
        if isinstance(kind, str):
            features[name] = Value(kind)
        else:
            features[name] = List(Value(kind[0])) if isinstance(kind, list | tuple) else kind
    return Features(features)


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
    """Raises ValueError where a loaded data set has a split of another name."""
    names = list(names)
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise ValueError(
            f"{where} has the splits {', '.join(names)}; expected {', '.join(SPLITS)} and not {', '.join(unknown)}. "
            + _HOW_TO_MEND
        )


def _is_string(feature: object) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")
