# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_text_runs import TEXT
from tiny_towers import make_towers

from modeling_mclfir.modeling_mclfir_text import MclfirForTextImageRetrieval
from modeling_mclfir.training.caption_tokens import CaptionTokens, tokenize

CAPTIONS = [["a navy shirt", "shirt"], [], ["a long dress with buttons"], ["shirt"]]


class Words:
    """A tokeniser: a number a word, 1 and 2 at the ends, 0 for padding."""

    pad_token_id, model_max_length = 0, 512

    def __init__(self):
        self.known = {}

    def __call__(self, texts, max_length, **_):
        rows = [[self.known.setdefault(word, 3 + len(self.known)) for word in text.split()] for text in texts]
        rows = [[1, *row[: max_length - 2], 2] for row in rows]
        length = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        }


@pytest.fixture
def captions():
    return CaptionTokens(SimpleNamespace(all_captions=CAPTIONS), Words(), 16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    trunk = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    return MclfirForTextImageRetrieval.from_towers(
        trunk, TEXT | {"vocab_size": 20}, pretrained=False, embed_dim=8, num_adapted_text_blocks=1
    )


@pytest.fixture
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def test_every_caption_once(captions):
    assert captions.texts == ["a navy shirt", "shirt", "a long dress with buttons"]
    assert [codes.tolist() for codes in captions.codes] == [[0, 1], [], [2], [1]]
    assert captions.rows.tolist() == [0, 2, 3]
    assert captions.input_ids.shape == (3, 7) and captions.attention_mask.sum(1).tolist() == [5, 3, 7]


def test_inputs_are_no_longer_than_the_longest_of_them(captions):
    inputs = captions.inputs(np.array([1, 0, 1]))
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 5)
    assert "shared_text" not in inputs


def test_what_is_filled_is_what_the_tower_gives(captions, model, accelerator, tmp_path):
    name = captions.fill(model, tmp_path, 10**9, accelerator)
    assert name and (tmp_path / name).exists()
    inputs = captions.inputs(np.array([2, 0]))
    tokens = inputs["input_ids"], inputs["attention_mask"]
    expected = model.text.shared_forward(*tokens)
    mask = tokens[1].bool()
    torch.testing.assert_close(inputs["shared_text"].float()[mask], expected[mask], atol=2e-3, rtol=2e-3)
    pooled = [model.text.increment_forward(hidden, *tokens) for hidden in (inputs["shared_text"].float(), expected)]
    torch.testing.assert_close(*pooled, atol=5e-3, rtol=5e-3)


def test_no_padding_is_kept(captions, model, accelerator, tmp_path):
    captions.fill(model, tmp_path, 10**9, accelerator)
    assert captions.hidden.shape == (5 + 3 + 7, 16)
    assert captions.num_filled == 3 * 7  # one batch
    both, alone = captions.inputs(np.array([1, 0])), captions.inputs(np.array([1]))
    assert both["shared_text"].shape == (2, 5, 16) and alone["shared_text"].shape == (1, 3, 16)
    assert torch.equal(both["shared_text"][:1, :3], alone["shared_text"]) and not both["shared_text"][0, 3:].any()


def test_a_tower_that_pads_by_itself_gets_all_of_it_back(captions, accelerator, tmp_path):
    model = make_towers("siglip")
    name = captions.fill(model, tmp_path, 10**9, accelerator)
    assert name and captions.hidden.shape == (3 * 24, 32) and captions.num_filled == 3 * 24
    inputs = captions.inputs(np.array([1, 0]))
    tokens = inputs["input_ids"], inputs["attention_mask"]
    expected = model.text.shared_forward(*tokens)
    torch.testing.assert_close(inputs["shared_text"].float(), expected, atol=2e-3, rtol=2e-3)
    assert model.text.increment_forward(inputs["shared_text"].float(), *tokens).shape == (2, 32)


def test_it_is_filled_once(captions, model, accelerator, tmp_path, monkeypatch):
    name = captions.fill(model, tmp_path, 10**9, accelerator)
    monkeypatch.setattr(CaptionTokens, "_compute", lambda *_: pytest.fail("worked out again"))
    # Not by another increment's adapters either: they lie above.
    model.add_increment("one")
    assert captions.fill(model, tmp_path, 10**9, accelerator) == name


def test_other_weights_or_captions_are_another_file(captions, model, accelerator, tmp_path):
    names = {captions.fill(model, tmp_path, 10**9, accelerator)}
    other = CaptionTokens(SimpleNamespace(all_captions=CAPTIONS[:3]), Words(), 16)
    other.texts[0] = "a red shirt"
    names.add(other.fill(model, tmp_path, 10**9, accelerator))
    with torch.no_grad():
        next(model.text.trunk.parameters()).add_(1.0)
    names.add(captions.fill(model, tmp_path, 10**9, accelerator))
    assert len(names) == 3


def test_a_cap_is_kept_to(captions, model, accelerator, tmp_path):
    assert captions.fill(model, tmp_path, 100, accelerator) is None
    assert captions.hidden is None and not list(tmp_path.glob("*.npy"))


def test_nothing_to_tokenise():
    tokens = tokenize(Words(), [], 8)
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (0, 1)


def test_many_captions_are_those_of_parts(monkeypatch):
    from modeling_mclfir.training import caption_tokens as module

    texts = [text for row in CAPTIONS for text in row]
    whole = tokenize(Words(), texts, 16)
    monkeypatch.setattr(module, "_TOKENISED", 1)
    parts = tokenize(Words(), texts, 16)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert tokenize(Words(), texts, 4)["input_ids"].shape[1] == 4
