import pytest
import torch
from torch.nn import functional

from modeling_mclfir.losses import PrototypeInfoNCE


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    loss = PrototypeInfoNCE([3, 5], 8, temperature=0.2)
    embeds = functional.normalize(torch.randn(6, 2, 8, generator=generator), dim=-1)
    labels = torch.tensor([[0, 4], [2, -1], [-1, 1], [1, 0], [0, 3], [2, 2]])
    return loss, embeds, labels


def test_equals_a_slow_loop():
    loss, embeds, labels = example()
    means = []
    for attribute, count in enumerate([3, 5]):
        values = []
        for row in range(6):
            label = int(labels[row, attribute])
            if label < 0:
                continue
            scores = []
            for value in range(count):
                prototype = loss.prototypes[attribute, value]
                scores.append(embeds[row, attribute] @ (prototype / prototype.norm()) / 0.2)
            scores = torch.stack(scores)
            values.append(-(scores[label] - scores.exp().sum().log()))
        means.append(torch.stack(values).mean())
    torch.testing.assert_close(loss(embeds, labels), torch.stack(means).mean())


def test_padding_never_learns_and_never_counts():
    loss, embeds, labels = example()
    before = loss(embeds, labels)
    before.backward()
    assert loss.prototypes.grad[0, 3:].abs().sum() == 0 and loss.prototypes.grad[0, :3].abs().sum() > 0
    with torch.no_grad():
        loss.prototypes[0, 3:] = 7.0
    assert torch.equal(loss(embeds, labels), before.detach())


def test_copies_scale_only_the_gradient_of_prototypes():
    gradients = []
    for copies in (1, 4):
        loss, embeds, labels = example()
        embeds.requires_grad_()
        value = loss(embeds, labels, num_copies=copies)
        (value * copies).backward()
        gradients.append((value.detach(), embeds.grad / copies, loss.prototypes.grad))
    for one, four in zip(*gradients, strict=True):
        torch.testing.assert_close(one, four)


def test_no_labels_give_zero_with_gradients_of_zero():
    loss, embeds, labels = example()
    embeds.requires_grad_()
    value = loss(embeds, torch.full_like(labels, -1))
    value.backward()
    assert value.item() == 0 and embeds.grad.abs().sum() == 0


@pytest.mark.parametrize(("values", "temperature"), [([], 0.1), ([0, 2], 0.1), ([2], 0.0)])
def test_bad_settings_are_refused(values, temperature):
    with pytest.raises(ValueError):
        PrototypeInfoNCE(values, 4, temperature)


def test_autocast_changes_nothing():
    loss, embeds, labels = example()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(embeds, labels)
    assert torch.equal(found, loss(embeds, labels))
