# SPDX-License-Identifier: Apache-2.0
"""Which rows of the last steps are kept."""

import pytest
import torch

from modeling_mclfir.continual.recent import RecentRows


def batch(number: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((size, 2, 3), float(number)), torch.full((size, 2), number)


def filled(num_batches: int, most: int = 100) -> RecentRows:
    recent = RecentRows()
    recent.limit(most)
    for number in range(num_batches):
        recent.watch(*batch(number))
        recent.keep()
    return recent


@pytest.mark.parametrize(
    ("num_batches", "most", "expected"),
    [(6, 100, [3] * 4 + [4] * 4 + [5] * 4), (6, 8, [4] * 4 + [5] * 4), (6, 7, [4] * 3 + [5] * 4), (1, 100, [0, 0])],
)
def test_the_last_rows_but_none_of_the_first_half(num_batches, most, expected):
    embeds, labels = filled(num_batches, most).rows()
    assert labels[:, 0].tolist() == expected and embeds[:, 1, 2].tolist() == expected


def test_no_more_is_held_than_is_given():
    assert len(filled(50, 10).state_dict()["recent.labels"]) == 12


def test_what_no_step_was_taken_on_does_not_count():
    recent = RecentRows()
    assert recent.rows() is None and recent.state_dict() == {}
    recent.watch(*batch(0))
    assert recent.rows() is None
    recent.watch(*batch(1))  # a second batch of the same step
    recent.keep()
    assert recent.num_added == 8 and recent.rows()[1][:, 0].tolist() == [1] * 4


def test_embeddings_are_kept_without_their_graph_and_in_full_precision():
    recent = RecentRows()
    recent.watch(torch.ones(2, 1, 3, dtype=torch.bfloat16, requires_grad=True), torch.zeros(2, 1))
    recent.keep()
    assert recent.rows()[0].dtype == torch.float32 and not recent.rows()[0].requires_grad


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_taken_up_it_goes_on_as_if_never_stopped(stopped_after):
    taken_up = RecentRows()
    taken_up.limit(10)
    taken_up.load_state_dict({name: value.clone() for name, value in filled(stopped_after, 10).state_dict().items()})
    for number in range(stopped_after, 6):
        taken_up.watch(*batch(number))
        taken_up.keep()
    for found, expected in zip(taken_up.rows(), filled(6, 10).rows(), strict=True):
        assert torch.equal(found, expected)
    assert taken_up.state_dict()["recent.sizes"].tolist() == filled(6, 10).state_dict()["recent.sizes"].tolist()
