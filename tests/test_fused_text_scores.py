# SPDX-License-Identifier: Apache-2.0
"""Captions and photos ranked where nobody says which increment they belong to; increments by name."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_towers import make_routed_towers, make_towers
from tiny_trunks import IMAGE_SIZE

from modeling_mclfir import MclfirImageProcessor, MclfirProcessor
from modeling_mclfir.data.caption_tokenizer import train_tokenizer
from modeling_mclfir.text_spaces_mclfir import RoutedEmbeds

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = ["a red cotton shirt", "blue denim jeans for men", "navy check shirt", "black leather shoes", "green dress"]
NAMES = ("topwear", "apparel", "footwear")
COUNT = 12


def photo(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def model():
    return make_routed_towers(NAMES)


@pytest.fixture(scope="module")
def processor():
    images = MclfirImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return MclfirProcessor(images, train_tokenizer(CAPTIONS, 90))


@pytest.fixture(scope="module")
def words(processor):
    return dict(processor(text=CAPTIONS))


@pytest.fixture(scope="module")
def pixels(processor):
    return processor(images=[photo(number) for number in range(COUNT)])["pixel_values"]


def by_hand(model, words, pixels, by: str) -> torch.Tensor:
    """The formula, one caption, photo and space at a time, from features of one side at a time."""
    with torch.no_grad():
        texts, images = model(**words), model(pixels)
        tokens = words["input_ids"], words["attention_mask"]
        pooled = {
            "text": model.text.increment_forward(texts.shared_text, *tokens, None),
            "image": model.mclfir(pixels).pooled,
        }
        weights = {side: model.route(rows, side) for side, rows in pooled.items()}
    scores = torch.zeros(len(CAPTIONS), COUNT)
    for m in range(len(CAPTIONS)):
        for n in range(COUNT):
            query, item = (m, n) if by == "text" else (n, m)
            other = "image" if by == "text" else "text"
            parts = []
            for s, increment in enumerate(model.config.increments):
                scale = float(model.heads[s].logit_scale.exp())
                spread = increment["router"]["spreads"][("text", "image").index(by)]
                cosine = float(texts.text_embeds[m, s] @ images.image_embeds[n, s])
                counts = weights[by][query, s].log() + weights[other][item, s].log()
                parts.append(scale * cosine - (scale * spread) ** 2 / 2 + float(counts))
            scores[m, n] = max(parts)
    return scores


@pytest.mark.parametrize("by", ["text", "image"])
def test_scores_are_the_largest_of_the_spaces_parts(model, words, pixels, by):
    scores = model.fused_scores(pixels, **words, by=by)
    assert scores.shape == (len(CAPTIONS), COUNT) and scores.dtype == torch.float32 and not scores.requires_grad
    torch.testing.assert_close(scores, by_hand(model, words, pixels, by), atol=1e-4, rtol=1e-5)
    other = model.fused_scores(pixels, **words, by="image" if by == "text" else "text")
    assert not torch.allclose(scores, other, atol=1e-2)  # whose router and spreads count is another matter


def test_a_catalogue_ranks_alike(model, processor, words, pixels, tmp_path):
    from modeling_mclfir.catalogue import Catalogue, FolderSource
    from modeling_mclfir.catalogue.filling import FillSettings

    (tmp_path / "photos").mkdir()
    names = [f"{number:03d}.png" for number in range(COUNT)]
    for number, name in enumerate(names):
        photo(number).save(tmp_path / "photos" / name)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    with Catalogue.create(tmp_path / "index") as catalogue:
        fill = FillSettings(batch_size=4, commit_size=8, progress=False)
        catalogue.build(str(tmp_path / "checkpoint"), FolderSource(tmp_path / "photos"), fill=fill)
        for spaces in (NAMES, NAMES[2:0:-1], NAMES[1:2]):
            wanted = None if spaces == NAMES else [f"text@{name}" for name in spaces]
            found = catalogue.search(texts=CAPTIONS, attributes=wanted, k=COUNT)
            scores = model.fused_scores(pixels, **words, increment_ids=spaces)
            for hits, row in zip(found, scores, strict=True):
                assert [hit.id for hit in hits] == [names[place] for place in row.argsort(descending=True)]
                expected = row.sort(descending=True).values.numpy()
                if len(spaces) > 1:  # of one space a catalogue gives the cosine
                    np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_was_worked_out_before_is_not_worked_out_again(model, words, pixels, monkeypatch):
    expected = model.fused_scores(pixels, **words)
    parts = [model.routed_embeds(chunk) for chunk in pixels.split(5)]
    gallery = RoutedEmbeds(*(torch.cat([part[key] for part in parts]) for key in ("embeds", "similarities")))
    assert gallery.embeds.shape == (COUNT, 3, 16) and gallery.similarities.shape == (COUNT, 3)
    captions = model.routed_embeds(None, **words)
    outputs = model(pixels), model(**words)
    monkeypatch.setattr(type(model.mclfir), "shared_forward", None)  # no photo is embedded from here on
    torch.testing.assert_close(model.fused_scores(**words, images=gallery), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(model.fused_scores(**words, images=outputs[0]), expected)
    monkeypatch.setattr(type(model.text), "shared_forward", None)  # nor a caption
    assert torch.equal(model.fused_scores(texts=captions, images=outputs[0]), expected)
    assert torch.equal(model.fused_scores(**words, texts=outputs[1], images=outputs[0]), expected)
    row = model.fused_scores(images=RoutedEmbeds(gallery.embeds[3:4], gallery.similarities[3:4]), texts=captions)
    torch.testing.assert_close(row[:, 0], expected[:, 3], atol=1e-4, rtol=1e-5)  # whatever else is in the gallery


def test_of_one_space_the_cosine_decides(words, pixels):
    model = make_towers()
    model.add_increment("all")
    model.eval()  # never described: there is nothing to tell apart
    with torch.no_grad():
        expected = model(pixels, **words).logits_per_text
    torch.testing.assert_close(model.fused_scores(pixels, **words), expected)
    torch.testing.assert_close(model.fused_scores(pixels, **words, by="image"), expected)


@torch.no_grad()
def test_increments_by_name(model, words, pixels):
    for number, name in enumerate(NAMES):
        assert torch.equal(model(pixels[:5], **words, increment_id=name).embeds,
                           model(pixels[:5], **words, increment_id=number).embeds)  # fmt: skip
        assert torch.equal(model.get_image_features(pixels, name), model.get_image_features(pixels, number))
        texts = model.get_text_features(**words, increment_id=name)
        assert torch.equal(texts, model.get_text_features(**words, increment_id=number))
    assert not torch.equal(texts, model.get_text_features(**words, increment_id=NAMES[0]))
    pooled = model.mclfir(pixels).pooled
    named, numbered = (model.fusion(pooled, "image", ids) for ids in (["footwear", "topwear"], [2, 0]))
    assert torch.equal(named[0], numbered[0]) and torch.equal(named[1], numbered[1])


@pytest.mark.parametrize("wrong, message", [("bags", "no increment 'bags'"), (3, "increment_id 3"), (-1, "-1")])
def test_an_unknown_increment(model, words, pixels, wrong, message):
    message = f"{message}.*'topwear', 'apparel', 'footwear'"
    calls = (
        lambda: model(pixels, increment_id=wrong),
        lambda: model.get_image_features(pixels, wrong),
        lambda: model.get_text_features(**words, increment_id=wrong),
        lambda: model.fused_scores(pixels, **words, increment_ids=["topwear", wrong]),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_what_is_refused(model, words, pixels):
    gallery = model.routed_embeds(pixels)
    with torch.no_grad():
        one = model(pixels, increment_id=1)
    calls = {
        "by must be one of": lambda: model.fused_scores(pixels, **words, by="audio"),
        "Pass photos once": lambda: model.fused_scores(**words),
        "photos once: as": lambda: model.fused_scores(pixels, **words, images=gallery),
        "Pass captions once": lambda: model.fused_scores(pixels),
        "captions once: as": lambda: model.fused_scores(pixels, **words, texts=gallery),
        "in 3 spaces.*it has 1": lambda: model.fused_scores(**words, images=one),
        "of 3 spaces; the search is over 2": lambda: model.fused_scores(
            **words, images=gallery, increment_ids=["topwear", "footwear"]
        ),
        "same increments": lambda: model.fused_scores(**words, images=RoutedEmbeds(gallery.embeds)),
        "a list of numbers or names": lambda: model.routed_embeds(pixels, increment_ids="topwear"),
        "not both": lambda: model.routed_embeds(pixels, **words),
        "pixel_values, or output": lambda: model.routed_embeds(),
        "no increment yet": lambda: make_towers().fused_scores(pixels, **words),
    }  # fmt: skip
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
    bare = make_towers()
    bare.add_increment("topwear")
    bare.add_increment("bags", new_values=True)
    with pytest.raises(ValueError, match="'topwear'.*describe_increment"):
        bare.fused_scores(pixels, **words)


def test_the_arguments_are_the_models_own(model):
    names = list(inspect.signature(model.fused_scores).parameters)
    assert names[:3] == list(inspect.signature(model.forward).parameters)[:3]
