"""Cloth of the embedded data set *atelier*: colours, printed patterns, folds. Only numpy is needed."""

from __future__ import annotations

import numpy as np

# The middle of each colour name; a product's own shade is drawn around it.
PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (30, 29, 33),
    "white": (238, 237, 232),
    "grey": (136, 138, 141),
    "red": (190, 32, 40),
    "yellow": (232, 194, 48),
    "green": (44, 126, 66),
    "navy": (30, 44, 108),
    "purple": (122, 58, 152),
    "pink": (238, 146, 178),
    "brown": (112, 70, 40),
}
# How far a shade may stray (in each channel, and in brightness), small enough that names stay apart.
CHANNEL_JITTER = 9.0
BRIGHTNESS_JITTER = 0.12
# Across and along are the commonest, slanted stripes the rarest.
STRIPE_ANGLES = (0.0,) * 4 + (np.pi / 2,) * 4 + (np.pi / 4, -np.pi / 4)
LEAF_GREEN = np.array([70, 120, 62], dtype=np.float32)


def shade_of(colour: str, rng: np.random.RandomState) -> np.ndarray:
    """A shade of a named colour: RGB, 0-255, float32."""
    base = np.array(PALETTE[colour], dtype=np.float32)
    gain = 1.0 + rng.uniform(-BRIGHTNESS_JITTER, BRIGHTNESS_JITTER)
    return np.clip(base * gain + rng.uniform(-CHANNEL_JITTER, CHANNEL_JITTER, 3), 8, 247).astype(np.float32)


def print_colours(base: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """The two colours printed on a cloth of shade ``base``, each far from it in light or in hue."""
    names = tuple(PALETTE)
    found: list[np.ndarray] = []
    # Any colour may be printed on any other, so what fills most of a picture is not always what names its colour.
    for _ in range(40):
        name = ("white", "black", "white", "grey")[rng.randint(4)] if rng.rand() < 0.3 else names[rng.randint(10)]
        colour = shade_of(name, rng)
        if np.abs(colour - base).sum() > 210:
            found.append(colour)
        if len(found) == 2:
            break
    while len(found) < 2:
        found.append(255.0 - base)
    return found[0], found[1]


def _band(position: np.ndarray, duty: float, sharpness: float) -> np.ndarray:
    """1 inside a band of width ``duty`` in every unit period, 0 outside, with an edge one pixel wide."""
    distance = np.abs(position - np.floor(position) - 0.5)
    return np.clip((duty / 2 - distance) * sharpness + 0.5, 0, 1)


def _stripes(u: np.ndarray, v: np.ndarray, product: dict, sharpness: float) -> tuple[np.ndarray, np.ndarray | None]:
    angle = product["stripe_angle"]
    return _band(u * np.sin(angle) + v * np.cos(angle), product["duty"], sharpness), None


def _checks(u: np.ndarray, v: np.ndarray, product: dict, sharpness: float) -> tuple[np.ndarray, np.ndarray | None]:
    angle = product["check_angle"]
    across = u * np.cos(angle) - v * np.sin(angle)
    along = u * np.sin(angle) + v * np.cos(angle)
    bands = _band(across, product["duty"], sharpness) + _band(along, product["duty"], sharpness)
    return bands * 0.5, None


def _dots(u: np.ndarray, v: np.ndarray, product: dict, sharpness: float) -> tuple[np.ndarray, np.ndarray | None]:
    row = np.floor(v)
    # Every second row is moved by half a cell.
    x = u + (row % 2) * 0.5
    distance = np.hypot(x - np.floor(x) - 0.5, v - row - 0.5)
    return np.clip((product["dot_radius"] - distance) * sharpness + 0.5, 0, 1), None


def _floral(u: np.ndarray, v: np.ndarray, product: dict, sharpness: float) -> tuple[np.ndarray, np.ndarray | None]:
    u, v = u * 0.72, v * 0.72  # a flower needs more room than a dot
    row = np.floor(v)
    x = u + (row % 2) * 0.5
    column = np.floor(x)
    cell = (row.astype(np.int32) & 7, column.astype(np.int32) & 7)
    offsets = product["flower_offsets"]
    x = x - column - 0.5 + offsets[0][cell]
    y = v - row - 0.5 + offsets[1][cell]
    radius = np.hypot(x, y)
    petals = 0.30 + 0.11 * np.cos(product["petals"] * np.arctan2(y, x) + offsets[2][cell] * 40)
    sharpness = sharpness * 1.4
    flower = np.clip((petals - radius) * sharpness + 0.5, 0, 1)
    heart = np.clip((0.11 - radius) * sharpness + 0.5, 0, 1)
    # A leaf beside the flower, seen only where the flower is not.
    leaf = np.clip((0.085 - np.hypot((x - 0.36) * 0.5 + (y - 0.30) * 0.5, (x - 0.36) - (y - 0.30))) * sharpness, 0, 1)
    return flower, np.maximum(heart, leaf * (1 - flower) * 0.9)


def _chevron(u: np.ndarray, v: np.ndarray, product: dict, sharpness: float) -> tuple[np.ndarray, np.ndarray | None]:
    zigzag = np.abs(u * 0.62 - np.floor(u * 0.62) - 0.5) * 1.9
    return _band(v * 1.05 + zigzag, product["duty"], sharpness * 0.75), None


PATTERNS = {"stripes": _stripes, "checks": _checks, "dots": _dots, "floral": _floral, "chevron": _chevron}


def product_cloth(colour: str, rng: np.random.RandomState) -> dict:
    """Everything about a product's cloth that its views share."""
    base = shade_of(colour, rng)
    first, second = print_colours(base, rng)
    return {
        "base": base,
        "first": first,
        "second": second,
        "period": rng.uniform(0.165, 0.26),
        "phase": rng.uniform(0, 1, 2),
        "duty": rng.uniform(0.30, 0.46),
        "stripe_angle": STRIPE_ANGLES[rng.randint(len(STRIPE_ANGLES))],
        "check_angle": (0.0, np.pi / 4)[rng.randint(2)] if rng.rand() < 0.3 else 0.0,
        "dot_radius": rng.uniform(0.24, 0.33),
        "petals": int(rng.randint(4, 7)),
        "flower_offsets": rng.uniform(-0.08, 0.08, (3, 8, 8)).astype(np.float32),
        "grain": rng.uniform(0.0, 0.05),
    }


def cloth(pattern: str, cloth_of: dict, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
    """The printed cloth at garment coordinates ``u``, ``v`` (H, W): (3, H, W), 0-255 float32, before light and folds.

    ``pixel`` is the size of a pixel in garment coordinates: edges of the print are as wide as that.
    """
    base, first, second = (cloth_of[name][:, None, None] for name in ("base", "first", "second"))
    if pattern == "solid":
        return np.broadcast_to(base, (3, *u.shape))
    period = np.float32(cloth_of["period"])
    phase = cloth_of["phase"].astype(np.float32)
    weight, accent = PATTERNS[pattern](u / period + phase[0], v / period + phase[1], cloth_of, period / pixel)
    rgb = base + weight * (first - base)
    if accent is not None:
        # The heart of a flower sits on the print, a leaf on the cloth.
        rgb += accent * (np.where(weight > 0.5, second, LEAF_GREEN[:, None, None]) - rgb)
    return rgb


def folds(u: np.ndarray, v: np.ndarray, rng: np.random.RandomState, strength: float) -> np.ndarray:
    """Light and dark of hanging cloth: a factor around 1 for each pixel."""
    total = np.zeros_like(u)
    for _ in range(3):
        lean = rng.uniform(-0.45, 0.45)
        frequency, phase = rng.uniform(5, 16), rng.uniform(0, 6.28)
        wave = np.sin((u + lean * v) * np.float32(frequency) + np.float32(phase) + np.float32(rng.uniform(-1, 1)) * v)
        # Folds fade in and out along the garment.
        total += wave * np.float32(rng.uniform(0.4, 1.0)) * np.sin(v * np.float32(rng.uniform(0.8, 2.0)) + phase)
    return 1 + total * np.float32(strength / 2)
