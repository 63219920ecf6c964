# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from modeling_mclfir.index import FaissStore
from modeling_mclfir.index.policies import (
    MADE_BY,
    POLICIES,
    DriftMap,
    choose_calibration,
    fit_map,
    mean_drift,
    procrustes,
    score_spread,
    spherical_mix,
)

DIM = 12


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def rotation(dim: int = DIM, seed: int = 1) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def test_the_four_policies_of_the_design():
    assert set(POLICIES) == {"full", "none", "new_only", "drift_compensated"}


class TestMeanDrift:
    def test_undoes_a_translation(self):
        old, shift = some(40), np.arange(DIM) / 10
        drift = mean_drift(old, old + shift)
        np.testing.assert_allclose(drift, shift, atol=1e-12)
        other = some(5, seed=3)
        mapped = DriftMap("mean_drift", drift).apply(other + shift)
        np.testing.assert_allclose(unit(mapped), other, atol=1e-6)

    def test_is_the_mean_of_the_pairs_differences(self):
        old, new = some(7), some(7, seed=1)
        expected = sum(new[place] - old[place] for place in range(7)) / 7
        np.testing.assert_allclose(mean_drift(old, new), expected, atol=1e-12)

    def test_refuses_other_lengths(self):
        with pytest.raises(ValueError, match="one length; got 12 and 8"):
            mean_drift(some(5), some(5, 8))


class TestProcrustes:
    def test_undoes_a_rotation(self):
        new, turn = some(50), rotation()
        found = procrustes(new @ turn, new)
        np.testing.assert_allclose(found, turn, atol=1e-6)
        other = some(5, seed=3)
        np.testing.assert_allclose(DriftMap("procrustes", found).apply(other), other @ turn, atol=1e-6)

    def test_undoes_a_reflection(self):
        new, turn = some(50), rotation()
        turn[:, 0] *= -1
        np.testing.assert_allclose(procrustes(new @ turn, new), turn, atol=1e-6)

    @pytest.mark.parametrize("pairs", [3, 50])
    def test_is_orthogonal_whatever_the_pairs(self, pairs):
        found = procrustes(some(pairs), some(pairs, seed=1))
        np.testing.assert_allclose(found @ found.T, np.eye(DIM), atol=1e-10)

    def test_is_the_best_of_the_orthogonal_maps(self):
        new = some(50)
        old = unit(new @ rotation() + 0.1 * some(50, seed=2))
        best = np.linalg.norm(new @ procrustes(old, new) - old)
        for seed in range(20):
            near = np.linalg.qr(procrustes(old, new) + 0.05 * rotation(seed=seed))[0]
            near *= np.sign(np.diag(near.T @ procrustes(old, new)))
            assert np.linalg.norm(new @ near - old) >= best

    def test_leaves_directions_that_no_pair_shows(self):
        new = np.zeros((20, DIM))
        new[:, :3] = some(20, 3)
        turn = np.eye(DIM)
        turn[:3, :3] = rotation(3)
        np.testing.assert_allclose(procrustes(new @ turn, new), turn, atol=1e-6)

    @pytest.mark.parametrize("dims", [(8, 12), (12, 8)])
    def test_maps_between_lengths(self, dims):
        old_dim, new_dim = dims
        lift = rotation(12)[:8]  # (8, 12), orthonormal rows
        new = some(60, new_dim)
        old = new @ (lift if old_dim == 12 else lift.T)
        found = procrustes(old, new)
        assert found.shape == (new_dim, old_dim)
        small = found @ found.T if new_dim < old_dim else found.T @ found
        np.testing.assert_allclose(small, np.eye(8), atol=1e-10)
        if new_dim < old_dim:
            np.testing.assert_allclose(new @ found, old, atol=1e-6)


class TestSphericalMix:
    def test_its_ends_are_the_vectors(self):
        one, other = some(6), some(6, seed=1)
        np.testing.assert_array_equal(spherical_mix(one, other, 0), one)
        np.testing.assert_allclose(spherical_mix(one, other, 1), other, atol=1e-12)

    @pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
    def test_divides_the_angle(self, weight):
        one, other = some(6), some(6, seed=1)
        mixed = spherical_mix(one, other, weight)
        np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-12)
        angle = np.arccos((one * other).sum(axis=1))
        np.testing.assert_allclose(np.arccos((one * mixed).sum(axis=1)), weight * angle, atol=1e-7)
        np.testing.assert_allclose(np.arccos((other * mixed).sum(axis=1)), (1 - weight) * angle, atol=1e-7)

    def test_equal_and_opposite_vectors(self):
        one = some(4)
        np.testing.assert_allclose(spherical_mix(one, one, 0.3), one, atol=1e-12)
        np.testing.assert_allclose(spherical_mix(one, -one, 0.3), one, atol=1e-12)
        np.testing.assert_allclose(spherical_mix(one, -one, 0.7), -one, atol=1e-12)

    @pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
    def test_refuses_other_weights(self, weight):
        with pytest.raises(ValueError, match="A mix must be 0 .* to 1"):
            spherical_mix(some(2), some(2), weight)


class TestMaps:
    def test_mix_0_is_the_vector_and_1_the_mapped_one(self):
        old, new = some(40) @ rotation(), some(40)
        raw, plain = some(5, seed=5), procrustes(old, new)
        np.testing.assert_allclose(DriftMap("procrustes", plain, 0.0).apply(raw), raw, atol=1e-7)
        np.testing.assert_allclose(DriftMap("procrustes", plain, 1.0).apply(raw), raw @ plain, atol=1e-6)
        half = DriftMap("procrustes", plain, 0.5).apply(raw)
        np.testing.assert_allclose(half, spherical_mix(raw, raw @ plain, 0.5), atol=1e-6)

    @pytest.mark.parametrize("kind", ["mean_drift", "procrustes"])
    @pytest.mark.parametrize("mix", [1.0, 0.4])
    def test_keeps_lengths_and_survives_its_file(self, kind, mix):
        found, details = fit_map(kind, some(40), some(40, seed=1), mix)
        raw = 3 * some(5, seed=5)
        mapped = found.apply(raw)
        assert mapped.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 3, atol=1e-5)
        again = DriftMap.from_bytes(found.to_bytes(), kind, mix)
        np.testing.assert_array_equal(again.apply(raw), mapped)
        assert details["pairs"] == 40
        assert {found.to_bytes() for _ in range(5)} == {again.to_bytes()}

    def test_says_what_it_does_to_the_pairs(self):
        new = some(40)
        _, details = fit_map("procrustes", new @ rotation(), new)
        assert details["cosine_after"] == pytest.approx(1, abs=1e-6)
        expected = ((new @ rotation()) * new).sum(axis=1).mean()
        assert details["cosine_before"] == pytest.approx(expected)

    def test_refuses(self):
        with pytest.raises(ValueError, match="no drift map 'linear'; choose one of mean_drift, procrustes"):
            fit_map("linear", some(3), some(3))
        with pytest.raises(ValueError, match=r"\(3, 12\) and \(4, 12\)"):
            fit_map("procrustes", some(3), some(4))
        with pytest.raises(ValueError, match="must be finite"):
            fit_map("procrustes", some(3), some(3) * np.nan)
        with pytest.raises(ValueError, match="can't be mixed"):
            fit_map("procrustes", some(30, 8), some(30, 12), mix=0.5)
        with pytest.raises(ValueError, match=r"\(N, 12\) to map"):
            fit_map("procrustes", some(3), some(3))[0].apply(some(2, 8))


class TestChooseCalibration:
    def store(self, order: np.ndarray) -> FaissStore:
        # A large cluster, a small one.
        embeds = np.concatenate([some(90), 20 + some(30, seed=1)])
        opened = FaissStore(None, DIM)
        opened.add([f"item {place}" for place in order], embeds[order])
        return opened

    def test_is_the_same_whatever_the_order(self):
        store, other = self.store(np.arange(120)), self.store(np.random.default_rng(0).permutation(120))
        chosen = choose_calibration(store, 16, seed=3)
        assert len(set(chosen)) == 16
        assert choose_calibration(other, 16, seed=3) == chosen
        assert choose_calibration(store, 16, seed=4) != chosen

    def test_each_part_has_its_share(self):
        for seed in range(10):
            chosen = choose_calibration(self.store(np.arange(120)), 16, seed)
            # 4 of 16 are the small cluster's due; drawn at random, 0 to 8 are usual.
            assert 3 <= sum(int(name.split()[1]) >= 90 for name in chosen) <= 5

    def test_all_where_there_are_no_more_and_a_draw_where_there_are_many(self):
        store = self.store(np.arange(120))
        assert len(choose_calibration(store, 1000)) == 120
        assert len(choose_calibration(store, 1)) == 1
        with pytest.raises(ValueError, match="at least 1; got 0"):
            choose_calibration(store, 0)

    def test_leaves_out_what_came_through_a_map(self):
        store = self.store(np.arange(120))
        store.add(["mapped"], some(1), [{MADE_BY: "other"}])
        assert "mapped" not in choose_calibration(store, 1000)


def test_score_spread_is_that_of_the_router():
    torch = pytest.importorskip("torch")
    from modeling_mclfir.routing_mclfir import score_spread as of_router

    embeds = some(300).astype(np.float32)
    assert score_spread(embeds, 50_000) == pytest.approx(of_router(torch.from_numpy(embeds), 50_000)[1], rel=0.02)
    with pytest.raises(ValueError, match="Two vectors"):
        score_spread(embeds[:1])
