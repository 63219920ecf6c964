# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead are those of a plain loop, and a saved state knows nothing of them."""

import threading
import time

import pytest

from modeling_mclfir.training import prefetch
from modeling_mclfir.training.prefetch import Prefetcher


class Source:
    def __init__(self, count):
        self.count, self.made = count, 0

    def batches(self):
        while self.made < self.count:
            self.made += 1
            yield {"number": self.made}

    def state_dict(self):
        return {"made": self.made}


def test_order_state_and_end():
    source = Source(7)
    with Prefetcher(source.batches(), source.state_dict) as loader:
        assert loader.state == {"made": 0}
        for number in range(1, 8):
            assert next(loader) == {"number": number}
            assert loader.state == {"made": number}  # though more are made by now
            time.sleep(0.01)
        with pytest.raises(StopIteration):
            next(loader)


def test_it_works_ahead_and_not_without_end():
    source = Source(100)
    with Prefetcher(source.batches(), source.state_dict) as loader:
        next(loader)
        deadline = time.monotonic() + 5
        while source.made < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert source.made == 4  # one handed out, two waiting, one in hand


def test_an_error_comes_in_its_turn():
    def batches():
        yield {"number": 1}
        raise ValueError("a bad batch")

    with Prefetcher(batches(), dict) as loader:
        assert next(loader) == {"number": 1}
        with pytest.raises(ValueError, match="a bad batch"):
            next(loader)


def test_it_leaves_no_thread_behind():
    before = threading.active_count()
    for taken in (0, 1, 5):
        source = Source(100)
        with Prefetcher(source.batches(), source.state_dict) as loader:
            for _ in range(taken):
                next(loader)
    assert threading.active_count() == before


def test_the_end_stays_the_end():
    source = Source(1)
    loader = Prefetcher(source.batches(), source.state_dict)
    next(loader)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(loader)
    loader.close()
    with pytest.raises(StopIteration):
        next(loader)


def test_closing_does_not_wait_for_a_source_that_is_stuck(monkeypatch):
    monkeypatch.setattr(prefetch, "_PATIENCE", 0.1)
    stuck = threading.Event()

    def batches():
        stuck.wait()
        yield {}

    loader = Prefetcher(batches(), dict)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 5
    stuck.set()
