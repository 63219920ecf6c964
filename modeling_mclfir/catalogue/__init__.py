# SPDX-License-Identifier: Apache-2.0
"""Catalogues: photos embedded once by a checkpoint, searched for years while the model learns on."""

from importlib import import_module

# Imported when they are asked for: a search by an item's id needs no model.
_LATER = {
    "Catalogue": "catalogue",
    "Embedder": "embedder",
    "FolderSource": "sources",
    "Hit": "searching",
    "ParquetSource": "parquet_source",
    "Source": "sources",
    "StreamSource": "stream_source",
    "open_source": "opening",
}

__all__ = list(_LATER)


def __getattr__(name: str):
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
