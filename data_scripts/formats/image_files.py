# SPDX-License-Identifier: Apache-2.0
"""Where a listed image is on the disk."""

from __future__ import annotations

from pathlib import Path

from modeling_mclfir.data.annotations import image_path


def image_file(root: Path, listed: str) -> Path | None:
    """The file of an image that is listed with either kind of separator; None where it is not there.

    The name as it is listed comes first: on POSIX a backslash may be part of a name.

    Raises:
        ValueError: the path leaves the folder.
    """
    return next((path for path in (root / listed, root / image_path(listed)) if path.is_file()), None)
