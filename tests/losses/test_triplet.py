# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from modeling_mclfir.losses import TripletLoss

MINING = ("random", "all", "semi_hard")


def random_batch(seed: int, num_rows: int = 12, num_attributes: int = 3, num_values: int = 3):
    """Doublets with nulls, with duplicated images, and a last attribute without any label; float64."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(num_rows, num_attributes, 5, generator=generator, dtype=torch.float64)
    embeds = torch.nn.functional.normalize(embeds, dim=-1)
    labels = torch.randint(-1, num_values, (num_rows, num_attributes), generator=generator)
    labels[1::2, 0] = labels[::2, 0]
    labels[:, -1] = -1
    image_ids = torch.randint(0, 2 * num_rows, (num_rows,), generator=generator)
    return embeds, labels, image_ids


def anchors_of(embeds, labels, image_ids, sets=None):
    """Attribute → (similarity to the positive, similarities to the negatives) of each anchor, by the definition."""
    sets = torch.zeros_like(labels) if sets is None else sets
    vectors, found = embeds.double(), []
    for a in range(labels.shape[1]):
        anchors = []
        for i in range(len(labels)):

            def meets(j, i=i, a=a):
                known = labels[i, a] >= 0 and labels[j, a] >= 0
                return known and image_ids[i] != image_ids[j] and sets[i, a] == sets[j, a]

            partner = i + 1 if i % 2 == 0 else i - 1
            negatives = [
                float(vectors[i, a] @ vectors[j, a])
                for j in range(len(labels))
                if meets(j) and labels[i, a] != labels[j, a]
            ]
            if meets(partner) and labels[i, a] == labels[partner, a] and negatives:
                anchors.append((float(vectors[i, a] @ vectors[partner, a]), negatives))
        found.append(anchors)
    return found


def slow_loss(batch, margin, mining, sets=None) -> float:
    def of_anchor(positive, negatives):
        if mining == "semi_hard":
            farther = [negative for negative in negatives if negative < positive]
            negatives = [max(farther) if farther else min(negatives)]
        return sum(max(0.0, margin - positive + negative) for negative in negatives) / len(negatives)

    means = [
        sum(of_anchor(*anchor) for anchor in anchors) / len(anchors) for anchors in anchors_of(*batch, sets) if anchors
    ]
    return sum(means) / len(means) if means else 0.0


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
@pytest.mark.parametrize("margin", [0.2, 1.5])
@pytest.mark.parametrize("seed", range(6))
def test_equals_a_slow_loop(mining, margin, seed):
    batch = random_batch(seed)
    expected = slow_loss(batch, margin, mining)
    assert expected > 0
    assert TripletLoss(margin, mining)(*batch).item() == pytest.approx(expected, rel=1e-5)


def test_both_kinds_of_semi_hard_negatives_come_up():
    kinds = {
        any(negative < positive for negative in negatives)
        for seed in range(6)
        for anchors in anchors_of(*random_batch(seed))
        for positive, negatives in anchors
    }
    assert kinds == {True, False}


def test_a_random_negative_is_one_of_the_anchors_own_and_each_comes_up():
    # One doublet of value 0; the six other rows have no partner of their value, so two anchors are all there is.
    embeds, _, _ = random_batch(0, num_rows=8, num_attributes=1)
    labels = torch.tensor([0, 0, 1, 2, 3, 4, -1, 5])[:, None]
    batch = embeds, labels, torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])  # the last shows the first anchor's image
    (anchors,) = anchors_of(*batch)
    assert [len(negatives) for _, negatives in anchors] == [4, 5]
    one_each = {
        round((3 - p + n + 3 - q + m) / 2, 4)
        for p, negatives in anchors[:1]
        for n in negatives
        for q, others in anchors[1:]
        for m in others
    }
    assert len(one_each) == 20
    loss, drawn = TripletLoss(margin=3.0), []
    torch.manual_seed(0)
    for _ in range(400):
        drawn.append(round(loss(*batch).item(), 4))
    assert set(drawn) == one_each
    assert sum(drawn) / len(drawn) == pytest.approx(TripletLoss(3.0, "all")(*batch).item(), abs=0.05)


def test_random_negatives_follow_the_seed():
    batch = random_batch(1)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(TripletLoss(margin=2.0)(*batch).item())
    assert losses[0] == losses[1] != losses[2]


def triplets_in_doublets():
    """Two explicit triplets: rows 0, 1 with row 4; rows 2, 3 with row 5."""
    embeds, _, _ = random_batch(2, num_rows=6, num_attributes=1)
    labels = torch.tensor([0, 0, 2, 2, 1, 3])[:, None]
    sets = torch.tensor([0, 0, 1, 1, 0, 1])[:, None]
    return (embeds, labels, torch.arange(6)), sets


@pytest.mark.parametrize("mining", MINING)
def test_an_explicit_triplet_has_its_own_negative(mining):
    (embeds, labels, ids), sets = triplets_in_doublets()
    pairs = [(0, 1, 4), (1, 0, 4), (2, 3, 5), (3, 2, 5)]
    expected = [float(2 - embeds[a, 0] @ embeds[p, 0] + embeds[a, 0] @ embeds[n, 0]) for a, p, n in pairs]
    assert min(expected) > 0
    loss = TripletLoss(2.0, mining)(embeds, labels, ids, sets)
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-5)


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
@pytest.mark.parametrize("seed", range(3))
def test_sets_equal_a_slow_loop(mining, seed):
    batch = random_batch(seed, num_rows=30)
    sets = torch.randint(-1, 1, batch[1].shape, generator=torch.Generator().manual_seed(100 + seed))
    sets[1::2, 0] = sets[::2, 0]
    expected = slow_loss(batch, 0.4, mining, sets)
    assert expected > 0 and abs(expected - slow_loss(batch, 0.4, mining)) > 1e-4, "sets make a difference"
    assert TripletLoss(0.4, mining)(*batch, sets).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mining", MINING)
def test_gradients_are_those_of_the_loss(mining):
    embeds, labels, image_ids = random_batch(3)
    embeds.requires_grad_()
    loss = TripletLoss(0.5, mining)

    def value(vectors):
        torch.manual_seed(7)
        return loss(vectors, labels, image_ids)

    value(embeds).backward()
    assert torch.isfinite(embeds.grad).all() and embeds.grad.any()
    assert not embeds.grad[:, -1].any(), "an attribute without labels pulls at nothing"
    for place in ((0, 0, 1), (5, 1, 2)):
        step = torch.zeros_like(embeds)
        step[place] = 1e-3
        difference = value(embeds.detach() + step) - value(embeds.detach() - step)
        assert embeds.grad[place].item() == pytest.approx(difference.item() / 2e-3, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize(
    "labels, image_ids",
    [
        (torch.full((4, 2), -1), torch.arange(4)),
        (torch.zeros(4, 2, dtype=torch.long), torch.arange(4)),
        (torch.tensor([0, 0, 1, 1])[:, None].repeat(1, 2), torch.zeros(4, dtype=torch.long)),
        (torch.arange(4)[:, None].repeat(1, 2), torch.arange(4)),
    ],
    ids=["no labels", "one value", "one image", "no equal values"],
)
def test_a_batch_without_triplets_is_worth_nothing_and_has_a_gradient(mining, labels, image_ids):
    embeds = torch.randn(4, 2, 3, requires_grad=True)
    loss = TripletLoss(0.2, mining)(embeds, labels, image_ids)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embeds.grad, torch.zeros_like(embeds))


def test_triplets_in_the_right_order_by_the_margin_are_worth_nothing():
    embeds = torch.eye(2).repeat_interleave(2, dim=0)[:, None]
    labels = torch.tensor([0, 0, 1, 1])[:, None]
    assert TripletLoss(0.2, "all")(embeds, labels, torch.arange(4)).item() == 0
    assert TripletLoss(1.5, "all")(embeds, labels, torch.arange(4)).item() == 0.5


def test_half_precision_embeddings_are_worked_out_in_full_under_autocast_too():
    embeds, labels, image_ids = random_batch(4)
    half = embeds.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = TripletLoss(0.2, "all")(half, labels, image_ids)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss((half, labels, image_ids), 0.2, "all"), rel=1e-5)


@pytest.mark.parametrize("settings", [{"margin": 0}, {"margin": float("nan")}, {"mining": "hardest"}])
def test_bad_settings(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must be .*got"):
        TripletLoss(**settings)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"Expected embeds \(N, A, D\)"):
        TripletLoss()(torch.zeros(4, 3), torch.zeros(4, 1), torch.arange(4))
    with pytest.raises(ValueError, match="even; got 3"):
        TripletLoss()(torch.zeros(3, 1, 2), torch.zeros(3, 1, dtype=torch.long), torch.arange(3))
