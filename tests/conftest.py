# SPDX-License-Identifier: Apache-2.0
"""Tiny trunks, seeded images, and the folder of real data that stands beside the repository on some machines."""

import importlib
import os
from pathlib import Path

# Before transformers and datasets are imported: no test may wait for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from tiny_trunks import IMAGE_SIZE, trunk_config


@pytest.fixture
def resnet_config():
    return trunk_config("resnet")


@pytest.fixture
def vit_config():
    return trunk_config("vit")


@pytest.fixture
def mobilenet_v2_config():
    return trunk_config("mobilenet_v2")


@pytest.fixture
def convnext_config():
    return trunk_config("convnext")


@pytest.fixture
def make_trunk_config():
    """family → its tiny configuration."""
    return trunk_config


@pytest.fixture
def images():
    """Four images, normalised: (4, 3, 64, 64)."""
    import torch

    return torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make_model():
    """family, settings → a `MclfirForImageRetrieval` with seeded weights and no increments."""
    import torch

    from modeling_mclfir import MclfirForImageRetrieval

    def make(family: str, **settings):
        torch.manual_seed(0)
        settings = {"embed_dim": 16, "gate_dim": 8, "lora_rank": 2} | settings
        model = MclfirForImageRetrieval.from_trunk(trunk_config(family), **settings)
        _settle_statistics(model.mclfir.trunk)
        return model

    return make


def _settle_statistics(trunk):
    """One pass for the statistics of batch normalisation: without, a deep random trunk maps every image to zeros."""
    import torch

    layers = [module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if layers:
        momentum = layers[0].momentum
        for layer in layers:
            layer.momentum = 1.0
        with torch.no_grad():
            trunk.train()(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(6)))
        for layer in layers:
            layer.momentum = momentum
        trunk.eval()


@pytest.fixture
def learn():
    """Real optimiser steps on one increment: (model, increment_id, images, steps) → names of what learned."""
    import torch

    def steps_of(model, increment_id: int, images, steps: int = 2) -> list[str]:
        names = model.set_trainable(increment_id)
        parameters = dict(model.named_parameters())
        # Weight decay moves every parameter that the optimiser holds, with or without a gradient.
        optimizer = torch.optim.AdamW([parameters[name] for name in names], lr=0.05, weight_decay=0.1)
        model.train()
        for _ in range(steps):
            embeds = model(images, increment_id=increment_id).embeds
            target = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1))
            (embeds * target).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return names

    return steps_of


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the repository: real data and weights. Tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder 'shared' beside the repository: no real data or weights on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A prepared data set of 64 train, 16 val, 16 query and 32 gallery images of 40 pixels; see tiny_runs.py."""
    from tiny_runs import write_tiny_data

    return write_tiny_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def run(tmp_path, tiny_data):
    """`run(*flags, name="run", **settings)` trains on the tiny data with a tiny trunk, in one thread → the report."""
    import torch
    from tiny_runs import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *flags, name="run", **settings: train(tiny_data, tmp_path / name, *flags, **settings)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory):
    """One thread, and Arrow files in a folder of the tests' own."""
    import datasets
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prepared(one_thread, tmp_path_factory):
    """name, flags of its command, settings of its maker in raw_sets → the folder of a prepared data set; each is
    prepared once a module."""
    done = {}

    def prepare(name, *flags, **settings):
        key = name, *flags, *settings.items()
        if key not in done:
            folder = tmp_path_factory.mktemp(name)
            source = importlib.import_module(f"raw_sets.{name}").make(folder / "raw", **settings)
            main = importlib.import_module(f"data_scripts.{name}").main
            summary = main(["--source", str(source), "--output", str(folder / "set"), *flags])
            assert not summary.bad_rows.total
            done[key] = folder / "set"
        return done[key]

    return prepare
