# SPDX-License-Identifier: Apache-2.0
"""The diagnosis of forgetting."""

import pytest
import torch
from torch.nn.functional import normalize

from modeling_mclfir.training.drift import average_drift, diagnose_increment

NUM, DIM = 60, 8
CAPTIONS = torch.arange(NUM)


def vectors(seed: int = 0, centre: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(NUM, DIM, generator=generator) + centre
    return texts, texts + 0.5 * torch.randn(NUM, DIM, generator=generator)


def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(9)))[0]


def diagnose(before, now, **options):
    return diagnose_increment(before, now, CAPTIONS, CAPTIONS, **options)


def test_nothing_moved():
    found = diagnose(vectors(), vectors())
    for name in ("drift", "mean_drift"):
        assert found[f"image_{name}"] == found[f"text_{name}"] == 0
    assert found["drift_cosine"] is None and found["drift_difference"] == found["alignment_loss"] == 0
    assert found["image_neighbours_kept"] == found["text_neighbours_kept"] == 1
    assert found["image_cka"] == pytest.approx(1) and found["alignment_now"] > 0.5
    assert found["text_overlap"] is found["overlap_by_chance"] is None


def test_both_towers_turn_alike():
    texts, images = vectors(centre=0.5)
    found = diagnose((texts, images), (texts @ rotation(), images @ rotation()))
    assert found["image_drift"] > 0.3 and found["drift_cosine"] > 0.9
    assert found["drift_difference"] < found["image_mean_drift"] / 2
    assert found["alignment_loss"] == pytest.approx(0, abs=1e-6)
    assert found["image_neighbours_kept"] == 1 and found["text_cka"] == pytest.approx(1)


def test_one_tower_turns():
    texts, images = vectors(centre=0.5)
    found = diagnose((texts, images), (texts, images @ rotation()))
    assert found["text_drift"] == 0 < 0.3 < found["image_drift"]
    assert found["drift_cosine"] is None
    assert found["drift_difference"] == pytest.approx(found["image_mean_drift"])
    assert found["alignment_loss"] > 0.3 and found["image_neighbours_kept"] == 1


def test_neighbourhoods_change():
    texts, images = vectors()
    found = diagnose((texts, images), (texts, vectors(seed=5)[1]), num_neighbours=5)
    assert found["text_neighbours_kept"] == 1 > 0.3 > found["image_neighbours_kept"] > 0
    assert found["image_cka"] < 0.5
    # By a slow loop.
    sides = [normalize(side.double()) for side in (images, vectors(seed=5)[1])]
    nearest = [[set((side @ row).argsort(descending=True)[1:6].tolist()) for row in side] for side in sides]
    kept = sum(len(one & other) for one, other in zip(*nearest, strict=True)) / (5 * NUM)
    assert found["image_neighbours_kept"] == pytest.approx(kept)


def test_drift_and_alignment_worked_out_by_hand():
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    images = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    now = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    # The third text is the second's: both belong to the second image.
    found = diagnose_increment((texts, images), (texts, now), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]))
    assert found["image_drift"] == pytest.approx(1) and found["image_mean_drift"] == pytest.approx(0)
    assert (found["alignment_before"], found["alignment_now"], found["alignment_loss"]) == (1, -1, 2)
    assert found["text_neighbours_kept"] == 1


def test_overlap():
    one = vectors(centre=3.0)
    apart = diagnose(one, one, others=[vectors(seed=1, centre=-3.0)])
    assert apart["text_overlap"] == apart["image_overlap"] == 0 and apart["text_separation"] > 2
    mixed = diagnose(one, one, others=[vectors(seed=s, centre=3.0) for s in (1, 2)])
    assert 0.3 < mixed["text_overlap"] < 0.67 and mixed["text_separation"] < 0.7
    assert mixed["overlap_by_chance"] == pytest.approx(2 / 3)


def test_many_items_are_drawn_from():
    texts, images = vectors()
    now = texts, vectors(seed=5)[1]
    few, again = (diagnose((texts, images), now, most=20) for _ in range(2))
    whole = diagnose((texts, images), now)
    assert few == again and few["image_cka"] != whole["image_cka"]
    assert few["alignment_now"] == whole["alignment_now"]


def test_overlap_is_of_items_that_are_drawn():
    one, other = vectors(), vectors(seed=1)
    few, again = (diagnose(one, one, others=[other], most=7) for _ in range(2))
    whole = diagnose(one, one, others=[other])
    assert few == again and few["text_overlap"] * 70 == pytest.approx(round(few["text_overlap"] * 70))
    assert few["text_overlap"] != whole["text_overlap"]  # 600 neighbours looked at, not 70
    assert few["overlap_by_chance"] == whole["overlap_by_chance"] == 0.5


def test_average():
    assert average_drift([{"increment": "x", "a": 1.0, "b": None}, {"a": 2.0, "b": 3.0}]) == {"a": 1.5, "b": 3.0}
    assert average_drift([{"b": None}]) == {"b": None} and average_drift([]) == {}


def test_errors():
    texts, images = vectors()
    with pytest.raises(ValueError, match="same images"):
        diagnose((texts, images), (texts, images[:-1]))
    with pytest.raises(ValueError, match="one a text"):
        diagnose_increment((texts, images), (texts, images), CAPTIONS[:-1], CAPTIONS[:-1])
    with pytest.raises(ValueError, match="at least 1"):
        diagnose((texts, images), (texts, images), most=0)
