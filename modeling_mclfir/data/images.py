# SPDX-License-Identifier: Apache-2.0
"""From the bytes of an image file to an RGB picture, or to the reason why there is none."""

import io
import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

CAUSES = ("missing", "truncated", "oversized", "too_small", "unreadable", "bad_box")
MAX_PIXELS = 64_000_000
MIN_SIDE = 8
# Only formats that are pictures all through: Pillow would also start Ghostscript on an EPS file, for instance.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

_EXIF_ORIENTATION = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a")
# What Pillow's plugins raise on damaged files; anything else is a fault of ours and must be seen.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)


class BadImage(ValueError):  # noqa: N818 - says what it is, as the counter's `BadRows` does
    """An image that cannot be used. `cause` is one of `CAUSES`."""

    def __init__(self, cause: str, message: str):
        # Both arguments go to the base class, so that the error survives pickling between processes.
        super().__init__(cause, message)
        self.cause = cause

    def __str__(self) -> str:
        return self.args[1]


class TooManyBadRowsError(ValueError):
    """More rows are bad than a run may pass over."""


class BadRows:
    """Rows that were skipped, counted by cause, with the first `max_examples` places of each cause."""

    def __init__(self, max_examples: int = 10):
        self.max_examples = max_examples
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, cause: str, where: str) -> None:
        """Counts one row; `where` says which (file name, line, index)."""
        self.counts[cause] += 1
        examples = self.examples.setdefault(cause, [])
        if len(examples) < self.max_examples:
            examples.append(str(where))

    @property
    def total(self) -> int:
        """Number of rows counted."""
        return sum(self.counts.values())

    def summary(self, what: str = "row") -> str:
        """One line for all, one more for each cause with its examples; `what` they are."""
        if not self.total:
            return f"no bad {what}s"
        lines = [f"{self.total} bad {what}{'s' if self.total > 1 else ''}:"]
        for cause, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            examples = self.examples.get(cause, [])
            more = ", …" if count > len(examples) else ""
            lines.append(f"  {cause}: {count} ({', '.join(examples)}{more})")
        return "\n".join(lines)

    def check(self, total_rows: int, max_bad_fraction: float = 0.01, what: str = "row") -> None:
        """Raises TooManyBadRowsError, with the list, where more than `max_bad_fraction` of `total_rows` are bad."""
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; expected a share from 0 to 1, such as 0.01")
        if self.total > max_bad_fraction * total_rows:
            raise TooManyBadRowsError(
                f"{self.total} of {total_rows} {what}s are bad, more than the {max_bad_fraction:.2%} allowed. "
                f"Mend or remove these {what}s, or allow a larger share with --max-bad-fraction.\n{self.summary(what)}"
            )

    def state_dict(self) -> dict:
        """Counts and examples as plain data."""
        return {"counts": dict(self.counts), "examples": {cause: list(v) for cause, v in self.examples.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        self.counts = Counter(state["counts"])
        self.examples = {cause: list(examples) for cause, examples in state["examples"].items()}


class DistinctBadRows(BadRows):
    """Bad rows that may be met again (in a further epoch, in a resumed run) and are counted once."""

    def __init__(self, max_examples: int = 10):
        super().__init__(max_examples)
        self._seen: set[tuple[str, str]] = set()

    def add(self, cause: str, where: str) -> None:
        """Counts the row at `where`, unless that was done before."""
        if (cause, str(where)) not in self._seen:
            self._seen.add((cause, str(where)))
            super().add(cause, where)

    def state_dict(self) -> dict:
        """The rows as plain data: at most as many as `max_bad_fraction` lets pass."""
        return {"rows": sorted(map(list, self._seen))}

    def load_state_dict(self, state: dict) -> None:
        """Adds the rows that `state_dict` gave; what is known already stays."""
        for cause, where in state["rows"]:
            self.add(cause, where)


def decode_image(
    source: "bytes | str | os.PathLike | dict | Image.Image",
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
) -> Image.Image:
    """Decodes an image file of any usual kind to 8-bit RGB.

    EXIF orientation is applied, 16-bit values are scaled, transparent pixels lie on white, and an animated file gives
    its first frame. The size is read from the header before any pixel is decoded.

    Args:
        source: the bytes of a file, its path, the `{"bytes", "path"}` of datasets, or an opened PIL image.
        max_pixels: a larger image (width × height) is refused without being decoded.
        min_side: an image with a shorter side is refused.

    Returns:
        A PIL image of mode RGB, (width, height) as stored and turned upright.

    Raises:
        BadImage: with `.cause` in `CAUSES`.
        TypeError: `source` is none of the kinds above.
    """
    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if source is None:
        raise BadImage("missing", "no image: neither bytes nor a path are given")
    if isinstance(source, Image.Image):
        return _decode(lambda: source, "PIL image", b"", max_pixels, min_side)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _decode(lambda: _open(data), "image", data, max_pixels, min_side)
    if isinstance(source, str | os.PathLike):
        try:
            data = Path(source).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise BadImage("missing", f"{source}: no such image file") from None
        except OSError as error:
            raise BadImage("unreadable", f"{source}: {error.strerror or error}") from error
        return _decode(lambda: _open(data), str(source), data, max_pixels, min_side)
    raise TypeError(
        f"an image of type {type(source).__name__} is given; expected the bytes or the path of a file, "
        "a dict with 'bytes' and 'path', or a PIL image"
    )


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_known_formats())


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()  # Pillow loads its rarer readers late, and stumbles over a format that it was built without
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(
    open_image: Callable[[], Image.Image], name: str, data: bytes, max_pixels: int, min_side: int
) -> Image.Image:
    try:
        image = open_image()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("oversized", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        # A known signature without a whole header behind it, or nothing at all: the file was cut.
        cut = not data or data.startswith(_SIGNATURES)
        raise BadImage("truncated" if cut else "unreadable", f"{name}: {_reason(error, data)}") from error
    except _DECODE_ERRORS as error:
        raise BadImage(_cause(error), f"{name}: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage("oversized", f"{name}: {width}×{height} pixels, more than {max_pixels:,} in all")
    if min(width, height) < min_side:
        raise BadImage("too_small", f"{name}: {width}×{height} pixels, a side is shorter than {min_side}")
    try:
        image.load()
        return _to_rgb(_turn_upright(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("oversized", f"{name}: {error}") from error
    except MemoryError as error:
        raise BadImage("oversized", f"{name}: {width}×{height} pixels do not fit in memory") from error
    except _DECODE_ERRORS as error:
        raise BadImage(_cause(error), f"{name}: {error}") from error


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    return f"not an image of a known kind ({', '.join(FORMATS)})" if not data.startswith(_SIGNATURES) else str(error)


def _cause(error: Exception) -> str:
    text = str(error).lower()
    cut = isinstance(error, EOFError) or any(word in text for word in ("truncated", "broken png", "unexpected end"))
    return "truncated" if cut else "unreadable"


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF (struct, syntax, key errors …) says nothing about the pixels, which are fine
        orientation = 1
    transpose = _TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_8_bit(image).convert("RGB")
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        layer = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        page = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        page.alpha_composite(layer)
        return page.convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    """Maps wide grey values to 0–255; Pillow's own `convert` would clip everything above 255 to white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    peak = float(values.max())
    if image.mode == "F":
        top = 1.0 if peak <= 1 else 255.0 if peak <= 255 else peak
    else:
        top = 65535.0 if peak <= 65535 else float(2**31 - 1)
    scaled = np.clip(values * (255.0 / top), 0, 255)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
