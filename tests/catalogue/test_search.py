# SPDX-License-Identifier: Apache-2.0
"""Searches of a catalogue, against scores worked out from the model's own vectors."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_catalogue import photo_name, picture, vectors_of, write_photos

from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor
from modeling_mclfir.catalogue import Catalogue, FolderSource, ParquetSource
from modeling_mclfir.catalogue.filling import FillSettings
from modeling_mclfir.routing_mclfir import fuse_gallery

FILL = FillSettings(batch_size=4, commit_size=32, progress=False)
NAMES = [photo_name(number) for number in range(20)]


@pytest.fixture(scope="module")
def catalogue(checkpoints, photos, tmp_path_factory):
    """Twenty photos with a colour and a price, in all spaces of the later checkpoint."""
    folder = tmp_path_factory.mktemp("search")
    table = {"id": NAMES, "image": [str(photos / name) for name in NAMES]}
    table |= {"dye": ["red", "blue"] * 10, "price": list(range(20)), "sold": [n < 5 for n in range(20)]}
    pq.write_table(pa.table(table), folder / "items.parquet")
    with Catalogue.create(folder / "index") as found:
        found.build(str(checkpoints["later"]), ParquetSource(folder / "items.parquet"), fill=FILL)
        yield found


@pytest.fixture(scope="module")
def vectors(checkpoints):
    return vectors_of(checkpoints["later"], [picture(number) for number in range(20)])


def ranked(scores: np.ndarray, k: int = 20, without=()) -> list[str]:
    names = [NAMES[place] for place in np.argsort(-scores, kind="stable")]
    return [name for name in names if name not in without][:k]


def test_a_photo_in_one_attribute(catalogue, vectors):
    hits = catalogue.search(images=[picture(6), picture(7)], attributes=["colour"], k=5)
    for number, found in zip((6, 7), hits, strict=True):
        scores = vectors["colour@look"] @ vectors["colour@look"][number]
        assert [hit.id for hit in found] == ranked(scores, 5)
        np.testing.assert_allclose([hit.score for hit in found], np.sort(scores)[::-1][:5], atol=1e-5)
    assert hits[0][0].metadata == {"dye": "red", "price": 6, "sold": False}


def test_an_attribute_of_several_spaces_is_fused_as_the_model_does_it(catalogue, checkpoints):
    model = MclfirForImageRetrieval.from_pretrained(checkpoints["later"]).eval()
    processor = MclfirImageProcessor.from_pretrained(checkpoints["later"])
    pixels = processor([picture(number) for number in range(20)], return_tensors="pt")["pixel_values"]
    queries = processor([picture(6), picture(100)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        gallery = fuse_gallery(model(pixels, attribute_ids=model.attribute_ids(["neckline"])).embeds.unbind(1))
        scores = (model.fused_queries("neckline", queries) @ gallery.T).numpy()
    hits = catalogue.search(images=[picture(6), picture(100)], attributes=["neckline"], k=20)
    for found, expected in zip(hits, scores, strict=True):
        assert [hit.id for hit in found] == ranked(expected)
        np.testing.assert_allclose([hit.score for hit in found], np.sort(expected)[::-1], rtol=1e-4, atol=1e-4)
    # An item is routed by its photo.
    found = catalogue.search(items=[NAMES[6]], attributes=["neckline"], k=20)[0]
    assert [hit.id for hit in found] == ranked(scores[0], without=[NAMES[6]])
    # Beside another attribute the order within it stays.
    alone = catalogue.search(images=[picture(6)], attributes=["neckline", "colour"], weights=[1, 0], k=20)[0]
    assert [hit.id for hit in alone] == ranked(scores[0])


def test_one_space_by_name(catalogue, vectors):
    hits = catalogue.search(images=[picture(6)], attributes=["neckline@spring"], k=20)[0]
    assert [hit.id for hit in hits] == ranked(vectors["neckline@spring"] @ vectors["neckline@spring"][6])


def test_several_attributes_with_weights(catalogue, vectors):
    spreads = {name: revision.spread for name, revision in catalogue.index.spaces.items()}
    scores = sum(
        weight / spreads[name] * (vectors[name] @ vectors[name][6])
        for name, weight in (("sleeve@cut", 2.0), ("colour@look", 0.5))
    )
    for weights in ([2.0, 0.5], {"sleeve": 2.0, "colour": 0.5}):
        hits = catalogue.search(images=[picture(6)], attributes=["sleeve", "colour"], weights=weights, k=20)[0]
        assert [hit.id for hit in hits] == ranked(scores)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], rtol=1e-4)
    # All attributes, where none is named.
    assert catalogue.search(images=[picture(6)], k=1)[0][0].id == NAMES[6]


def test_an_item_and_what_is_left_out(catalogue, vectors):
    scores = vectors["colour@look"] @ vectors["colour@look"][4]
    order = ranked(scores, without=[NAMES[4]])
    search = {"items": [NAMES[4]], "attributes": ["colour"], "k": 5}
    assert [hit.id for hit in catalogue.search(**search)[0]] == order[:5]
    assert catalogue.search(**search, include_self=True)[0][0].id == NAMES[4]
    found = catalogue.search(**search, exclude=order[:2])[0]
    assert [hit.id for hit in found] == order[2:7]
    found = catalogue.search(**search, where={"dye": "red", "price": [2, 6, 7.0, 8]})[0]
    assert [hit.id for hit in found] == [name for name in order if name in (NAMES[2], NAMES[6], NAMES[8])]


def test_near_duplicates(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", range(12))
    for number in (2, 5):
        picture(number).save(photos / f"copy of {number}.png")
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        every = [hit.id for hit in catalogue.search(images=[picture(2)], k=20)[0]]
        assert len(every) == 14
        for distinct in (0.999999, ("colour", 0.999999)):
            names = [hit.id for hit in catalogue.search(images=[picture(2)], k=20, distinct=distinct)[0]]
            assert (
                len(names) == 12
                and sum("copy" in name or name in (photo_name(2), photo_name(5)) for name in names) == 2
            )
            assert names == [name for name in every if name in names]
        few = [hit.id for hit in catalogue.search(images=[picture(2)], k=3, distinct=0.999999)[0]]
        assert few == names[:3]


def test_a_space_that_is_being_filled_is_left_out(checkpoints, photos, tmp_path):
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        new = write_photos(tmp_path / "new", [30, 31])
        with Catalogue.open(tmp_path / "index") as other:
            other._land(other._opened(str(checkpoints["later"])), ["neckline@spring"], None)
            other.add(FolderSource(new), str(checkpoints["later"]), fill=FILL)
        catalogue.refresh()
        assert catalogue.index.num_stored("neckline@spring") == 2
        assert len(catalogue.search(images=[picture(3)], attributes=["neckline"], k=30)[0]) == 22
        assert "2 of 22 items and is left out" in catalogue.plan(["neckline"]).notes[0]
        catalogue.backfill(fill=FILL)
        assert catalogue.plan(["neckline"]).notes == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "photos, items or captions"),
        ({"items": ["a"], "images": [picture(1)]}, "photos, items or captions"),
        ({"items": ["nobody"], "attributes": ["colour"]}, "nobody"),
        ({"items": ["nobody"], "attributes": ["neckline"]}, "photos of .*nobody.*are not in the sources"),
        ({"items": [NAMES[0]], "attributes": ["hat"]}, "neither a space nor an attribute 'hat'"),
        ({"items": [NAMES[0]], "weights": [1, 2], "attributes": ["colour"]}, "a weight for each of"),
        ({"items": [NAMES[0]], "weights": {"hat": 1}, "attributes": ["colour"]}, r"Weights for \['hat'\]"),
        ({"items": [NAMES[0]], "k": 0, "attributes": ["colour"]}, "k must be"),
        ({"items": [NAMES[0]], "distinct": 2.0, "attributes": ["colour"]}, "-1..1"),
        ({"images": [b"no image"]}, "not an image"),
    ],
)
def test_mistakes(catalogue, options, message):
    with pytest.raises(ValueError, match=message):
        catalogue.search(**options)
