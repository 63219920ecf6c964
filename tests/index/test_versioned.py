# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import numpy as np
import pytest
from small_index import COLLAR, LATER, NEW, OLD, SLEEVE, answers, filled, names, revision, stores, unit

from modeling_mclfir.index.spaces import IncompatibleRevisionError
from modeling_mclfir.index.versioned import VersionedIndex


@pytest.fixture
def index(tmp_path):
    with VersionedIndex(tmp_path / "index", stores(tmp_path)) as opened:
        yield opened


class TestDescriptions:
    def test_are_plain_json(self, index):
        filled(index)
        info = index.info()
        assert json.loads(json.dumps(info)) == info
        (entry,) = index.info()["spaces"][COLLAR]["revisions"]
        assert (entry["fingerprint"], entry["entries"], entry["state"]) == (OLD, 60, "live")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"space": "collar"}, "Name it 'collar@tops'"),
            ({"dim": 0}, "dim of 'collar@tops' must be"),
            ({"spread": 0.0}, "above 0"),
            ({"fingerprint": ""}, "fingerprint .* not empty"),
        ],
    )
    def test_refuse_what_is_none(self, change, message):
        with pytest.raises(ValueError, match=message):
            replace(revision(), **change)


class TestSingleSpace:
    def test_is_the_stores_own_search(self, index):
        embeds = filled(index)[COLLAR]
        queries = unit(3, 9)
        found = index.search(COLLAR, queries, 7, fingerprint=OLD)
        order = np.argsort(-(queries @ embeds.T), axis=1)[:, :7]
        assert found.ids == [[names(60)[place] for place in row] for row in order]
        by_attribute = index.search("collar", queries, 7, fingerprint=OLD)
        assert by_attribute.ids == found.ids

    def test_an_item_is_a_query_and_does_not_find_itself(self, index):
        embeds = filled(index)[COLLAR]
        ids = ["item 0003", "item 0010"]
        found = index.search(COLLAR, ids, 5)
        scores = embeds[[3, 10]] @ embeds.T
        scores[[0, 1], [3, 10]] = -2
        assert found.ids == [[names(60)[place] for place in row] for row in np.argsort(-scores, axis=1)[:, :5]]
        assert [row[0] for row in index.search(COLLAR, ids, 5, include_self=True).ids] == ids
        with pytest.raises(KeyError, match="collar@tops.*item 9999"):
            index.search(COLLAR, ["item 9999"], 5)

    def test_filter_and_exclude(self, index):
        filled(index)
        found = index.search(COLLAR, unit(1, 9), 60, fingerprint=OLD, filter={"colour": "red"}, exclude=["item 0000"])
        assert sorted(found.ids[0]) == names(60)[2::2]

    def test_near_duplicates_are_left_out(self, index):
        embeds = filled(index)[COLLAR]
        copies = embeds + 0.01 * unit(60, 5)
        index.add(COLLAR, names(60, 100), copies / np.linalg.norm(copies, axis=1, keepdims=True), fingerprint=OLD)
        queries = unit(3, 9)
        every = index.search(COLLAR, queries, 120, fingerprint=OLD)
        found = index.search(COLLAR, queries, 50, fingerprint=OLD, distinct=(COLLAR, 0.99))
        stored = {name: index.get(COLLAR, [name]).embeds[0] for name in every.ids[0]}
        for ids, ranked in zip(found.ids, every.ids, strict=True):
            expected = []
            for name in ranked:
                if all(stored[name] @ stored[other] <= 0.99 for other in expected):
                    expected.append(name)
            assert ids == expected[:50] and len(ids) == 50

    def test_get_count_export(self, index):
        embeds = filled(index)[COLLAR]
        assert index.count(COLLAR) == 60 and index.count(COLLAR, {"colour": "red"}) == 30
        batches = list(index.export(COLLAR, 25))
        assert [len(batch) for batch in batches] == [25, 25, 10]
        np.testing.assert_array_equal(np.concatenate([batch.embeds for batch in batches]), embeds)
        assert batches[0].revision == OLD and batches[0].made_by == [OLD] * 25 and batches[0].space == COLLAR

    def test_remove_is_from_every_space_and_revision(self, index):
        filled(index, spaces=(COLLAR, SLEEVE))
        index.land([revision(fingerprint=NEW)], "full")
        index.add(COLLAR, names(60), unit(60, 7), fingerprint=NEW)
        index.switch()
        assert index.remove(["item 0001", "nobody"]) == {COLLAR: 1, SLEEVE: 1}
        index.roll_back(COLLAR)
        assert index.count(COLLAR) == 59 and index.count(SLEEVE) == 59

    def test_add_may_leave_what_is_there_and_what_is_not_known(self, index):
        embeds = filled(index, 3, (COLLAR, SLEEVE))[COLLAR]
        index.remove(["item 0001"])
        index.add(COLLAR, names(4), unit(4, 7), fingerprint=OLD, replace_present=False, only_known=True)
        np.testing.assert_array_equal(index.get(COLLAR, ["item 0000", "item 0002"]).embeds, embeds[[0, 2]])
        assert index.count(COLLAR) == 2
        index.add(SLEEVE, ["item 0009"], unit(1), fingerprint=OLD)
        index.add(COLLAR, ["item 0009", "item 0001"], unit(2, 7), fingerprint=OLD, only_known=True)
        assert index.count(COLLAR) == 3 and index.get(COLLAR, ["item 0009"]).metadata == [{}]

    def test_unknown_names(self, index):
        filled(index)
        with pytest.raises(ValueError, match="neither a space nor an attribute 'hem'; spaces: .*collar@tops"):
            index.search("hem", unit(1), 3, fingerprint=OLD)
        with pytest.raises(ValueError, match="made_by"):
            index.add(COLLAR, ["a"], unit(1), [{"made_by": "me"}], fingerprint=OLD)


class TestRefusals:
    def test_a_query_or_an_add_of_other_weights(self, index):
        filled(index)
        for call in (
            lambda: index.search(COLLAR, unit(1), 3, fingerprint=NEW),
            lambda: index.add(COLLAR, ["a"], unit(1), fingerprint=NEW),
        ):
            with pytest.raises(IncompatibleRevisionError) as caught:
                call()
            for part in (OLD, NEW, COLLAR, "load the checkpoint of 'of old weights'", "'full'", "drift map"):
                assert part in str(caught.value)
        assert index.count(COLLAR) == 60

    def test_a_query_of_nothing_known(self, index):
        filled(index)
        with pytest.raises(IncompatibleRevisionError, match="What made the queries"):
            index.search(COLLAR, unit(1), 3)

    def test_a_query_of_a_build_says_so(self, index):
        filled(index)
        index.land([revision(fingerprint=NEW)], "full")
        with pytest.raises(IncompatibleRevisionError, match="still being built; switch"):
            index.search(COLLAR, unit(1), 3, fingerprint=NEW)


class TestNewOnly:
    def test_old_answers_keep_every_byte(self, index, tmp_path):
        filled(index)
        folder = tmp_path / "stores" / index.info()["spaces"][COLLAR]["revisions"][0]["store"]
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        before = answers(index)
        found = index.land([revision(), revision(LATER, NEW), revision(SLEEVE, NEW)], "new_only")
        assert found == {COLLAR: "unchanged", LATER: "opened", SLEEVE: "opened"}
        index.add(LATER, names(60), unit(60, 3), fingerprint=NEW)
        assert answers(index) == before
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files

    def test_refuses_an_old_space_that_changed_and_lands_nothing(self, index):
        filled(index)
        before = index.info()
        with pytest.raises(IncompatibleRevisionError, match="'collar@tops' from 'old weights' to 'new weights'"):
            index.land([revision(fingerprint=NEW), revision(SLEEVE)], "new_only")
        assert index.info() == before

    def test_what_landed_under_another_policy_is_no_change(self, index):
        filled(index)
        index.land([revision(fingerprint=NEW)], "none")
        later = revision(fingerprint=NEW, model_revision="the next one")
        assert index.land([later, revision(SLEEVE)], "new_only") == {COLLAR: "unchanged", SLEEVE: "opened"}

    def test_share_of_old_items_that_have_a_new_attribute(self, index):
        filled(index)
        index.land([revision(SLEEVE)], "new_only")
        index.add(SLEEVE, names(15), unit(15), fingerprint=OLD)
        assert index.pending(SLEEVE, COLLAR) == names(45, 15)
        assert index.share_done(SLEEVE, COLLAR) == 0.25
        with pytest.raises(ValueError, match="Nothing is being built"):
            index.pending(SLEEVE)

    @pytest.mark.parametrize(
        ("landing", "message"),
        [
            ([], "Nothing lands"),
            ([revision(SLEEVE), revision(SLEEVE)], "once at a time"),
            ([replace(revision(), attribute="hem")], "'collar@tops' is a space of 'collar'; got 'hem'"),
            ([replace(revision(SLEEVE), space="collar")], "would name both a space and an attribute"),
            ([revision(dim=4)], "has vectors of 8; got 4"),
        ],
    )
    def test_refuses_other_landings(self, index, landing, message):
        filled(index)
        with pytest.raises(ValueError, match=message):
            index.land(landing, "new_only")

    def test_refuses_an_unknown_policy_and_a_name_for_two_things(self, index):
        filled(index)
        with pytest.raises(ValueError, match="no reindex policy 'some'; choose one of new_only, none"):
            index.land([revision(SLEEVE)], "some")
        with pytest.raises(ValueError, match="knows the model revision .* by the fingerprint 'old weights'"):
            index.land([revision(fingerprint=NEW, model_revision=f"of {OLD}")], "none")


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_vectors_is_refused_where_some_items_stay(tmp_path, count):
    with VersionedIndex(tmp_path, stores(tmp_path)) as index:
        filled(index, 5)
        with pytest.raises(ValueError, match="each of 2 ids"):
            index.add(COLLAR, names(2, 10), unit(count), fingerprint=OLD, replace_present=False)
        assert index.count(COLLAR) == 5
