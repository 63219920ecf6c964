# SPDX-License-Identifier: Apache-2.0
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_runs import TRUNKS
from transformers import AutoModel

from modeling_mclfir.data.augmentation import Augmentation
from modeling_mclfir.data.table import load_tables
from modeling_mclfir.modeling_mclfir import MclfirForImageRetrieval
from modeling_mclfir.processing_mclfir import MclfirImageProcessor
from modeling_mclfir.training.cost import count_flops
from modeling_mclfir.training.feature_cache import FeatureCache, load_pixels


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MclfirForImageRetrieval.from_trunk(TRUNKS["resnet"], pretrained=False, embed_dim=16)


@pytest.fixture
def table(tiny_data):
    return load_tables(tiny_data)["train"]


@pytest.fixture
def fill(tmp_path, model, table):
    def open_features(view=0, max_bytes=2**30, model=model, size=32, folder="cache", **settings):
        processor = MclfirImageProcessor.for_trunk(None, size, size)
        settings = {"augmentation": Augmentation(), "seed": 0} | settings
        return FeatureCache(tmp_path / folder, max_bytes).open(
            model, processor, table, view, Accelerator(), **settings
        )

    return open_features


def computed(model, table, view):
    processor = MclfirImageProcessor.for_trunk(None, 32, 32)
    with torch.no_grad():
        pixels = load_pixels(table, range(len(table)), view, processor, Augmentation(), 0)
        return model.mclfir.shared_forward(pixels).numpy()


@pytest.mark.parametrize("view", [0, 1, 2])
def test_cached_features_are_those_of_the_model(fill, model, table, view):
    expected = computed(model, table, view)
    half, full = fill(view), fill(view, dtype="float32")
    assert half.dtype == np.float16 and half.shape == expected.shape
    np.testing.assert_allclose(half, expected, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(full, expected, rtol=1e-5, atol=1e-6)


def test_a_file_is_filled_once_and_known_by_what_it_was_made_from(fill, tmp_path, model):
    names = {fill(**settings).filename for settings in ({}, {}, {"seed": 5}, {"augmentation": Augmentation(0.9)})}
    assert len(names) == 1  # the image itself depends on neither
    names |= {fill(**settings).filename for settings in ({"view": 2}, {"view": 2, "seed": 5}, {"size": 24})}
    names |= {fill(view=2, augmentation=Augmentation(0.9)).filename, fill(dtype="float32").filename}
    assert len(names) == 6
    with torch.no_grad():
        next(model.mclfir.trunk.parameters()).add_(1.0)
    names.add(fill().filename)
    with torch.no_grad():
        next(model.mclfir.trunk.parameters()).sub_(1.0)
    assert len(names) == 7 and len(list((tmp_path / "cache").glob("*.npy"))) == 7


def test_of_two_runs_with_one_cache_one_fills_and_the_other_waits(fill, model, table, monkeypatch):
    fillings, fill_file = [], FeatureCache._fill

    def counted(self, path, *rest):
        fillings.append(path)
        time.sleep(0.5)  # the other one comes meanwhile
        fill_file(self, path, *rest)

    monkeypatch.setattr(FeatureCache, "_fill", counted)
    with ThreadPoolExecutor(2) as pool:
        features = [run.result() for run in [pool.submit(fill, 1, dtype="float32") for _ in range(2)]]
    assert len(fillings) == 1
    for found in features:
        np.testing.assert_allclose(found, computed(model, table, 1), rtol=1e-5, atol=1e-6)


def test_saving_and_increments_change_nothing_in_the_key(fill, tmp_path, model, table):
    """Else every resumed run, and every increment, would fill it again."""
    torch.manual_seed(0)
    model = MclfirForImageRetrieval.from_trunk(TRUNKS["resnet"], pretrained=False, embed_dim=16)
    processor = MclfirImageProcessor.for_trunk(None, 32, 32)

    def filename(model, processor):
        cache = FeatureCache(tmp_path / "cache", 2**30)
        return cache.open(model, processor, table, 0, Accelerator(), augmentation=Augmentation(), seed=0).filename

    before = filename(model, processor)
    model.add_increment("cut", ["category"])
    assert filename(model, processor) == before
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    assert filename(model, processor) == before
    loaded = MclfirForImageRetrieval.from_pretrained(tmp_path / "saved")
    assert filename(loaded, MclfirImageProcessor.from_pretrained(tmp_path / "saved")) == before


def test_past_the_cap_there_is_none(fill, tmp_path, caplog):
    fill()
    with caplog.at_level(logging.WARNING):
        assert fill(1, max_bytes=1000) is None
    assert "past the cap" in caplog.text and "--max_cache_gib" in caplog.text
    assert fill(0, max_bytes=1000) is not None  # what is there already is used


def test_a_stopped_filling_is_done_again(fill, tmp_path):
    path = fill().filename
    partial = tmp_path / "cache" / (path.stem + ".partial")
    path.rename(partial)
    np.testing.assert_array_equal(fill(), np.load(fill(folder="other").filename))
    assert not partial.exists()


def test_a_run_without_a_cache(run, tmp_path, caplog):
    """The same losses within half precision, and the bill differs by the shared part alone."""
    cached = run(num_views=2)
    with caplog.at_level(logging.WARNING):
        small = run(num_views=2, name="small", max_cache_gib=1e-6)
    assert "past the cap" in caplog.text
    none = run(num_views=2, name="none", max_cache_gib=0.0)
    for key in ("loss", "scores"):
        assert small[key] == none[key]
    losses = [[row["loss"] for row in report["loss"]] for report in (cached, none)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    assert not (tmp_path / "none" / "cache").exists()
    model = AutoModel.from_pretrained(tmp_path / "none" / "increment-00").eval()
    with torch.no_grad():
        _, each = count_flops(lambda: model.mclfir.shared_forward(torch.zeros(1, 3, 32, 32)))
    samples = none["cost"]["samples"]
    assert none["cost"]["flops"] - cached["cost"]["flops"] == each * (samples - 2 * 64)
