"""Retrieval metrics against slow loops in plain Python, worked examples and the published test lists."""

import doctest
import itertools
import math
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from modeling_mclfir.metrics import (
    aggregate_attributes,
    aggregation,
    average_precision,
    average_precision_by_relevance,
    chance,
    count_relevant,
    expected_average_precision,
    first_relevant_rank,
    label_prior,
    mean_average_precision,
    mean_over_queries,
    precision_at_k,
    recall_at_k,
    recall_subset_at_k,
    retrieval,
    target_rank,
    triplet_accuracy,
)

ASEN_META = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "asen_meta"


# --- the slow loops -------------------------------------------------------------------------------------------------


def slow_cosine(a, b):
    norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    cosine = math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0
    return round(cosine * 2**24)  # equal up to rounding errors is equal


def slow_ranking(case, q):
    """Gallery indices, best first, gallery order among equals, the query's own id left out."""
    scored = []
    for g, embed in enumerate(case["gallery_embeds"].tolist()):
        if "query_ids" not in case or case["query_ids"][q] != case["gallery_ids"][g]:
            scored.append((-slow_cosine(case["query_embeds"][q].tolist(), embed), g))
    return [g for _, g in sorted(scored)]


def slow_hits(case, q):
    return [bool(case["query_labels"][q] == case["gallery_labels"][g]) for g in slow_ranking(case, q)]


def slow_average_precision(case, q, k=None, normalizer="relevant"):
    hits = slow_hits(case, q)
    if not any(hits):
        return math.nan
    precisions, found = [], 0
    for place, hit in enumerate(hits[:k], start=1):
        if hit:
            found += 1
            precisions.append(found / place)
    divisor = sum(hits)
    if normalizer == "hits":
        divisor = max(found, 1)
    elif normalizer == "min_k_relevant" and k is not None:
        divisor = min(k, divisor)
    return sum(precisions) / divisor


# --- random cases ---------------------------------------------------------------------------------------------------


def random_case(seed, with_ids=False):
    """Integer coordinates give many exact ties; few labels give hits, an extra one gives queries without any."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    num_queries, num_gallery = int(draw(1, 9, 1)), int(draw(1, 15, 1)) if seed % 5 else 1
    dim = int(draw(1, 4, 1))
    dtype = torch.float64 if seed % 2 else torch.float32
    case = {
        "query_embeds": draw(-2, 3, num_queries, dim).to(dtype),
        "gallery_embeds": draw(-2, 3, num_gallery, dim).to(dtype),
        "query_labels": draw(0, 4, num_queries),
        "gallery_labels": draw(0, 3, num_gallery),
    }
    if with_ids:
        case["query_ids"], case["gallery_ids"] = draw(0, 5, num_queries), draw(0, 5, num_gallery)
    return case


CASES = [pytest.param(seed, with_ids, id=f"{seed}-{with_ids}") for seed in range(25) for with_ids in (False, True)]


def assert_same(actual, expected):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("seed, with_ids", CASES)
def test_average_precision_equals_the_loop(seed, with_ids):
    case = random_case(seed, with_ids)
    queries = range(len(case["query_labels"]))
    assert_same(average_precision(**case), [slow_average_precision(case, q) for q in queries])
    for k, normalizer in itertools.product((1, 2, 3, 50), retrieval.NORMALIZERS):
        expected = [slow_average_precision(case, q, k, normalizer) for q in queries]
        assert_same(average_precision(**case, k=k, normalizer=normalizer), expected)


def relevance_of(case, relevant):
    """The case with relevance in the place of labels."""
    return {name: value for name, value in case.items() if "labels" not in name} | {"relevant": relevant}


@pytest.mark.parametrize("seed, with_ids", CASES)
def test_relevance_by_equal_labels_is_average_precision(seed, with_ids):
    case = random_case(seed, with_ids)
    equal = case["query_labels"][:, None] == case["gallery_labels"][None, :]
    found = average_precision_by_relevance(**relevance_of(case, equal))
    expected = average_precision(**case)
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("seed, with_ids", CASES)
def test_average_precision_by_relevance_equals_the_loop(seed, with_ids):
    case = random_case(seed, with_ids)
    shape = len(case["query_labels"]), len(case["gallery_labels"])
    # Relevance that no labels could give: of several labels an image, say.
    relevant = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < (0.0, 0.2, 0.6, 1.0)[seed % 4]
    expected = []
    for q in range(shape[0]):
        hits = [bool(relevant[q, g]) for g in slow_ranking(case, q)]
        precisions = [sum(hits[:place]) / place for place, hit in enumerate(hits, start=1) if hit]
        expected.append(sum(precisions) / len(precisions) if precisions else math.nan)
    content = relevance_of(case, relevant)
    assert_same(average_precision_by_relevance(**content), expected)
    assert_same(average_precision_by_relevance(**content, chunk_size=1), expected)


def test_a_query_whose_only_relevant_item_is_itself_is_nan():
    ids = torch.arange(2)
    relevant = torch.tensor([[True, False], [True, True]])
    found = average_precision_by_relevance(E2, E2, relevant, query_ids=ids, gallery_ids=ids)
    assert_same(found, [math.nan, 1.0])
    assert torch.equal(relevant, torch.tensor([[True, False], [True, True]])), "what is given stays as it is"


@pytest.mark.parametrize("seed, with_ids", CASES)
def test_precision_and_recall_equal_the_loop(seed, with_ids):
    case = random_case(seed, with_ids)
    hits = [slow_hits(case, q) for q in range(len(case["query_labels"]))]
    ranks = first_relevant_rank(**case)
    assert ranks.tolist() == [h.index(True) + 1 if True in h else 0 for h in hits]
    for k in (1, 2, 5, 50):
        assert_same(precision_at_k(**case, k=k), [sum(h[:k]) / k if any(h) else math.nan for h in hits])
        found = [any(h[:k]) for h in hits]
        assert recall_at_k(ranks, k, "zero") == pytest.approx(sum(found) / len(hits))
        answerable = [f for f, h in zip(found, hits, strict=True) if any(h)]
        expected = sum(answerable) / len(answerable) if answerable else math.nan
        assert recall_at_k(ranks, k) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed, with_ids", CASES)
def test_target_rank_equals_the_loop(seed, with_ids):
    case = random_case(seed, with_ids)
    rng = random.Random(seed)
    rankings = [slow_ranking(case, q) for q in range(len(case["query_labels"]))]
    kept = [q for q, ranking in enumerate(rankings) if ranking]
    if not kept:
        pytest.skip("every gallery item carries its query's id in this case")
    sides = {name: value[kept] if name.startswith("query") else value for name, value in case.items()}
    sides = {name: value for name, value in sides.items() if "labels" not in name}
    rankings = [rankings[q] for q in kept]
    targets = [rng.choice(ranking) for ranking in rankings]
    expected = [ranking.index(target) + 1 for ranking, target in zip(rankings, targets, strict=True)]
    assert target_rank(**sides, target_indices=torch.tensor(targets), chunk_size=2).tolist() == expected

    num_gallery, expected, subsets = len(case["gallery_labels"]), [], []
    for ranking, target in zip(rankings, targets, strict=True):
        subset = [target, *rng.choices(range(-1, num_gallery), k=3)]
        rng.shuffle(subset)
        subsets.append(subset)
        expected.append([g for g in ranking if g in subset].index(target) + 1)
    options = {"target_indices": torch.tensor(targets), "subset_indices": torch.tensor(subsets)}
    assert target_rank(**sides, **options, chunk_size=2).tolist() == expected
    for k in (1, 2):
        share = sum(rank <= k for rank in expected) / len(expected)
        assert recall_subset_at_k(**sides, **options, k=k) == pytest.approx(share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_chunked_equals_unchunked_bit_for_bit(dtype):
    torch.manual_seed(0)
    query, gallery = torch.randn(61, 129).to(dtype), torch.randn(203, 129).to(dtype)
    gallery[103:] = gallery[:100]  # equal vectors, which float32 alone does not always score equal
    sides = query, gallery, torch.randint(0, 6, (61,)), torch.randint(0, 6, (203,))
    for function in (average_precision, first_relevant_rank, lambda *a, **o: precision_at_k(*a, 5, **o)):
        whole = function(*sides, chunk_size=1000)
        for chunk_size in (1, 7, 60, 61):
            assert torch.equal(function(*sides, chunk_size=chunk_size), whole)
    whole = average_precision(*sides)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(average_precision(*sides), whole)


@pytest.mark.parametrize("dim", [3, 64, 129])
def test_equal_vectors_rank_in_gallery_order(dim):
    torch.manual_seed(dim)
    gallery = torch.randn(1, dim).repeat(101, 1)
    targets = torch.arange(101)
    assert torch.equal(target_rank(torch.randn(101, dim), gallery, targets, chunk_size=1), targets + 1)


def test_cosine_ignores_length_and_zero_vectors_score_zero():
    query, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1, 2])
    gallery = torch.tensor([[0.0, 0.0], [0.01, 0.0], [-100.0, 1.0]])
    for label, rank in ((1, 1), (0, 2), (2, 3)):
        assert first_relevant_rank(query, gallery, torch.tensor([label]), labels).item() == rank


def test_the_three_meanings_of_map_at_k():
    """Five relevant, k = 3, hits at places 1 and 3."""
    angles = torch.arange(8) * 0.1
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    sides = torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([0]), torch.tensor([0, 1, 0, 1, 1, 0, 0, 0])
    for normalizer, expected in (("relevant", 1 / 3), ("min_k_relevant", 5 / 9), ("hits", 5 / 6)):
        assert average_precision(*sides, k=3, normalizer=normalizer).item() == pytest.approx(expected)
        full = (1 + 2 / 3 + 3 / 6 + 4 / 7 + 5 / 8) / 5
        assert average_precision(*sides, normalizer=normalizer).item() == pytest.approx(full)


def test_leave_one_out_equals_removing_the_item():
    torch.manual_seed(0)
    embeds, labels, ids = torch.randn(12, 4), torch.randint(0, 3, (12,)), torch.randperm(12) + 100
    both = average_precision(embeds, embeds, labels, labels, query_ids=ids, gallery_ids=ids)
    counts = count_relevant(labels, labels, query_ids=ids, gallery_ids=ids)
    prior = label_prior(labels, labels, query_ids=ids, gallery_ids=ids)
    for q in range(12):
        rest = torch.arange(12) != q
        alone = average_precision(embeds[q : q + 1], embeds[rest], labels[q : q + 1], labels[rest])
        assert_same(both[q : q + 1], alone.tolist())
        assert (counts[0][q], counts[1][q]) == ((labels[rest] == labels[q]).sum(), 11)
        assert_same(prior[q : q + 1], label_prior(labels[q : q + 1], labels[rest]).tolist())
    assert (average_precision(embeds, embeds, labels, labels) >= both).all()  # finding oneself first is a free hit


def test_no_queries_or_no_gallery():
    some, none, labels, empty = torch.ones(2, 3), torch.ones(0, 3), torch.tensor([0, 1]), torch.tensor([]).long()
    assert average_precision(none, some, empty, labels).shape == (0,)
    assert first_relevant_rank(none, some, empty, labels).shape == (0,)
    assert average_precision(some, none, labels, empty).isnan().all()
    assert first_relevant_rank(some, none, labels, empty).tolist() == [0, 0]
    assert label_prior(labels, empty).isnan().all()
    assert average_precision_by_relevance(none, some, torch.ones(0, 2) > 0).shape == (0,)
    assert average_precision_by_relevance(some, none, torch.ones(2, 0) > 0).isnan().all()
    assert expected_average_precision(empty, empty).shape == (0,)


def test_metrics_take_no_gradient():
    query = torch.randn(2, 3, requires_grad=True)
    assert not average_precision(query, query, torch.tensor([0, 1]), torch.tensor([0, 1])).requires_grad


# --- triplets, means ------------------------------------------------------------------------------------------------


def test_triplet_accuracy_equals_the_loop():
    torch.manual_seed(0)
    anchor, positive, negative = torch.randint(-1, 2, (3, 300, 2)).float()
    right = sum(
        slow_cosine(a, p) > slow_cosine(a, n)
        for a, p, n in zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True)
    )
    assert triplet_accuracy(anchor, positive, negative) == right / 300
    assert triplet_accuracy(anchor, positive, positive) == 0.0


def test_means_skip_or_zero_queries_without_positives():
    values = torch.tensor([0.25, torch.nan, 0.75, torch.nan])
    assert mean_average_precision(values) == mean_over_queries(values) == 0.5
    assert mean_average_precision(values, "zero") == 0.25
    assert math.isnan(mean_over_queries(torch.tensor([torch.nan])))
    assert mean_over_queries(torch.tensor([torch.nan]), "zero") == 0.0


def test_aggregate_attributes():
    values = {"a": torch.tensor([0.5, torch.nan]), "b": torch.tensor([1.0, 1.0, 1.0]), "c": torch.tensor([torch.nan])}
    skip, zero = aggregate_attributes(values), aggregate_attributes(values, "zero")
    assert (skip["mean_over_attributes"], skip["mean_over_queries"]) == (0.75, 3.5 / 4)
    assert (zero["mean_over_attributes"], zero["mean_over_queries"]) == (pytest.approx(1.25 / 3), 3.5 / 6)
    assert (skip["num_queries"], skip["num_without_positives"]) == (6, 2)
    assert zero["per_attribute"] == {"a": 0.25, "b": 1.0, "c": 0.0}


# --- chance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_gallery", range(1, 7))
def test_expected_average_precision_over_all_permutations(num_gallery):
    for num_relevant in range(1, num_gallery + 1):
        total = count = 0
        for ranking in itertools.permutations([True] * num_relevant + [False] * (num_gallery - num_relevant)):
            places = [place for place, hit in enumerate(ranking, start=1) if hit]
            total += sum((n + 1) / place for n, place in enumerate(places)) / num_relevant
            count += 1
        expected = expected_average_precision(torch.tensor([num_relevant]), torch.tensor([num_gallery]))
        assert expected.item() == pytest.approx(total / count, abs=1e-12)


def test_expected_average_precision_against_simulation():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 7 + [1] * 93)
    embeds = torch.randn(20_000, 16)  # random directions rank a fixed random gallery nearly uniformly; so draw it anew
    simulated = [
        average_precision(embeds[i : i + 200], torch.randn(100, 16), torch.zeros(200).long(), labels).mean()
        for i in range(0, 20_000, 200)
    ]
    expected = expected_average_precision(torch.tensor([7]), torch.tensor([100])).item()
    assert torch.stack(simulated).mean().item() == pytest.approx(expected, abs=0.005)
    assert expected > 0.07  # above the prior


def test_no_relevant_item_is_nan_in_both_baselines():
    assert label_prior(torch.tensor([0, 5]), torch.tensor([0, 1])).isnan().tolist() == [False, True]
    assert expected_average_precision(torch.tensor([0]), torch.tensor([3])).isnan().all()


def read_asen(path):
    """Labels by attribute, from lines of image id, attribute and value (some files end lines with CR LF)."""
    labels = defaultdict(list)
    for line in path.read_text().splitlines():
        if line.strip():
            _, attribute, value = line.split()
            labels[attribute].append(int(value))
    return {attribute: torch.tensor(values) for attribute, values in labels.items()}


@pytest.mark.skipif(not ASEN_META.is_dir(), reason="the ASEN test lists are not in ../shared/fixtures/asen_meta")
@pytest.mark.parametrize(
    "dataset, prior, expected, num_queries, num_without_positives",
    [
        ("FashionAI", 15.47, 15.79, 3600, 0),
        ("DARN", 31.00, 31.26, 4293, 3),
        ("DeepFashion", 3.21, 3.38, 5525, 23),
    ],
)
def test_asen_lists_give_the_known_baselines(dataset, prior, expected, num_queries, num_without_positives):
    query, gallery = (read_asen(ASEN_META / dataset / f"{side}_test.txt") for side in ("query", "candidate"))
    assert query.keys() == gallery.keys()
    priors = aggregate_attributes({a: label_prior(query[a], gallery[a]) for a in query}, "zero")
    random_aps = {a: expected_average_precision(*count_relevant(query[a], gallery[a])) for a in query}
    random_map = aggregate_attributes(random_aps, "zero")
    assert 100 * priors["mean_over_queries"] == pytest.approx(prior, abs=0.005)
    assert 100 * random_map["mean_over_queries"] == pytest.approx(expected, abs=0.005)
    assert random_map["num_queries"] == num_queries
    assert random_map["num_without_positives"] == num_without_positives


# --- errors ---------------------------------------------------------------------------------------------------------

E2, L2, YES = torch.eye(2), torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    "error, words, call",
    [
        (ValueError, "leave the others out", lambda: average_precision(E2, E2, torch.tensor([0, -1]), L2)),
        (ValueError, "gallery_labels holds 1 labels", lambda: label_prior(L2, torch.tensor([0, -1]))),
        (ValueError, "query_labels has shape", lambda: average_precision(E2, E2, L2[:1], L2)),
        (ValueError, "same dimension", lambda: average_precision(E2, torch.ones(2, 3), L2, L2)),
        (ValueError, "must be \\(number of items", lambda: average_precision(E2[0], E2, L2, L2)),
        (ValueError, "NaN or infinity", lambda: average_precision(E2 / 0, E2, L2, L2)),
        (TypeError, "floating-point", lambda: average_precision(E2.long(), E2, L2, L2)),
        (TypeError, "must hold integers", lambda: average_precision(E2, E2, L2.float(), L2)),
        (TypeError, "must hold integers", lambda: average_precision(E2, E2, L2 > 0, L2)),
        (ValueError, "without gallery_ids", lambda: average_precision(E2, E2, L2, L2, query_ids=L2)),
        (ValueError, "without query_ids", lambda: average_precision(E2, E2, L2, L2, gallery_ids=L2)),
        (ValueError, "normalizer is 'mean'", lambda: average_precision(E2, E2, L2, L2, normalizer="mean")),
        (TypeError, "relevant is torch.int64", lambda: average_precision_by_relevance(E2, E2, L2[:, None] + L2)),
        (
            ValueError,
            r"\(2, 1\), but must be \(2, 2\)",
            lambda: average_precision_by_relevance(E2, E2, L2[:, None] > 0),
        ),
        (ValueError, r"\(2,\), but must be \(2, 2\)", lambda: average_precision_by_relevance(E2, E2, L2 > 0)),
        (TypeError, "gallery_embeds", lambda: average_precision_by_relevance(E2, L2[:, None], YES)),
        (ValueError, "query_embeds", lambda: average_precision_by_relevance(E2 * math.nan, E2, YES)),
        (ValueError, "without gallery_ids", lambda: average_precision_by_relevance(E2, E2, YES, query_ids=L2)),
        (ValueError, "chunk_size is 0", lambda: average_precision_by_relevance(E2, E2, YES, chunk_size=0)),
        (ValueError, "k is 0", lambda: average_precision(E2, E2, L2, L2, k=0)),
        (ValueError, "k is 1.5", lambda: precision_at_k(E2, E2, L2, L2, 1.5)),
        (ValueError, "chunk_size is 0", lambda: average_precision(E2, E2, L2, L2, chunk_size=0)),
        (ValueError, "rows of the gallery: 0 to 1", lambda: target_rank(E2, E2, torch.tensor([0, 2]))),
        (ValueError, "target of query 1", lambda: target_rank(E2, E2, L2, subset_indices=torch.tensor([[0], [0]]))),
        (ValueError, "target of query 0", lambda: target_rank(E2, E2, L2, query_ids=L2, gallery_ids=L2)),
        (ValueError, "2 dimension", lambda: target_rank(E2, E2, L2, subset_indices=L2)),
        (ValueError, "a rank is a place", lambda: recall_at_k(torch.tensor([-1]), 1)),
        (ValueError, "no_positives is 'drop'", lambda: recall_at_k(L2, 1, "drop")),
        (ValueError, "at least one query", lambda: mean_average_precision(torch.tensor([]))),
        (ValueError, "same number", lambda: triplet_accuracy(E2, E2, E2[:1])),
        (ValueError, "at least 1", lambda: triplet_accuracy(E2[:0], E2[:0], E2[:0])),
        (ValueError, "per_attribute is empty", lambda: aggregate_attributes({})),
        (ValueError, "Attribute 'neck'", lambda: aggregate_attributes({"neck": torch.tensor([])})),
        (ValueError, "3 relevant items of 2", lambda: expected_average_precision(L2 + 2, L2 + 2 - L2)),
    ],
)
def test_mistakes_are_named(error, words, call):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("module", [aggregation, chance, retrieval])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    torch.manual_seed(0)
    sides = torch.randn(33, 64), torch.randn(500, 64), torch.randint(0, 5, (33,)), torch.randint(0, 5, (500,))
    on_device = [side.cuda() for side in sides]
    assert_same(average_precision(*on_device).cpu(), average_precision(*sides).tolist())
    assert torch.equal(first_relevant_rank(*on_device).cpu(), first_relevant_rank(*sides))
    assert_same(label_prior(*on_device[2:]), label_prior(*sides[2:]).tolist())
