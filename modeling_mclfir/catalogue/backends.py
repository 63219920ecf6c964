# SPDX-License-Identifier: Apache-2.0
"""The stores of a catalogue: FAISS in its own folder, or Milvus."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..index.manifest import is_named
from ..index.store import VectorStore
from .settings import LOCK_TIMEOUT

TOKEN = "MCLFIR_MILVUS_TOKEN"
_SECRETS = ("token", "user", "password")


def faiss_backend(factory: str = "Flat", ef_search: int | None = None, nprobe: int | None = None) -> dict[str, Any]:
    """Settings of FAISS in the catalogue's folder; see `FaissStore`."""
    given = {"ef_search": ef_search, "nprobe": nprobe}
    return {"kind": "faiss", "factory": factory} | {name: value for name, value in given.items() if value is not None}


def milvus_backend(uri: str, folder: Path, index_type: str = "FLAT", **options: Any) -> dict[str, Any]:
    """
    Settings of Milvus; see `MilvusStore`. A file inside the catalogue's folder goes with it when it moves.

    Raises:
        ValueError: a secret among them, which would be written down.
    """
    secret = [name for name in _SECRETS if name in options]
    if secret or re.search(r"//[^/@]*@", uri):
        raise ValueError(
            f"{' and '.join(secret) or 'What stands before the @ of the URI'} would be written down with the "
            f"catalogue; give it as --token USER:PASSWORD, or in the environment as {TOKEN}."
        )
    if "://" not in uri and not uri.startswith("unix:"):
        path, home = Path(uri).resolve(), folder.resolve()
        uri = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
    return {"kind": "milvus", "uri": uri, "index_type": index_type} | options


def is_one_process_only(backend: Mapping[str, Any]) -> bool:
    """An embedded Milvus file is held by one process at a time."""
    return backend["kind"] == "milvus" and "://" not in backend["uri"] and not backend["uri"].startswith("unix:")


def open_backend(
    backend: Mapping[str, Any], folder: Path, token: str | None = None
) -> tuple[Callable[[str, int], VectorStore], Callable[[str], None]]:
    """
    What makes (or opens) a store of a name and dim, and what deletes one for good.

    Raises:
        ValueError: another kind of backend.
    """
    settings = {name: value for name, value in backend.items() if name != "kind"}
    if backend["kind"] == "faiss":
        from ..index.faiss_store import FaissStore
        from ..index.segments import read_manifest

        stores = folder / "stores"

        def made(name: str, dim: int) -> VectorStore:
            if read_manifest(stores / name) is None and is_named(folder, name):
                raise FileNotFoundError(
                    f"{stores / name} is gone, which the catalogue keeps vectors in: it was deleted, or not copied "
                    "with the rest. Put it back; or build a catalogue in another folder."
                )
            return FaissStore(stores / name, dim, lock_timeout=LOCK_TIMEOUT, **settings)

        return made, lambda name: shutil.rmtree(stores / name, ignore_errors=True)
    if backend["kind"] == "milvus":
        return _open_milvus(settings, folder, token or os.environ.get(TOKEN, ""))
    raise ValueError(f"There is no backend {backend['kind']!r}; expected faiss or milvus.")


def _open_milvus(settings: dict[str, Any], folder: Path, token: str):
    from ..index.milvus_client import CONNECTION_OPTIONS, MilvusConnection
    from ..index.milvus_store import MilvusStore

    uri = settings.pop("uri")
    if "://" not in uri and not uri.startswith("unix:"):
        uri = str(folder / uri)  # an absolute one stays as it is

    def drop(name: str) -> None:
        options = {
            key: value for key, value in settings.items() if key in (*CONNECTION_OPTIONS, "timeout", "num_tries")
        }
        connection = MilvusConnection(uri, token, **options)
        try:
            if connection.call("has_collection", name):
                connection.call("drop_collection", name)
        finally:
            connection.close()

    def made(name: str, dim: int) -> VectorStore:
        # One that the index names has held vectors: a server that was reset must not pass for an empty catalogue.
        return MilvusStore(uri, name, dim, token=token, must_exist=is_named(folder, name), **settings)

    return made, drop
