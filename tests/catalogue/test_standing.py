# SPDX-License-Identifier: Apache-2.0
"""Catalogues that are not filled to the end, and those that have hardly anything in them."""

import numpy as np
import pytest
from small_catalogue import photo_name, picture, write_checkpoint, write_photos

from modeling_mclfir.catalogue import Catalogue, FolderSource
from modeling_mclfir.catalogue.filling import FillSettings
from modeling_mclfir.cli.index_tables import info_text
from modeling_mclfir.index import IncompatibleRevisionError

FILL = FillSettings(batch_size=4, commit_size=4, progress=False)


class CutOffError(Exception):
    pass


@pytest.fixture
def half_built(checkpoints, photos, tmp_path, monkeypatch):
    """The first eight photos of twenty, in all spaces."""
    with Catalogue.create(tmp_path / "index") as catalogue:
        add, calls = type(catalogue.index).add, []

        def failing(self, *arguments, **options):
            calls.append(1)
            if len(calls) > 6:
                raise CutOffError
            add(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(catalogue.index), "add", failing)
            with pytest.raises(CutOffError):
                catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        yield catalogue


def test_a_search_after_an_interrupted_build(half_built, checkpoints, photos):
    item = next(half_built.index.export("colour@look")).ids[0]
    with pytest.raises(ValueError, match="interrupted.*neckline@cut.*The same `mclfir index build` goes on"):
        half_built.search(items=[item])
    assert len(half_built.search(items=[item], attributes=["colour"], k=20)[0]) == 7
    assert "the build is not finished" in half_built.plan(["colour"]).notes[0]
    half_built.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
    assert len(half_built.search(items=[item], k=20)[0]) == 19 and half_built.plan().notes == []


def test_where_an_interrupted_build_stands(half_built, checkpoints, photos, tmp_path):
    info = half_built.info()
    assert not info["is_built"] and info["unfinished"] == ["neckline@cut", "sleeve@cut", "colour@look"]
    text = info_text(info)
    assert "build not finished" in text and "100 %" not in text
    # Other photos that are added end no build.
    half_built.add(FolderSource(write_photos(tmp_path / "new", [30, 31])), fill=FILL)
    assert "build not finished" in info_text(half_built.info())
    half_built.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
    text = info_text(half_built.info())
    assert "build not finished" not in text and "100 %" in text


def test_a_space_that_was_opened_and_not_filled(checkpoints, photos, tmp_path):
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["colour"], fill=FILL)
        catalogue._change(lambda settings: settings.with_attributes(["colour", "sleeve"]))
        catalogue.reindex(str(checkpoints["first"]), "new_only", fill=FILL)
        with pytest.raises(ValueError, match="sleeve@cut has 0 of 20 items. `mclfir index backfill`"):
            catalogue.search(items=[photo_name(1)])
        info = catalogue.info()
        assert info["is_built"] and info["unfinished"] == ["sleeve@cut"] and "0 %" in info_text(info)
        catalogue.backfill(fill=FILL)
        assert len(catalogue.search(items=[photo_name(1)], k=20)[0]) == 19 and catalogue.info()["unfinished"] == []


@pytest.mark.parametrize("numbers", [[3], [3, 3]])
def test_too_few_photos_for_a_spread(checkpoints, tmp_path, numbers):
    """One, and two that are the same."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for place, number in enumerate(numbers):
        picture(number).save(photos / f"{place}.png")
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        assert all(revision.spread is None for revision in catalogue.index.spaces.values())
        hits = catalogue.search(images=[picture(3)])[0]
        # Of each of the three spaces a cosine of 1, over 1.
        np.testing.assert_allclose([hit.score for hit in hits], 3.0, atol=1e-4)
        assert len(hits) == len(numbers) and catalogue.info()["is_built"]


def test_a_source_without_photos_opens_nothing(checkpoints, tmp_path):
    (tmp_path / "empty").mkdir()
    with Catalogue.create(tmp_path / "index") as catalogue:
        with pytest.raises(FileNotFoundError, match="No photo found in .*empty"):
            catalogue.build(str(checkpoints["first"]), FolderSource(tmp_path / "empty"), fill=FILL)
        assert not catalogue.index.spaces and catalogue.settings.sources == ()


@pytest.mark.parametrize("query", ["images", "items", "texts"])
def test_no_queries_no_answers(half_built, query):
    assert half_built.search(**{query: []}) == []
    with pytest.raises(ValueError, match="neither a space nor an attribute 'hat'"):
        half_built.search(**{query: []}, attributes=["hat"])


def test_attributes_that_were_built_one_after_the_other_move_together(checkpoints, photos, tmp_path):
    with Catalogue.create(tmp_path / "index") as catalogue:
        for attribute in ("neckline", "colour"):
            catalogue.build(str(checkpoints["first"]), FolderSource(photos), [attribute], fill=FILL)
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), [], fill=FILL)  # none named: as before
        assert catalogue.settings.attributes == ["neckline", "colour"]
        found, _ = catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
        assert found == {"neckline@cut": "building", "colour@look": "building"}


def test_what_was_cut_off_is_filled_after_a_build_of_other_attributes(checkpoints, photos, tmp_path, monkeypatch):
    with Catalogue.create(tmp_path / "index") as catalogue:

        def failing(*_, **__):
            raise CutOffError

        with monkeypatch.context() as patch:
            patch.setattr(type(catalogue.index), "add", failing)
            with pytest.raises(CutOffError):
                catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["neckline"], fill=FILL)
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), ["colour"], fill=FILL)
        with pytest.raises(ValueError, match="neckline@cut has 0 of 20 items. `mclfir index backfill` fills them"):
            catalogue.search(items=[photo_name(1)])
        catalogue.backfill(fill=FILL)
        assert len(catalogue.search(items=[photo_name(1)], k=20)[0]) == 19


def test_add_by_a_checkpoint_of_other_spaces_is_refused(checkpoints, photos, tmp_path):
    other = write_checkpoint(tmp_path / "other", (("summer", ["hem"]),))
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        before = catalogue.settings
        with pytest.raises(IncompatibleRevisionError, match="does not know"):
            catalogue.add(FolderSource(write_photos(tmp_path / "new", [30])), str(other), fill=FILL)
        assert catalogue.settings == before
