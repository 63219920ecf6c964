# SPDX-License-Identifier: Apache-2.0
"""The collection of Milvus that a store keeps its entries in: made, checked, loaded."""

from collections.abc import Mapping
from typing import Any

from .milvus_client import MilvusConnection
from .milvus_rows import ID, MAX_COLUMNS, MAX_ID, METADATA, TAGS, VECTOR

# What an embedded file builds; it accepts other names, and fails when the time comes to build them.
_EMBEDDED_INDEXES = ("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8", "AUTOINDEX")


def open_collection(
    milvus: MilvusConnection,
    name: str,
    dim: int,
    index_type: str,
    index_params: Mapping[str, Any],
    consistency_level: str,
    must_exist: bool = False,
) -> None:
    """
    Make what is missing of collection and index, and have Milvus load it. Each step may be repeated.

    Args:
        must_exist: entries were put there before: a collection that is gone is not made anew.

    Raises:
        FileNotFoundError: see `must_exist`.
        ValueError: a collection of that name with another schema, dimension, metric or index; an index that this
            Milvus does not have.
    """
    if milvus.embedded and index_type not in _EMBEDDED_INDEXES:
        raise ValueError(
            f"An embedded Milvus has no index {index_type!r}, but {', '.join(_EMBEDDED_INDEXES)}. Choose one of them, "
            "or use a server."
        )
    made = not milvus.call("has_collection", name)
    if made and must_exist:
        raise gone(name, milvus.shown)
    if made:
        milvus.call("create_collection", name, schema=_schema(dim), consistency_level=consistency_level)
    _check_schema(milvus, name, dim)
    if not milvus.call("list_indexes", name):
        _make_index(milvus, name, index_type, index_params, drop=made)
    described = milvus.call("describe_index", name, VECTOR)
    for kind, wanted in (("metric_type", "IP"), ("index_type", index_type)):
        if str(described[kind]).upper() != wanted.upper():
            raise ValueError(
                f"{name!r} of {milvus.shown} has the {kind} {described[kind]}, not {wanted}. Open it with its own "
                "index_type, or give another collection name."
            )
    milvus.call("load_collection", name)


def gone(name: str, where: str) -> FileNotFoundError:
    """What is to be raised where a collection is not there that entries were put in before."""
    return FileNotFoundError(
        f"The collection {name!r} is gone from Milvus at {where}: it was dropped, or this is another server, another "
        "db_name, or one whose data were reset. Reach the one that has it, or restore it from a backup; or fill a new "
        "one."
    )


def _schema(dim: int) -> Any:
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(ID, DataType.VARCHAR, is_primary=True, max_length=MAX_ID)
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
    schema.add_field(METADATA, DataType.JSON)
    schema.add_field(TAGS, DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MAX_COLUMNS, max_length=256)
    return schema


def _make_index(
    milvus: MilvusConnection, name: str, index_type: str, index_params: Mapping[str, Any], drop: bool
) -> None:
    """Make the index; where Milvus refuses it, `drop` says whether the collection goes as well."""
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    index = MilvusClient.prepare_index_params(
        VECTOR, index_type=index_type, index_name=VECTOR, metric_type="IP", params=dict(index_params)
    )
    try:
        # Of no entries: there is nothing to wait for.
        milvus.call("create_index", name, index, sync=False)
    except MilvusException as error:
        if drop:
            milvus.call("drop_collection", name)
        raise ValueError(
            f"Milvus at {milvus.shown} refuses the index {index_type!r} with {dict(index_params)}: {error.message}"
        ) from error


def _check_schema(milvus: MilvusConnection, name: str, dim: int) -> None:
    fields = {entry["name"]: entry for entry in milvus.call("describe_collection", name)["fields"]}
    way_out = f"Give another collection name, or drop {name!r} of {milvus.shown} first."
    if not {ID, VECTOR, METADATA, TAGS} <= set(fields):
        raise ValueError(f"{name!r} is not of this store: it has the fields {sorted(fields)}. {way_out}")
    found = int(fields[VECTOR]["params"]["dim"])
    if found != dim:
        raise ValueError(f"{name!r} holds vectors of {found} dimensions; got dim={dim}. {way_out}")
