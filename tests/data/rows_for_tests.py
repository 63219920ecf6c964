# SPDX-License-Identifier: Apache-2.0
"""Small pictures and rows that the tests of the data package share."""

import csv
import io

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200), "green": (20, 160, 20)}


def picture(seed, colour=(128, 128, 128), size=(24, 32), kind="JPEG"):
    """The bytes of a noisy picture: another one for every seed."""
    noise = np.random.default_rng(seed).integers(-20, 20, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_csv(path, rows, columns=None):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def dataset_row(i, **attributes):
    colour = list(COLOURS)[i % 3]
    return {
        "image": {"bytes": picture(i, COLOURS[colour]), "path": f"{i}.jpg"},
        "attributes": {"colour": colour, "size": None if i % 4 == 3 else "SML"[i % 2], **attributes},
        "caption": f"number {i}",
        "product_id": str(i // 2),
    }


ATTRIBUTES = ("colour", "size")
INCREMENTS = [{"name": "colour", "attributes": ["colour"]}, {"name": "size", "attributes": ["size"]}]
