# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from modeling_mclfir.losses import InfoNCE

MODES = ("positives", "masked", "negatives")


def slow_loss(embeds, labels, image_ids, temperature, same_value, sets=None) -> float:
    """The definition, one anchor and one other row at a time, in Python's own numbers."""
    sets = torch.full_like(labels, -1).tolist() if sets is None else sets.tolist()
    num_rows, num_attributes, _ = embeds.shape
    vectors, labels, image_ids = embeds.double().tolist(), labels.tolist(), image_ids.tolist()
    means = []
    for a in range(num_attributes):
        losses = []
        for i in range(num_rows):
            positives, negatives = [], []
            for j in range(num_rows):
                if labels[i][a] < 0 or labels[j][a] < 0 or image_ids[i] == image_ids[j]:
                    continue
                if sets[i][a] != sets[j][a]:
                    continue
                logit = sum(p * q for p, q in zip(vectors[i][a], vectors[j][a], strict=True)) / temperature
                partner = j == (i + 1 if i % 2 == 0 else i - 1)
                if labels[i][a] != labels[j][a]:
                    negatives.append(logit)
                elif partner or same_value == "positives":
                    positives.append(logit)
                elif same_value == "negatives":
                    negatives.append(logit)
            if positives:
                log_sum = math.log(sum(math.exp(logit) for logit in positives + negatives))
                losses.append(sum(log_sum - logit for logit in positives) / len(positives))
        if losses:
            means.append(sum(losses) / len(losses))
    return sum(means) / len(means) if means else 0.0


def random_batch(seed: int, num_rows: int = 12, num_attributes: int = 3, num_values: int = 3):
    """Doublets with nulls, with duplicated images, and a last attribute without any label."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(num_rows, num_attributes, 5, generator=generator)
    embeds = torch.nn.functional.normalize(embeds, dim=-1)
    labels = torch.randint(-1, num_values, (num_rows, num_attributes), generator=generator)
    labels[1::2, 0] = labels[::2, 0]
    labels[:, -1] = -1
    image_ids = torch.randint(0, 2 * num_rows // 3, (num_rows,), generator=generator)
    return embeds, labels, image_ids


@pytest.mark.parametrize("same_value", MODES)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_a_slow_loop(same_value, seed, temperature):
    batch = random_batch(seed)
    expected = slow_loss(*batch, temperature, same_value)
    assert expected > 0
    assert InfoNCE(temperature, same_value)(*batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_three_meanings_differ():
    batch = random_batch(0)
    assert len({round(InfoNCE(0.5, mode)(*batch).item(), 4) for mode in MODES}) == 3


@pytest.mark.parametrize("same_value", MODES)
@pytest.mark.parametrize("num_rows", [2, 4, 10])
def test_equal_embeddings_give_the_logarithm_of_the_candidates(same_value, num_rows):
    # All other rows are equally likely. Values differ between doublets, so each anchor has one positive in every mode.
    embeds = torch.zeros(num_rows, 2, 8)
    labels = torch.arange(num_rows).div(2, rounding_mode="floor")[:, None].repeat(1, 2)
    loss = InfoNCE(0.1, same_value)(embeds, labels, torch.arange(num_rows))
    assert loss.item() == pytest.approx(math.log(num_rows - 1), abs=1e-6)


def test_one_value_only():
    embeds, _, _ = random_batch(1)
    labels, ids = torch.zeros(12, 3, dtype=torch.long), torch.arange(12)
    zeros = torch.zeros_like(embeds)
    assert InfoNCE(0.1, "positives")(zeros, labels, ids).item() == pytest.approx(math.log(11), abs=1e-6)
    assert InfoNCE(0.1, "negatives")(zeros, labels, ids).item() == pytest.approx(math.log(11), abs=1e-6)
    assert InfoNCE(0.1, "masked")(embeds, labels, ids).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("same_value", MODES)
@pytest.mark.parametrize(
    "labels, image_ids",
    [
        (torch.full((4, 2), -1), torch.arange(4)),
        (torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, dtype=torch.long)),
        (torch.arange(4)[:, None].repeat(1, 2), torch.arange(4)),
    ],
    ids=["no labels", "one image", "no equal values"],
)
def test_a_batch_without_pairs_is_worth_nothing_and_has_a_gradient(same_value, labels, image_ids):
    embeds = torch.randn(4, 2, 3, requires_grad=True)
    loss = InfoNCE(0.1, same_value)(embeds, labels, image_ids)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embeds.grad, torch.zeros_like(embeds))


@pytest.mark.parametrize("same_value", MODES)
def test_gradients_are_finite_and_those_of_the_loop(same_value):
    embeds, labels, image_ids = random_batch(2)
    embeds.requires_grad_()
    loss = InfoNCE(0.2, same_value)
    loss(embeds, labels, image_ids).backward()
    assert torch.isfinite(embeds.grad).all()
    step = torch.zeros_like(embeds)
    step[3, 0, 1] = 1e-4
    high, low = (slow_loss(embeds.detach() + sign * step, labels, image_ids, 0.2, same_value) for sign in (1, -1))
    assert embeds.grad[3, 0, 1].item() == pytest.approx((high - low) / 2e-4, rel=1e-2, abs=1e-4)
    assert not embeds.grad[:, -1].any(), "an attribute without labels pulls at nothing"


def test_an_attribute_without_pairs_does_not_water_down_the_others():
    embeds, labels, image_ids = random_batch(3)
    loss = InfoNCE()
    assert loss(embeds, labels, image_ids).item() == pytest.approx(
        loss(embeds[:, :2], labels[:, :2], image_ids).item(), rel=1e-6
    )


def test_half_precision_embeddings_are_worked_out_in_full():
    embeds, labels, image_ids = random_batch(4)
    half = embeds.bfloat16()
    loss = InfoNCE()(half, labels, image_ids)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss(half, labels, image_ids, 0.1, "positives"), rel=1e-5)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        InfoNCE(temperature=temperature)


def test_bad_same_value():
    with pytest.raises(ValueError, match=r"same_value must be one of .*got 'other'"):
        InfoNCE(same_value="other")


@pytest.mark.parametrize("embeds, labels, ids", [((4, 3), (4, 1), 4), ((4, 2, 3), (4, 3), 4), ((4, 2, 3), (4, 2), 3)])
def test_shapes_that_do_not_fit(embeds, labels, ids):
    with pytest.raises(ValueError, match=r"Expected embeds \(N, A, D\)"):
        InfoNCE()(torch.zeros(embeds), torch.zeros(labels, dtype=torch.long), torch.arange(ids))


def test_an_odd_number_of_rows():
    with pytest.raises(ValueError, match="even; got 3"):
        InfoNCE()(torch.zeros(3, 1, 2), torch.zeros(3, 1, dtype=torch.long), torch.arange(3))


# ---- triplets


def triplet_batch(seed: int, num_triplets: int = 4):
    """An attribute of triplets (two pairs, then both negatives), one of labels; anchors, positives, negatives."""
    embeds, labels, _ = random_batch(seed, num_rows=3 * num_triplets, num_attributes=2)
    labels = labels[:, :1].repeat(1, 2)
    sets = torch.full_like(labels, -1)
    triplets = []
    for number in range(num_triplets):
        first = 6 * (number // 2)
        at = [first + 2 * (number % 2), first + 2 * (number % 2) + 1, first + 4 + number % 2]
        sets[at, 0] = number
        labels[at, 0] = torch.tensor([2 * number, 2 * number, 2 * number + 1])
        triplets.append(at)
    return (embeds, labels, torch.arange(len(embeds))), sets, triplets


@pytest.mark.parametrize("same_value", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_sets_equal_a_slow_loop(same_value, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    batch = random_batch(seed, num_rows=30)
    sets = torch.randint(-1, 1, batch[1].shape, generator=generator)
    sets[1::2, 0] = sets[::2, 0]
    expected = slow_loss(*batch, 0.2, same_value, sets)
    assert expected > 0 and abs(expected - slow_loss(*batch, 0.2, same_value)) > 1e-3, "sets make a difference"
    assert InfoNCE(0.2, same_value)(*batch, sets).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("same_value", MODES)
def test_labels_and_triplets_in_one_batch_equal_a_slow_loop(same_value):
    batch, sets, _ = triplet_batch(0)
    assert InfoNCE(0.1, same_value)(*batch, sets).item() == pytest.approx(
        slow_loss(*batch, 0.1, same_value, sets), rel=1e-5
    )


@pytest.mark.parametrize("same_value", MODES)
def test_a_triplet_is_told_from_its_own_negative_only(same_value):
    (embeds, labels, ids), sets, triplets = triplet_batch(1)
    losses = []
    for anchor, positive, negative in triplets:
        for one, other in ((anchor, positive), (positive, anchor)):
            near, far = (
                math.exp(float(embeds[one, 0].double() @ embeds[row, 0].double()) / 0.1) for row in (other, negative)
            )
            losses.append(-math.log(near / (near + far)))
    loss = InfoNCE(0.1, same_value)(embeds[:, :1], labels[:, :1], ids, sets[:, :1])
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    # A triplet alone, in a batch of two doublets of which one row takes no part.
    rows = torch.tensor([*triplets[2], 0])
    alone = labels[rows, :1].clone(), sets[rows, :1].clone()
    alone[0][3], alone[1][3] = -1, -1
    loss = InfoNCE(0.1, same_value)(embeds[rows, :1], alone[0], ids[rows], alone[1])
    assert loss.item() == pytest.approx((losses[4] + losses[5]) / 2, rel=1e-5)


def test_other_triplets_of_the_batch_change_nothing():
    (embeds, labels, ids), sets, triplets = triplet_batch(2, num_triplets=2)
    embeds = embeds[:, :1].requires_grad_()
    loss = InfoNCE()
    whole = loss(embeds, labels[:, :1], ids, sets[:, :1])
    (gradient,) = torch.autograd.grad(whole, embeds)
    moved = embeds.detach().clone()
    moved[triplets[1]] = -moved[triplets[1]].flip(0)
    moved.requires_grad_()
    (other,) = torch.autograd.grad(loss(moved, labels[:, :1], ids, sets[:, :1]), moved)
    assert torch.equal(gradient[triplets[0]], other[triplets[0]])
    assert not torch.allclose(gradient[triplets[1]], other[triplets[1]])
    assert gradient[triplets[0][2]].abs().max() > 0, "the negative is pushed away"


def test_a_triplet_of_one_image_twice_is_worth_nothing():
    (embeds, labels, _), sets, triplets = triplet_batch(3, num_triplets=2)
    ids = torch.arange(6)
    ids[triplets[0][1]] = ids[triplets[0][0]]
    loss = InfoNCE()(embeds[:, :1], labels[:, :1], ids, sets[:, :1])
    assert loss.item() == pytest.approx(
        slow_loss(embeds[:, :1], labels[:, :1], ids, 0.1, "positives", sets[:, :1]), rel=1e-5
    )
    labels, sets = labels.clone(), sets.clone()
    labels[triplets[0]], sets[triplets[0]] = -1, -1
    assert loss.item() == pytest.approx(InfoNCE()(embeds[:, :1], labels[:, :1], ids, sets[:, :1]).item(), rel=1e-6)


def test_sets_of_another_shape():
    (embeds, labels, ids), sets, _ = triplet_batch(0)
    with pytest.raises(ValueError, match=r"Expected sets of the labels' shape \(12, 2\); got \(12, 1\)"):
        InfoNCE()(embeds, labels, ids, sets[:, :1])


# ---- a learned temperature


@pytest.mark.parametrize("same_value", MODES)
def test_a_learned_temperature_starts_as_the_fixed_one_and_gets_its_gradient(same_value):
    batch = random_batch(5)
    loss = InfoNCE(0.3, same_value, learn_temperature=True)
    value = loss(*batch)
    assert value.item() == pytest.approx(slow_loss(*batch, 0.3, same_value), rel=1e-5)
    value.backward()
    scale = math.log(1 / 0.3)
    high, low = (slow_loss(*batch, 1 / math.exp(scale + step), same_value) for step in (1e-4, -1e-4))
    assert loss.logit_scale.grad.item() == pytest.approx((high - low) / 2e-4, rel=1e-3)
    assert not list(InfoNCE(0.3, same_value).parameters())


def test_copies_divide_only_the_gradient_of_the_scale():
    found = []
    for copies in (1, 3):
        embeds, labels, image_ids = random_batch(6)
        embeds.requires_grad_()
        loss = InfoNCE(0.2, learn_temperature=True, num_copies=copies)
        value = loss(embeds, labels, image_ids)
        (value * copies).backward()
        found.append((value.detach(), loss.logit_scale.grad, embeds.grad / copies))
    for one, three in zip(*found, strict=True):
        torch.testing.assert_close(one, three)


def test_a_learned_temperature_stays_within_its_bounds():
    loss = InfoNCE(0.5, learn_temperature=True)
    for given, kept in ((7.0, math.log(100)), (-2.0, 0.0), (1.5, 1.5)):
        with torch.no_grad():
            loss.logit_scale.fill_(given)
        loss.limit()
        assert loss.logit_scale.item() == pytest.approx(kept)
    InfoNCE(0.5).limit()


@pytest.mark.parametrize("temperature", [0.001, 1.5])
def test_a_learned_temperature_cannot_start_out_of_bounds(temperature):
    with pytest.raises(ValueError, match=rf"within 0.01..1; got {temperature}"):
        InfoNCE(temperature, learn_temperature=True)


def test_a_batch_without_pairs_teaches_no_temperature():
    loss = InfoNCE(0.5, learn_temperature=True)
    value = loss(torch.randn(4, 2, 3), torch.full((4, 2), -1), torch.arange(4))
    value.backward()
    assert value.item() == 0 and loss.logit_scale.grad.item() == 0


def test_doublets_as_published_are_a_softmax_over_all_other_rows():
    # NT-Xent with the temperature of MCL-FIR: one positive, 2N - 2 negatives, whatever their values.
    embeds, _, ids = torch.nn.functional.normalize(torch.randn(8, 1, 6), dim=-1), None, torch.arange(8)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 2, 2])[:, None]
    logits = (embeds[:, 0] @ embeds[:, 0].T / 0.3).fill_diagonal_(float("-inf"))
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(8) ^ 1)
    assert InfoNCE(0.3, "negatives")(embeds, labels, ids).item() == pytest.approx(expected.item(), rel=1e-5)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(8, 2, 16), dim=-1)
    labels, image_ids = torch.randint(0, 2, (8, 2)), torch.arange(8)
    loss = InfoNCE(0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(embeds, labels, image_ids)
    assert torch.equal(found, loss(embeds, labels, image_ids))
