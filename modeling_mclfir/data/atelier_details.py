"""What is sewn on a garment of *atelier*: seams, necklines, closures, pockets, ribs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import atelier_cut as shapes
from .atelier_scene import shaded

if TYPE_CHECKING:
    from .atelier_drawing import Stage

METAL = (196, 196, 200)
BRASS = (206, 168, 80)


def seam_colour(base: np.ndarray) -> tuple[int, int, int]:
    """A line that is seen on cloth of this shade: darker, or lighter on dark cloth."""
    if base.mean() > 75:
        return shaded(base, 0.52)
    return tuple(int(min(255, c + 62)) for c in base)


def trim_colour(product: dict) -> tuple[int, int, int]:
    """The shade of what is sewn on: pockets, bands, collar."""
    base = product["cloth"]["base"]
    factor = product["cut"]["trim"]
    # Neither black can be darkened nor white lightened.
    if base.mean() < 70:
        return tuple(int(min(255, c + 48 * max(factor, 0.9))) for c in base)
    return shaded(base, factor if base.mean() * factor < 235 else 0.62)


def _neckline(stage: Stage, product: dict) -> None:
    neckline, cut, seam = product["attributes"]["neckline"], product["cut"], product["seam"]
    trim = trim_colour(product)
    if neckline == "turtle":
        for y, width in ((-0.21, 0.125), (-0.13, 0.13), (-0.04, 0.155)):
            stage.line([[-width, y], [0, y + 0.03], [width, y]], seam, 0.02)
        for x in (-0.09, -0.03, 0.03, 0.09):
            stage.line([[x, -0.19], [x, -0.05]], seam, 0.01)
        return
    opening = shapes.neck_opening(neckline, cut)
    if neckline != "collar":
        stage.line(opening, trim, 0.06)
        stage.line(opening, seam, 0.016)
        return
    width = cut["neck_width"]
    for side in (-1, 1):
        flap = np.array([[0.0, 0.10], [width * 0.95, -0.12], [width + 0.07, -0.02], [width * 0.95, 0.20]])
        stage.polygon(flap * np.array([side, 1.0]), trim, seam, 0.022)


def _ribs(stage: Stage, product: dict, pose: dict) -> None:
    """The knitted bands of a sweater: at the hem and at the ends of the sleeves."""
    cut, seam, trim = product["cut"], product["seam"], trim_colour(product)
    bottom = cut["hem"]
    left, right = -shapes.half_width(cut, bottom) - 0.01, shapes.half_width(cut, bottom) + 0.01
    top = bottom - 0.10
    band = np.array([[left, top], [0, top + 0.03], [right, top], [right, bottom], [0, bottom + 0.04], [left, bottom]])
    stage.polygon(band, trim, seam)
    for x in np.linspace(left, right, 14)[1:-1]:
        stage.line([[x, top + 0.02], [x, bottom + 0.03]], seam, 0.012)
    if cut["reach"]:
        for side in (-1, 1):
            line, widths = shapes.arm_line(pose, side, cut["reach"]), shapes.sleeve_widths(cut)
            end = line[-1] + (line[-1] - line[-2]) * 0.3
            cuff = np.stack([line[-2] if cut["reach"] > 0.5 else (line[-2] + line[-3]) / 2, end])
            stage.polygon(shapes.ribbon(cuff, widths[-2:] * 1.03), trim, seam)


def _seams(stage: Stage, product: dict, pose: dict) -> None:
    cut, seam, category = product["cut"], product["seam"], product["cut"]["category"]
    waist = cut["waist_height"]
    if cut["reach"]:
        for side in (-1, 1):
            stage.line(shapes.sleeve_panel(cut, pose, side), seam, 0.014)
    if category in ("dress", "jumpsuit"):
        width = float(shapes.half_width(cut, waist))
        stage.line([[-width, waist], [0, waist + 0.03], [width, waist]], seam, 0.02)
    if category == "shirt":
        width = cut["torso"][0] * 0.86
        stage.line([[-width, 0.20], [0, 0.22], [width, 0.20]], seam, 0.014)
        for side in (-1, 1) if cut["reach"] else ():
            line = shapes.arm_line(pose, side, cut["reach"])[-3:-1]
            stage.line(shapes.ribbon(line, shapes.sleeve_widths(cut)[-3:-1])[[0, 3]], seam, 0.016)
    if category == "sweater":
        _ribs(stage, product, pose)
    if category in ("skirt", "trousers"):
        width = min(float(shapes.half_width(cut, waist)), 0.40)
        band = [[-width, waist], [width, waist], [width + 0.01, waist + 0.075], [-width - 0.01, waist + 0.075]]
        stage.polygon(band, trim_colour(product), seam)
    if category in shapes.LEGGED:
        stage.line([[0, waist + 0.05], [0.0, shapes.CROTCH]], seam, 0.016)
        for side in (-1, 1):
            stage.line(shapes.leg_panel(cut, pose, side)[9:16], seam, 0.014)


def _front(product: dict) -> tuple[float, float]:
    """Where an opening in front starts and ends."""
    cut, category = product["cut"], product["cut"]["category"]
    top = cut["waist_height"] + 0.05
    if category in shapes.UPPER:
        opening = shapes.neck_opening(product["attributes"]["neckline"], cut)
        top = -0.02 if opening is None else float(opening[:, 1].max())
    if category == "jumpsuit":
        return top, shapes.CROTCH - 0.04
    return top, min(cut["hem"] + 0.02, top + 1.35)


def _closure(stage: Stage, product: dict) -> None:
    closure, cut, seam = product["attributes"]["closure"], product["cut"], product["seam"]
    if closure in (None, "none"):
        return
    top, bottom = _front(product)
    if closure == "buttons":
        stage.line([[0.055, top], [0.055, bottom]], seam, 0.016)
        light = product["cloth"]["base"].mean() < 135
        fill, edge = ((244, 240, 230), (60, 56, 52)) if light else ((42, 34, 30), (225, 220, 210))
        for y in np.arange(top + 0.06, bottom - 0.02, cut["button_gap"]):
            stage.disc((0.0, float(y)), cut["button_size"], fill, edge)
    elif closure == "zip":
        metal = METAL if cut["metal"] else BRASS
        stage.line([[0, top], [0, bottom]], (28, 28, 30), 0.08)
        stage.line([[0, top], [0, bottom]], metal, 0.036)
        stage.polygon([[-0.03, top + 0.05], [0.03, top + 0.05], [0.022, top + 0.14], [-0.022, top + 0.14]], metal)
    else:
        _tie(stage, product)


def _tie(stage: Stage, product: dict) -> None:
    """A sash around the waist with a bow."""
    cut, seam, trim = product["cut"], product["seam"], trim_colour(product)
    y, x = cut["waist_height"] + 0.03, cut["bow_side"]
    width = float(shapes.half_width(cut, y)) + 0.012
    stage.polygon([[-width, y - 0.05], [width, y - 0.05], [width, y + 0.035], [-width, y + 0.035]], trim, seam)
    for side in (-1, 1):
        tail = [[x, y], [x + side * 0.05, y], [x + side * 0.13, y + 0.33], [x + side * 0.06, y + 0.35]]
        stage.polygon(tail, trim, seam)
        stage.polygon([[x, y], [x + side * 0.19, y - 0.09], [x + side * 0.19, y + 0.07]], trim, seam)
    stage.disc((x, y), 0.04, trim, seam)


def _pockets(stage: Stage, product: dict) -> None:
    pocket, cut, seam = product["attributes"]["pocket"], product["cut"], product["seam"]
    if pocket in (None, "none"):
        return
    trim, scale = trim_colour(product), cut["pocket_scale"]
    y = 0.72 if cut["category"] in shapes.TOPS else cut["waist_height"] + 0.31
    x = min(float(shapes.half_width(cut, y)) * 0.53, 0.27)
    half = min(0.125 * scale, x * 0.7)
    for side in (-1, 1):
        if pocket == "patch":
            box = [[-half, -half], [half, -half], [half, half * 0.8], [0, half * 1.35], [-half, half * 0.8]]
            stage.polygon(np.array(box) + np.array([side * x, y]), trim, seam, 0.024)
        elif pocket == "flap":
            wide = half * 1.15
            box = [[-wide, -0.05], [wide, -0.05], [wide, 0.025], [0, 0.07], [-wide, 0.025]]
            stage.polygon(np.array(box) + np.array([side * x, y]), trim, seam, 0.024)
        else:
            line = np.array([[x - 0.08, y - 0.16], [x + 0.10, y + 0.13]]) * np.array([side, 1.0])
            stage.line(line, seam, 0.075)
            stage.line(line, trim, 0.04)


def draw_details(stage: Stage, product: dict, pose: dict) -> None:
    """Draw on the garment everything that is sewn on it, from the largest to the smallest."""
    _seams(stage, product, pose)
    _pockets(stage, product)
    _closure(stage, product)
    if product["attributes"]["neckline"]:
        _neckline(stage, product)
