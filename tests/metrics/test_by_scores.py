# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from modeling_mclfir.metrics import average_precision
from modeling_mclfir.metrics.by_scores import average_precision_by_scores


def test_it_is_the_average_precision_of_the_same_order():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.eye(4), torch.randn(30, 4, generator=generator)
    gallery[20:] = gallery[:10]  # ties
    labels, theirs = torch.arange(4), torch.randint(0, 4, (30,), generator=generator)
    theirs[theirs == 3] = 0  # nobody has the last one
    expected = average_precision(queries, gallery, labels, theirs)
    scores = (queries.double() @ torch.nn.functional.normalize(gallery.double(), dim=1).T).float()
    found = average_precision_by_scores(scores, labels[:, None] == theirs, chunk_size=3)
    assert torch.allclose(found[:3], expected[:3]) and found[3].isnan() and expected[3].isnan()
    # Any other scores in the same order, minus infinity among them, give the same.
    shifted = torch.where(scores == scores.amin(1, keepdim=True), -torch.inf, 7 * scores - 3)
    assert torch.equal(average_precision_by_scores(shifted, labels[:, None] == theirs)[:3], found[:3])


@pytest.mark.parametrize(
    ("scores", "relevant", "error", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 2).bool(), ValueError, r"got \(2, 3\), \(2, 2\)"),
        (torch.zeros(2, 3), torch.ones(2, 3), TypeError, "relevant is torch.float32"),
        (torch.full((1, 2), torch.nan), torch.ones(1, 2).bool(), ValueError, "holds NaN"),
    ],
)
def test_mistakes(scores, relevant, error, message):
    with pytest.raises(error, match=message):
        average_precision_by_scores(scores, relevant)
