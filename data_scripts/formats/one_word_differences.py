# SPDX-License-Identifier: Apache-2.0
"""Captions that differ in one word, and pairs of images drawn from them by a seeded hash (TIRG's way, by words)."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_scripts.formats.stable_hash import draw, hash_number


class WordChange(NamedTuple):
    """Two images whose captions share all words but one.

    Attributes:
        reference, target: places of the images in the list that they were drawn from.
        old, new: the word of the reference's caption that is not in the target's, and the other way round.
    """

    reference: int
    target: int
    old: str
    new: str

    @property
    def text(self) -> str:
        """What to change in the reference."""
        return f"replace {self.old} with {self.new}"


def parents(caption: str) -> dict[tuple[str, ...], str]:
    """The caption less one word, for each of its words: what remains → the word.

    Whole words are left out, one at a time: TIRG replaces the string, which also cuts "red" out of "tailored".
    """
    words = tuple(caption.split())
    return {words[:i] + words[i + 1 :]: word for i, word in enumerate(words)}


def draw_pairs(names: Sequence[str], captions: Sequence[str | None], per_image: int, seed: int) -> list[WordChange]:
    """Draws targets for every image that has one: another caption of the same parent, then an image with it.

    A draw depends on the image's name, the seed and the captions only, not on the order of the images.

    Args:
        names: of the images, each once.
        captions: of the images; None or an empty one takes no part.
        per_image: draws an image; a target drawn twice is kept once.
        seed: of the draws.

    Returns:
        The pairs, in the order of their references.
    """
    images: dict[str, list[int]] = defaultdict(list)
    for place in sorted(range(len(names)), key=names.__getitem__):
        if captions[place] and captions[place].split():
            images[captions[place]].append(place)
    children: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for caption in images:
        for parent, word in parents(caption).items():
            children[parent].append((word, caption))
    for siblings in children.values():
        siblings.sort()
    pairs = []
    for caption, places in images.items():
        families = _families(caption, children)
        count = sum(family.others for family in families)
        for place in places if count else ():
            drawn = {}
            for number in range(per_image):
                key = f"{seed}\0{number}\0{names[place]}"
                old, new, other = _pick(families, hash_number(f"{key}\0caption") % count)
                target = draw(f"{key}\0image", images[other])
                drawn.setdefault(target, WordChange(place, target, old, new))
            pairs += drawn.values()
    return sorted(pairs, key=lambda pair: pair.reference)


def first_difference(reference: str, target: str) -> tuple[str, str, bool]:
    """TIRG's rule for the text of a given query: the first word of each caption that the other one lacks.

    Args:
        reference, target: captions with a word at least.

    Returns:
        The word to replace, the word to put there, and whether both differ; where a caption has no word of its own,
        its last word stands for it, as in TIRG.
    """
    here, there = reference.split(), target.split()
    old = next((word for word in here if word not in there), None)
    new = next((word for word in there if word not in here), None)
    return old or here[-1], new or there[-1], old is not None and new is not None


class _Family(NamedTuple):
    """The captions of a parent as (word, caption), in order; those from `first` to `last` have the word `old` too."""

    old: str
    siblings: list[tuple[str, str]]
    first: int
    last: int

    @property
    def others(self) -> int:
        """Captions with another word; one with the same words in another order is none."""
        return len(self.siblings) - (self.last - self.first)


def _families(caption: str, children: Mapping[tuple[str, ...], list[tuple[str, str]]]) -> list[_Family]:
    families = []
    for parent, old in parents(caption).items():
        siblings = children[parent]
        families.append(_Family(old, siblings, bisect_left(siblings, (old,)), bisect_left(siblings, (old + "\0",))))
    return families


def _pick(families: Sequence[_Family], index: int) -> tuple[str, str, str]:
    """The old word, the new one and the caption with it, number `index` of all families; no list is made of them."""
    for family in families:
        if index < family.others:
            shift = family.last - family.first if index >= family.first else 0
            new, caption = family.siblings[index + shift]
            return family.old, new, caption
        index -= family.others
    raise IndexError(f"number {index} after the last caption")
