# SPDX-License-Identifier: Apache-2.0
import io
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from modeling_mclfir.data.images import BadImage, BadRows, decode_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(40, 30)):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def png(width, height, bits, colour, data):
    """A PNG put together by hand: Pillow would allocate, or cannot write, what is wanted here."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cause_of(source, **options):
    with pytest.raises(BadImage) as caught:
        decode_image(source, **options)
    assert str(caught.value)
    return caught.value.cause


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "memoryview", "dict bytes", "dict path", "image"])
def test_every_kind_of_source_gives_the_same_picture(tmp_path, kind):
    picture = noise()
    path = tmp_path / "a b.png"
    picture.save(path)
    data = path.read_bytes()
    source = {
        "path": path,
        "str": str(path),
        "bytes": data,
        "memoryview": memoryview(data),
        "dict bytes": {"bytes": data, "path": "elsewhere.png"},
        "dict path": {"bytes": None, "path": str(path)},
        "image": picture,
    }[kind]
    result = decode_image(source)
    assert result.mode == "RGB" and result.tobytes() == picture.tobytes()


@pytest.mark.parametrize("source", [None, {"bytes": None, "path": None}, {}, "/no/such/image.jpg", {"path": "no.jpg"}])
def test_missing(source):
    assert cause_of(source) == "missing"


def test_a_wrong_type_is_an_error_of_the_program():
    with pytest.raises(TypeError, match="int"):
        decode_image(3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated(kind, share):
    data = encoded(noise(size=(200, 200)), kind)
    # The reader of WebP does not say why it failed.
    allowed = ("truncated", "unreadable") if kind == "WEBP" else ("truncated",)
    assert cause_of(data[: int(len(data) * share)]) in allowed


@pytest.mark.parametrize("length", [0, 4, 12, 30])
def test_cut_within_the_header(length):
    for kind in ("JPEG", "PNG"):
        # Four bytes are not enough to tell what the file was to be.
        allowed = ("truncated", "unreadable") if length == 4 else ("truncated",)
        assert cause_of(encoded(noise(), kind)[:length]) in allowed


@pytest.mark.parametrize("data", [b"not an image at all" * 10, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n"])
def test_unreadable(data):
    assert cause_of(data) == "unreadable"


def test_a_folder_is_unreadable(tmp_path):
    assert cause_of(tmp_path) == "unreadable"


def test_oversized_is_refused_before_a_pixel_is_decoded(monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for side in (9_000, 12_000, 20_000, 60_000):  # below, between and above the two limits of Pillow's own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert cause_of(png(side, side, 8, 2, b"")) == "oversized"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cause_of(png(side, side, 8, 2, b"")) == "oversized"
    # And a whole one: 20,000 × 20,000 pixels of 1 bit in a few kilobytes.
    assert cause_of(png(20_000, 20_000, 1, 0, bytes(2_501) * 20_000)) == "oversized"


def test_size_limits():
    assert cause_of(encoded(noise(size=(1, 1)))) == "too_small"
    assert cause_of(encoded(noise(size=(7, 500)))) == "too_small"
    assert decode_image(encoded(noise(size=(8, 8)))).size == (8, 8)
    assert decode_image(encoded(noise(size=(1, 1))), min_side=1).size == (1, 1)
    assert cause_of(encoded(noise(size=(20, 20))), max_pixels=399) == "oversized"
    assert decode_image(encoded(noise(size=(20, 20))), max_pixels=400).size == (20, 20)
    assert cause_of(Image.new("RGB", (3, 30))) == "too_small"


def test_grey_and_one_bit():
    grey = noise("L")
    assert (np.asarray(decode_image(encoded(grey))) == np.asarray(grey)[..., None]).all()
    assert set(np.unique(decode_image(encoded(grey.convert("1"))))) == {0, 255}


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (32, 32), (200, 30, 40))
    result = decode_image(encoded(red.convert("CMYK"), "JPEG", quality=95))
    assert result.mode == "RGB" and np.abs(np.asarray(result, int) - np.asarray(red, int)).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled_and_not_clipped(kind):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    result = np.asarray(decode_image(encoded(Image.fromarray(ramp), kind)))[..., 0].astype(int)
    assert np.abs(result - ramp / 257.0).max() <= 0.51


def test_a_dark_16_bit_image_stays_dark():
    dark = Image.fromarray(np.full((16, 16), 300, dtype=np.uint16))
    assert np.asarray(decode_image(encoded(dark))).max() <= 2


def test_wide_integers_and_floats():
    ramp = np.linspace(0, 65535, 256).astype(np.int32).reshape(16, 16)
    assert np.asarray(decode_image(encoded(Image.fromarray(ramp), "TIFF")))[..., 0].max() == 255
    unit = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    unit[0, 0] = np.nan
    result = np.asarray(decode_image(encoded(Image.fromarray(unit), "TIFF")))[..., 0]
    assert result.max() == 255 and 120 < result.mean() < 135


def test_16_bit_colour_png():
    data = png(8, 8, 16, 2, (b"\0" + b"\x80\x00" * 24) * 8)
    assert set(np.unique(decode_image(data))) == {128}


def test_transparent_pixels_lie_on_white():
    for mode in ("RGBA", "LA"):
        clear = Image.new(mode, (16, 16), (0,) * len(mode))
        assert set(np.unique(decode_image(encoded(clear)))) == {255}
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert set(np.unique(decode_image(encoded(half)))) == {127}
    assert set(np.unique(decode_image(half.convert("RGBa")))) == {127}


def test_palette_with_a_transparent_entry():
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.paste(0, (0, 0, 8, 16))
    result = np.asarray(decode_image(encoded(picture, "PNG", transparency=0)))
    assert (result[:, :8] == 255).all() and (result[:, 8:] == (200, 0, 0)).all()
    opaque = np.asarray(decode_image(encoded(picture, "PNG")))
    assert (opaque[:, :8] == (10, 20, 30)).all()


def test_a_transparent_colour_without_alpha_channel():
    picture = Image.new("RGB", (16, 16), (1, 2, 3))
    assert set(np.unique(decode_image(encoded(picture, "PNG", transparency=(1, 2, 3))))) == {255}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (np.asarray(decode_image(data)) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    from PIL import ImageOps

    picture = noise(size=(24, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    result = decode_image(data)
    assert result.size == ((12, 24) if orientation > 4 else (24, 12)) and result.tobytes() == expected.tobytes()


def test_damaged_exif_does_not_cost_the_picture():
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode_image(encoded(noise(), "JPEG", exif=exif)).size == (40, 30)


def test_random_damage_gives_a_picture_or_a_bad_image():
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"):
        data = encoded(noise(), kind)
        for _ in range(60):
            broken = bytearray(data)
            for place in random.integers(0, min(len(data), 200), 4):
                broken[place] = random.integers(0, 256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert decode_image(bytes(broken)).mode == "RGB"
            except BadImage as error:
                assert error.cause in ("truncated", "oversized", "too_small", "unreadable")


def test_bad_image_survives_pickling():
    copy = pickle.loads(pickle.dumps(BadImage("missing", "a.jpg: no such file")))
    assert copy.cause == "missing" and str(copy) == "a.jpg: no such file"


def test_bad_rows_count_by_cause_with_examples():
    bad = BadRows(max_examples=2)
    assert bad.total == 0 and bad.summary() == "no bad rows"
    for i in range(3):
        bad.add("truncated", f"{i}.jpg")
    bad.add("missing", "x.jpg")
    assert bad.total == 4 and bad.counts == {"truncated": 3, "missing": 1}
    assert "truncated: 3 (0.jpg, 1.jpg, …)" in bad.summary() and "missing: 1 (x.jpg)" in bad.summary()
    copy = BadRows()
    copy.load_state_dict(bad.state_dict())
    assert copy.summary() == bad.summary()


def test_bad_rows_stop_the_run_above_the_share():
    bad = BadRows()
    bad.add("missing", "x.jpg")
    bad.check(100)
    with pytest.raises(ValueError, match=r"1 of 99 rows are bad.*--max-bad-fraction(.|\n)*missing: 1 \(x.jpg\)"):
        bad.check(99)
    bad.check(1, max_bad_fraction=1.0)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        bad.check(100, max_bad_fraction=5)
