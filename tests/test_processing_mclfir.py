# SPDX-License-Identifier: Apache-2.0
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_processing_backends import PilBackend

from modeling_mclfir import MclfirImageProcessor


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_is_pil_and_numpy_and_nothing_else(picture):
    processor = MclfirImageProcessor(size={"height": 20, "width": 16}, image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 4])
    assert isinstance(processor, PilBackend)
    found = processor(picture, return_tensors="pt")["pixel_values"]
    resized = np.asarray(picture.resize((16, 20), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = ((resized - [0.1, 0.2, 0.3]) / [1, 2, 4]).transpose(2, 0, 1)
    assert found.shape == (1, 3, 20, 16) and found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (64, 64)])
def test_any_image_becomes_the_one_size(size):
    processor = MclfirImageProcessor(size={"height": 24, "width": 32})
    assert processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape == (1, 3, 24, 32)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_converted(mode):
    found = MclfirImageProcessor()(Image.new(mode, (8, 8)), return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, 224, 224)


def test_white_is_one_and_black_is_minus_one_by_default():
    for colour, value in (("white", 1.0), ("black", -1.0)):
        found = MclfirImageProcessor()(Image.new("RGB", (9, 9), colour), return_tensors="pt")["pixel_values"]
        assert torch.allclose(found, torch.full_like(found, value), atol=1e-6)


@pytest.fixture
def trunk_folder(tmp_path):
    """A trunk's preprocessor as the Hub has them."""
    settings = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224}}
    settings |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_mean_and_deviation_are_those_of_the_trunk(trunk_folder):
    processor = MclfirImageProcessor.for_trunk(str(trunk_folder), 40, 30)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]
    assert dict(processor.size) == {"height": 40, "width": 30}


@pytest.mark.parametrize("with_folder", [True, False])
def test_a_trunk_without_a_preprocessor_takes_a_half(tmp_path, resnet_config, with_folder):
    resnet_config.save_pretrained(tmp_path)
    processor = MclfirImageProcessor.for_trunk(str(tmp_path) if with_folder else None, 40, 30)
    assert list(processor.image_mean) == list(processor.image_std) == [0.5] * 3


def test_round_trip(trunk_folder, tmp_path, picture, caplog):
    processor = MclfirImageProcessor.for_trunk(str(trunk_folder), 40, 30)
    processor.save_pretrained(tmp_path / "saved")
    with caplog.at_level(logging.WARNING):
        loaded = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    assert type(loaded) is MclfirImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(loaded(picture, return_tensors="pt")["pixel_values"], expected)
