"""The scene around a garment of *atelier*: background, things in front of it, light, camera."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .atelier_patterns import PALETTE

Colour = tuple[int, int, int]


def random_colour(rng: np.random.RandomState, saturation: float = 0.7) -> Colour:
    """Any colour, or one that garments have too; greyer where ``saturation`` is small."""
    rgb = rng.uniform(20, 240, 3)
    if rng.rand() < 0.5:
        rgb = np.array(list(PALETTE.values())[rng.randint(len(PALETTE))]) * rng.uniform(0.8, 1.2)
    grey = rgb.mean()
    return tuple(int(c) for c in np.clip(grey + (rgb - grey) * saturation * 1.2, 0, 255))


def shaded(colour: Colour | np.ndarray, factor: float) -> Colour:
    """The colour made lighter or darker by a factor."""
    return tuple(int(min(255, max(0, c * factor))) for c in colour)


def _noise(size: int, cells: int, rng: np.random.RandomState, channels: int = 1) -> np.ndarray:
    """Smooth noise in 0-255: a few random cells blown up."""
    shape = (cells, cells) if channels == 1 else (cells, cells, channels)
    cells_image = Image.fromarray(rng.randint(0, 256, shape).astype(np.uint8))
    return np.asarray(cells_image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _flat(size: int, rng: np.random.RandomState) -> Image.Image:
    return Image.new("RGB", (size, size), random_colour(rng, rng.uniform(0, 1)))


def _gradient(size: int, rng: np.random.RandomState) -> Image.Image:
    angle = rng.uniform(0, 2 * np.pi)
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = np.clip(line[None, :] * np.cos(angle) + line[:, None] * np.sin(angle) + 0.5, 0, 1)[..., None]
    start, end = (np.array(random_colour(rng, 0.7), dtype=np.float32) for _ in range(2))
    return Image.fromarray((start + (end - start) * along).astype(np.uint8))


def _textured(size: int, rng: np.random.RandomState) -> Image.Image:
    base = np.array(random_colour(rng, 0.7), dtype=np.float32)
    texture = (_noise(size, int(rng.randint(3, 7)), rng) - 128) * rng.uniform(0.1, 0.4)
    texture += (_noise(size, int(rng.randint(14, 40)), rng) - 128) * rng.uniform(0.05, 0.4)
    tint = rng.uniform(0.6, 1.2, 3).astype(np.float32)
    return Image.fromarray(np.clip(base + texture[..., None] * tint, 0, 255).astype(np.uint8))


def _shelves(size: int, rng: np.random.RandomState) -> Image.Image:
    image = Image.new("RGB", (size, size), random_colour(rng, 0.4))
    draw = ImageDraw.Draw(image)
    plank = random_colour(rng, 0.6)
    y, step = rng.uniform(-0.2, 0.1) * size, rng.uniform(0.2, 0.4) * size
    while y < size:
        x = rng.uniform(-0.1, 0.1) * size
        while x < size:
            width, height = rng.uniform(0.08, 0.25) * size, rng.uniform(0.3, 0.9) * step
            if rng.rand() < 0.8:
                colour = random_colour(rng, 0.9)
                draw.rectangle((x, y + step - height, x + width, y + step), fill=colour)
                draw.line((x, y + step - height / 2, x + width, y + step - height / 2), fill=shaded(colour, 0.7))
            x += width + rng.uniform(0.01, 0.06) * size
        draw.rectangle((0, y + step, size, y + step + 0.03 * size), fill=plank)
        y += step + 0.03 * size
    return image


def _room(size: int, rng: np.random.RandomState) -> Image.Image:
    image = Image.new("RGB", (size, size), random_colour(rng, 0.5))
    draw = ImageDraw.Draw(image)
    floor = rng.uniform(0.6, 0.92) * size
    colour = random_colour(rng, 0.5)
    left, right = floor + rng.uniform(-0.08, 0.08, 2) * size
    draw.polygon([(0, left), (size, right), (size, size), (0, size)], colour)
    draw.line((0, left, size, right), fill=shaded(colour, 1.3), width=max(1, size // 48))
    for _ in range(rng.randint(1, 4)):  # windows, pictures, doors
        x, y, w, h = rng.uniform((-0.1, 0.0, 0.12, 0.15), (0.9, 0.5, 0.4, 0.6)) * size
        inner = random_colour(rng, 0.6)
        draw.rectangle((x, y, x + w, y + h), fill=inner, outline=shaded(inner, 0.5), width=max(1, size // 48))
        if rng.rand() < 0.5:
            draw.line((x + w / 2, y, x + w / 2, y + h), fill=shaded(inner, 0.5), width=max(1, size // 48))
    return image


def _clutter(size: int, rng: np.random.RandomState) -> Image.Image:
    image = Image.new("RGB", (size, size), random_colour(rng, 0.7))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(8, 20)):
        x, y = rng.uniform(-0.1, 1.0, 2) * size
        w, h = rng.uniform(0.06, 0.4, 2) * size
        shape = draw.ellipse if rng.rand() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=random_colour(rng, 0.9))
    return image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.005, 0.04)) * size))


def _tiles(size: int, rng: np.random.RandomState) -> Image.Image:
    """Boards, tiles or a printed wallpaper: a regular background, so that regularity alone says nothing."""
    first, second = random_colour(rng, 0.6), random_colour(rng, 0.6)
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    angle, step = rng.uniform(0, np.pi), rng.uniform(0.07, 0.23) * size
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    cells = np.floor(across / step) + (np.floor(along / step) if rng.rand() < 0.5 else 0)
    weight = (cells % 2)[..., None] * rng.uniform(0.25, 0.9)
    rgb = np.array(first, dtype=np.float32) * (1 - weight) + np.array(second, dtype=np.float32) * weight
    return Image.fromarray(rgb.astype(np.uint8))


BACKGROUNDS = (_flat, _gradient, _textured, _shelves, _room, _clutter, _tiles)


def background(size: int, rng: np.random.RandomState) -> Image.Image:
    """A background of ``size`` by ``size``, drawn at half that: it is further away, so softer."""
    small = BACKGROUNDS[rng.randint(len(BACKGROUNDS))](max(size // 2, 16), rng)
    return small.resize((size, size), Image.Resampling.BILINEAR)


def light(rgb: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """The light of the room: how much, from where, of which tint, and now and then a shadow across the picture."""
    size = rgb.shape[0]
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.55)
    along = line[None, :] * np.float32(np.cos(angle)) + line[:, None] * np.float32(np.sin(angle))
    factor = (1 + along * np.float32(slope)) * np.float32(rng.uniform(0.6, 1.2))
    if rng.rand() < 0.3:
        edge, turn = rng.uniform(-0.3, 0.3), rng.uniform(0, 2 * np.pi)
        side = line[None, :] * np.float32(np.cos(turn)) + line[:, None] * np.float32(np.sin(turn)) - np.float32(edge)
        factor = factor * (1 - np.float32(rng.uniform(0.15, 0.4)) * np.clip(side * rng.uniform(8, 40), 0, 1))
    tint = rng.uniform(0.87, 1.13, 3).astype(np.float32)
    haze = np.float32(rng.uniform(0, 24))
    return rgb * (factor.astype(np.float32)[..., None] * tint) + haze


def camera(rgb: np.ndarray, rng: np.random.RandomState) -> Image.Image:
    """What a camera adds: a little blur and noise."""
    size = rgb.shape[0]
    level = np.float32(rng.uniform(0, 11))
    noise = rng.random_sample((size, size, 3)).astype(np.float32) - np.float32(0.5)
    image = Image.fromarray(np.clip(rgb + noise * level * 2, 0, 255).astype(np.uint8))
    if rng.rand() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.6)) * size / 96))
    return image
