# SPDX-License-Identifier: Apache-2.0
"""The index: a leaf that imports nothing else of ours and knows nothing of models."""

from importlib import import_module

from .store import Entries, Filter, SearchResult, VectorStore

# Imported when they are asked for: no backend needs the other's packages.
_LATER = {
    "FaissStore": "faiss_store",
    "IncompatibleRevisionError": "spaces",
    "IndexReader": "reader",
    "MilvusStore": "milvus_store",
    "SpaceRevision": "spaces",
    "VersionedIndex": "versioned",
}

__all__ = [*_LATER, "Entries", "Filter", "SearchResult", "VectorStore"]


def __getattr__(name: str):
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
