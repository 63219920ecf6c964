# SPDX-License-Identifier: Apache-2.0
"""Views of a training image: geometry only, since colour is an attribute."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Augmentation:
    """
    View 0 is the image itself, view 1 its mirror image; higher views are random crops, odd ones mirrored too.

    Args:
        min_crop: smallest share of the image's area that a crop keeps, 0..1.
        max_stretch: largest change of a crop's aspect, as the natural logarithm.
    """

    min_crop: float = 0.6
    max_stretch: float = 0.15

    def __post_init__(self):
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop is a share of the area, above 0 and at most 1; got {self.min_crop}.")

    def __call__(self, image: Image.Image, view: int, rng: np.random.Generator) -> Image.Image:
        """The given view of an RGB image; `rng` draws the crop."""
        if view % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._crop(image, rng) if view > 1 else image

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        side = np.sqrt(rng.uniform(self.min_crop, 1.0))
        stretch = np.exp(rng.uniform(-self.max_stretch, self.max_stretch))
        # A side that would pass the image is cut there; the other one must not shrink below the smallest share then.
        width = max(1, round(image.width * min(1.0, max(side * stretch, self.min_crop))))
        height = max(1, round(image.height * min(1.0, max(side / stretch, self.min_crop))))
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, image.height - height + 1))
        return image.crop((left, top, left + width, top + height))


def view_generator(seed: int, image_id: int, view: int) -> np.random.Generator:
    """The generator of one view of one image: the same in every run, on every process, in whatever order."""
    return np.random.default_rng((seed, int(image_id) % 2**63, view))
