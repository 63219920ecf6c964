# SPDX-License-Identifier: Apache-2.0
"""The table of reindex policies and of what is known of a query, for texts and images."""

from dataclasses import replace

import pytest
import torch

from modeling_mclfir.metrics import cross_modal_recall
from modeling_mclfir.training.text_image_policies import (
    LearnedPairs,
    average_policies,
    mixture_scores,
    policy_scores,
    weighted_scores,
)

DIM = 12


def rotation(seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(seed)))[0]


def pairs(place: int, num: int = 40, spaces: int = 1, turned: torch.Tensor | None = None, noise=0.7) -> LearnedPairs:
    """Pairs of an increment; `turned`: what leads from today's vectors to the indexed ones."""
    generator = torch.Generator().manual_seed(place)
    texts = [torch.randn(num, DIM, generator=generator) for _ in range(spaces)]
    images = [rows + noise * torch.randn(num, DIM, generator=generator) for rows in texts]
    own = place if spaces > 1 else 0
    turned = torch.eye(DIM) if turned is None else turned
    old = texts[own] @ turned, images[own] @ turned
    few = slice(0, num, 2)
    return LearnedPairs(
        torch.arange(num) + 1000 * place, torch.arange(num), texts, images, *old,
        calibration={
            "text_to_image": (old[1][few], images[own][few]), "image_to_text": (old[0][few], texts[own][few])
        },
    )  # fmt: skip


def recalls(table: dict, kind: str) -> dict[str, float]:
    return {policy: found[kind]["mean_recall"] for policy, found in table.items()}


def test_known_and_unknown_in_one_space_are_plain_searches():
    learned = [pairs(0), pairs(1, num=30)]
    found = policy_scores(learned)
    for one, table in zip(learned, found, strict=True):
        alone = cross_modal_recall(one.texts[0], one.images[0], one.captions, one.owners)
        assert table["full"]["known"] == alone == table["none"]["known"] == table["drift_compensated"]["known"]
    # Both together, as one set: its recall is the mean over the queries of both.
    union = cross_modal_recall(
        *(torch.cat([one.__dict__[side][0] for one in learned]) for side in ("texts", "images")),
        torch.cat([one.captions for one in learned]), torch.arange(70),
    )  # fmt: skip
    for direction in ("text_to_image", "image_to_text"):
        parts = [table["full"]["unknown"][direction]["recall_at_5"] for table in found]
        assert union[direction]["recall_at_5"] == pytest.approx((40 * parts[0] + 30 * parts[1]) / 70)
    assert found[0]["full"]["unknown"]["mean_recall"] < found[0]["full"]["known"]["mean_recall"]


def test_each_part_is_searched_with_queries_of_its_own_age():
    learned = [pairs(0, turned=rotation(1)), pairs(1, turned=rotation(2)), pairs(2)]
    table = average_policies(policy_scores(learned, policies=("full", "none", "drift_compensated", "mean_drift")))
    for kind in ("known", "unknown"):
        found = recalls(table, kind)
        assert found["drift_compensated"] == pytest.approx(found["full"], abs=1e-9)
        assert found["full"] > found["none"] + 0.3 and found["full"] > found["mean_drift"] + 0.3
    # The newest increment's own gallery is never old.
    last = policy_scores(learned)[2]
    assert last["none"]["known"] == last["full"]["known"] and last["none"]["unknown"] != last["full"]["unknown"]


def test_mean_drift_takes_back_a_shift():
    one = pairs(0)
    texts, images = (torch.nn.functional.normalize(rows[0]) for rows in (one.texts, one.images))
    shift = 3 * torch.eye(DIM)[0]
    few = slice(0, None, 2)
    moved = replace(
        one, texts=[texts + shift], images=[images + shift], indexed_texts=texts, indexed_images=images,
        calibration={"text_to_image": (images[few], images[few] + shift), "image_to_text": (texts[few],) * 2},
    )  # fmt: skip
    # Vectors as they are would not be of unit length: the scores are made of directions alone.
    (found,) = policy_scores([moved], drift_map="mean_drift")
    assert found["drift_compensated"]["known"]["text_to_image"] != found["none"]["known"]["text_to_image"]
    assert found["drift_compensated"]["known"]["image_to_text"] == found["none"]["known"]["image_to_text"]


def test_the_calibration_is_of_the_side_that_is_searched():
    one = pairs(0, turned=rotation(1))
    (good,) = policy_scores([one])
    same = one.calibration["image_to_text"][0]
    (half,) = policy_scores([replace(one, calibration=one.calibration | {"image_to_text": (same, same)})])
    assert half["drift_compensated"]["known"]["text_to_image"] == good["full"]["known"]["text_to_image"]
    assert half["drift_compensated"]["known"]["image_to_text"] == good["none"]["known"]["image_to_text"]


def test_nothing_changed_needs_no_calibration():
    one = replace(pairs(0), calibration=None)
    (found,) = policy_scores([one])
    assert found["full"] == found["none"] == found["drift_compensated"]
    with pytest.raises(ValueError, match="changed since it was indexed"):
        policy_scores([replace(pairs(0, turned=rotation(1)), calibration=None)])


def weights(place: int, num: int, spaces: int, right: float) -> dict[str, torch.Tensor]:
    found = torch.full((num, spaces), (1 - right) / (spaces - 1))
    found[:, place] = right
    return {"text_to_image": found, "image_to_text": found}


@pytest.mark.parametrize("fusion", ["mixture", "weighted"])
def test_separate_spaces(fusion):
    learned = [pairs(place, spaces=2) for place in range(2)]
    options = {"fusion": fusion, "scales": [10.0, 10.0], "spreads": [(0.3, 0.3)] * 2}
    tables = {
        right: average_policies(
            policy_scores(
                [replace(one, weights=weights(place, 40, 2, right)) for place, one in enumerate(learned)], **options
            )
        )["full"]
        for right in (1.0, 0.6, 0.01)
    }
    for place, one in enumerate(learned):
        alone = cross_modal_recall(one.texts[place], one.images[place], one.captions, one.owners)
        scored = policy_scores([replace(one, weights=weights(0, 40, 2, 1.0)) for one in learned], **options)
        assert scored[place]["full"]["known"] == alone
    known, unknown = (tables[1.0][kind]["mean_recall"] for kind in ("known", "unknown"))
    assert unknown == pytest.approx(known, abs=0.05 if fusion == "weighted" else 1e-12)
    assert unknown >= tables[0.6]["unknown"]["mean_recall"] > tables[0.01]["unknown"]["mean_recall"] + 0.3


def test_separate_spaces_that_changed_are_searched_with_mapped_queries():
    learned = [
        replace(
            pairs(place, spaces=2, turned=rotation(place) if place < 1 else None), weights=weights(place, 40, 2, 0.9)
        )
        for place in range(2)
    ]
    table = average_policies(policy_scores(learned, scales=[10.0, 10.0]))
    for kind in ("known", "unknown"):
        found = recalls(table, kind)
        assert found["drift_compensated"] == pytest.approx(found["full"]) and found["none"] < found["full"] - 0.2


def test_fused_scores_are_what_they_say():
    cosines = [torch.tensor([[0.5, 0.1]]), torch.tensor([[0.9, 0.3, 0.2]])]
    share = torch.tensor([[0.25, 0.75]])
    mixture = mixture_scores(cosines, share, [2.0, 4.0]).exp()
    assert mixture.sum() == pytest.approx(1) and mixture[0, :2].sum() == pytest.approx(0.25)
    assert mixture[0, 0] / mixture[0, 1] == pytest.approx(torch.tensor(0.8).exp().item())
    weighted = weighted_scores(cosines, share, [0.5, 0.25])
    assert torch.allclose(weighted, torch.tensor([[0.25, 0.05, 2.7, 0.9, 0.6]]))


def test_equal_captions_of_two_increments_match_each_other():
    one, other = pairs(0, num=4, noise=0.0), pairs(1, num=4, noise=0.0)
    # Its own image is opposite, but the other increment has an image of that caption where the text is.
    one = replace(one, images=[-one.images[0]], indexed_images=-one.images[0])
    other = replace(other, captions=one.captions, images=one.texts, indexed_images=one.texts[0])
    found = policy_scores([one, other])[0]["full"]
    assert found["known"]["text_to_image"]["recall_at_1"] < 1 == found["unknown"]["text_to_image"]["recall_at_1"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: policy_scores([]), "at least 1"),
        (lambda: policy_scores([pairs(0), pairs(1, spaces=2)]), r"got \[1, 2\] spaces"),
        (lambda: policy_scores([pairs(0)], policies=["new_only"]), "no policy 'new_only'"),
        (lambda: policy_scores([pairs(0)], fusion="sum"), "no fusion"),
        (lambda: policy_scores([pairs(0, turned=rotation(1))], drift_map="drift"), "no drift map"),
        (lambda: policy_scores([pairs(p, spaces=2) for p in (0, 1)], scales=[1, 1]), "weights"),
        (
            lambda: policy_scores(
                [replace(pairs(p, spaces=2), weights=weights(p, 40, 2, 0.9)) for p in (0, 1)], scales=[1]
            ),
            "2 scales",
        ),
        (lambda: average_policies([]), "no increments"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
