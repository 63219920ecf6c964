"""What is in a picture of *atelier* beside the garment: wearer, mannequin, hanger, and things in front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import atelier_cut as shapes
from .atelier_scene import random_colour, shaded

if TYPE_CHECKING:
    from .atelier_drawing import Stage

SKINS = ((244, 208, 182), (228, 184, 150), (206, 154, 116), (170, 116, 80), (124, 80, 54), (84, 54, 38))
DUMMIES = ((232, 230, 226), (206, 186, 156), (60, 60, 62), (170, 170, 172), (222, 206, 196))
HAIRS = ((28, 22, 20), (72, 46, 28), (134, 90, 46), (206, 168, 96), (120, 50, 30), (170, 168, 166))
# Plain clothes worn with the garment, so that a picture holds more cloth than the product.
NEUTRALS = ((236, 234, 230), (52, 54, 60), (70, 84, 112), (150, 146, 140), (196, 182, 160))


def _body_outline() -> np.ndarray:
    x = [0.09, 0.10, 0.38, 0.40, 0.34, 0.27, 0.35, 0.35]
    right = np.stack([x, [-0.26, -0.06, 0.02, 0.14, 0.32, 0.6, 0.92, 1.1]], axis=1)
    return np.concatenate([right, (right * np.array([-1.0, 1.0]))[::-1]])


def _leg(pose: dict, side: int) -> np.ndarray:
    y = np.linspace(0.95, 2.2, 8)
    x = 0.18 + (pose["stance"][(side + 1) // 2] - 0.18) * np.clip((y - 0.95) / 1.2, 0, 1)
    widths = np.array([0.165, 0.155, 0.13, 0.10, 0.09, 0.095, 0.07, 0.05])
    return shapes.ribbon(np.stack([side * x, y], axis=1), widths)


def draw_body(stage: Stage, product: dict, pose: dict, rng: np.random.RandomState) -> None:
    """Draw who wears the garment: a person with a head, or a mannequin without one."""
    person = product["presentation"] == "person"
    colours = SKINS if person else DUMMIES
    skin = shaded(colours[rng.randint(len(colours))], rng.uniform(0.9, 1.08))
    edge = shaded(skin, 0.78)
    upper, top = product["cut"]["category"] in shapes.UPPER, product["cut"]["category"] in shapes.TOPS
    for side in (-1, 1):
        stage.polygon(_leg(pose, side), skin, edge)
        foot = np.array([[pose["stance"][(side + 1) // 2] * side, 2.2]])
        stage.disc(tuple(foot[0]), 0.075, shaded(skin, 0.5) if rng.rand() < 0.7 else skin)
    if person:
        _draw_hair(stage, rng)
    stage.polygon(_body_outline(), skin, edge)
    widths = np.linspace(0.085, 0.05, 9)
    for side in (-1, 1):
        arm = shapes.arm_line(pose, side, 0.84)
        stage.polygon(shapes.ribbon(arm, widths), skin, edge)
        stage.disc(tuple(arm[-1]), 0.06, skin)
    if person:
        angle = np.linspace(0, 2 * np.pi, 20)
        stage.polygon(np.stack([0.155 * np.cos(angle), -0.42 + 0.2 * np.sin(angle)], axis=1), skin, edge)
    stage.line([[-0.09, -0.19], [0.0, -0.16], [0.09, -0.19]], edge, 0.03)  # the chin's shadow
    if person and (top or not upper) and rng.rand() < 0.5:
        _draw_other_garment(stage, pose, top, rng)


def _draw_hair(stage: Stage, rng: np.random.RandomState) -> None:
    hair = shaded(HAIRS[rng.randint(len(HAIRS))], rng.uniform(0.85, 1.15))
    angle = np.linspace(0, 2 * np.pi, 20)
    stage.polygon(np.stack([0.2 * np.cos(angle), -0.46 + 0.23 * np.sin(angle)], axis=1), hair)
    if rng.rand() < 0.5:
        length = rng.uniform(-0.1, 0.25)
        stage.polygon([[-0.2, -0.45], [0.2, -0.45], [0.24, length], [0.1, -0.1], [-0.1, -0.1], [-0.24, length]], hair)


def _draw_other_garment(stage: Stage, pose: dict, top: bool, rng: np.random.RandomState) -> None:
    colour = shaded(NEUTRALS[rng.randint(len(NEUTRALS))], rng.uniform(0.85, 1.05))
    edge = shaded(colour, 0.75)
    if top:  # plain trousers under a shirt
        stage.polygon([[-0.3, 0.62], [0.3, 0.62], [0.37, 0.95], [0.3, 1.15], [-0.3, 1.15], [-0.37, 0.95]], colour)
        for side in (-1, 1):
            stage.polygon(_leg(pose, side)[[0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]], colour, edge)
        return
    neck = rng.uniform(0.02, 0.2)  # a plain vest over trousers or a skirt
    outline = [[0.16, 0.0], [0.34, 0.0], [0.36, 0.32], [0.29, 0.6], [0.34, 0.85]]
    left = [[-x, y] for x, y in reversed(outline)]
    stage.polygon([[0.0, neck + 0.1], *outline, *left], colour, edge)


def draw_support(stage: Stage, product: dict, pose: dict, rng: np.random.RandomState) -> None:
    """Draw what shows through the neck of a garment that nobody wears: its lining, and a hanger."""
    if product["presentation"] not in ("hanger", "flat"):
        return
    upper = product["cut"]["category"] in shapes.UPPER
    if product["presentation"] == "hanger":
        colour = shaded(((150, 108, 66), (225, 225, 225), (40, 40, 42))[rng.randint(3)], rng.uniform(0.85, 1.1))
        y = -0.06 if upper else product["cut"]["waist_height"] - 0.03
        stage.line([[0.0, y - 0.02], [0.0, y - 0.16], [0.06, y - 0.22], [0.02, y - 0.27]], (120, 120, 124), 0.025)
        stage.line([[-0.36, y + 0.1 * upper], [0, y - 0.03], [0.36, y + 0.1 * upper]], colour, 0.05)
    opening = shapes.neck_opening(product["attributes"]["neckline"], product["cut"]) if upper else None
    if opening is not None:
        base = product["cloth"]["base"]
        lining = shaded(base, 0.55) if base.mean() > 60 else shaded(base, 1.7)
        inside = opening.copy()
        inside[:, 1] = np.maximum(inside[:, 1], -0.055)
        stage.polygon(inside, lining)


def _bag(stage: Stage, side: int, rng: np.random.RandomState) -> None:
    colour = random_colour(rng, 0.9)
    y, x = rng.uniform(0.75, 1.15), side * rng.uniform(0.38, 0.55)
    w, h = rng.uniform(0.13, 0.22), rng.uniform(0.12, 0.2)
    stage.line([[side * rng.uniform(0.2, 0.32), -0.02], [x, y]], shaded(colour, 0.6), 0.03)
    outline = [[x - w, y], [x + w, y], [x + w * 1.1, y + 2 * h], [x - w * 1.1, y + 2 * h]]
    stage.polygon(outline, colour, shaded(colour, 0.6))


def _hand(stage: Stage, side: int, rng: np.random.RandomState) -> None:
    skin = SKINS[rng.randint(len(SKINS))]
    x, y = side * rng.uniform(0.30, 0.5), rng.uniform(0.55, 1.3)
    line = np.array([[side * 1.1, y + rng.uniform(-0.3, 0.4)], [x + side * 0.1, y], [x, y]])
    stage.polygon(shapes.ribbon(line, np.array([0.09, 0.065, 0.06])), skin, shaded(skin, 0.75))
    for finger in (-0.05, -0.017, 0.017, 0.05):
        stage.line([[x + side * 0.02, y + finger], [x - side * 0.1, y + finger * 1.3]], shaded(skin, 0.95), 0.03)


def _strands(stage: Stage, side: int, rng: np.random.RandomState) -> None:
    hair = HAIRS[rng.randint(len(HAIRS))]
    x, end = side * rng.uniform(0.17, 0.26), rng.uniform(0.1, 0.4)
    for _ in range(4):
        strand = [[side * 0.15, -0.4], [x, -0.1], [x + rng.uniform(-0.05, 0.05), end]]
        stage.line(strand, shaded(hair, rng.uniform(0.8, 1.2)), 0.045)


def _thing(stage: Stage, side: int, rng: np.random.RandomState) -> None:
    """Something blurred by the edge of the frame: a plant, a neighbour on the rail, a box."""
    size = stage.size
    colour = random_colour(rng, 0.9)
    x = size * (0.0 if side < 0 else 1.0)
    w, h, y = rng.uniform(0.08, 0.2) * size, rng.uniform(0.2, 0.7) * size, rng.uniform(-0.1, 0.8) * size
    shape = stage.draw.ellipse if rng.rand() < 0.5 else stage.draw.rectangle
    shape((x - w, y, x + w, y + h), fill=colour)


def draw_occluder(stage: Stage, product: dict, pose: dict, rng: np.random.RandomState) -> None:
    """In two pictures of five, put something in front; never on the neckline or on the middle of the front."""
    if rng.rand() > 0.4:
        return
    side = (-1, 1)[rng.randint(2)]
    worn = product["presentation"] in ("person", "mannequin")
    kinds = (_bag, _hand, _strands, _thing) if worn else (_hand, _thing)
    kinds[rng.randint(len(kinds))](stage, side, rng)
