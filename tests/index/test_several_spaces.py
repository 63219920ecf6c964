# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from small_index import COLLAR, LATER, NEW, OLD, SLEEVE, names, revision, stores, unit

from modeling_mclfir.index import fusion
from modeling_mclfir.index.spaces import IncompatibleRevisionError
from modeling_mclfir.index.store import matches
from modeling_mclfir.index.versioned import VersionedIndex


@pytest.fixture
def index(tmp_path):
    with VersionedIndex(tmp_path / "index", stores(tmp_path)) as opened:
        yield opened


def brute_force(vectors, queries, factors, k, keep=lambda name: True):
    """The definition, over items as dictionaries: space → id → vector."""
    results = []
    for row, weights in enumerate(factors):
        active = [space for space in vectors if weights[space] > 0]
        there = set.intersection(*(set(vectors[space]) for space in active))
        scores = {
            name: sum(weights[s] * float(vectors[s][name].astype(float) @ queries[s][row]) for s in active)
            for name in there
            if keep(name)
        }
        results.append(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k])
    return results


def assert_same(found, expected):
    for ids, scores, row in zip(found.ids, found.scores, expected, strict=True):
        assert ids == [name for name, _ in row]
        np.testing.assert_allclose(scores, [score for _, score in row], rtol=1e-5, atol=1e-5)


class TestSeveralSpaces:
    SPREADS = {COLLAR: 0.5, SLEEVE: 0.1, LATER: 0.3}

    @pytest.fixture
    def vectors(self, index):
        """Three spaces that share some of their items, of other spreads; one with many equal vectors."""
        random = np.random.default_rng(0)
        index.land([revision(space, spread=self.SPREADS[space]) for space in self.SPREADS], "new_only")
        found = {}
        for seed, space in enumerate(self.SPREADS):
            ids = sorted(random.choice(names(400), 300, replace=False).tolist())
            embeds = unit(300, seed)
            if space == SLEEVE:
                embeds = embeds[np.arange(300) % 11]
            metadata = [{"parity": int(name[-1]) % 2} for name in ids]
            index.add(space, ids, embeds, metadata, fingerprint=OLD)
            found[space] = dict(zip(ids, embeds, strict=True))
        return found

    @pytest.mark.parametrize("first_depth", [1, 256])
    @pytest.mark.parametrize("seed", range(4))
    def test_is_brute_force(self, index, vectors, monkeypatch, first_depth, seed):
        monkeypatch.setattr(fusion, "_FIRST_DEPTH", first_depth)
        random = np.random.default_rng(seed)
        k = int(random.integers(1, 12))
        queries = {space: unit(6, 50 + seed) for space in vectors}
        weights = {space: random.random(6) * (random.random(6) < 0.8) for space in vectors}
        weights[COLLAR] += 0.01
        factors = [{space: weights[space][row] / self.SPREADS[space] for space in vectors} for row in range(6)]
        found = index.search(list(vectors), queries, k, fingerprint=OLD, weights=weights)
        assert_same(found, brute_force(vectors, queries, factors, k))
        found = index.search(
            list(vectors), queries, k, fingerprint=OLD, weights=weights, filter={"parity": 1}, exclude=["item 0001"]
        )
        expected = brute_force(
            vectors, queries, factors, k, lambda name: int(name[-1]) % 2 == 1 and name != "item 0001"
        )
        assert_same(found, expected)

    def test_is_brute_force_by_looking_at_everything(self, index, vectors, monkeypatch):
        monkeypatch.setattr(fusion, "_MOST_DEPTH", 5)
        queries = {space: unit(3, 50) for space in vectors}
        factors = [{space: 1 / self.SPREADS[space] for space in vectors}] * 3
        found = index.search(list(vectors), queries, 9, fingerprint=OLD)
        assert_same(found, brute_force(vectors, queries, factors, 9))

    def test_stops_before_it_has_seen_everything(self, index):
        index.land([revision(COLLAR), revision(SLEEVE)], "new_only")
        embeds = unit(4000, 0, 4)
        index.land([revision("a@x", dim=4), revision("b@x", dim=4)], "new_only")
        index.add("a@x", names(4000), embeds, fingerprint=OLD)
        index.add("b@x", names(4000), embeds + 0.05 * unit(4000, 1, 4), fingerprint=OLD)
        depths = []

        class Counting(fusion._FusedSearch):
            def look(self, rows, depth):
                depths.append(depth)
                super().look(rows, depth)

        original, fusion._FusedSearch = fusion._FusedSearch, Counting
        try:
            index.search(["a@x", "b@x"], {"a@x": embeds[:5], "b@x": embeds[:5]}, 3, fingerprint=OLD)
        finally:
            fusion._FusedSearch = original
        assert max(depths) < 4000

    def test_spaces_of_an_attribute_weighed_for_each_query(self, index, vectors):
        """What a router gives: a query in the one space, a query in the other, a query in both."""
        queries = {COLLAR: unit(3, 1), LATER: unit(3, 2)}
        weights = {COLLAR: np.array([1.0, 0.0, 0.3]), LATER: np.array([0.0, 1.0, 0.7])}
        found = index.search("collar", queries, 10, fingerprint={COLLAR: OLD, LATER: OLD}, weights=weights)
        factors = [{s: weights[s][row] / self.SPREADS[s] for s in queries} for row in range(3)]
        assert_same(found, brute_force({s: vectors[s] for s in queries}, queries, factors, 10))
        alone = index.search(COLLAR, queries[COLLAR][:1], 10, fingerprint=OLD)
        assert found.ids[0] == alone.ids[0]

    def test_is_the_sum_of_the_fused_vectors_of_the_model(self, index, vectors):
        torch = pytest.importorskip("torch")
        from modeling_mclfir.routing_mclfir import fuse_gallery, fuse_queries

        both = sorted(set(vectors[COLLAR]) & set(vectors[LATER]))
        queries, weights = [unit(4, 1), unit(4, 2)], np.random.default_rng(0).random((4, 2)) + 0.1
        gallery = fuse_gallery([torch.tensor(np.stack([vectors[s][name] for name in both])) for s in (COLLAR, LATER)])
        fused = fuse_queries([torch.tensor(q) for q in queries], torch.tensor(weights), [0.5, 0.3])
        best = (fused @ gallery.T).topk(8)
        found = index.search(
            "collar", {COLLAR: queries[0], LATER: queries[1]}, 8, fingerprint=OLD,
            weights={COLLAR: weights[:, 0], LATER: weights[:, 1]},
        )  # fmt: skip
        assert found.ids == [[both[place] for place in row] for row in best.indices.tolist()]
        np.testing.assert_allclose(np.stack(found.scores), best.values.numpy(), rtol=1e-4)

    def test_a_weight_of_an_attribute_is_that_of_its_spaces(self, index, vectors):
        queries = {space: unit(2, 5) for space in vectors}
        found = index.search(["collar", "sleeve"], queries, 6, fingerprint=OLD, weights={"collar": 2, LATER: 0.5})
        weights = {COLLAR: 2, LATER: 1, SLEEVE: 1}
        factors = [{space: weights[space] / self.SPREADS[space] for space in vectors}] * 2
        assert_same(found, brute_force(vectors, queries, factors, 6))

    def test_items_as_queries_without_themselves_and_near_duplicates(self, index, vectors):
        both = sorted(set(vectors[COLLAR]) & set(vectors[SLEEVE]))[:3]
        found = index.search([COLLAR, SLEEVE], both, 8, distinct=(SLEEVE, 0.999))
        for name, ids in zip(both, found.ids, strict=True):
            queries = {space: [vectors[space][name]] for space in (COLLAR, SLEEVE)}
            factors = [{space: 1 / self.SPREADS[space] for space in queries}]
            two = {space: vectors[space] for space in queries}
            (ranked,) = brute_force(two, queries, factors, 400, lambda other, name=name: other != name)
            expected, seen = [], set()
            for other, _ in ranked:
                if vectors[SLEEVE][other].tobytes() not in seen:
                    expected.append(other)
                    seen.add(vectors[SLEEVE][other].tobytes())
            assert ids == expected[:8]

    def test_metadata_count_in_every_space(self, index, vectors):
        name = sorted(set(vectors[COLLAR]) & set(vectors[SLEEVE]))[0]
        index.add(SLEEVE, [name], vectors[SLEEVE][name][None], [{"parity": 7}], fingerprint=OLD)
        queries = {space: vectors[space][name][None] for space in (COLLAR, SLEEVE)}
        parity = int(name[-1]) % 2
        assert matches({"parity": (parity,)}, index.get(COLLAR, [name]).metadata[0])
        found = index.search([COLLAR, SLEEVE], queries, 400, fingerprint=OLD, filter={"parity": parity})
        assert name not in found.ids[0]

    def test_refuses(self, index, vectors):
        queries = {COLLAR: unit(2), SLEEVE: unit(2)}
        with pytest.raises(ValueError, match="several spaces; name one of .*collar@tops"):
            index.search(["collar", "sleeve"], {"collar": unit(2), SLEEVE: unit(2)}, 3, fingerprint=OLD)
        with pytest.raises(ValueError, match="vectors of each of .*sleeve@tops"):
            index.search([COLLAR, SLEEVE], unit(2), 3, fingerprint=OLD)
        with pytest.raises(ValueError, match="weight of 'sleeve@tops' must be at least 0"):
            index.search([COLLAR, SLEEVE], queries, 3, fingerprint=OLD, weights={SLEEVE: -1})
        with pytest.raises(ValueError, match="Every query needs a weight above 0"):
            index.search([COLLAR, SLEEVE], queries, 3, fingerprint=OLD, weights={SLEEVE: 0, COLLAR: 0})
        with pytest.raises(ValueError, match=r"Weights for \['hem'\]"):
            index.search([COLLAR, SLEEVE], queries, 3, fingerprint=OLD, weights={"hem": 1})
        with pytest.raises(IncompatibleRevisionError, match="made the queries for 'sleeve@tops'"):
            index.search([COLLAR, SLEEVE], queries, 3, fingerprint={COLLAR: OLD})

    def test_a_spread_is_measured_where_it_is_not_known(self, index):
        index.land([revision(COLLAR, spread=None), revision(SLEEVE)], "new_only")
        embeds = unit(200)
        for space in (COLLAR, SLEEVE):
            index.add(space, names(200), embeds, fingerprint=OLD)
        queries = {COLLAR: unit(1), SLEEVE: unit(1)}
        with pytest.raises(ValueError, match="spread of scores in 'collar@tops' is not known.*measure_spread"):
            index.search([COLLAR, SLEEVE], queries, 3, fingerprint=OLD)
        scores = (embeds @ embeds.T)[~np.eye(200, dtype=bool)]
        assert index.measure_spread(COLLAR) == pytest.approx(scores.std(), rel=0.05)
        assert index.spaces[COLLAR].spread == pytest.approx(scores.std(), rel=0.05)
        # Of a build its own; and of vectors that are all the same none, whatever is left of rounding.
        index.land([revision(COLLAR, NEW, spread=None)], "full")
        index.add(COLLAR, names(200), np.tile(embeds[:1], (200, 1)), fingerprint=NEW)
        assert index.measure_spread(COLLAR, fingerprint=NEW) is None
        assert index.stored(COLLAR, NEW).description.spread is None
        index.add(COLLAR, names(200), 2 * embeds, fingerprint=NEW)
        assert index.measure_spread(COLLAR, fingerprint=NEW) == pytest.approx(4 * scores.std(), rel=0.05)
        assert index.stored(COLLAR, NEW).description.spread > 3 * index.spaces[COLLAR].spread
        index.search([COLLAR, SLEEVE], queries, 3, fingerprint=OLD)
