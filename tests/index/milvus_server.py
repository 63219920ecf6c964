# SPDX-License-Identifier: Apache-2.0
"""A real Milvus server for tests: the one that PyPI's `milvus` carries, in a process group of its own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

START_SECONDS = 180.0
# The program and its preallocated logs, in its data folder.
_DISK_BYTES = 2**30
# What the command `milvus-server` runs, in this very environment; it does not outlive the tests, however they end.
_COMMAND = """
import os, signal, threading, time, milvus
def follow(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=follow, daemon=True).start()
milvus.main()
"""
# A consistent read waits for the next tick.
_SETTINGS = ("proxy.timeTickInterval=20",)
# Of the etcd that the server carries; it cannot be moved, so that there is one such server a machine.
_ETCD_PORT = 2380
# What another process of the same tests may take with its server.
_PATIENCE = 900.0


@contextmanager
def running_server(folder: Path) -> Iterator["MilvusServer"]:
    """
    A server that runs while this is open; processes of tests that want one come to their turn.

    Raises:
        RuntimeError: it cannot start here; the message says why.
    """
    lock = FileLock(Path(tempfile.gettempdir()) / "mclfir-milvus-server.lock")
    server = MilvusServer(folder)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise RuntimeError(f"other tests have held the machine's server for {_PATIENCE:.0f} s") from None
    try:
        yield server.start()
    finally:
        server.kill()
        lock.release()


class MilvusServer:
    """
    `milvus-server --data FOLDER` on a free port; it keeps that port, and what it holds, from one start to the next.

    Args:
        session_ttl: seconds after which a server that was killed is given up and its work taken over; on a busy
            machine, also one that is only slow.

    Raises:
        RuntimeError: it cannot start here; the message says why.
    """

    def __init__(self, folder: Path, session_ttl: int = 5):
        if not sys.platform.startswith("linux"):
            raise RuntimeError("the server of PyPI's milvus is started on Linux only")
        try:
            import milvus  # noqa: F401
        except ImportError:
            raise RuntimeError("the server is not installed: pip install milvus==2.3.5") from None
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < _DISK_BYTES:
            raise RuntimeError(f"the server needs 1 GB of disk in {folder}")
        self.folder, self.port = folder, _free_port()
        self._settings = (*_SETTINGS, f"common.session.ttl={session_ttl}")
        self._process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "MilvusServer":
        # A server that was killed may take a moment to let go.
        deadline = time.monotonic() + 15
        while not _is_free(_ETCD_PORT) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not _is_free(_ETCD_PORT):
            raise RuntimeError(f"port {_ETCD_PORT} is in use, by another Milvus it may be")
        with open(self.folder / "out.txt", "wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-c", _COMMAND]
                + ["--data", str(self.folder), "--proxy-port", str(self.port)]
                + [word for setting in self._settings for word in ("--extra-config", setting)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline, crash = time.monotonic() + START_SECONDS, self.folder / "logs" / "milvus-stderr.log"
        # The command writes its banner once the server says that it is well.
        while "Process:" not in (said := (self.folder / "out.txt").read_text(errors="replace")):
            # The command would wait for a server that has died.
            panic = "panic: " in crash.read_text(errors="replace") if crash.is_file() else False
            if panic or self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server does not start; see the logs in {self.folder}: {said[-500:].strip()}")
            time.sleep(0.1)
        config = (self.folder / "configs" / "milvus.yaml").read_text()
        port = re.search(r"^proxy:.*?^  port: (\d+)", config, re.MULTILINE | re.DOTALL)
        if port is None or int(port[1]) != self.port:
            self.kill()
            raise RuntimeError(f"port {self.port} was taken")
        return self

    def kill(self) -> None:
        """As the out-of-memory killer would: no time to write anything."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)  # the command and the server that it started
        except ProcessLookupError:
            pass
        self._process.wait(timeout=30)
        self._process = None

    def memory(self) -> int:
        """Resident bytes of the server."""
        said = (self.folder / "out.txt").read_text(errors="replace")
        pid = int(re.search(r"Process:\s+(\d+)", said)[1])
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
