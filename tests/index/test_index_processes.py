# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from small_index import COLLAR, NEW, OLD, answers, filled, names, revision, stores, unit

from modeling_mclfir.index import FaissStore
from modeling_mclfir.index.reader import IndexReader
from modeling_mclfir.index.spaces import IncompatibleRevisionError
from modeling_mclfir.index.versioned import VersionedIndex


@pytest.fixture
def index(tmp_path):
    with VersionedIndex(tmp_path / "index", stores(tmp_path)) as opened:
        yield opened


class TestSeveralProcesses:
    def test_a_reader_goes_on_until_it_refreshes(self, index, tmp_path):
        filled(index)
        with IndexReader(tmp_path / "index", stores(tmp_path)) as reader:
            before = answers(reader)
            assert not reader.refresh()
            index.land([revision(fingerprint=NEW)], "full")
            index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)
            index.switch()
            assert answers(reader) == before
            assert reader.refresh()
            assert answers(reader, NEW) == answers(index, NEW)
            index.roll_back(COLLAR)
            reader.refresh()
            assert answers(reader) == before

    def test_a_reader_of_what_was_dropped_is_told(self, index, tmp_path):
        filled(index)
        with IndexReader(tmp_path / "index", stores(tmp_path)) as reader, IndexReader(
            tmp_path / "index", stores(tmp_path)
        ) as late:  # fmt: skip
            answers(reader)
            index.land([revision(fingerprint=NEW)], "full")
            index.switch(allow_pending=True)
            index.drop(COLLAR, OLD)
            for one in (reader, late):
                with pytest.raises(IncompatibleRevisionError, match=r"has been dropped .*; call refresh\(\)"):
                    answers(one)
            with pytest.raises(IncompatibleRevisionError, match="has been dropped"):
                reader.count(COLLAR)

    def test_a_reader_of_what_was_deleted_is_told(self, tmp_path):
        """As a catalogue does it: the store goes with its folder."""
        folder, drop = tmp_path / "index", lambda name: shutil.rmtree(tmp_path / "stores" / name)
        with VersionedIndex(folder, stores(tmp_path), drop) as index:
            filled(index)
            with IndexReader(folder, stores(tmp_path)) as reader:
                answers(reader)
                index.land([revision(fingerprint=NEW)], "full")
                index.switch(allow_pending=True)
                index.drop(COLLAR, OLD)
                for call in (answers, lambda one: one.count(COLLAR), lambda one: list(one.export(COLLAR))):
                    with pytest.raises(IncompatibleRevisionError, match=r"has been dropped .*; call refresh\(\)"):
                        call(reader)

    def test_an_add_under_what_another_process_switched_away_is_refused(self, index, tmp_path):
        filled(index)
        with VersionedIndex(tmp_path / "index", stores(tmp_path)) as other:
            index.land([revision(fingerprint=NEW)], "full")
            index.switch(allow_pending=True)
            with pytest.raises(IncompatibleRevisionError):
                other.add(COLLAR, ["lost"], unit(1), fingerprint=OLD)

    def test_survives_being_opened_again(self, index, tmp_path):
        filled(index)
        before, info = answers(index), index.info()
        index.close()
        with pytest.raises(ValueError, match="The index is closed"):
            answers(index)
        with VersionedIndex(tmp_path / "index", stores(tmp_path)) as again:
            assert answers(again) == before and again.info() == info

    def test_a_reader_needs_an_index(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no index"):
            IndexReader(tmp_path / "nothing", stores(tmp_path))
        (tmp_path / "index.json").write_text("{}")
        with pytest.raises(ValueError, match="no manifest"):
            IndexReader(tmp_path, stores(tmp_path))


def killed(work) -> None:
    """Run work(die) in a child, which must die by it."""
    child = os.fork()
    if not child:
        try:
            work(lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


class TestKills:
    @pytest.mark.parametrize("batches", [0, 1, 3])
    def test_a_build_goes_on_after_a_kill(self, index, tmp_path, batches):
        filled(index)
        before, new = answers(index), unit(60, 7)

        def work(die):
            with VersionedIndex(tmp_path / "index", stores(tmp_path)) as mine:
                mine.land([revision(fingerprint=NEW)], "full")
                for start in range(0, 60, 10):
                    if start == 10 * batches:
                        die()
                    mine.add(COLLAR, names(10, start), new[start : start + 10], fingerprint=NEW)

        killed(work)
        index.refresh()
        assert answers(index) == before
        # The same command again.
        assert index.land([revision(fingerprint=NEW)], "full") == {COLLAR: "building"}
        left = index.pending(COLLAR)
        assert left == names(60)[10 * batches :]
        index.add(COLLAR, left, new[10 * batches :], fingerprint=NEW)
        index.switch()
        np.testing.assert_array_equal(next(index.export(COLLAR)).embeds, new)

    @pytest.mark.parametrize("point", ["before", "after"])
    def test_a_switch_is_done_or_not(self, index, tmp_path, monkeypatch, point):
        filled(index)
        index.land([revision(fingerprint=NEW)], "full")
        index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)

        def work(die):
            original = Path.replace

            def replace_and_die(self, target):
                if point == "after":
                    original(self, target)
                die()

            monkeypatch.setattr(Path, "replace", replace_and_die)
            with VersionedIndex(tmp_path / "index", stores(tmp_path)) as mine:
                mine.switch()

        killed(work)
        index.refresh()
        live = index.spaces[COLLAR].fingerprint
        assert live == (NEW if point == "after" else OLD)
        assert len(answers(index, live)[0][0]) == 5
        if point == "before":
            index.switch()
        assert index.roll_back(COLLAR)[COLLAR]["entries"] == 60

    def test_a_drop_is_finished_by_the_next_writer(self, index, tmp_path):
        filled(index)
        index.land([revision(fingerprint=NEW)], "full")
        index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)
        store = index.info()["spaces"][COLLAR]["revisions"][1]["store"]

        def work(die):
            with VersionedIndex(tmp_path / "index", stores(tmp_path), lambda name: die()) as mine:
                mine.drop(COLLAR, NEW)

        killed(work)
        index.refresh()
        assert len(index.info()["spaces"][COLLAR]["revisions"]) == 1
        index.add(COLLAR, ["one more"], unit(1), fingerprint=OLD)
        with FaissStore.load(tmp_path / "stores" / store) as emptied:
            assert emptied.count() == 0
