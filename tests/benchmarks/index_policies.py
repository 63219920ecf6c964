# SPDX-License-Identifier: Apache-2.0
"""Two parts of index.py with a real model: what each reindex policy costs; all attributes against a bare pass."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scaling import measure
from training_data import photo_files
from transformers.utils import logging

from modeling_mclfir import MclfirForImageRetrieval, MclfirImageProcessor
from modeling_mclfir.data.images import decode_image
from modeling_mclfir.index import FaissStore, SpaceRevision, VersionedIndex
from modeling_mclfir.training.fingerprint import space_fingerprints

ATTRIBUTES = ("collar", "sleeve_length", "colour", "pattern", "neckline")
_BATCH, _ROUNDS = 32, 3


class Encoder:
    """A model revision: photos to vectors of its spaces, as `SpaceRevision` describes them."""

    def __init__(self, model: MclfirForImageRetrieval, processor: MclfirImageProcessor, name: str):
        self.model, self.processor, self.embedded = model.eval(), processor, 0
        config, fingerprints = model.config, space_fingerprints(model, processor)
        increments = [config.increment_names[config.increment_of(place)] for place in range(len(config.attributes))]
        self.revisions = [
            SpaceRevision(f"{attribute}@{increment}", attribute, increment, name, fingerprint, config.embed_dim)
            for attribute, increment, fingerprint in zip(config.attributes, increments, fingerprints, strict=True)
        ]

    @torch.no_grad()
    def embed(self, photos: list[bytes]) -> Iterator[tuple[int, np.ndarray]]:
        """Of each batch its place and vectors (n, A, D) from one pass: decoding and preprocessing are a part of it."""
        for start in range(0, len(photos), _BATCH):
            images: list[Image.Image] = [decode_image(data) for data in photos[start : start + _BATCH]]
            output = self.model(pixel_values=self.processor(images, return_tensors="pt")["pixel_values"])
            self.embedded += len(images)
            yield start, output.embeds.numpy()


def encoders(args: argparse.Namespace) -> tuple[Encoder, Encoder, Encoder]:
    """An older revision, a newer one in which every space changed, and one that has a further space."""
    if args.checkpoints:
        older, newer = (
            Encoder(MclfirForImageRetrieval.from_pretrained(path), MclfirImageProcessor.from_pretrained(path), path)
            for path in args.checkpoints
        )
        return older, newer, newer
    processor = MclfirImageProcessor(size={"height": args.size, "width": args.size})

    def learned(seed: int, further: bool = False) -> MclfirForImageRetrieval:
        torch.manual_seed(seed)
        model = MclfirForImageRetrieval.from_trunk(args.trunk)
        model.add_increment("first", list(ATTRIBUTES))
        if further:
            model.add_increment("second", ["pockets"])
        return model

    return (
        Encoder(learned(0), processor, "older"),
        Encoder(learned(1), processor, "newer"),
        Encoder(learned(0, further=True), processor, "grown"),
    )


@cache
def photos(source: str, count: int) -> tuple[list[bytes], str]:
    return photo_files(source, count)


def policies(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """Seconds until searches with the new revision are answered, over those of "full"; photos embedded for it."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    older, newer, grown = encoders(args)
    files, kind = photos(args.photos, args.items)
    names = [f"photo-{place:06d}" for place in range(len(files))]
    content = dict(zip(names, files, strict=True))
    same = {revision.space: revision.fingerprint for revision in older.revisions}
    unchanged = [one for one in grown.revisions if same.get(one.space, one.fingerprint) == one.fingerprint]
    changed = [one for one in newer.revisions if same.get(one.space, one.fingerprint) != one.fingerprint]
    yield f"{len(files)} {kind}, spaces that changed / all", f"{len(changed)} / {len(older.revisions)}"

    def fill(index: VersionedIndex, encoder: Encoder, spaces: list[SpaceRevision]) -> None:
        places = {one.space: encoder.revisions.index(one) for one in spaces}
        for start, embeds in encoder.embed(files):
            for one in spaces:
                some = embeds[:, places[one.space]]
                index.add(one.space, names[start : start + len(some)], some, fingerprint=one.fingerprint)

    def full(index: VersionedIndex) -> None:
        index.land(changed, "full")
        fill(index, newer, changed)
        index.switch()

    def drift(index: VersionedIndex) -> None:
        # Those chosen in one space serve all: a pass of the trunk gives the vectors of every space.
        wanted = index.calibration(changed[0].space, args.calibration).ids
        new = np.concatenate([embeds for _, embeds in newer.embed([content[name] for name in wanted])])
        pairs = {
            one.space: (index.get(one.space, wanted).embeds, new[:, newer.revisions.index(one)]) for one in changed
        }
        index.land(changed, "drift_compensated", calibration=pairs)

    works: dict[str, tuple[Encoder, Callable[[VersionedIndex], object]]] = {
        "full": (newer, full),
        "drift_compensated": (newer, drift),
        "none": (newer, lambda index: index.land(changed, "none")),
        "new_only": (grown, lambda index: index.land(unchanged, "new_only")),
    }
    took, embedded = {name: [] for name in works}, {}
    for turn in range(_ROUNDS):
        for name, (encoder, work) in works.items():
            place = folder / f"{name}-{turn}"
            with VersionedIndex(place, lambda store, dim, place=place: FaissStore(place / store, dim)) as index:
                index.land(older.revisions, "new_only")
                fill_from(index, older, files, names)
                encoder.embedded = 0
                started = time.perf_counter()
                work(index)
                took[name].append(time.perf_counter() - started)
                embedded[name] = encoder.embedded
    whole = statistics.median(took["full"])
    yield "policy", "seconds / full", "photos embedded"
    for name in works:
        yield name, f"{statistics.median(took[name]) / whole:.4f}", str(embedded[name])


_KEPT: dict[int, list[tuple[int, np.ndarray]]] = {}


def fill_from(index: VersionedIndex, encoder: Encoder, files: list[bytes], names: list[str]) -> None:
    """What is there before the new revision comes; it is embedded once and put into each round's index."""
    if id(encoder) not in _KEPT:
        _KEPT[id(encoder)] = list(encoder.embed(files))
    for start, embeds in _KEPT[id(encoder)]:
        for place, one in enumerate(encoder.revisions):
            some = names[start : start + len(embeds)]
            index.add(one.space, some, embeds[:, place], fingerprint=one.fingerprint)


def embedding(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """As `scaling.py` measures it."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = MclfirForImageRetrieval.from_trunk(args.trunk).eval()
    pixels = torch.randn(_BATCH, 3, args.size, args.size)
    for increments in (1, 2):
        model.add_increment(f"i{increments}", [f"{name}-{increments}" for name in ATTRIBUTES])
        every, _ = measure(model.eval(), pixels, rounds=7)
        yield f"{len(ATTRIBUTES)} attributes each, {increments} increments / bare pass", f"{every:.2f}"
    yield "more of it: steps.py, scaling.py", ""
