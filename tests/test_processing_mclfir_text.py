# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from PIL import Image
from test_auto_classes import BLOCK, run

from modeling_mclfir import MclfirImageProcessor, MclfirProcessor
from modeling_mclfir.data.caption_tokenizer import train_tokenizer

CAPTIONS = ["Red Cotton Shirt", "blue denim jeans", "a red shirt for men", "Blue cotton dress", "café-style apron"]

LOAD = """
import sys
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

folder, result = sys.argv[1:]
parts = [each.from_pretrained(folder, **REMOTE) for each in (AutoConfig, AutoProcessor, AutoImageProcessor, AutoModel)]
names = [type(part).__name__ for part in parts]
expected = ["MclfirTextImageConfig", "MclfirProcessor", "MclfirImageProcessor", "MclfirForTextImageRetrieval"]
assert names == expected, names
inputs = parts[1](images=Image.linear_gradient("L").convert("RGB"), text="a red dress")
with torch.no_grad():
    output = parts[3](**inputs)
save_file({"embeds": output.embeds, **inputs}, result)
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 90)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return MclfirProcessor(MclfirImageProcessor(size={"height": 64, "width": 64}), tokenizer)


def test_a_tokenizer_is_learned_from_captions(tokenizer):
    assert len(tokenizer) <= 90 and tokenizer.pad_token_id == 0
    ids = tokenizer("RED Shirt")["input_ids"]
    assert ids == tokenizer("red shirt")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "red shirt"
    assert tokenizer.unk_token_id in tokenizer("\u4e16")["input_ids"]
    assert len(tokenizer("red " * 200, truncation=True)["input_ids"]) == 64


def test_the_same_captions_give_the_same_tokenizer(tokenizer):
    again = train_tokenizer(reversed(CAPTIONS), 90)
    # What it was asked to cut and pad before stays in a tokenizer; the rest is what was learned.
    learned, anew = (json.loads(each.backend_tokenizer.to_str())["model"] for each in (tokenizer, again))
    assert learned == anew
    assert train_tokenizer(CAPTIONS[:2], 90).get_vocab() != tokenizer.get_vocab()


@pytest.mark.parametrize("captions, size, message", [([], 60, "no caption"), (["  "], 60, "no caption"),
                                                     (CAPTIONS, 4, "above 4")])  # fmt: skip
def test_what_a_tokenizer_cannot_be_learned_from(captions, size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(captions, size)


def test_images_and_captions_become_what_the_model_takes(processor, tokenizer):
    picture = Image.linear_gradient("L").convert("RGB")
    inputs = processor(images=[picture, picture], text=["red shirt", "a blue dress for men"])
    assert set(inputs) == set(processor.model_input_names) and inputs["pixel_values"].shape == (2, 3, 64, 64)
    ids = [tokenizer(text)["input_ids"] for text in ("red shirt", "a blue dress for men")]
    assert inputs["attention_mask"].sum(dim=1).tolist() == [len(ids[0]), len(ids[1])]
    padding = [0] * (len(ids[1]) - len(ids[0]))
    assert padding and inputs["input_ids"].tolist() == [ids[0] + padding, ids[1]], "padded on the right"
    assert processor(text="red shirt")["input_ids"].tolist() == ids[:1]
    assert processor(text=["red shirt"], max_length=3)["input_ids"].shape == (1, 3)
    assert list(processor(images=picture)) == ["pixel_values"]
    with pytest.raises(ValueError, match="images, text"):
        processor()


def test_a_processor_comes_back(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = MclfirProcessor.from_pretrained(tmp_path)
    picture = Image.linear_gradient("L").convert("RGB")
    one, other = (each(images=picture, text=CAPTIONS) for each in (processor, loaded))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert MclfirImageProcessor.from_pretrained(tmp_path).size == processor.image_processor.size


# Through the Auto classes, in a Python of its own


@pytest.fixture(scope="module")
def checkpoint(processor, tokenizer, tmp_path_factory):
    from safetensors.torch import save_file
    from tiny_towers import shake, text_config, trunk_config

    from modeling_mclfir import MclfirForTextImageRetrieval
    from modeling_mclfir.training.checkpoint import save_increment

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    towers = trunk_config("vit"), text_config(vocab_size=len(tokenizer))
    model = MclfirForTextImageRetrieval.from_towers(*towers, embed_dim=16, lora_rank=2)
    model.add_increment("apparel")
    model.add_increment("shoes", new_values=True)
    shake(model)
    save_increment(folder / "increment-01", model, processor, {}, {})
    inputs = processor(images=Image.linear_gradient("L").convert("RGB"), text="a red dress")
    with torch.no_grad():
        save_file({"embeds": model.eval()(**inputs).embeds, **inputs}, folder / "expected.safetensors")
    return folder


ORDERS = {
    "ours first": "import modeling_mclfir",
    "Auto classes first": "from transformers import AutoConfig, AutoModel, AutoProcessor\nimport modeling_mclfir",
    "the configuration first": "from modeling_mclfir import MclfirTextImageConfig\nMclfirTextImageConfig()",
    "the model first": "from modeling_mclfir import MclfirForTextImageRetrieval",
    "the processor first": "from modeling_mclfir import MclfirProcessor",
}


@pytest.mark.parametrize("order", [*ORDERS, "without the package"])
def test_auto_classes_load_it(checkpoint, tmp_path, order):
    from safetensors.torch import load_file

    bare = order == "without the package"
    start = f'{BLOCK}\nREMOTE = {{"trust_remote_code": True}}' if bare else f"{ORDERS[order]}\nREMOTE = {{}}"
    end = 'assert "modeling_mclfir" not in sys.modules' if bare else ""
    arguments = checkpoint / "increment-01", tmp_path / "found"
    done = run(f"{start}\n{LOAD}\n{end}\n", *arguments, cwd=tmp_path, with_package=not bare)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = load_file(checkpoint / "expected.safetensors"), load_file(tmp_path / "found")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
