# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import torch
from torch import nn

from modeling_mclfir.modeling_mclfir_text import MclfirTextImageOutput
from modeling_mclfir.text_projections_mclfir import TextImageProjections
from modeling_mclfir.training.solved_projections import solve_projections
from modeling_mclfir.training.text_image_run import cluster


class Features(nn.Module):
    """A model whose projections read what the batches hold."""

    def __init__(self, image_blocks, text_blocks, embed_dim):
        super().__init__()
        self.blocks = image_blocks, text_blocks
        self.heads = nn.ModuleList([TextImageProjections(sum(image_blocks), sum(text_blocks), embed_dim)])

    def projection_blocks(self):
        return self.blocks

    def forward(self, images, texts, increment_id):
        return MclfirTextImageOutput(image_inputs=images, text_inputs=texts)


def batches(images, texts, size=50):
    parts = zip(images.split(size), texts.split(size), strict=True)
    rows = [{"inputs": {"images": image, "increment_id": 0}, "text_inputs": {"texts": text}} for image, text in parts]
    return SimpleNamespace(chunks=lambda: iter(rows))


def pairs(num_rows=400, seed=0):
    """What a caption and its image have in common lies in 3 of their features, hidden by much larger noise."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(num_rows, 3, generator=generator)
    images, texts = (torch.randn(num_rows, size, generator=generator) * 20 + 7 for size in (12, 8))
    mix = torch.randn(3, 3, generator=generator)
    images[:, 2:5] = common @ mix * 0.1 + 3
    texts[:, :3] = common * 5 - 40
    return images, texts


def recall(model, images, texts):
    heads = model.heads[0]
    return (heads.text(texts) @ heads.image(images).T).argmax(1).eq(torch.arange(len(texts))).float().mean()


def test_it_finds_what_pairs_have_in_common_in_one_pass():
    model = Features([12], [8], 3)
    images, texts = pairs()
    before = recall(model, *pairs(100, 1))
    solve_projections(model, 0, batches(images[:400], texts[:400]))
    assert recall(model, images[:100], texts[:100]) > 0.5 > 10 * before


def test_rows_may_come_in_any_parts():
    models = [Features([12], [8], 3) for _ in range(2)]
    for model, size in zip(models, (400, 37), strict=True):
        solve_projections(model, 0, batches(*pairs(), size=size))
    for one, other in zip(*(model.heads[0].state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(one.abs(), other.abs(), atol=1e-5, rtol=1e-4)


def test_features_are_standardised_and_blocks_weigh_alike():
    images, texts = pairs()
    model = Features([10, 2], [8], 3)
    solve_projections(model, 0, batches(images, texts))
    for part, features in ((model.heads[0].image_projection, images), (model.heads[0].text_projection, texts)):
        seen = (features - part.mean) * part.scale
        torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-4, rtol=0)
    seen = (images - model.heads[0].image_projection.mean) * model.heads[0].image_projection.scale
    variances = seen.var(0, correction=0)
    torch.testing.assert_close(variances[:10].sum(), variances[10:].sum(), rtol=1e-3, atol=0)
    torch.testing.assert_close(variances[:10], variances[0].expand(10), rtol=1e-3, atol=0)


def test_weights_are_of_the_size_that_is_drawn():
    model = Features([12], [8], 4)
    solve_projections(model, 0, batches(*pairs()))
    for part in (model.heads[0].image_projection, model.heads[0].text_projection):
        torch.testing.assert_close(part.weight.square().mean().sqrt(), torch.tensor((3 * part.in_features) ** -0.5))
        assert (part.bias == 0).all()


def test_room_for_more_directions_than_there_are_stays_empty():
    model = Features([12], [8], 10)
    solve_projections(model, 0, batches(*pairs()))
    weights = model.heads[0].text_projection.weight
    assert (weights[8:] == 0).all() and (weights[:8].norm(dim=1) > 0).all()


def test_a_feature_that_never_varies_is_not_blown_up():
    images, texts = pairs()
    images[:, 0] = 5.0
    model = Features([12], [8], 3)
    solve_projections(model, 0, batches(images, texts))
    assert all(value.isfinite().all() for value in model.heads[0].state_dict().values())
    lengths = model.heads[0].image(images).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(len(images)), atol=1e-4, rtol=0)


def test_clusters_are_directions():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4)[:3] * 5
    rows = centres.repeat(40, 1) + 0.1 * torch.randn(120, 4, generator=generator)
    found = cluster(rows, 3)
    assert found.shape == (3, 4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), atol=1e-5, rtol=0)
    assert (found @ torch.eye(4)[:3].T).amax(0).min() > 0.99
    assert cluster(torch.zeros(9, 4)).shape == (0, 4)
    assert len(cluster(rows[:6], 16)) == 1
