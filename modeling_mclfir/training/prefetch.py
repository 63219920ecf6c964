# SPDX-License-Identifier: Apache-2.0
"""Batches made ready while the step before them is at work."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

_DEPTH = 2
_PATIENCE = 10.0  # seconds


class Prefetcher:
    """
    Iterates over batches that a thread of its own makes, `_DEPTH` of them ahead.

    Whatever is drawn for a batch comes from seeds of its own, so the order of the threads changes nothing.

    Args:
        batches: makes the batches; only the thread touches it.
        state_dict: gives the state of their source, after the batch that was made last.
        pin: keep tensors in page-locked memory, from which they go to a GPU while it works.

    Attributes:
        state: of the source after the last batch handed out; it knows nothing of those made ahead.
    """

    def __init__(self, batches: Iterator[dict], state_dict: Callable[[], dict], pin: bool = False):
        self.state = state_dict()
        self._batches, self._state_dict, self._pin = batches, state_dict, pin
        self._made: queue.Queue = queue.Queue(_DEPTH)
        self._end: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._make, daemon=True, name="prefetch")
        self._thread.start()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> dict:
        """The next batch; an error in making it is raised here."""
        if self._end is None:
            batch, state, self._end = self._made.get()
        if self._end is not None:  # and stays it, however often one asks
            raise self._end
        self.state = state
        return batch

    def close(self) -> None:
        """Ends the thread, unless it is stuck in its source; batches made ahead are lost."""
        self._stop.set()
        self._end = StopIteration()
        self._thread.join(_PATIENCE)

    def _make(self) -> None:
        try:
            for batch in self._batches:
                self._put(_pinned(batch) if self._pin else batch, self._state_dict(), None)
                if self._stop.is_set():
                    return
            self._put(None, None, StopIteration())
        except BaseException as error:  # whatever it is, it belongs to the thread that waits for the batch
            self._put(None, None, error)

    def _put(self, *item: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._made.put(item, timeout=0.1)
            except queue.Full:
                continue


def _pinned(batch: dict) -> dict:
    return {
        name: _pinned(value) if isinstance(value, dict) else value.pin_memory() if torch.is_tensor(value) else value
        for name, value in batch.items()
    }
