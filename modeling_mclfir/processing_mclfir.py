# SPDX-License-Identifier: Apache-2.0
"""Image preprocessing (floor 1; travels to the Hub with a checkpoint)."""

from pathlib import Path

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling


class MclfirImageProcessor(PilBackend):
    """
    Resize to `size` (aspect given up, so that neither collar nor hem is cropped away), rescale, normalise.

    Always through PIL: the torchvision backend, where it is installed, resizes slightly differently, and an index
    must not depend on which machine filled it.
    """

    _auto_class = "AutoImageProcessor"
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    model_input_names = ["pixel_values"]

    @classmethod
    def for_trunk(cls, trunk: str | None, height: int, width: int) -> "MclfirImageProcessor":
        """
        A processor of the given size with the mean and deviation that a pretrained trunk was trained with.

        Args:
            trunk: Hub id or folder of the trunk; None, or one without a processor, takes 0.5 for both.
        """
        from transformers import AutoImageProcessor  # here: its module registers this one when it comes in

        statistics = {}
        # A folder may carry weights and configuration alone; a Hub id without a processor is an error worth seeing.
        bare = trunk is not None and Path(trunk).is_dir() and not (Path(trunk) / "preprocessor_config.json").exists()
        if trunk is not None and not bare:
            pretrained = AutoImageProcessor.from_pretrained(trunk, backend="pil")
            if pretrained.image_mean is not None and pretrained.image_std is not None:
                statistics = {"image_mean": list(pretrained.image_mean), "image_std": list(pretrained.image_std)}
        return cls(size={"height": height, "width": width}, **statistics)
