"""*Atelier*, the embedded data set: drawn garments with nine attributes, a caption each, as a stream.

Image ``i`` is a pure function of ``(seed, i)``: it does not depend on which other images are made, nor in what order.
Two views show one product (the same attributes, cut, shade and print in another pose, scene and light), and a product
belongs to one split. Nothing is downloaded and nothing is under a licence of others, so this is what a first run and
the tests train on; pictures are varied enough that a linear model on pixels finds next to nothing.
"""

from __future__ import annotations

import functools
import io
import numbers
from collections.abc import Iterator

import numpy as np

from .atelier_cut import TOPS, UPPER, product_cut
from .atelier_drawing import draw_picture
from .atelier_patterns import PALETTE, product_cloth

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "category": ("dress", "jumpsuit", "shirt", "sweater", "skirt", "trousers"),
    "sleeve_length": ("sleeveless", "short", "elbow", "long"),
    "hem_length": ("thigh", "knee", "calf", "ankle"),
    "fit": ("slim", "regular", "loose", "flared"),
    "pattern": ("solid", "stripes", "checks", "dots", "floral", "chevron"),
    "colour": tuple(PALETTE),
    "neckline": ("round", "v", "square", "turtle", "collar"),
    "closure": ("none", "buttons", "zip", "tie"),
    "pocket": ("none", "patch", "flap", "slanted"),
}
INCREMENTS: list[dict] = [
    # As a shop would: what every customer asks for first. It is also what a trunk without weights learns most from.
    {"name": "basics", "attributes": ["category", "colour", "pattern", "neckline", "closure"]},
    {"name": "lengths", "attributes": ["sleeve_length", "hem_length"]},
    {"name": "tailoring", "attributes": ["fit", "pocket"]},
]
# The categories an attribute applies to; for all others its value is None. An attribute not named applies to all.
APPLIES_TO: dict[str, tuple[str, ...]] = {
    "sleeve_length": UPPER,
    "hem_length": tuple(name for name in ATTRIBUTES["category"] if name not in TOPS),
    "neckline": UPPER,
    "closure": tuple(name for name in ATTRIBUTES["category"] if name != "trousers"),
}
# How each value is said in a caption.
PHRASES: dict[str, dict[str, str]] = {
    "category": {name: name for name in ATTRIBUTES["category"]},
    "sleeve_length": {
        "sleeveless": "no sleeves", "short": "short sleeves", "elbow": "elbow-length sleeves", "long": "long sleeves",
    },
    "hem_length": {name: f"{name}-length" for name in ATTRIBUTES["hem_length"]},
    "fit": {"slim": "slim-fit", "regular": "regular-fit", "loose": "loose-fit", "flared": "flared"},
    "pattern": {
        "solid": "plain", "stripes": "striped", "checks": "checked", "dots": "dotted", "floral": "floral",
        "chevron": "chevron",
    },
    "colour": {name: name for name in PALETTE},
    "neckline": {
        "round": "a round neck", "v": "a v-neck", "square": "a square neck", "turtle": "a turtleneck",
        "collar": "a pointed collar",
    },
    "closure": {"none": "a closed front", "buttons": "a buttoned front", "zip": "a zip front", "tie": "a tied waist"},
    "pocket": {"none": "no pockets", "patch": "patch pockets", "flap": "flap pockets", "slanted": "slanted pockets"},
}
SPLITS = ("train", "val", "query", "gallery")
SPLIT_SIZES: dict[str, int] = {"train": 2400, "val": 240, "query": 240, "gallery": 720}
VIEWS_PER_PRODUCT = 2
# Split k holds the images from k times this on; even, so that no product lies on a border.
SPLIT_STRIDE = 1_000_000
# Every value comes equally often among this many successive products (a multiple of each number of values).
BLOCK = 60
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 1024
# RandomState and not Generator: numpy promises that its numbers stay the same in all versions to come.
_BALANCE, _PRODUCT, _VIEW = range(3)


def _checked_integer(name: str, value: int, low: int, high: int, advice: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise ValueError(f"`{name}` is {value!r}, expected an integer from {low} to {high}: {advice}")
    return int(value)


@functools.lru_cache(maxsize=16)
def _block_order(block: int, seed: int) -> np.ndarray:
    """For each attribute (row) an order of the products of a block."""
    rng = np.random.RandomState([seed, _BALANCE, block])
    return np.stack([rng.permutation(BLOCK) for _ in ATTRIBUTES])


def _attributes(product: int, seed: int) -> dict[str, str | None]:
    """The attributes of a product: in each block of products every value has the same share."""
    places = _block_order(product // BLOCK, seed)[:, product % BLOCK].tolist()
    values = {name: options[p % len(options)] for p, (name, options) in zip(places, ATTRIBUTES.items(), strict=True)}
    return {name: v if values["category"] in APPLIES_TO.get(name, (values["category"],)) else None
            for name, v in values.items()}


def _caption(attributes: dict[str, str | None], rng: np.random.RandomState) -> str:
    """Natural words for most of a garment's attributes: always category, colour and pattern, other ones by chance."""
    said = {name: PHRASES[name][value] for name, value in attributes.items() if value is not None}
    noun = said["category"]
    article = "a pair of" if noun == "trousers" else "a"
    adjectives = [said[name] for name in ("hem_length", "fit") if name in said and rng.rand() < 0.8]
    cloth = [said["pattern"], said["colour"]]
    for words in (adjectives, cloth):
        if rng.rand() < 0.5:
            words.reverse()
    details = [said[name] for name in ("sleeve_length", "neckline", "closure", "pocket")
               if name in said and rng.rand() < 0.75]
    details = [details[i] for i in rng.permutation(len(details))]
    with_details = " with " + _listed(details) if details else ""
    template = rng.randint(5)
    if template == 0:
        text = f"{article} {' '.join([*adjectives, *cloth, noun])}{with_details}"
    elif template == 1:
        text = f"{article} {' '.join([*cloth, *adjectives, noun])}{with_details}"
    elif template == 2:
        text = f"{' '.join([*cloth, noun])}{with_details}" + (f", {' and '.join(adjectives)}" if adjectives else "")
    elif template == 3:
        text = f"{article} {' '.join([*adjectives, noun])} in {' '.join(cloth)} cloth{with_details}"
    else:
        text = f"{' '.join([*adjectives, *cloth, noun])}" + (f"; it has {_listed(details)}" if details else "")
    return text.replace("a ankle", "an ankle") if text.startswith("a ankle") else text


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def generate_row(index: int, seed: int = 0, image_size: int = 96) -> dict:
    """Draw image ``index`` of the endless set with this seed.

    Returns a row: ``image`` (``bytes`` of a JPEG, ``path``), ``attributes`` (name → value or None), ``caption`` and
    ``product_id``.
    """
    last = SPLIT_STRIDE * len(SPLITS) - 1
    index = _checked_integer("index", index, 0, last, "`generate_split` gives the images of a split")
    seed = _checked_integer("seed", seed, 0, 2**32 - 1, "give a non-negative 32-bit number")
    image_size = _checked_integer("image_size", image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE, "96 is the default")
    product = index // VIEWS_PER_PRODUCT
    attributes = _attributes(product, seed)
    rng = np.random.RandomState([seed, _PRODUCT, product])
    made = {"attributes": attributes, "cut": product_cut(attributes, rng)}
    made["cloth"] = product_cloth(attributes["colour"], rng)
    rng = np.random.RandomState([seed, _VIEW, index])
    # Words and quality first: they are then the same at every image size.
    caption, quality = _caption(attributes, rng), int(rng.randint(60, 94))
    buffer = io.BytesIO()
    draw_picture(made, image_size, rng).save(buffer, format="JPEG", quality=quality)
    return {
        "image": {"bytes": buffer.getvalue(), "path": f"atelier/{index:06d}.jpg"},
        "attributes": attributes,
        "caption": caption,
        "product_id": f"atelier-{seed}-{product:06d}",
    }


def generate_split(split: str, *, seed: int = 0, num_rows: int | None = None, image_size: int = 96) -> Iterator[dict]:
    """Stream the rows of a split, one drawn when it is asked for; without ``num_rows``, as many as `SPLIT_SIZES` says.

    Splits share neither a product nor an index, whatever their sizes; a longer stream starts with the shorter one.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}, expected one of {', '.join(SPLITS)}: name one of these")
    num_rows = SPLIT_SIZES[split] if num_rows is None else num_rows
    num_rows = _checked_integer("num_rows", num_rows, 0, SPLIT_STRIDE, "leave it out for the default size")
    # Checked here and not in the stream, so that a mistake is told by the call and not by the first row.
    _checked_integer("seed", seed, 0, 2**32 - 1, "give a non-negative 32-bit number")
    _checked_integer("image_size", image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE, "96 is the default")
    start = SPLITS.index(split) * SPLIT_STRIDE
    return (generate_row(index, seed, image_size) for index in range(start, start + num_rows))
