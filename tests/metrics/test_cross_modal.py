# SPDX-License-Identifier: Apache-2.0
"""Recall between texts and images."""

import math

import pytest
import torch

from modeling_mclfir.metrics import Captions, caption_codes, cross_modal_recall, first_match_rank, recall_figures


def slow_ranks(scores: torch.Tensor, matches: torch.Tensor) -> list[int]:
    """Rank of the best match of each row, by sorting pairs of numbers."""
    ranks = []
    for row, right in zip(scores.tolist(), matches.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        ranks.append(next((place + 1 for place, item in enumerate(order) if right[item]), 0))
    return ranks


def example(num_images: int = 23, seed: int = 0):
    """Scores of few values, so that many tie; images with several captions, some the same text, and one without."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.randint(num_images - 1, (60,), generator=generator)
    captions = torch.randint(25, (60,), generator=generator)
    scores = torch.randint(6, (60, num_images), generator=generator).float()
    matches = torch.zeros(60, num_images, dtype=torch.bool)
    for text in range(60):
        for other in range(60):
            if captions[other] == captions[text]:
                matches[text, owners[other]] = True
    return captions, owners, scores, matches


@pytest.mark.parametrize("chunk_size", [1, 7, 256])
def test_ranks_are_those_of_a_slow_loop_in_both_directions(chunk_size):
    captions, owners, scores, matches = example()
    texts, images = Captions.of_texts(captions), Captions(captions, owners, 23)
    assert (matches.sum(dim=1) > 1).any() and not matches.any(dim=0).all()
    assert torch.equal(texts.matches(slice(0, 60), images), matches)
    assert torch.equal(images.matches(slice(5, 9), texts), matches.T[5:9])
    assert first_match_rank(scores, texts, images, chunk_size=chunk_size).tolist() == slow_ranks(scores, matches)
    found = first_match_rank(scores.T, images, texts, chunk_size=chunk_size)
    assert found.tolist() == slow_ranks(scores.T, matches.T) and 0 in found
    blocks = first_match_rank(lambda rows: scores[rows], texts, images, chunk_size=chunk_size)
    assert torch.equal(blocks, first_match_rank(scores, texts, images))


def test_scores_and_vectors_agree():
    captions, owners, _, _ = example()
    generator = torch.Generator().manual_seed(1)
    texts, images = (torch.randn(n, 8, generator=generator) for n in (60, 23))
    cosines = torch.nn.functional.normalize(texts.double()) @ torch.nn.functional.normalize(images.double()).T
    by_vectors = cross_modal_recall(texts, images, captions, owners)
    assert by_vectors == cross_modal_recall(None, None, captions, owners, scores=cosines)
    six = [by_vectors[way][f"recall_at_{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert by_vectors["mean_recall"] == pytest.approx(sum(six) / 6) and 0 < by_vectors["mean_recall"] < 1


def test_figures_worked_out_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.9], [0.9, 0.8, 0.1]])
    found = cross_modal_recall(None, None, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), scores=scores)
    assert found["text_to_image"] == {  # ranks 1, 2, 3
        "recall_at_1": pytest.approx(1 / 3), "recall_at_5": 1.0, "recall_at_10": 1.0, "median_rank": 2.0,
    }  # fmt: skip
    # The third text is the first's: its image is found there too, and one more text finds the first image.
    same = cross_modal_recall(None, None, torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2]), scores=scores)
    assert same["text_to_image"]["recall_at_1"] == pytest.approx(2 / 3)


def test_equal_vectors_are_in_the_order_of_the_gallery():
    texts, images = torch.ones(3, 4), torch.ones(3, 4)
    ranks = first_match_rank(torch.ones(3, 3), Captions.of_texts(torch.arange(3)), Captions.of_texts(torch.arange(3)))
    assert ranks.tolist() == [1, 2, 3]
    found = cross_modal_recall(texts, images, torch.arange(3), torch.arange(3))
    assert found["text_to_image"]["recall_at_1"] == pytest.approx(1 / 3)


def test_a_match_that_scores_minus_infinity_is_last_not_first():
    scores = torch.tensor([[-torch.inf, 0.3, -torch.inf], [-torch.inf] * 3])
    queries, gallery = Captions.of_texts(torch.tensor([5, 5])), Captions.of_texts(torch.tensor([1, 2, 5]))
    assert first_match_rank(scores, queries, gallery).tolist() == [3, 3]


def test_queries_without_a_match():
    figures = recall_figures(torch.tensor([0, 1, 4, 4]))
    assert figures["recall_at_1"] == pytest.approx(1 / 3) and figures["median_rank"] == 4
    assert recall_figures(torch.tensor([0, 1, 4, 4]), "zero")["recall_at_1"] == 0.25
    assert all(math.isnan(value) for value in recall_figures(torch.tensor([0])).values())
    nothing = first_match_rank(
        torch.zeros(2, 0), Captions.of_texts(torch.arange(2)), Captions.of_texts(torch.arange(0))
    )
    assert nothing.tolist() == [0, 0]


def test_joined_sides_match_across():
    one, other = Captions.of_texts(torch.tensor([3, 4])), Captions(torch.tensor([3, 9]), torch.tensor([1, 0]), 2)
    both = Captions.joined([one, other])
    assert both.num_items == 4
    assert one.matches(slice(0, 2), both).tolist() == [[True, False, False, True], [False, True, False, False]]


def test_caption_codes():
    assert caption_codes(["Red  shirt", "red shirt", "Red shirt\n", ""]).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cross_modal_recall(torch.eye(2), torch.eye(2), [0, 1], [0, 1], scores=torch.eye(2)), "alone"),
        (lambda: cross_modal_recall(torch.eye(2), None, [0, 1], [0, 1]), "alone"),
        (lambda: cross_modal_recall(torch.eye(2), torch.eye(2), [0, 1], [0, 2]), "item is 2"),
        (lambda: cross_modal_recall(torch.eye(2), torch.eye(2), [0], [0]), "2 rows"),
        (lambda: cross_modal_recall(None, None, [0], [0], scores=torch.tensor([[torch.nan]])), "NaN"),
        (lambda: first_match_rank(torch.eye(3), Captions.of_texts([0]), Captions.of_texts([0])), r"scores \(1, 1\)"),
        (lambda: first_match_rank(lambda _: torch.eye(3), *[Captions.of_texts([0])] * 2), r"\(3, 3\)"),
        (lambda: Captions.joined([]), "no captions"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
