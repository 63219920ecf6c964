# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that change some spaces only: what is switched, rolled back and dropped is theirs."""

import pytest
import torch
from small_catalogue import write_checkpoint

from modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.catalogue import Catalogue, FolderSource
from modeling_mclfir.catalogue.filling import FillSettings

FILL = FillSettings(batch_size=4, commit_size=8, progress=False)
CUT, LOOK = ["neckline@cut", "sleeve@cut"], ["colour@look"]


@pytest.fixture(scope="module")
def moves(tmp_path_factory):
    """Three checkpoints: the second one changed the second increment's spaces, the third one those of the first."""
    folder, found = tmp_path_factory.mktemp("moves"), []
    for name, heads in (("one", ()), ("two", (1,)), ("three", (1, 0))):
        path = write_checkpoint(folder / name)
        model = MclfirForImageRetrieval.from_pretrained(path)
        for head in heads:
            generator = torch.Generator().manual_seed(head)
            for parameter in model.heads[head].parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(path)
        found.append(str(path))
    return found


@pytest.fixture
def catalogue(moves, photos, tmp_path):
    with Catalogue.create(tmp_path / "index") as found:
        found.build(moves[0], FolderSource(photos), fill=FILL)
        yield found


def states(catalogue) -> dict[str, list[str]]:
    spaces = catalogue.info()["spaces"]
    return {name: [entry["state"] for entry in space["revisions"]] for name, space in spaces.items()}


def test_what_answers_in_some_spaces_is_dropped_in_the_others(catalogue, moves):
    old = catalogue.index.spaces[LOOK[0]].model_revision
    catalogue.reindex(moves[1], "full", fill=FILL)
    catalogue.switch()
    assert catalogue.drop(old) == LOOK
    assert states(catalogue) == dict.fromkeys(CUT + LOOK, ["live"])
    with pytest.raises(ValueError, match="is the live revision of 'neckline@cut'"):
        catalogue.drop(old)


def test_a_roll_back_undoes_one_switch_after_the_other(catalogue, moves):
    before = {name: one.fingerprint for name, one in catalogue.index.spaces.items()}
    with pytest.raises(ValueError, match="no switch to undo"):
        catalogue.roll_back()
    for checkpoint, spaces in ((moves[1], LOOK), (moves[2], CUT)):
        catalogue.reindex(checkpoint, "full", fill=FILL)
        assert sorted(catalogue.switch()) == spaces
    assert sorted(catalogue.roll_back()) == CUT
    assert catalogue.index.spaces[LOOK[0]].fingerprint != before[LOOK[0]]
    assert sorted(catalogue.roll_back()) == LOOK
    assert {name: one.fingerprint for name, one in catalogue.index.spaces.items()} == before
    with pytest.raises(ValueError, match="no switch to undo"):
        catalogue.roll_back()


def test_a_build_that_was_cut_off_before_its_spreads_gets_them_with_the_switch(catalogue, moves, monkeypatch):
    """Without one, a space's scores would be added up as they are, next to others over their spread."""

    class CutOffError(Exception):
        pass

    def failing(*_, **__):
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(type(catalogue.index), "measure_spread", failing)
        with pytest.raises(CutOffError):
            catalogue.reindex(moves[1], "full", fill=FILL)
    catalogue.switch()
    assert all(one.spread for one in catalogue.index.spaces.values())
