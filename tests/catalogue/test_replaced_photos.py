# SPDX-License-Identifier: Apache-2.0
"""Photos that are replaced, removed and looked through again: no old one comes back, and no new one is lost."""

import shutil
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogue import contents, photo_name, picture, vectors_of, write_photos

from modeling_mclfir.catalogue import Catalogue, FolderSource, ParquetSource
from modeling_mclfir.catalogue.filling import FillSettings, _Filling

FILL = FillSettings(batch_size=4, commit_size=8, progress=False)


@pytest.fixture
def catalogue(checkpoints, photos, tmp_path):
    """Twenty photos, by the first checkpoint."""
    with Catalogue.create(tmp_path / "index") as found:
        found.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
        yield found


def replacement(tmp_path, number: int = 4) -> FolderSource:
    """Another photo of the same id: picture 700 + number."""
    return FolderSource(write_photos(tmp_path / "new", [number], first=700))


def assert_shows(catalogue, checkpoint, space: str, name: str, number: int) -> None:
    expected = vectors_of(checkpoint, [picture(number)])[space]
    np.testing.assert_allclose(catalogue.index.get(space, [name]).embeds, expected, atol=1e-5)


def test_replaced_by_an_earlier_checkpoint_it_leaves_the_spaces_that_this_lacks(checkpoints, photos, tmp_path):
    later, space = str(checkpoints["later"]), "neckline@spring"
    with Catalogue.create(tmp_path / "index") as catalogue:
        catalogue.build(later, FolderSource(photos), fill=FILL)
        catalogue.add(replacement(tmp_path), str(checkpoints["first"]), fill=FILL)
        assert catalogue.index.has(space, [photo_name(4), photo_name(5)]) == [False, True]
        catalogue.backfill(later, fill=FILL)
        for name in catalogue.index.spaces:
            assert_shows(catalogue, later, name, photo_name(4), 704)


@pytest.mark.parametrize("again", ["build", "keep_present"])
def test_a_source_that_replaced_nothing_does_not_count_first(catalogue, checkpoints, photos, tmp_path, again):
    """What was looked through once more, and left as it was, gives a reindex no photo that others replaced."""
    catalogue.add(replacement(tmp_path), fill=FILL)
    if again == "build":
        catalogue.build(str(checkpoints["first"]), FolderSource(photos), fill=FILL)
    else:
        catalogue.add(FolderSource(shutil.copytree(photos, tmp_path / "copy")), keep_present=True, fill=FILL)
    catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
    catalogue.switch()
    assert_shows(catalogue, checkpoints["moved"], "colour@look", photo_name(4), 704)


def test_removed_during_a_reindex_it_stays_away(catalogue, checkpoints, monkeypatch):
    """Another process removes it while its new vector is on the way to the store."""
    look = catalogue.index.metadata

    def metadata(names):
        found = look(names)
        if photo_name(5) in names:
            with Catalogue.open(catalogue.folder) as other:
                other.remove([photo_name(5)])
        return found

    monkeypatch.setattr(catalogue.index, "metadata", metadata)
    catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
    catalogue.switch()
    names = [photo_name(number) for number in range(20)]
    assert catalogue.index.knows_any(names) == [number != 5 for number in range(20)]


def test_replaced_during_a_reindex_it_is_the_new_one_that_is_built(catalogue, checkpoints, tmp_path, monkeypatch):
    """Another process adds it while the old one is on the way to the store."""
    commit, done = _Filling.commit, []

    def committed(filling):
        if filling._which == "known" and not done:
            done.append(True)
            with Catalogue.open(catalogue.folder) as other:
                other.add(replacement(tmp_path), fill=FILL)
        commit(filling)

    monkeypatch.setattr(_Filling, "commit", committed)
    catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
    catalogue.switch()
    assert_shows(catalogue, checkpoints["moved"], "colour@look", photo_name(4), 704)


def test_added_while_nobody_can_build_it_waits(catalogue, checkpoints, tmp_path):
    moved = shutil.copytree(checkpoints["moved"], tmp_path / "moved")
    catalogue.reindex(str(moved), "full", fill=FILL)
    shutil.rmtree(moved)
    with Catalogue.open(catalogue.folder) as other:
        (note,) = other.add(replacement(tmp_path), fill=FILL).notes
        assert "without these photos" in note and other.index.pending("colour@look") == [photo_name(4)]


def test_replaced_just_before_a_reindex_it_is_the_new_one_that_is_built(catalogue, checkpoints, tmp_path):
    """By another process, since this one looked which sources there are."""
    with Catalogue.open(catalogue.folder) as other:
        other.add(replacement(tmp_path), fill=FILL)
    catalogue.reindex(str(checkpoints["moved"]), "full", fill=FILL)
    catalogue.switch()
    assert_shows(catalogue, checkpoints["moved"], "colour@look", photo_name(4), 704)


def test_of_an_id_that_comes_twice_the_first_row_counts_wherever_a_kill_fell(checkpoints, photos, tmp_path):
    paths, first = [str(photos / photo_name(number)) for number in range(8)], str(checkpoints["first"])
    pq.write_table(pa.table({"id": list("abcdafgh"), "image": paths}), tmp_path / "items.parquet")
    source, found = ParquetSource(tmp_path / "items.parquet"), []
    for kill in (False, True):
        with Catalogue.create(tmp_path / f"index {kill}") as catalogue:
            if kill:  # when the first batch was written
                catalogue.build(first, Beginning(tmp_path / "items.parquet"), fill=FILL)
            catalogue.build(first, source, fill=FILL)
            assert_shows(catalogue, first, "colour@look", "a", 0)
            found.append(contents(catalogue.index))
    assert found[0] == found[1]


class Beginning(ParquetSource):
    def items(self):
        return islice(super().items(), 4)
