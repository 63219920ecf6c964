"""Shapes of *atelier* in garment coordinates: x to the side (0 in the middle), y down (0 the shoulders, 1 the hips).

Nothing here knows of pixels. A `cut` is what all views of a product share, a `pose` belongs to one view.
"""

from __future__ import annotations

import numpy as np

UPPER = ("dress", "jumpsuit", "shirt", "sweater")  # what has shoulders, so sleeves and a neckline
LEGGED = ("jumpsuit", "trousers")
TOPS = ("shirt", "sweater")
WAIST, HIP, CROTCH = 0.62, 0.95, 1.10
HEM_HEIGHT = {"thigh": 1.26, "knee": 1.55, "calf": 1.84, "ankle": 2.13}
SLEEVE_REACH = {"sleeveless": 0.0, "short": 0.21, "elbow": 0.42, "long": 0.76}

# Outlines are drawn through 9 points; made once, as every picture needs them many times.
NINE = np.linspace(0, 1, 9)

# Half widths at shoulder, bust, waist and hip.
TORSO = {
    "slim": (0.43, 0.37, 0.28, 0.375),
    "regular": (0.46, 0.43, 0.41, 0.45),
    "loose": (0.53, 0.56, 0.58, 0.59),
    "flared": (0.43, 0.39, 0.35, 0.50),
}
# Half widths of a leg of cloth at the crotch, half way and at the hem.
LEG = {"slim": (0.185, 0.125, 0.09), "regular": (0.21, 0.175, 0.15), "loose": (0.27, 0.28, 0.275)}
LEG["flared"] = (0.20, 0.155, 0.33)
# Half widths of a sleeve at the shoulder and at its end.
SLEEVE = {"slim": (0.125, 0.075), "regular": (0.145, 0.110), "loose": (0.20, 0.185), "flared": (0.13, 0.25)}


def product_cut(attributes: dict[str, str | None], rng: np.random.RandomState) -> dict:
    """The measures of a product: every value of an attribute has a range of its own that touches no other."""
    category, fit = attributes["category"], attributes["fit"]
    hem = HEM_HEIGHT[attributes["hem_length"]] if attributes["hem_length"] else (1.06 if category == "shirt" else 0.98)
    reach = SLEEVE_REACH[attributes["sleeve_length"]] if attributes["sleeve_length"] else 0.0
    return {
        "category": category,
        "fit": fit,
        "hem": hem + rng.uniform(-0.06, 0.06),
        "reach": reach + rng.uniform(-0.04, 0.04) if reach else 0.0,
        "torso": np.array(TORSO[fit]) * rng.uniform(0.96, 1.04, 4),
        "leg": np.array(LEG[fit]) * rng.uniform(0.94, 1.06, 3),
        "sleeve": np.array(SLEEVE[fit]) * rng.uniform(0.92, 1.08, 2),
        "flare": rng.uniform(0.34, 0.46),
        "neck_width": rng.uniform(0.185, 0.225),
        "neck_depth": rng.uniform(0.9, 1.15),
        "waist_height": WAIST + rng.uniform(-0.05, 0.05),
        "pocket_scale": rng.uniform(0.9, 1.15),
        "button_gap": rng.uniform(0.13, 0.17),
        "button_size": rng.uniform(0.040, 0.050),
        "trim": rng.uniform(0.45, 0.65) if rng.rand() < 0.6 else rng.uniform(1.4, 1.7),
        "bow_side": rng.uniform(-0.12, 0.12),
        "metal": rng.rand() < 0.5,
    }


def view_pose(rng: np.random.RandomState, presentation: str) -> dict:
    """How the wearer stands, or how the garment lies, in one picture."""
    spread = {"hanger": (0.10, 0.40), "flat": (0.25, 1.15)}.get(presentation, (0.08, 0.65))
    bend = (-0.25, 0.25) if presentation in ("hanger", "flat") else (-0.75, 0.35)
    return {
        "arms": rng.uniform(*spread, 2),
        "elbows": rng.uniform(*bend, 2),
        "stance": rng.uniform(0.17, 0.34, 2),
        "hang": rng.uniform(-0.05, 0.05, 2),
    }


def half_width(cut: dict, y: np.ndarray | float) -> np.ndarray:
    """Half the width of the body of a garment at height ``y``."""
    shoulder, bust, waist, hip = cut["torso"]
    if cut["fit"] == "flared" and cut["category"] not in LEGGED:
        # Cloth that falls free from the bust (tops) or from the waist.
        free = 0.28 if cut["category"] in TOPS else cut["waist_height"]
        fitted = np.interp(np.minimum(y, free), (0.05, 0.3, WAIST), (shoulder, bust, waist))
        slope = cut["flare"] * (1.15 if cut["category"] in TOPS else 1.0)
        return fitted + slope * np.maximum(y - free, 0.0)
    ends = {"slim": 0.84, "regular": 1.06, "loose": 1.06}.get(cut["fit"], 0.95)
    return np.interp(y, (0.05, 0.3, WAIST, HIP, HEM_HEIGHT["ankle"]), (shoulder, bust, waist, hip, hip * ends))


def _smooth(points: np.ndarray) -> np.ndarray:
    """Round the corners of an open line."""
    inner = (points[:-2] + 2 * points[1:-1] + points[2:]) / 4
    return np.concatenate([points[:1], inner, points[-1:]])


def _side(cut: dict, top: float, bottom: float, hang: float) -> np.ndarray:
    """The right side of the body of a garment, from ``top`` to ``bottom``."""
    y = np.linspace(top, bottom, 12)
    x = half_width(cut, y) + hang * np.clip((y - 0.9) / 1.2, 0, 1)
    return _smooth(_smooth(np.stack([x, y], axis=1)))


def _mirror(points: np.ndarray) -> np.ndarray:
    return points * np.array([-1.0, 1.0])


def hem_line(cut: dict, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The lower edge, from right to left: rounded for a shirt's tails and between legs, else it sags a little."""
    t = NINE[1:-1, None]
    line = right * (1 - t) + left * t
    sag = 0.12 if cut["category"] == "shirt" or cut["category"] in LEGGED else 0.035
    return line + np.stack([np.zeros(len(t)), sag * np.sin(np.pi * t[:, 0])], axis=1)


def body_panel(cut: dict, pose: dict) -> np.ndarray:
    """The outline of the body of a garment: to the hem, or to the crotch where legs go on from it."""
    legged = cut["category"] in LEGGED
    bottom = CROTCH - 0.12 if legged else cut["hem"] - (0.08 if cut["category"] == "shirt" else 0.0)
    if cut["category"] not in UPPER:
        top = cut["waist_height"]
        right, left = _side(cut, top, bottom, pose["hang"][0]), _mirror(_side(cut, top, bottom, pose["hang"][1]))
        right[0, 0], left[0, 0] = min(right[0, 0], 0.40), max(left[0, 0], -0.40)
        return np.concatenate([right, hem_line(cut, left[-1], right[-1]), left[::-1]])
    right, left = _side(cut, 0.36, bottom, pose["hang"][0]), _mirror(_side(cut, 0.36, bottom, pose["hang"][1]))
    shoulder, bust = cut["torso"][0], right[0, 0]
    if cut["reach"]:
        arm = np.array([[cut["neck_width"], -0.05], [shoulder * 0.8, 0.0], [shoulder, 0.07], [bust, 0.3]])
    else:
        # An armhole cut into the shoulder shows that there is no sleeve.
        arm = np.array([[cut["neck_width"], -0.05], [0.33, 0.005], [0.325, 0.14], [0.345, 0.24], [bust, 0.33]])
    hem = hem_line(cut, left[-1], right[-1])
    return np.concatenate([arm, right, hem, left[::-1], _mirror(arm)[::-1]])


def leg_panel(cut: dict, pose: dict, side: int) -> np.ndarray:
    """One leg of trousers or of a jumpsuit; ``side`` is 1 or -1."""
    t = NINE
    y = CROTCH - 0.12 + t * (cut["hem"] - CROTCH + 0.12)
    start, middle, end = cut["leg"]
    width = np.interp(t, (0, 0.5, 1), (start, middle, end))
    hip = float(half_width(cut, CROTCH - 0.12))
    centre = hip - start + (pose["stance"][(side + 1) // 2] - hip + start) * np.clip((y - CROTCH) / 1.05, 0, 1)
    # The legs of wide trousers touch, they do not cross.
    inner = np.maximum(centre - width, 0.012)
    inner[0] = -0.02
    outer = np.stack([np.maximum(centre + width, inner + width), y], axis=1)
    outline = np.concatenate([_smooth(outer), np.stack([inner, y], axis=1)[::-1]])
    return outline if side > 0 else _mirror(outline)


def arm_line(pose: dict, side: int, length: float) -> np.ndarray:
    """The middle of an arm from the shoulder to ``length``, in 9 points."""
    index = (side + 1) // 2
    angle, bend = pose["arms"][index], pose["elbows"][index]
    s = NINE * length
    upper = np.minimum(s, 0.40)
    lower = s - upper
    x = 0.375 + upper * np.sin(angle) + lower * np.sin(angle + bend)
    y = 0.10 + upper * np.cos(angle) + lower * np.cos(angle + bend)
    return np.stack([side * x, y], axis=1)


def ribbon(line: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The outline of a line drawn with the half widths ``widths``."""
    step = np.empty_like(line)
    step[1:-1], step[0], step[-1] = line[2:] - line[:-2], line[1] - line[0], line[-1] - line[-2]
    across = step[:, ::-1] * (widths / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-6))[:, None]
    across[:, 0] *= -1
    return np.concatenate([line + across, (line - across)[::-1]])


def sleeve_widths(cut: dict) -> np.ndarray:
    """Half widths of a sleeve at the 9 points of its arm line."""
    t = NINE
    start, end = cut["sleeve"]
    if cut["fit"] == "flared":
        # A bell: narrow, then wide towards its end.
        return start + (end - start) * t**2 * (0.7 + 0.3 * min(cut["reach"] / 0.5, 1.0))
    # A short sleeve ends where the arm is still thick.
    return start + (end - start) * t * min(cut["reach"] / 0.6, 1.0)


def sleeve_panel(cut: dict, pose: dict, side: int) -> np.ndarray:
    """The outline of a sleeve."""
    return ribbon(arm_line(pose, side, cut["reach"]), sleeve_widths(cut))


def neck_opening(neckline: str, cut: dict) -> np.ndarray | None:
    """What a neckline leaves open; None where it closes around the neck."""
    width, depth = cut["neck_width"], cut["neck_depth"]
    if neckline == "turtle":
        return None
    if neckline == "round":
        angle = NINE * np.pi
        return np.stack([np.cos(angle) * (width + 0.02), -0.06 + np.sin(angle) * 0.23 * depth], axis=1)
    if neckline == "square":
        width, bottom = width + 0.045, 0.20 * depth
        return np.array([[width, -0.08], [width * 0.95, bottom], [-width * 0.95, bottom], [-width, -0.08]])
    bottom = 0.42 * depth if neckline == "v" else 0.13
    return np.array([[width, -0.08], [0.0, bottom], [-width, -0.08]])
