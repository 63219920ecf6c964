# SPDX-License-Identifier: Apache-2.0
"""Photos → entries: read on, decoded ahead in threads, embedded in one pass each, written some hundreds at a time."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.images import BadImage, BadRows, decode_image
from ..training.prefetch import Prefetcher
from .embedder import Embedder
from .ranks import Ranks
from .sources import Item, Source
from .versions import SPACE_FIT, CatalogueIndex

MISSING, ALL, KNOWN = "missing", "all", "known"


@dataclass(frozen=True)
class FillSettings:
    """
    Attributes:
        batch_size: photos a pass of the network.
        commit_size: photos that are written together: what a kill costs at most, a process.
        max_bad_fraction: more unusable photos than this share are an error.
        progress: show a bar.

    Raises:
        ValueError: a size below 1.
    """

    batch_size: int = 32
    commit_size: int = 512
    max_bad_fraction: float = 0.01
    progress: bool = True

    def __post_init__(self):
        if self.batch_size < 1 or self.commit_size < 1:
            raise ValueError(f"Sizes must be at least 1; got {self.batch_size} a batch, {self.commit_size} a commit.")


@dataclass
class FillReport:
    """
    Attributes:
        seen: items of the source, of all processes.
        embedded: photos that went through the network.
        bad: unusable ones.
        seconds: of the slowest process.
        notes: what the user should know.
    """

    seen: int = 0
    embedded: int = 0
    bad: BadRows = field(default_factory=BadRows)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Photos a second, all processes together."""
        return self.embedded / max(self.seconds, 1e-9)

    def beside(self, other: "FillReport") -> "FillReport":
        """And of the same photos in other spaces."""
        self.seconds, self.notes = self.seconds + other.seconds, self.notes + other.notes
        self.embedded = max(self.embedded, other.embedded)
        return self

    def add(self, other: "FillReport") -> None:
        """And of other photos."""
        self.seen, self.embedded = self.seen + other.seen, self.embedded + other.embedded
        self.seconds += other.seconds
        self.bad.counts.update(other.bad.counts)
        for cause, examples in other.bad.examples.items():
            known = self.bad.examples.setdefault(cause, [])
            known += examples[: self.bad.max_examples - len(known)]


def fill(
    index: CatalogueIndex,
    embedder: Embedder,
    source: Source,
    spaces: Sequence[str],
    which: str,
    settings: FillSettings,
    ranks: Ranks,
    unserved: Sequence[str] = (),
) -> FillReport:
    """
    Embed photos of a source in all of some spaces, each in one pass, and add them to the index.

    What is written is durable; after a kill the same call embeds what is missing, in the same batches.

    Args:
        spaces: of the embedder; each is open in the index, or being built.
        which: "missing": photos that a space lacks; "all": every photo, in the place of what is there; "known": as
            "missing", of items that the index has in some space, whose metadata they keep.
        unserved: with "all", spaces that the embedder does not know: there the old photos' entries go.

    Raises:
        TooManyBadRowsError: more unusable photos than allowed. The others are in.
    """
    filling = _Filling(index, embedder, source, spaces, which, settings, ranks, unserved)
    report, started = FillReport(), time.monotonic()
    total = source.count()
    share = None if total is None else -(-total // ranks.num_ranks)
    bar = tqdm(total=share, desc="embedding", unit="image", disable=not (settings.progress and ranks.is_first))
    with bar, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        with Prefetcher(filling.batches(pool), dict) as batches:
            for batch in batches:
                report.seen += batch["seen"]
                for cause, where in batch["bad"]:
                    report.bad.add(cause, where)
                if total:
                    report.bad.check(total, settings.max_bad_fraction, "image")
                if batch["ids"]:
                    filling.embed(batch)
                    report.embedded += len(batch["ids"])
                if not bar.disable:  # the rate is of those that were embedded
                    bar.initial += batch["seen"] - len(batch["ids"])
                bar.update(batch["seen"])
        filling.commit()
    report.seconds = time.monotonic() - started
    whole = _of_all(report, ranks)
    whole.bad.check(max(whole.seen, 1), settings.max_bad_fraction, "image")
    return whole


def _of_all(report: FillReport, ranks: Ranks) -> FillReport:
    whole = FillReport()
    parts = ranks.gather(report)
    for part in parts:
        whole.add(part)
    whole.seconds = max(part.seconds for part in parts)
    return whole


class _Filling:
    """A source on its way into an index; `batches` runs in a thread of its own."""

    def __init__(self, index, embedder, source, spaces, which, settings, ranks, unserved=()):
        self._index, self._embedder, self._source, self._which = index, embedder, source, which
        self._unserved = list(unserved) if which == ALL else []
        self._settings, self._ranks = settings, ranks
        self._fingerprints = {name: embedder.revisions[name].fingerprint for name in spaces}
        # Items on their way from the source to the index: of an id that comes twice the first row counts, wherever
        # a kill fell; of photos that take others' places the last.
        self._taken: set[str] = set()
        # Item → its vectors and marks, one a space, and its metadata.
        self._waiting: dict[str, tuple[dict[str, np.ndarray], dict[str, dict[str, float]], dict[str, Any]]] = {}

    def batches(self, pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
        """Photos to embed: `ids`, `pixels` (n, 3, H, W), `metadata`; how many items were `seen`; `bad` ones."""
        ranks = self._ranks
        for items in self._source.batches(self._settings.batch_size, ranks.rank, ranks.num_ranks):
            bad: list[tuple[str, str]] = []
            named: dict[str, Item] = {}
            for item in items:
                if _is_named(item, bad) and (self._which == ALL or item.id not in named):
                    named[item.id] = item
            wanted = [named[name] for name in self._wanted(list(named))]
            decoded = pool.map(self._pixels, [(item, item.load()) for item in wanted])
            kept = []
            for item, pixels in zip(wanted, decoded, strict=True):
                if isinstance(pixels, BadImage):
                    bad.append((pixels.cause, item.where))
                else:
                    kept.append((item, pixels))
            self._taken.update(item.id for item, _ in kept)
            yield {
                "seen": len(items),
                "bad": bad,
                "ids": [item.id for item, _ in kept],
                "metadata": [item.metadata for item, _ in kept],
                "pixels": torch.cat([pixels for _, pixels in kept]) if kept else None,
            }

    def embed(self, batch: dict[str, Any]) -> None:
        """Embed a batch, and write what has come together where that is enough."""
        found, fits = self._embedder.embed_items(batch["pixels"], list(self._fingerprints))
        for place, (name, columns) in enumerate(zip(batch["ids"], batch["metadata"], strict=True)):
            marks = {space: {SPACE_FIT: float(of[place])} for space, of in fits.items()}
            self._waiting[name] = {space: rows[place] for space, rows in found.items()}, marks, columns
        if len(self._waiting) >= self._settings.commit_size:
            self.commit()

    def commit(self) -> None:
        """Write what waits; when it returns, that is durable."""
        ids = list(self._waiting)
        metadata = [columns for *_, columns in self._waiting.values()]
        if self._which == KNOWN and ids:
            there = self._index.metadata(ids)
            ids = [name for name in ids if name in there]
            metadata = [there[name] for name in ids]
        # What is there stays as it is, and what was removed since it was looked at stays away: said by those who look
        # under the lock.
        options = {"replace_present": self._which == ALL, "only_known": self._which == KNOWN}
        if self._unserved and ids:
            self._index.remove(ids, self._unserved)  # they show what the item was before
        for space, fingerprint in self._fingerprints.items() if ids else ():
            marks = [self._waiting[name][1].get(space, {}) for name in ids]
            columns = [shared | own for shared, own in zip(metadata, marks, strict=True)]
            rows = np.stack([self._waiting[name][0][space] for name in ids])
            self._index.add(space, ids, rows, columns, fingerprint=fingerprint, **options)
        self._taken.difference_update(self._waiting)  # from here on the index has them
        self._waiting.clear()

    def _wanted(self, ids: list[str]) -> list[str]:
        if self._which == ALL or not ids:
            return ids
        ids = [name for name in ids if name not in self._taken]  # before the index is asked, which may get them now
        if self._which == KNOWN:
            ids = [name for name, known in zip(ids, self._index.knows_any(ids), strict=True) if known]
        missing: set[str] = set()
        for space, fingerprint in self._fingerprints.items():
            there = self._index.has(space, ids, fingerprint)
            missing |= {name for name, is_there in zip(ids, there, strict=True) if not is_there}
        return [name for name in ids if name in missing]

    def _pixels(self, work: tuple[Item, Any]) -> torch.Tensor | BadImage:
        try:
            return self._embedder.pixels(decode_image(work[1]))
        except BadImage as error:
            return error


def _is_named(item: Item, bad: list[tuple[str, str]]) -> bool:
    try:
        good = bool(item.id) and bool(item.id.encode())
    except UnicodeEncodeError:
        good = False
    if not good:
        bad.append(("no_id", item.where))
    return good
