# SPDX-License-Identifier: Apache-2.0
"""Which space answers: the router's numbers and what stays of them, weights, and fused vectors against sums."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from modeling_mclfir.routing_mclfir import (
    IncrementRouter,
    fuse_gallery,
    fuse_queries,
    score_spread,
    space_weights,
    value_prototypes,
)

C = 16
DIMS = (5, 8, 3)  # of the spaces' vectors
INF = float("inf")


def cone(num_images: int, seed: int, place: int = 0) -> torch.Tensor:
    """Features in a narrow cone, of unlike lengths; around another axis for each place."""
    generator = torch.Generator().manual_seed(seed)
    features = 1 + 0.1 * torch.randn(num_images, C, generator=generator)
    features[:, place] += 1
    return features * (0.5 + torch.rand(num_images, 1, generator=generator))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def unit_rows(num_images: int, dim: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(num_images, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def filled_router(*increments: torch.Tensor) -> IncrementRouter:
    router = IncrementRouter(C)
    for prototypes in increments:
        router.add_increment(prototypes)
    return router


def three_increments() -> list[torch.Tensor]:
    labels = torch.arange(60) % 5
    return [value_prototypes(cone(60, seed, place=seed), labels % (5 - seed)) for seed in range(3)]


def test_prototypes_are_the_mean_directions_of_the_values_that_occur():
    pooled, labels = cone(7, 0), torch.tensor([4, 1, -1, 4, 1, 4, 9])
    features = unit(pooled.double().numpy())
    expected = unit(np.stack([features[[1, 4]].mean(0), features[[0, 3, 5]].mean(0), features[6]]))
    np.testing.assert_allclose(value_prototypes(pooled, labels).numpy(), expected, atol=1e-6, rtol=0)
    assert torch.equal(value_prototypes(pooled.half(), labels), value_prototypes(pooled.half().float(), labels))
    assert value_prototypes(pooled, torch.full((7,), -1)).shape == (0, C)


def test_similarity_is_the_largest_cosine_with_an_increments_prototypes():
    increments, pooled = three_increments(), cone(9, 7)
    features = unit(pooled.double().numpy())
    expected = [(features @ rows.double().numpy().T).max(1) for rows in increments]
    router = filled_router(*increments)
    assert router.counts == [5, 4, 3] and torch.equal(router.prototypes, torch.cat(increments))
    np.testing.assert_allclose(router(pooled).numpy(), np.stack(expected, axis=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_images", [1, 9, 64])
def test_old_columns_do_not_change_by_a_bit(num_images):
    pooled, router = cone(num_images, 7), IncrementRouter(C)
    columns = []
    for seed, size in enumerate((5, 1, 0, 70, 3, 2)):
        router.add_increment(normalize(cone(size, seed), dim=1))
        found = router(pooled)
        for increment, column in enumerate(columns):
            assert torch.equal(found[:, increment], column)
        columns = list(found.T.clone())
    assert len(columns) == 6


def test_an_increment_without_prototypes_is_minus_infinitely_near():
    increments, empty, pooled = three_increments(), torch.zeros(0, C), cone(4, 7)
    similarities = filled_router(empty, increments[0], empty, increments[1])(pooled)
    assert similarities[:, [0, 2]].isneginf().all()
    assert torch.equal(similarities[:, [1, 3]], filled_router(*increments[:2])(pooled))
    assert IncrementRouter(C)(pooled).shape == (4, 0)
    assert filled_router(empty)(pooled).isneginf().all()


def test_router_finds_the_increment_whichever_came_first():
    increments = three_increments()
    for order in itertools.permutations(range(3)):
        router = filled_router(*(increments[domain] for domain in order))
        for place, domain in enumerate(order):
            assert (router(cone(40, 50 + domain, place=domain)).argmax(dim=1) == place).all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_all_comes_back_from_disk(tmp_path, device):
    router, pooled = filled_router(*three_increments()[:2], torch.zeros(0, C)), cone(9, 7)
    save_file(router.state_dict(), tmp_path / "router.safetensors")
    with torch.device(device):
        again = IncrementRouter(C, router.counts)
    assert not any(buffer.any() for buffer in again.buffers() if not buffer.is_meta)
    again.load_state_dict(load_file(tmp_path / "router.safetensors"), assign=device == "meta")
    assert again.counts == router.counts and torch.equal(again(pooled), router(pooled))
    for one in (router, again):
        one.add_increment(three_increments()[2])
    assert torch.equal(again(pooled), router(pooled))
    assert router.counts == [5, 4, 0, 3], "a router's counts are its own"


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("top", [None, 1, 2, 9])
def test_weights_are_a_softmax_of_the_largest(temperature, top):
    similarities = torch.tensor([[0.1, 0.3, 0.2, -INF], [0.5, -INF, -INF, -0.5], [-0.9, -0.8, 0.7, 0.6]])
    expected = np.zeros((3, 4))
    for row, values in enumerate(similarities.double().numpy()):
        kept = [s for s in sorted(range(4), key=lambda s: -values[s])[:top] if values[s] > -INF]
        powers = np.exp(values[kept] / temperature)
        expected[row, kept] = powers / powers.sum()
    weights = space_weights(similarities, temperature, top)
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-6, rtol=0)
    assert (weights[similarities.isneginf()] == 0).all()
    if top == 1:
        assert torch.equal(weights, torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]))


@pytest.mark.parametrize("top", [None, 1, 2])
def test_where_nothing_is_known_weights_are_equal(top):
    weights = space_weights(torch.tensor([[-INF] * 4, [0.1, 0.2, -INF, -INF]]), 0.1, top)
    assert torch.equal(weights[0], torch.full((4,), 0.25)) and weights[1, 1] > 0.5


def test_of_equal_similarities_the_older_space_is_kept():
    similarities = torch.full((2, 40), 0.3)
    assert torch.equal(space_weights(similarities, 0.1, top=1).nonzero(), torch.tensor([[0, 0], [1, 0]]))
    assert torch.equal(space_weights(similarities, 0.1, top=2)[0, :3], torch.tensor([0.5, 0.5, 0.0]))


def test_spread_is_that_of_all_pairs_of_different_rows():
    embeds = unit_rows(30, 4, seed=0) + 0.4
    embeds = normalize(embeds, dim=1)
    cosines = embeds.double().numpy() @ embeds.double().numpy().T
    cosines = cosines[~np.eye(30, dtype=bool)]
    mean, std = score_spread(embeds, num_pairs=200_000)
    assert abs(mean - cosines.mean()) < 0.005 and abs(std - cosines.std()) < 0.005
    assert score_spread(embeds) == score_spread(embeds) != score_spread(embeds, seed=1)
    assert score_spread(torch.eye(2)) == (0.0, 0.0), "a row is never paired with itself"
    mean, std = score_spread(torch.eye(2)[[0, 0, 1]], num_pairs=9)  # cosines 0 and 1 only
    assert 0 < mean < 1 and abs(std**2 - mean * (1 - mean)) < 1e-12


def spaces():
    queries = [unit_rows(6, dim, seed) for seed, dim in enumerate(DIMS)]
    gallery = [unit_rows(50, dim, 10 + seed) for seed, dim in enumerate(DIMS)]
    weights = torch.rand(6, 3, generator=torch.Generator().manual_seed(3)).softmax(dim=1)
    return queries, gallery, weights, [0.2, 0.05, 0.6]


def score_sum(queries, gallery, weights, spreads) -> np.ndarray:
    scores = 0
    for s, sigma in enumerate(spreads):
        cosines = queries[s].double().numpy() @ gallery[s].double().numpy().T
        scores = scores + weights[:, s, None].double().numpy() / sigma * cosines
    return scores


@pytest.mark.parametrize("as_tensor", [False, True])
def test_dot_products_of_fused_vectors_are_the_sum_of_scores(as_tensor):
    queries, gallery, weights, spreads = spaces()
    fused = fuse_queries(queries, weights, torch.tensor(spreads) if as_tensor else spreads)
    rows = fuse_gallery(gallery)
    assert fused.shape == (6, sum(DIMS)) and rows.shape == (50, sum(DIMS))
    expected = score_sum(queries, gallery, weights, spreads)
    np.testing.assert_allclose((fused @ rows.T).numpy(), expected, atol=1e-5, rtol=0)


def test_dot_product_and_cosine_rank_as_the_sum_of_scores_does():
    queries, gallery, weights, spreads = spaces()
    fused, rows = fuse_queries(queries, weights, spreads).double(), fuse_gallery(gallery).double()
    torch.testing.assert_close(rows.norm(dim=1), torch.full((50,), 3**0.5).double(), atol=1e-6, rtol=0)
    expected = np.argsort(-score_sum(queries, gallery, weights, spreads), axis=1)
    for found in (fused @ rows.T, normalize(fused, dim=1) @ normalize(rows, dim=1).T):
        assert np.array_equal(np.argsort(-found.numpy(), axis=1), expected)


def test_means_of_the_spaces_would_not_change_the_order():
    queries, gallery, weights, spreads = spaces()
    scores = score_sum(queries, gallery, weights, spreads)
    calibrated = scores - (weights.double().numpy() * np.array([0.3, 0.9, -0.2]) / spreads).sum(1, keepdims=True)
    assert np.array_equal(np.argsort(-scores, axis=1), np.argsort(-calibrated, axis=1))


def test_hard_routing_ranks_as_the_chosen_space_alone():
    queries, gallery, _, spreads = spaces()
    chosen = [0, 1, 2, 2, 1, 0]
    similarities = torch.full((6, 3), 0.1)
    similarities[range(6), chosen] = 0.2
    fused = fuse_queries(queries, space_weights(similarities, 0.05, top=1), spreads)
    scores = fused.double() @ fuse_gallery(gallery).double().T
    for n, space in enumerate(chosen):
        alone = queries[space][n].double() @ gallery[space].double().T
        assert torch.equal(scores[n].argsort(descending=True), alone.argsort(descending=True))
        assert fused[n].count_nonzero() == DIMS[space]


def test_a_further_space_leaves_the_old_columns_of_the_gallery():
    gallery = spaces()[1]
    assert torch.equal(fuse_gallery(gallery)[:, : sum(DIMS[:2])], fuse_gallery(gallery[:2]))


def test_half_precision_comes_in_and_float32_comes_out():
    queries, gallery, weights, spreads = spaces()
    fused = fuse_queries([rows.bfloat16() for rows in queries], weights.bfloat16(), spreads)
    rows = fuse_gallery([rows.bfloat16() for rows in gallery])
    assert fused.dtype == rows.dtype == torch.float32
    mean = (fused @ rows.T).sub(torch.from_numpy(score_sum(queries, gallery, weights, spreads))).abs().mean()
    assert mean < 0.05


Q = [unit_rows(2, 3, 0), unit_rows(2, 4, 1)]
HALF = torch.full((2, 2), 0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: IncrementRouter(C, [3, -1]), r"counts must be whole .*\[3, -1\]"),
        (lambda: IncrementRouter(C, [2.0]), r"counts must be whole .*\[2.0\]"),
        (lambda: IncrementRouter(C).add_increment(torch.zeros(2, 5)), r"prototypes \(P, 16\); got \(2, 5\)"),
        (lambda: IncrementRouter(C).add_increment(torch.zeros(C)), r"prototypes \(P, 16\); got \(16,\)"),
        (
            lambda: IncrementRouter(C).add_increment(torch.zeros(2, C)),
            "prototypes must be of unit length; row 0 has the length 0",
        ),
        (lambda: IncrementRouter(C)(torch.zeros(2, 5)), r"features \(N, 16\); got \(2, 5\)"),
        (lambda: IncrementRouter(C)(torch.zeros(C)), r"features \(N, 16\); got \(16,\)"),
        (lambda: value_prototypes(torch.zeros(3, C), torch.zeros(2)), r"got \(3, 16\), \(2,\)"),
        (lambda: value_prototypes(torch.zeros(3), torch.zeros(3)), r"got \(3,\), \(3,\)"),
        (lambda: space_weights(torch.zeros(3), 1.0), r"similarities \(N, S\); got \(3,\)"),
        (lambda: space_weights(torch.zeros(3, 2), 0.0), "temperature must be above 0; got 0.0"),
        (lambda: space_weights(torch.zeros(3, 2), float("nan")), "temperature must be above 0; got nan"),
        (lambda: space_weights(torch.zeros(3, 2), 1.0, top=0), "top must be at least 1.*got 0"),
        (lambda: score_spread(Q[0][:1]), "got 1 and 10000"),
        (lambda: score_spread(Q[0], num_pairs=1), "got 2 and 1"),
        (lambda: score_spread(Q[0][0]), r"Expected embeds of two dimensions.*\(3,\)"),
        (lambda: score_spread(Q[0] * 2), "embeds must be of unit length; row 0 has the length 2"),
        (lambda: fuse_gallery([]), "no space to fuse"),
        (lambda: fuse_gallery([Q[0], Q[1][:1]]), r"every image; got \[2, 1\] vectors"),
        (lambda: fuse_gallery([Q[0], Q[1][0]]), r"Expected embeds\[1\] of two dimensions"),
        (lambda: fuse_gallery([Q[0], Q[1] * torch.tensor([[1], [0.5]])]), r"embeds\[1\] .* row 1 has the length 0.5"),
        (lambda: fuse_gallery([Q[0] * float("nan")]), r"row 0 has the length nan"),
        (lambda: fuse_queries([], HALF, [1, 1]), "no space to fuse"),
        (lambda: fuse_queries([Q[0] * 2, Q[1]], HALF, [1, 1]), r"embeds\[0\] must be of unit length"),
        (lambda: fuse_queries(Q, HALF[:, :1], [1, 1]), r"\(N, S\) = \(2, 2\) for these embeds; got \(2, 1\)"),
        (lambda: fuse_queries(Q, HALF, [1, 1, 1]), r"spreads \(2,\), one a space; got \(3,\)"),
        (lambda: fuse_queries(Q, HALF, [1, 0]), r"above 0 and finite; got \[1.0, 0.0\]"),
        (lambda: fuse_queries(Q, HALF, [INF, 1]), r"above 0 and finite; got \[inf, 1.0\]"),
        (lambda: fuse_queries(Q, HALF, [1, float("nan")]), r"above 0 and finite; got \[1.0, nan\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
