# SPDX-License-Identifier: Apache-2.0
"""Draws and splits by a hash of a name: the same on every machine, in every run and for any order of the names."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def hash_number(key: str) -> int:
    """64 bits of a text, from the text alone; one that is no UTF-8 (a name as the disk has it) will do."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def share(key: str) -> float:
    """A number from 0 to below 1."""
    return (hash_number(key) >> 11) / 2**53  # a float has 53 bits: with more, the largest would be rounded up to 1


def draw(key: str, choices: Sequence[T]) -> T:
    """One of `choices`, each about as often."""
    return choices[hash_number(key) % len(choices)]


def split_by_shares(key: str, shares: Mapping[str, int]) -> str:
    """One of the splits `shares` (split → weight, a whole number)."""
    place = hash_number(key) % sum(shares.values())
    for split, weight in shares.items():
        if place < weight:
            return split
        place -= weight
    raise ValueError(f"shares {shares}: expected positive weights")
