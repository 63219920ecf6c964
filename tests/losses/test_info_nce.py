# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from modeling_mclfir.losses import InfoNCE

MODES = ("positives", "masked", "negatives")


def slow_loss(embeds, labels, image_ids, temperature, same_value) -> float:
    """The definition, one anchor and one other row at a time, in Python's own numbers."""
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
