# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from modeling_mclfir.data.augmentation import Augmentation, view_generator


@pytest.fixture
def picture():
    """Each pixel holds its own place, so that a crop tells where it was taken."""
    rows, columns = np.mgrid[:100, :80]
    return Image.fromarray(np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_view_0_is_the_image_and_view_1_its_mirror_image(picture):
    augmentation = Augmentation()
    assert np.array_equal(augmentation(picture, 0, rng()), picture)
    assert np.array_equal(augmentation(picture, 1, rng()), np.asarray(picture)[:, ::-1])


@pytest.mark.parametrize("view", [2, 3, 4, 5])
def test_higher_views_are_crops_and_odd_ones_mirrored(picture, view):
    for seed in range(20):
        crop = np.asarray(Augmentation()(picture, view, rng(seed))).astype(int)
        rows, columns = crop[:, :, 0], crop[:, :, 1]
        assert (np.diff(rows, axis=0) == 1).all() and (np.diff(rows, axis=1) == 0).all()
        assert (np.diff(columns, axis=1) == (-1 if view % 2 else 1)).all(), "nothing but a cut, colours as they were"
        assert rows.min() >= 0 and rows.max() <= 99 and columns.max() <= 79


@pytest.mark.parametrize("min_crop, max_stretch", [(0.6, 0.15), (0.9, 0.15), (0.3, 1.0), (1.0, 0.5), (0.5, 0.0)])
def test_crops_keep_the_share_of_the_area_and_the_aspect(min_crop, max_stretch):
    picture, augmentation = Image.new("RGB", (1000, 800)), Augmentation(min_crop, max_stretch)
    areas, stretches = [], []
    for seed in range(300):
        width, height = augmentation(picture, 2, rng(seed)).size
        areas.append(width * height / (1000 * 800))
        stretches.append(abs(np.log((width / 1000) / (height / 800))))
    assert min(areas) >= min_crop - 0.002 and max(areas) <= 1
    assert max(stretches) <= 2 * max_stretch + 0.005
    assert min_crop == 1.0 or min(areas) < min_crop + 0.1, "it does cut"
    assert not max_stretch or min_crop == 1.0 or max(stretches) > 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 2)])
def test_tiny_images_stay_images(size):
    for view in range(6):
        found = Augmentation(min_crop=0.01)(Image.new("RGB", size), view, rng(view))
        assert 1 <= found.size[0] <= size[0] and 1 <= found.size[1] <= size[1]


@pytest.mark.parametrize("min_crop", [0, -0.5, 1.01])
def test_a_share_out_of_range(min_crop):
    with pytest.raises(ValueError, match=f"min_crop.*got {min_crop}"):
        Augmentation(min_crop=min_crop)


def test_a_view_is_the_same_in_every_run_and_another_for_every_image_and_view():
    draws = {(image, view): view_generator(3, image, view).random() for image in (-5, 0, 5, 2**40) for view in (2, 3)}
    assert draws == {key: view_generator(3, *key).random() for key in reversed(list(draws))}
    assert len(set(draws.values())) == len(draws)
    assert view_generator(4, 5, 2).random() != draws[5, 2]
