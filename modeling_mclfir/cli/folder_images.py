# SPDX-License-Identifier: Apache-2.0
"""The images of folders, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..data.images import BadImage, BadRows, decode_image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def image_files(sources: Sequence[Path]) -> dict[str, Path]:
    """
    Name → file, sorted, of folders (searched through; a name is the path inside the folder) and single files.

    Raises:
        FileNotFoundError: no such folder or file, no image in any.
        ValueError: two files of one name.
    """
    files: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such folder or image.")
        found = [path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES]
        for path in [source] if source.is_file() else found:
            name = path.name if path == source else str(path.relative_to(source))
            if files.setdefault(name, path) != path:
                raise ValueError(f"{files[name]} and {path} would both be named {name}; give the folder above them.")
    if not files:
        raise FileNotFoundError(f"{', '.join(map(str, sources))} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    return dict(sorted(files.items(), key=lambda item: item[1]))


def image_batches(
    files: Mapping[str, Path], batch_size: int, max_bad_fraction: float, desc: str
) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """
    Names and decoded images of each batch.

    Raises:
        ValueError: at the end, more of them are unusable than `max_bad_fraction`.
    """
    names, bad_rows = list(files), BadRows()
    for start in tqdm(range(0, len(names), batch_size), desc=desc, unit="batch"):
        images, kept = [], []
        for name in names[start : start + batch_size]:
            try:
                images.append(decode_image(files[name]))
                kept.append(name)
            except BadImage as error:
                bad_rows.add(error.cause, str(files[name]))
        if images:
            yield kept, images
    bad_rows.check(len(files), max_bad_fraction)
