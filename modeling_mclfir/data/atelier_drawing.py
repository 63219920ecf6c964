"""Draws one picture of *atelier*: a garment worn, hung or laid down, in its scene.

Everything is drawn at twice the size and reduced, which smooths the edges.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import atelier_cut as shapes
from .atelier_details import draw_details, seam_colour
from .atelier_extras import draw_body, draw_occluder, draw_support
from .atelier_patterns import cloth, folds
from .atelier_scene import background, camera, light

SUPERSAMPLING = 2
# Drawn with equal chances: two in five pictures show a person.
PRESENTATIONS = ("person", "person", "mannequin", "hanger", "flat")


class Stage:
    """The canvas and where garment coordinates land on it."""

    def __init__(self, size: int, frame: tuple[float, float], rng: np.random.RandomState) -> None:
        self.size = size
        self.unit = size / (frame[1] - frame[0]) * rng.uniform(0.92, 1.12)
        turn, shear = rng.uniform(-0.15, 0.15), rng.uniform(-0.06, 0.06)
        stretch, flip = rng.uniform(0.9, 1.08), (-1, 1)[rng.randint(2)]
        cos, sin = np.cos(turn) * self.unit, np.sin(turn) * self.unit
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[flip * stretch, shear], [0.0, 1.0]])
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = -linear @ np.array([0.0, sum(frame) / 2])
        tilt = np.eye(3)
        tilt[2, :2] = rng.uniform(-0.22, 0.22, 2) / size
        place = np.eye(3)
        place[:2, 2] = size / 2 + rng.uniform(-0.06, 0.06, 2) * size
        self.rows = (place @ tilt @ matrix).tolist()
        (a, b, c), (d, e, f), (g, h, i) = self.rows
        # The adjugate serves as the inverse of a map between homogeneous coordinates.
        self.inverse = [e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f]
        self.inverse += [d * h - e * g, b * g - a * h, a * e - b * d]
        self.sway = (rng.uniform(-0.07, 0.07), rng.uniform(1.0, 2.2), rng.uniform(0, 6.28))
        self.image = Image.new("RGB", (size, size))
        self.draw = ImageDraw.Draw(self.image)

    def show(self, image: Image.Image) -> None:
        """Take another picture as the canvas."""
        self.image = image
        self.draw = ImageDraw.Draw(image)

    def points(self, points: np.ndarray | list) -> list[tuple[float, float]]:
        """Garment coordinates (N, 2) to pixels."""
        (a, b, c), (d, e, f), (g, h, i) = self.rows
        amount, frequency, phase = self.sway
        placed = []
        # Outlines are short: plain floats are faster here than arrays.
        for x, y in points.tolist() if isinstance(points, np.ndarray) else points:
            x += amount * math.sin(frequency * y + phase)
            depth = g * x + h * y + i
            placed.append(((a * x + b * y + c) / depth, (d * x + e * y + f) / depth))
        return placed

    def grid(self, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The garment coordinates of every pixel of a box."""
        x = np.arange(box[0], box[2], dtype=np.float32)[None, :] + np.float32(0.5)
        y = np.arange(box[1], box[3], dtype=np.float32)[:, None] + np.float32(0.5)
        a, b, c, d, e, f, g, h, i = self.inverse
        scale = 1 / (g * x + (h * y + i))
        v = (d * x + (e * y + f)) * scale
        amount, frequency, phase = self.sway
        return (a * x + (b * y + c)) * scale - amount * np.sin(frequency * v + phase), v

    def polygon(self, points: np.ndarray | list, fill: tuple, edge: tuple | None = None, width: float = 0.018) -> None:
        """Fill an outline given in garment coordinates, and draw its edge."""
        placed = self.points(points)
        self.draw.polygon(placed, fill=fill)
        if edge is not None:
            self.draw.line([*placed, placed[0]], fill=edge, width=self.pixels(width), joint="curve")

    def line(self, points: np.ndarray | list, fill: tuple, width: float = 0.018) -> None:
        """Draw an open line given in garment coordinates."""
        placed = self.points(points)
        self.draw.line(placed, fill=fill, width=self.pixels(width), joint="curve")

    def disc(self, centre: tuple[float, float], radius: float, fill: tuple, edge: tuple | None = None) -> None:
        """Draw a disc around a point given in garment coordinates."""
        ((x, y),) = self.points([centre])
        r = max(radius * self.unit, 1.0)
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=edge)

    def pixels(self, width: float) -> int:
        """A width in garment coordinates as whole pixels, at least one."""
        return max(1, round(width * self.unit))


def _frame(cut: dict, presentation: str, rng: np.random.RandomState) -> tuple[float, float]:
    """From which height to which the picture goes: sometimes only the garment, sometimes the whole wearer."""
    upper = cut["category"] in shapes.UPPER
    top = -0.30 if upper else cut["waist_height"] - 0.14
    bottom = max(cut["hem"], 0.12 + cut["reach"]) + 0.10
    if presentation in ("person", "mannequin"):
        top -= rng.uniform(0.0, 0.15 if upper else 0.35)
        bottom += rng.uniform(0.0, 1.0) * max(0.15, 2.3 - bottom) * (0.3 if cut["category"] in shapes.TOPS else 0.6)
    # A short or a wide garment leaves room above and below rather than fill the picture.
    widest = float(shapes.half_width(cut, cut["hem"]))
    missing = max(0.0, 1.1 - (bottom - top), 1.9 * widest - (bottom - top))
    return top - missing * 0.4, bottom + missing * 0.6 + (0.2 if rng.rand() < 0.2 else 0.0)


def _label_map(stage: Stage, product: dict, pose: dict) -> Image.Image:
    """Which part of the garment each pixel shows: 0 none, 1 body, 2 and 3 the sleeves."""
    cut, attributes = product["cut"], product["attributes"]
    labels = Image.new("L", (stage.size, stage.size), 0)
    draw = ImageDraw.Draw(labels)
    draw.polygon(stage.points(shapes.body_panel(cut, pose)), fill=1)
    if cut["category"] in shapes.LEGGED:
        for side in (-1, 1):
            draw.polygon(stage.points(shapes.leg_panel(cut, pose, side)), fill=1)
    if cut["reach"]:
        for side in (-1, 1):
            draw.polygon(stage.points(shapes.sleeve_panel(cut, pose, side)), fill=2 + (side + 1) // 2)
    if attributes["neckline"] == "turtle":
        collar = [[-0.125, -0.21], [0.125, -0.21], [0.15, -0.05], [0.2, 0.0], [-0.2, 0.0], [-0.15, -0.05]]
        draw.polygon(stage.points(collar), fill=1)
    elif attributes["neckline"]:
        draw.polygon(stage.points(shapes.neck_opening(attributes["neckline"], cut)), fill=0)
    return labels


def _cloth_image(
    stage: Stage, product: dict, pose: dict, labels: np.ndarray, round_shade: np.ndarray, box: tuple, rng
) -> np.ndarray:
    """The cloth inside a box as (3, H, W) bytes: print, knit, folds; each sleeve's print is turned with its arm."""
    u, v = stage.grid(box)
    # Folds are soft: a quarter of the pixels is enough.
    coarse = folds(u[::2, ::2], v[::2, ::2], rng, rng.uniform(0.05, 0.22))
    shading = coarse.repeat(2, axis=0).repeat(2, axis=1)[: u.shape[0], : u.shape[1]] * round_shade
    for side in (-1, 1) if product["cut"]["reach"] else ():
        inside = labels == 2 + (side + 1) // 2
        angle = -side * pose["arms"][(side + 1) // 2]
        x, y = u[inside] - np.float32(side * 0.375), v[inside] - np.float32(0.1)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u[inside], v[inside] = x * cos - y * sin, x * sin + y * cos
        shading[inside] *= np.float32(rng.uniform(0.82, 1.06))
    if product["cut"]["category"] == "sweater":
        shading *= 1 + np.float32(0.09) * np.sin(v * np.float32(85)) * np.sin(u * np.float32(70))
    rgb = cloth(product["attributes"]["pattern"], product["cloth"], u, v, 1 / stage.unit)
    return np.clip(rgb * shading, 0, 255).astype(np.uint8)


def _paint_garment(stage: Stage, product: dict, pose: dict, labels: Image.Image, rng: np.random.RandomState) -> None:
    """Put the garment on the canvas, with a shadow under it and rounded by shade towards its edges."""
    mask = labels.point([0] + [255] * 255)
    soft = mask.reduce(4).filter(ImageFilter.BoxBlur(stage.size / 55)).resize(mask.size, Image.Resampling.BILINEAR)
    dx, dy = (int(d) for d in rng.uniform(-0.04, 0.04, 2) * stage.size)
    stage.image.paste((0, 0, 0), (dx, dy), soft.point([int(i * 0.42) for i in range(256)]))
    draw_support(stage, product, pose, rng)
    box = mask.getbbox()
    if box is None:
        return
    round_shade = np.asarray(soft.crop(box), dtype=np.float32) * np.float32(0.36 / 255) + np.float32(0.70)
    planes = _cloth_image(stage, product, pose, np.asarray(labels.crop(box)), round_shade, box, rng)
    stage.image.paste(Image.merge("RGB", [Image.fromarray(plane) for plane in planes]), box[:2], mask.crop(box))


def draw_picture(product: dict, image_size: int, rng: np.random.RandomState) -> Image.Image:
    """One view of a product (`attributes`, `cut`, `cloth`) as a picture of ``image_size`` by ``image_size``."""
    presentation = PRESENTATIONS[rng.randint(len(PRESENTATIONS))]
    product = {**product, "presentation": presentation, "seam": seam_colour(product["cloth"]["base"])}
    pose = shapes.view_pose(rng, presentation)
    stage = Stage(image_size * SUPERSAMPLING, _frame(product["cut"], presentation, rng), rng)
    labels = _label_map(stage, product, pose)
    stage.show(background(stage.size, rng))
    if presentation in ("person", "mannequin"):
        draw_body(stage, product, pose, rng)
    _paint_garment(stage, product, pose, labels, rng)
    draw_details(stage, product, pose)
    draw_occluder(stage, product, pose, rng)
    rgb = np.asarray(stage.image.reduce(SUPERSAMPLING), dtype=np.float32)
    return camera(light(rgb, rng), rng)
