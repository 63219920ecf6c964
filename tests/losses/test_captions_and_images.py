# SPDX-License-Identifier: Apache-2.0
"""Captions and images as two sides of a batch: rows meet rows of the other side only."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, normalize

from modeling_mclfir.losses import InfoNCE, SimilarityDistillation

SIDES = torch.arange(2).repeat(4)


def pairs(seed: int = 0, num_pairs: int = 4):
    """Unit-length rows, caption and image in turns, (2n, 1, D), and their ids."""
    embeds = torch.randn(2 * num_pairs, 1, 6, generator=torch.Generator().manual_seed(seed))
    return normalize(embeds, dim=-1), torch.arange(2 * num_pairs)


def test_it_is_the_symmetric_loss_of_clip():
    embeds, ids = pairs()
    labels = torch.arange(4).repeat_interleave(2)[:, None]
    logits = embeds[::2, 0] @ embeds[1::2, 0].T / 0.2
    expected = (cross_entropy(logits, torch.arange(4)) + cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(InfoNCE(0.2)(embeds, labels, ids, sides=SIDES), expected)
    assert not torch.allclose(InfoNCE(0.2)(embeds, labels, ids), expected)


@pytest.mark.parametrize("same_value", ["positives", "masked", "negatives"])
def test_images_with_the_very_same_caption(same_value):
    embeds, ids = pairs(1)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 2, 2])[:, None]
    logits = embeds[::2, 0] @ embeds[1::2, 0].T / 0.2
    same = torch.tensor([0, 1, 0, 2])[:, None] == torch.tensor([0, 1, 0, 2])[None]
    own = torch.eye(4, dtype=torch.bool)
    expected = []
    for one in (logits, logits.T):
        positives = same if same_value == "positives" else own
        left_out = same & ~own if same_value == "masked" else torch.zeros_like(own)
        log_share = one.masked_fill(left_out, -torch.inf)
        log_share = one - log_share.logsumexp(dim=1, keepdim=True)
        expected.append(-(log_share * positives).sum(1) / positives.sum(1))
    loss = InfoNCE(0.2, same_value)(embeds, labels, ids, sides=SIDES)
    torch.testing.assert_close(loss, torch.cat(expected).mean())


def test_the_own_side_is_never_a_negative():
    """What draws and pushes a caption is images alone: its gradient lies in their span."""
    embeds, ids = pairs(2, num_pairs=2)
    embeds[2] = embeds[0]  # both captions say the same
    labels = torch.arange(2).repeat_interleave(2)[:, None]
    caption = embeds[2].clone().requires_grad_()
    rows = torch.stack([embeds[0], embeds[1], caption, embeds[3]])
    InfoNCE(0.2)(rows, labels, ids, sides=SIDES[:4]).backward()
    images = embeds[[1, 3], 0].T
    in_span = images @ torch.linalg.lstsq(images, caption.grad.T).solution
    torch.testing.assert_close(in_span, caption.grad.T, atol=1e-5, rtol=1e-4)
    assert caption.grad.abs().sum() > 0


def test_sides_of_another_shape():
    embeds, ids = pairs()
    with pytest.raises(ValueError, match="sides of shape"):
        InfoNCE()(embeds, ids[:, None], ids, sides=SIDES[:4])


def test_similarities_between_the_sides_are_distilled():
    (student, ids), (teacher, _) = pairs(3), pairs(4)
    loss = SimilarityDistillation(0.3)(student, teacher, ids, SIDES)
    shares = []
    for rows in (student, teacher):
        logits = rows[::2, 0] @ rows[1::2, 0].T / 0.3
        shares.append(torch.cat([logits.log_softmax(1), logits.T.log_softmax(1)]))
    expected = kl_div(shares[0], shares[1], reduction="none", log_target=True).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    assert float(SimilarityDistillation(0.3)(student, student, ids, SIDES)) == 0
