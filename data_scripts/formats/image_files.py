# SPDX-License-Identifier: Apache-2.0
"""Where a listed image is on the disk."""

from __future__ import annotations

from pathlib import Path

from modeling_mclfir.data.annotations import SourceImage


def image_file(root: Path, listed: str) -> Path | None:
    """The file of an image that is listed with either kind of separator; None where it is not there.

    Raises:
        ValueError: the path leaves the folder.
    """
    return next((path for path in SourceImage(root, listed).paths if path.is_file()), None)
