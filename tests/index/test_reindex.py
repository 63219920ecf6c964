# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from small_index import COLLAR, DIM, NEW, OLD, SLEEVE, answers, filled, names, revision, rotation, stores, unit

from modeling_mclfir.index import FaissStore
from modeling_mclfir.index.policies import fit_map, spherical_mix
from modeling_mclfir.index.reader import IndexReader
from modeling_mclfir.index.spaces import IncompatibleRevisionError
from modeling_mclfir.index.versioned import VersionedIndex


@pytest.fixture
def index(tmp_path):
    with VersionedIndex(tmp_path / "index", stores(tmp_path)) as opened:
        yield opened


class TestNone:
    def test_new_queries_search_old_vectors_as_they_are(self, index):
        embeds = filled(index)[COLLAR]
        before = answers(index)
        assert index.land([revision(fingerprint=NEW)], "none") == {COLLAR: "linked"}
        assert answers(index, NEW) == before == answers(index)
        index.add(COLLAR, ["new"], unit(1, 70), [{"colour": "red"}], fingerprint=NEW)
        entry = index.get(COLLAR, ["item 0000", "new"])
        assert entry.made_by == [OLD, NEW] and entry.metadata[1] == {"colour": "red"}
        np.testing.assert_array_equal(entry.embeds, np.stack([embeds[0], unit(1, 70)[0]]))
        (link,) = index.info()["spaces"][COLLAR]["links"]
        assert (link["source"], link["target"], link["policy"]) == (NEW, OLD, "none")
        assert index.info()["history"][-1]["policy"] == "none"

    def test_refuses_another_length_and_a_calibration(self, index):
        filled(index)
        with pytest.raises(ValueError, match="Queries of 4 can't search vectors of 8"):
            index.land([revision(fingerprint=NEW, dim=4)], "none")
        with pytest.raises(ValueError, match="Only 'drift_compensated' takes a calibration"):
            index.land([revision(fingerprint=NEW)], "none", calibration={COLLAR: (unit(3), unit(3))})


class TestDriftCompensated:
    def moved(self, index, mix: float = 1.0, kind: str = "procrustes"):
        """The encoder turned: new = old @ turn. The map is learned from some of the stored items."""
        embeds, turn = filled(index)[COLLAR], rotation()
        some = index.calibration(COLLAR, 30)
        pairs = {COLLAR: (some.embeds, some.embeds @ turn)}
        found = index.land(
            [revision(fingerprint=NEW)], "drift_compensated", calibration=pairs, drift_map=kind, mix=mix
        )
        assert found == {COLLAR: "linked"}
        return embeds, turn, pairs[COLLAR]

    def test_a_rotation_is_undone(self, index):
        _, turn, _ = self.moved(index)
        queries = unit(4, 99)
        old = index.search(COLLAR, queries, 5, fingerprint=OLD)
        new = index.search(COLLAR, queries @ turn, 5, fingerprint=NEW)
        assert new.ids == old.ids
        np.testing.assert_allclose(new.scores, old.scores, atol=1e-5)
        assert index.search(COLLAR, queries, 5, fingerprint=OLD).ids == old.ids

    @pytest.mark.parametrize("kind", ["mean_drift", "procrustes"])
    def test_map_and_mix_are_those_of_the_policies(self, index, tmp_path, kind):
        _, _, (old, new) = self.moved(index, 0.4, kind)
        queries, plain = unit(4, 99), fit_map(kind, old, new)[0]
        expected = spherical_mix(queries, plain.apply(queries), 0.4)
        np.testing.assert_allclose(index.map_queries(COLLAR, queries, NEW), expected, atol=1e-6)
        with IndexReader(tmp_path / "index", stores(tmp_path)) as reader:
            np.testing.assert_allclose(reader.map_queries("collar", queries, NEW), expected, atol=1e-6)
        details = index.info()["spaces"][COLLAR]["links"][0]["details"]
        assert details["pairs"] == 30 and details["kind"] == kind

    def test_items_come_through_the_map_and_say_so(self, index):
        _, turn, pairs = self.moved(index)
        item = unit(1, 70)
        index.add(COLLAR, ["new"], item @ turn, fingerprint=NEW)
        entry = index.get(COLLAR, ["new"])
        np.testing.assert_allclose(entry.embeds, item, atol=1e-5)
        assert entry.made_by == [NEW] and entry.metadata == [{}]
        assert "new" not in index.calibration(COLLAR, 1000).ids
        with pytest.raises(IncompatibleRevisionError, match="1 entries of 'collar@tops' came from"):
            index.land([revision(fingerprint=NEW)], "none")
        again = {COLLAR: pairs}
        index.land([revision(fingerprint=NEW)], "drift_compensated", calibration=again)
        assert len(index.info()["history"]) == 2, "the same landing again changes nothing"

    def test_maps_are_chained(self, index):
        _, turn, (old, new) = self.moved(index)
        again = rotation(5)
        third = revision(fingerprint="third weights")
        pairs = {COLLAR: (new, new @ again)}
        index.land([third], "drift_compensated", calibration=pairs, onto=NEW)
        queries = unit(4, 99)
        np.testing.assert_allclose(
            index.map_queries(COLLAR, queries @ turn @ again, "third weights"), queries, atol=1e-5
        )
        with pytest.raises(IncompatibleRevisionError, match="'unknown weights' can't be compared"):
            index.land([revision(fingerprint="x")], "drift_compensated", calibration=pairs, onto="unknown weights")
        # The middle of the chain can't be exchanged under entries that came through it.
        index.add(COLLAR, ["new"], unit(1), fingerprint="third weights")
        with pytest.raises(IncompatibleRevisionError, match="third weights"):
            index.land([revision(fingerprint=NEW)], "none")

    def test_another_length(self, index):
        filled(index)
        some = index.calibration(COLLAR, 40)
        lift = np.linalg.qr(np.random.default_rng(0).standard_normal((12, DIM)))[0].T  # (8, 12)
        wide = revision(fingerprint=NEW, dim=12)
        index.land([wide], "drift_compensated", calibration={COLLAR: (some.embeds, some.embeds @ lift)})
        queries = unit(3, 99)
        np.testing.assert_allclose(index.map_queries(COLLAR, queries @ lift, NEW), queries, atol=1e-5)
        with pytest.raises(ValueError, match=r"Expected embeds \(N, 12\)"):
            index.search(COLLAR, queries, 3, fingerprint=NEW)

    def test_refuses_a_calibration_that_does_not_fit(self, index):
        filled(index)
        new = [revision(fingerprint=NEW)]
        with pytest.raises(ValueError, match="no calibration"):
            index.land(new, "drift_compensated")
        with pytest.raises(ValueError, match=r"\(n, 8\) and new ones \(n, 8\); got \(3, 4\)"):
            index.land(new, "drift_compensated", calibration={COLLAR: (unit(3, dim=4), unit(3))})
        with pytest.raises(ValueError, match="the encoder of these spaces did not change"):
            pairs = (unit(3), unit(3))
            index.land(new, "drift_compensated", calibration={COLLAR: pairs, SLEEVE: pairs})
        assert index.info()["spaces"][COLLAR]["links"] == []


class TestFull:
    def test_built_beside_switched_and_rolled_back(self, index):
        filled(index)
        before, new = answers(index), unit(60, 7)
        assert index.land([revision(fingerprint=NEW)], "full") == {COLLAR: "building"}
        index.add(COLLAR, names(20), new[:20], fingerprint=NEW)
        assert answers(index) == before, "a build is not searched"
        assert index.pending(COLLAR) == names(40, 20)
        assert index.info()["spaces"][COLLAR]["share_built"] == pytest.approx(1 / 3)
        assert index.share_done(COLLAR) == pytest.approx(1 / 3)
        with pytest.raises(ValueError, match="40 items of 'collar@tops' have no vector of 'of new weights'"):
            index.switch()
        index.add(COLLAR, names(40, 20), new[20:], fingerprint=NEW)
        assert index.switch() == {COLLAR: "of new weights"}
        with pytest.raises(IncompatibleRevisionError, match="it is retired"):
            answers(index)
        queries = unit(4, 99)
        best = np.argsort(-(queries @ new.T), axis=1)[:, :5]
        assert answers(index, NEW)[0] == [[names(60)[place] for place in row] for row in best]
        assert index.get(COLLAR, ["item 0001"]).metadata == [{"colour": "blue"}], "a build keeps metadata"
        back = index.roll_back(COLLAR)
        assert back == {COLLAR: {"model_revision": "of old weights", "entries": 60, "entries_before": 60}}
        assert answers(index) == before
        with pytest.raises(ValueError, match="no earlier live revision"):
            index.roll_back("collar")
        # And forward again: nothing needs to be built.
        index.land([revision(fingerprint=NEW)], "full")
        assert index.pending(COLLAR) == []
        index.switch()
        assert [event["event"] for event in index.info()["history"]][-3:] == ["roll back", "landing", "switch"]

    @pytest.mark.parametrize("gone", ["dropped", "built anew"])
    def test_no_roll_back_past_what_was_live_before(self, index, gone):
        filled(index)
        for seed, fingerprint in enumerate((NEW, "newest")):
            index.land([revision(fingerprint=fingerprint)], "full")
            index.add(COLLAR, names(60), unit(60, seed), fingerprint=fingerprint)
            index.switch()
        if gone == "dropped":
            index.drop(COLLAR, NEW)
        else:
            index.land([revision(fingerprint=NEW)], "full")
        with pytest.raises(ValueError, match="no earlier live revision"):  # not the one before that
            index.roll_back(COLLAR)

    def test_several_spaces_move_at_one_moment(self, index):
        filled(index, spaces=(COLLAR, SLEEVE))
        index.land([revision(COLLAR, NEW), revision(SLEEVE, NEW)], "full")
        index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)
        with pytest.raises(ValueError, match="60 items of 'sleeve@tops'"):
            index.switch()
        assert {live.fingerprint for live in index.spaces.values()} == {OLD}
        index.switch(allow_pending=True)
        assert {live.fingerprint for live in index.spaces.values()} == {NEW}
        assert index.roll_back(["collar", SLEEVE])[SLEEVE]["entries_before"] == 0

    def test_what_changes_during_a_build_is_pending_again(self, index):
        embeds = filled(index)[COLLAR]
        index.land([revision(fingerprint=NEW)], "full")
        index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)
        red = [{"colour": "red"}]
        index.add(COLLAR, ["item 0000"], unit(1, 80), red, fingerprint=OLD)  # another image
        index.add(COLLAR, ["item 0001"], embeds[1:2], red, fingerprint=OLD)  # other metadata
        index.add(COLLAR, ["item 0002"], embeds[2:3] * (1 + 1e-4), red, fingerprint=OLD)  # the same, in another batch
        index.add(COLLAR, ["item 0100"], unit(1, 81), red, fingerprint=OLD)  # a new item
        assert index.pending(COLLAR) and sorted(index.pending(COLLAR)) == ["item 0000", "item 0001", "item 0100"]

    def test_what_is_added_after_a_roll_back_is_pending_again(self, index):
        """The revision that was live until then may know another photo by that name."""
        filled(index)
        index.land([revision(fingerprint=NEW)], "full")
        index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)
        index.switch()
        index.add(COLLAR, ["another"], unit(1, 50), fingerprint=NEW)
        index.roll_back(COLLAR)
        index.add(COLLAR, ["another"], unit(1, 60), fingerprint=OLD)
        index.land([revision(fingerprint=NEW)], "full")
        assert index.pending(COLLAR) == ["another"]

    def test_what_is_pending_is_found_without_all_ids_or_any_vector_in_memory(self, tmp_path):
        class SevenAtATime(FaissStore):
            def scroll(self, *arguments):
                raise AssertionError("vectors were read")

            def scroll_ids(self, batch_size=7, filter=None):
                assert batch_size == 7
                return super().scroll_ids(batch_size, filter)

            def has(self, ids):
                assert len(ids) <= 7
                return super().has(ids)

        with VersionedIndex(tmp_path / "few", lambda name, dim: SevenAtATime(tmp_path / name, dim)) as index:
            filled(index)
            index.land([revision(fingerprint=NEW)], "full")
            index.add(COLLAR, names(20), unit(20), [{}] * 20, fingerprint=NEW)
            parts = list(index.scroll_pending(COLLAR))
            assert max(map(len, parts)) == 7 and sum(parts, []) == index.pending(COLLAR) == names(40, 20)
            with pytest.raises(ValueError, match=r"40 items .* yet, \['item 0020', 'item 0021', 'item 0022'\] among"):
                index.switch()

    def test_one_build_at_a_time_and_the_same_goes_on(self, index):
        filled(index)
        index.land([revision(fingerprint=NEW)], "full")
        index.add(COLLAR, names(10), unit(10), fingerprint=NEW)
        before = index.info()
        assert index.land([revision(fingerprint=NEW)], "full") == {COLLAR: "building"}
        assert index.info() == before
        with pytest.raises(ValueError, match="'of new weights' of 'collar@tops' is being built"):
            index.land([revision(fingerprint="third")], "full")
        index.drop(COLLAR, "of new weights")
        index.land([revision(fingerprint="third")], "full")
        assert len(index.pending(COLLAR)) == 60

    def test_queries_are_mapped_while_the_build_goes_on(self, index):
        embeds, turn = filled(index)[COLLAR], rotation()
        before = answers(index)[0]
        new = [revision(fingerprint=NEW)]
        index.land(new, "drift_compensated", calibration={COLLAR: (embeds, embeds @ turn)})
        index.land(new, "full")
        index.add(COLLAR, names(60), embeds @ turn, fingerprint=NEW)
        queries = unit(4, 99) @ turn
        mapped = index.search(COLLAR, queries, 5, fingerprint=NEW).ids
        index.switch()
        assert mapped == before == index.search(COLLAR, queries, 5, fingerprint=NEW).ids

    def test_drop_is_for_what_is_not_live(self, index, tmp_path):
        filled(index)
        index.land([revision(fingerprint=NEW)], "full")
        index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)
        index.switch()
        with pytest.raises(ValueError, match="is the live revision"):
            index.drop(COLLAR, NEW)
        with pytest.raises(ValueError, match="has no revision 'other'; it has"):
            index.drop(COLLAR, "other")
        (old,) = [entry for entry in index.info()["spaces"][COLLAR]["revisions"] if entry["state"] == "retired"]
        index.drop(COLLAR, OLD)
        assert [entry["fingerprint"] for entry in index.info()["spaces"][COLLAR]["revisions"]] == [NEW]
        with FaissStore.load(tmp_path / "stores" / old["store"]) as emptied:
            assert emptied.count() == 0
        with pytest.raises(ValueError, match="no earlier live revision"):
            index.roll_back(COLLAR)

    def test_a_dropped_store_is_handed_to_who_can_delete_it(self, tmp_path):
        dropped = []
        with VersionedIndex(tmp_path / "index", stores(tmp_path), dropped.append) as index:
            filled(index)
            index.land([revision(fingerprint=NEW)], "full")
            building = index.info()["spaces"][COLLAR]["revisions"][1]["store"]
            index.drop(COLLAR, NEW)
            assert dropped == [building]
