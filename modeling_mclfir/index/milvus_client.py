# SPDX-License-Identifier: Apache-2.0
"""A connection to Milvus, embedded or served, on which every call is tried a bounded number of times."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What MilvusClient takes beside the URI, the token and the time limit. It ignores other names silently, and a
# misspelt TLS option must not pass for a secure connection.
CONNECTION_OPTIONS = (
    "user",
    "password",
    "db_name",
    "secure",
    "server_name",
    "server_pem_path",
    "ca_pem_path",
    "client_pem_path",
    "client_key_path",
    "grpc_options",
)
logger = logging.getLogger(__name__)
_LONGEST_WAIT = 15.0
# Milvus's own error codes that pass by themselves, while it starts or moves things: service not ready or not
# available, too many requests; collection, replica, channel or node not (yet) there.
_PASSING_CODES = {1, 2, 4, 8, 101, 103, 400, 401, *range(500, 504), *range(901, 906)}
_PASSING_WORDS = re.compile(
    r"closed channel|not ready|unavailable|not available|not healthy|recovering|not fully loaded|"
    r"collection not loaded|node not match|channel not found|no available shard|context canceled",
    re.IGNORECASE,
)
# Of credentials, in an answer that came through: servers give it different codes, some of them for any failure.
_REFUSED_WORDS = re.compile(r"auth(entication)? check failure", re.IGNORECASE)
# Embedded files that are open in this process: its server runs here, once a file, until the last client closes.
_OPEN_FILES: Counter[str] = Counter()
_FILES_LOCK = threading.Lock()


class Turns:
    """
    Many readers at a time, or one writer; both come to their turn.

    Attributes:
        pending: rows written that Milvus may still hold in memory only (its log has them); for a writer to change.
    """

    def __init__(self):
        self.pending = 0
        self._door, self._changed, self._readers = threading.Lock(), threading.Condition(), 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While it reads, nobody writes."""
        with self._door, self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While it writes, nobody else reads or writes."""
        with self._door:
            with self._changed:
                self._changed.wait_for(lambda: not self._readers)
            yield


class MilvusConnection:
    """
    One client of one Milvus: an embedded file, a server or a cluster.

    Args:
        uri: `folder/name.db`: an embedded file, made where there is none; one process at a time holds it. Else
            `http://host:19530`, `https://...` or `unix:...`.
        token: `user:password` or an API key; never shown in an error.
        timeout: seconds a single try may take.
        num_tries: tries of each call, the first included. The waits between them grow: 0.5 s, 1 s, 2 s, ... 15 s:
            45 s in all by default, in which a server that was killed is back.
        connection: any of `CONNECTION_OPTIONS`, passed to `pymilvus.MilvusClient` as they are.

    Raises:
        ImportError: pymilvus (or, for a file, milvus-lite) is not installed.
        ValueError: a URI or an option that cannot be; an embedded file that another process holds.
        PermissionError: a token that the server does not know, or none where it wants one.
        ConnectionError: no answer.
    """

    def __init__(self, uri: str, token: str = "", timeout: float = 30.0, num_tries: int = 8, **connection: Any):
        unknown = sorted(set(connection) - set(CONNECTION_OPTIONS))
        if unknown:
            raise ValueError(f"Unknown connection options {unknown}; there are {', '.join(CONNECTION_OPTIONS)}.")
        if num_tries < 1 or not timeout > 0:
            raise ValueError(f"Expected num_tries of at least 1 and a timeout above 0; got {num_tries}, {timeout}.")
        self.embedded = is_file(uri)
        if self.embedded:
            uri = _checked_file(uri)
        self.uri = uri
        # Without the credentials a URI may carry.
        self.shown = re.sub(r"//[^/@]*@", "//", uri)
        self.timeout = float(timeout)
        self.num_tries = 1 if self.embedded else num_tries
        self._client: Any = None
        client_class = _client_class()
        options = {"uri": uri, "token": token, "timeout": self.timeout, "dedicated": True, **connection}
        if self.embedded:
            self._client = self._open_file(client_class, options)
        else:
            self._client = self.tried(lambda: client_class(**options), "connect")

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """A method of `MilvusClient`, by name. ConnectionError: no answer in all tries; what else Milvus raises."""
        client = self._client
        if client is None:
            raise ValueError(f"This store of {self.shown} is closed; open another one.")
        return self.tried(lambda: getattr(client, name)(*args, timeout=self.timeout, **options), name)

    def tried(self, action: Callable[[], Any], name: str) -> Any:
        """What an action on this connection gives, tried as often as need be. ConnectionError: no answer at all."""
        started, wait = time.monotonic(), 0.5
        for tries in range(1, self.num_tries + 1):
            try:
                return action()
            except Exception as error:
                if refusal := _refusal(error):
                    raise PermissionError(
                        f"Milvus at {self.shown} refuses {name!r}: {refusal}. Give a token that it knows: "
                        "user:password or an API key, as token=, --token or MCLFIR_MILVUS_TOKEN."
                    ) from error
                if self.embedded or not _is_passing(error):
                    raise
                if tries == self.num_tries:
                    seconds = time.monotonic() - started
                    raise ConnectionError(
                        f"Milvus at {self.shown} did not answer {name!r} in {tries} tries and {seconds:.1f} s; it "
                        f"last said: {_said(error)}. Start the server, or check the address, the port, the token "
                        "and the TLS options; give more num_tries or a longer timeout where it is only slow."
                    ) from error
            logger.warning("Milvus at %s does not answer %r; try %d in %.1f s", self.shown, name, tries + 1, wait)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def close(self) -> None:
        """Let go of the connection and, with the last one of this process, of an embedded file."""
        client, self._client = self._client, None
        if client is None:
            return
        client.close()
        if self.embedded:
            _release_file(self.uri)

    def _open_file(self, client_class: type, options: dict[str, Any]) -> Any:
        with _FILES_LOCK:
            try:
                client = client_class(**options)
            except Exception as error:
                if "milvus-lite is required" in str(error):
                    raise ImportError("A Milvus file needs milvus-lite: pip install mclfir[milvus]") from error
                raise ValueError(
                    f"The Milvus file {self.uri} cannot be opened ({_said(error)}). If another process holds it, "
                    "close that one or let both use a server (uri='http://host:19530'); if an older milvus-lite "
                    "(before 3) wrote it, export it with that one."
                ) from error
            _OPEN_FILES[self.uri] += 1
        return client


def is_file(uri: str) -> bool:
    """Whether a URI means an embedded file: everything that is no address."""
    return "://" not in uri and not uri.startswith("unix:")


def _client_class() -> type:
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise ImportError("A Milvus store needs pymilvus: pip install mclfir[milvus]") from error
    # It logs each failed try with its traceback; what matters of them is in our warnings and our error.
    for name in ("decorators", "client.connection_manager", "client.iterator.query_iterator"):
        theirs = logging.getLogger(f"pymilvus.{name}")
        if theirs.level == logging.NOTSET:
            theirs.setLevel(logging.CRITICAL)
    return MilvusClient


def _checked_file(uri: str) -> str:
    path = Path(uri).resolve()
    if path.suffix != ".db":
        raise ValueError(
            f"A Milvus URI is a path that ends in .db (an embedded file) or http://host:port, https://..., unix:...; "
            f"got {uri!r}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)


def _release_file(uri: str) -> None:
    from milvus_lite.server_manager import server_manager_instance

    with _FILES_LOCK:
        _OPEN_FILES[uri] -= 1
        if _OPEN_FILES[uri] <= 0:
            del _OPEN_FILES[uri]
            server_manager_instance.release_server(uri)


def _is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later: no connection, no answer in time, a server that is still starting."""
    import grpc
    from pymilvus.exceptions import MilvusException

    passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    if isinstance(error, grpc.RpcError):
        return error.code() in passing
    # Its subclasses are mistakes in the request: code 1 as well.
    if type(error) is not MilvusException:
        return False
    retriable = getattr(error, "retriable", False)
    return bool(
        retriable or error.code in passing or error.code in _PASSING_CODES or _PASSING_WORDS.search(error.message)
    )


def _refusal(error: BaseException | None) -> str | None:
    """What Milvus says of credentials it does not take; pymilvus reports that as a server that is not there."""
    import grpc
    from pymilvus.exceptions import MilvusException

    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, grpc.RpcError) and error.code() in refused:
            return error.details()
        if isinstance(error, MilvusException) and _REFUSED_WORDS.search(error.message):
            return error.message
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _said(error: Exception) -> str:
    text = getattr(error, "message", "") or getattr(error, "details", lambda: "")() or str(error)
    return str(text).strip()[:500]
