# SPDX-License-Identifier: Apache-2.0
"""Catalogues of captions and images, against the model itself and against the evaluation's scores."""

import shutil

import numpy as np
import pytest
import torch
from small_catalogue import contents, photo_name, picture, write_photos
from small_text_catalogue import CAPTIONS, MORE, open_text_checkpoint, write_text_checkpoint

from modeling_mclfir.catalogue import Catalogue, FolderSource
from modeling_mclfir.catalogue.filling import FillSettings
from modeling_mclfir.catalogue.searching import _shares
from modeling_mclfir.catalogue.versions import SPACE_FIT
from modeling_mclfir.index import IncompatibleRevisionError
from modeling_mclfir.training.text_image_policies import mixture_scores

FILL = FillSettings(batch_size=4, commit_size=8, progress=False)
NAMES = [photo_name(number) for number in range(20)]
SPACES = [f"text@{name}" for name in MORE]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """name → folder: first (two increments), later (three), moved (other projections), words (another tokenizer)."""
    folder = tmp_path_factory.mktemp("towers")
    return {
        "first": write_text_checkpoint(folder / "first"),
        "later": write_text_checkpoint(folder / "later", MORE),
        "moved": write_text_checkpoint(folder / "moved", nudge=0.05),
        "words": write_text_checkpoint(folder / "words", vocabulary=70),
        "bare": write_text_checkpoint(folder / "bare", described=False),
    }


@pytest.fixture(scope="module")
def model(towers):
    return open_text_checkpoint(towers["later"])


@pytest.fixture(scope="module")
def catalogue(towers, photos, tmp_path_factory):
    """Twenty photos in the three spaces of the later checkpoint."""
    with Catalogue.create(tmp_path_factory.mktemp("text") / "index") as found:
        found.build(str(towers["later"]), FolderSource(photos), fill=FILL)
        yield found


@pytest.fixture
def own(towers, photos, tmp_path):
    """Twenty photos in the two spaces of the first checkpoint, for a test that changes them."""
    with Catalogue.create(tmp_path / "index") as found:
        found.build(str(towers["first"]), FolderSource(photos), fill=FILL)
        yield found


@torch.no_grad()
def embedded(model, texts=None, numbers=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions or photos in all spaces (N, S, D), and what each space counts for them (N, S)."""
    model, processor = model
    if texts is None:
        output = model(**processor(images=[picture(number) for number in numbers]))
        return output.embeds, model.route(model.mclfir(shared_features=output.shared_features).pooled, "image")
    tokens = processor(text=list(texts))
    output = model(**tokens)
    pooled = model.text.increment_forward(output.shared_text, tokens["input_ids"], tokens["attention_mask"], None)
    return output.embeds, model.route(pooled, "text")


def stored(catalogue: Catalogue, space: str, names=NAMES) -> np.ndarray:
    return catalogue.index.get(space, names).embeds


def ranked(scores: np.ndarray, without=()) -> list[str]:
    names = [NAMES[place] for place in np.argsort(-scores, kind="stable")]
    return [name for name in names if name not in without]


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]


def fused(model, queries: torch.Tensor, weights: torch.Tensor, side: str) -> np.ndarray:
    """
    Scores (N, 20) by the evaluation's own mixture: of a photo, which is in every space, the largest; by what a space
    counts for the photo, and with the mean of exp(scale * cosine) as it is where cosines are spread normally.
    """
    gallery, shares = embedded(model, numbers=range(20))
    cosines = [queries[:, place] @ gallery[:, place].T for place in range(len(MORE))]
    scales = [float(head.logit_scale.exp()) for head in model[0].heads]
    mixture = mixture_scores(cosines, weights, scales).unflatten(1, (len(MORE), -1))
    place = ("text", "image").index(side)
    for space, increment in enumerate(model[0].config.increments):
        mixture[:, space] += (scales[space] * cosines[space]).logsumexp(dim=1, keepdim=True)
        mixture[:, space] -= (scales[space] * increment["router"]["spreads"][place]) ** 2 / 2
        mixture[:, space] += shares[:, space].log()
    assert len(mixture.argmax(dim=1).unique()) > 1  # not one space alone has its say
    return mixture.amax(dim=1).numpy()


def test_build_keeps_what_the_model_gives_from_one_pass(towers, model, photos, tmp_path, monkeypatch):
    from modeling_mclfir.base_mclfir import MclfirModel

    passes, run = [], MclfirModel.shared_forward
    monkeypatch.setattr(MclfirModel, "shared_forward", lambda self, px: passes.append(len(px)) or run(self, px))
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(towers["later"]), FolderSource(photos), fill=FILL)
        assert passes == [4] * 5 and list(catalogue.index.spaces) == SPACES
        expected = embedded(model, numbers=range(20))[0].numpy()
        for place, space in enumerate(SPACES):
            np.testing.assert_allclose(stored(catalogue, space), expected[:, place], atol=1e-5)
            assert catalogue.index.spaces[space].attribute == "text" and catalogue.index.spaces[space].spread > 0


def test_a_caption_in_one_space(catalogue, model):
    gallery = embedded(model, numbers=range(20))[0][:, 1]
    scores = (embedded(model, CAPTIONS)[0][:, 1] @ gallery.T).numpy()
    hits = catalogue.search(texts=CAPTIONS, attributes=["text@apparel"], k=20)
    for found, expected in zip(hits, scores, strict=True):
        assert ids(found) == ranked(expected)
        np.testing.assert_allclose([hit.score for hit in found], np.sort(expected)[::-1], atol=1e-5)


@pytest.mark.parametrize("side", ["text", "image"])
def test_several_spaces_are_fused_as_in_evaluation(catalogue, model, side):
    query = {"texts": CAPTIONS} if side == "text" else {"images": [picture(number) for number in (6, 7, 100)]}
    given = embedded(model, CAPTIONS) if side == "text" else embedded(model, numbers=(6, 7, 100))
    scores = fused(model, *given, side)
    for found, expected in zip(catalogue.search(**query, k=20), scores, strict=True):
        assert ids(found) == ranked(expected)
        np.testing.assert_allclose([hit.score for hit in found], np.sort(expected)[::-1], rtol=1e-4, atol=1e-4)
    if side == "image":  # an item is routed by its photo
        assert ids(catalogue.search(items=[NAMES[6]], k=20)[0]) == ranked(scores[0], without=[NAMES[6]])
    few = catalogue.search(**query, attributes=SPACES, k=3, exclude=[NAMES[0]])
    assert [ids(found) for found in few] == [ranked(row, without=[NAMES[0]])[:3] for row in scores]


def test_some_of_several_spaces(catalogue, model):
    """What the routers give is shared out among those that are named."""
    model, processor = model
    tokens = processor(text=CAPTIONS)
    with torch.no_grad():
        shared = model.text.shared_forward(tokens["input_ids"], tokens["attention_mask"])
        pooled = model.text.increment_forward(shared, tokens["input_ids"], tokens["attention_mask"], None)
        queries = model(**tokens, attribute_ids=[2, 0]).text_embeds
        scales, offsets = model.fusion(pooled, "text", [2, 0])
    torch.testing.assert_close(model.route(pooled, "text", increment_ids=[2, 0]).sum(dim=1), torch.ones(len(CAPTIONS)))
    gallery = [stored(catalogue, SPACES[place]) for place in (2, 0)]
    with torch.no_grad():
        shared = model.mclfir.shared_forward(processor(images=[picture(n) for n in range(20)])["pixel_values"])
        shares = model.route(model.mclfir(shared_features=shared).pooled, "image", increment_ids=[2, 0]).log().numpy()
    scores = np.stack([
        float(scales[place]) * queries[:, place].numpy() @ gallery[place].T
        + offsets[:, place, None].numpy() + shares[None, :, place]
        for place in range(2)
    ]).max(axis=0)  # fmt: skip
    found = catalogue.search(texts=CAPTIONS, attributes=[SPACES[2], SPACES[0]], k=20)
    assert [ids(hits) for hits in found] == [ranked(row) for row in scores]


def test_a_later_increment_leaves_old_vectors_and_fills_its_own(own, towers, model):
    before, answer = contents(own.index), ids(own.search(texts=[CAPTIONS[0]], attributes=["text@topwear"], k=20)[0])
    assert own.reindex(str(towers["later"]), "new_only")[0] == dict.fromkeys(SPACES[:2], "unchanged") | {
        SPACES[2]: "opened"
    }
    assert "0 of 20 items and is left out" in own.plan().notes[0]
    assert len(own.search(texts=CAPTIONS, k=20)[0]) == 20
    assert own.backfill(fill=FILL).embedded == 20 and own.plan().notes == []
    after = contents(own.index)
    assert all(after[space] == before[space] for space in before) and len(after) == 3
    np.testing.assert_allclose(
        stored(own, "text@footwear"), embedded(model, numbers=range(20))[0][:, 2].numpy(), atol=1e-5
    )
    assert ids(own.search(texts=[CAPTIONS[0]], attributes=["text@topwear"], k=20)[0]) == answer
    scores = fused(model, *embedded(model, CAPTIONS), "text")
    assert [ids(found) for found in own.search(texts=CAPTIONS, k=20)] == [ranked(row) for row in scores]


def test_the_other_verbs(own, photos, tmp_path):
    assert own.remove([NAMES[3]]) == 1 and own.add(FolderSource(photos), keep_present=True, fill=FILL).embedded == 1
    assert own.add(FolderSource(write_photos(tmp_path / "new", [30])), fill=FILL).embedded == 1
    assert own.export(tmp_path / "all.parquet", ["text"], progress=False) == 42
    info = own.info()
    assert info["items"] == 21 and info["checkpoints"][-1]["model_type"] == "mclfir_text_image"


def test_reindex_switch_and_roll_back(own, towers):
    moved = open_text_checkpoint(towers["moved"])
    with pytest.raises(IncompatibleRevisionError, match="makes other vectors"):
        own.reindex(str(towers["moved"]), "new_only")
    before, search = stored(own, SPACES[0]), {"texts": CAPTIONS[:1], "attributes": SPACES[:1], "k": 20}
    old = ids(own.search(**search)[0])
    assert set(own.reindex(str(towers["moved"]), "full", fill=FILL)[0].values()) == {"building"}
    assert ids(own.search(**search)[0]) == old
    own.switch()
    gallery = embedded(moved, numbers=range(20))[0][:, 0].numpy()
    np.testing.assert_allclose(stored(own, SPACES[0]), gallery, atol=1e-5)
    new = ranked(gallery @ embedded(moved, CAPTIONS[:1])[0][0, 0].numpy())
    assert ids(own.search(**search)[0]) == new != old
    own.roll_back()
    np.testing.assert_array_equal(stored(own, SPACES[0]), before)
    assert ids(own.search(**search)[0]) == old


@pytest.mark.parametrize("policy", ["none", "drift_compensated"])
def test_captions_of_a_moved_model_search_old_vectors(own, towers, policy):
    search = {"texts": CAPTIONS, "attributes": SPACES[:1], "k": 20}
    with pytest.raises(IncompatibleRevisionError, match="makes other vectors"):
        own.search(**search, checkpoint=str(towers["moved"]))
    own.reindex(str(towers["moved"]), policy, fill=FILL)
    queries = embedded(open_text_checkpoint(towers["moved"]), CAPTIONS)[0][:, 0].numpy()
    if policy == "drift_compensated":  # by the photos' map: as in evaluation, of the gallery's side
        made = own._opened(str(towers["moved"])).fingerprints[SPACES[0]]
        queries = own.index.map_queries(SPACES[0], queries, made)
    scores = queries @ stored(own, SPACES[0]).T
    found = own.search(**search, checkpoint=str(towers["moved"]))
    assert [ids(hits) for hits in found] == [ranked(row) for row in scores]


def test_another_tokenizer_makes_other_queries(own, towers):
    with pytest.raises(IncompatibleRevisionError, match="makes other vectors than the entries of"):
        own.search(texts=CAPTIONS, attributes=SPACES[:1], checkpoint=str(towers["words"]))


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json"])
def test_a_checkpoint_without_its_processor(towers, photos, tmp_path, file):
    shutil.copytree(towers["first"], tmp_path / "lacking")
    (tmp_path / "lacking" / file).unlink()
    with Catalogue.create(tmp_path / "index") as catalogue:
        with pytest.raises(ValueError, match="lacking lacks what prepares its photos and captions"):
            catalogue.build(str(tmp_path / "lacking"), FolderSource(photos), fill=FILL)


def test_a_catalogue_is_of_one_kind(own, towers, checkpoints, photos, tmp_path):
    build = {"source": FolderSource(photos), "fill": FILL}
    for use in (own.backfill, lambda path: own.build(path, **build), lambda path: own.reindex(path, "none")):
        with pytest.raises(ValueError, match="by checkpoints of 'mclfir_text_image', and .*first is one of 'mclfir'"):
            use(str(checkpoints["first"]))
    with Catalogue.create(tmp_path / "attributes") as other:
        other.build(str(checkpoints["first"]), **build)
        with pytest.raises(ValueError, match="is an attribute model, which reads photos and no captions. Search by"):
            other.search(texts=CAPTIONS)
        with pytest.raises(ValueError, match="a catalogue is of attributes or of captions and images"):
            other.search(texts=CAPTIONS, checkpoint=str(towers["first"]))


def test_spaces_that_nothing_tells_apart(towers, photos, tmp_path):
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(towers["bare"]), FolderSource(photos), fill=FILL)
        with pytest.raises(ValueError, match="Nothing tells the space of increment 'topwear' from others"):
            catalogue.search(texts=CAPTIONS)
        assert len(catalogue.search(texts=CAPTIONS, attributes=SPACES[:1])) == len(CAPTIONS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"texts": CAPTIONS, "images": [picture(1)]}, "got images and texts"),
        ({"texts": CAPTIONS[0]}, "got one text alone"),
        ({"items": "001.png"}, "got one text alone"),
        ({"images": "photo.png"}, "got one text alone"),
        ({"texts": ["shirt", " "]}, "A caption must have words; got ' '"),
        ({"texts": CAPTIONS, "weights": [2]}, "the query says; leave the weights out"),
        ({"texts": CAPTIONS, "attributes": ["colour"]}, "neither a space nor an attribute 'colour'"),
    ],
)
def test_mistakes(catalogue, options, message):
    with pytest.raises(ValueError, match=message):
        catalogue.search(**options)


def test_what_a_space_counts_for_an_item():
    class Kept:
        def fits(self, space, ids):
            return {"a": [0.5, np.nan, 0.1], "b": [0.5, 0.3, -np.inf]}[space]

    shares = _shares(Kept(), ["a", "b"], ["even", "unknown", "in one"], 0.02)
    assert shares["a"]["even"] == shares["b"]["even"] == pytest.approx(np.log(0.5))
    assert shares["a"]["unknown"] == shares["b"]["unknown"] == 0 == shares["a"]["in one"]


def test_marks_are_not_shown(catalogue):
    assert catalogue.index.get(SPACES[0], NAMES[:1]).metadata[0].keys() == {SPACE_FIT}
    assert catalogue.search(items=[NAMES[0]], k=1)[0][0].metadata == {}
