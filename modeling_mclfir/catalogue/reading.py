# SPDX-License-Identifier: Apache-2.0
"""What a catalogue answers: searches, photos, where it stands; nothing here changes an entry."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..index.spaces import IncompatibleRevisionError
from ..index.store import Filter
from .backends import open_backend
from .filters import resolved
from .searching import Hit, SearchPlan, hits_of, plan_search, search
from .settings import ATTRIBUTES, LOCK_TIMEOUT, Settings, read_settings
from .sources import Item, Source
from .standing import check_spreads, is_first_build, unfinished
from .versions import CatalogueIndex


class CatalogueReader:
    """Search, look and hand on; nothing here changes an entry. See `Catalogue`."""

    def __init__(self, folder: str | Path, token: str | None = None):
        self.folder, self._token = Path(folder), token
        self.settings: Settings = read_settings(self.folder)
        self._index = CatalogueIndex(
            self.folder, *open_backend(self.settings.backend, self.folder, token), lock_timeout=LOCK_TIMEOUT
        )
        self._embedders: dict[tuple[str, bool], Any] = {}
        self._columns: dict[str, dict[str, str]] = {}  # store → column as users write it → as it is there

    @property
    def index(self) -> CatalogueIndex:
        """The versioned index inside, for what has no verb here."""
        return self._index

    def refresh(self) -> None:
        """Take up what other processes landed, switched or remembered since."""
        self.settings = read_settings(self.folder)
        self._index.refresh()
        self._columns.clear()

    def search(
        self,
        images: Sequence[Any] | None = None,
        items: Sequence[str] | None = None,
        attributes: Sequence[str] | None = None,
        *,
        texts: Sequence[str] | None = None,
        k: int = 10,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        where: Filter | None = None,
        exclude: Sequence[str] = (),
        include_self: bool = False,
        distinct: float | tuple[str, float] | None = None,
        checkpoint: str | None = None,
    ) -> list[list[Hit]]:
        """
        The k best items for each photo, item or caption.

        Of an attribute with several spaces the query's photo or caption says how much each counts, by the model's own
        routers (`fuse_queries`; of captions and images `fusion`); the photo of an item is read from its source for it.

        Args:
            images: photos: files, bytes or PIL images.
            items: or ids of items, whose stored vectors are taken.
            attributes: to be alike in, or spaces by name; default: all.
            texts: or captions, in a catalogue of a text-image checkpoint, whose spaces are of the attribute "text".
            weights: one an attribute, in their order or by name; default 1.
            where: column → value or values, only items of these; `line` is `attributes.line` where there is no
                other `line`.
            exclude: ids never to be found.
            include_self: an item that is the query is found, too.
            distinct: of results whose vectors are more alike than this cosine, only the best: over all spaces, or
                (space, cosine).
            checkpoint: that embeds photos and captions; default: the one that was used last and fits.

        Raises:
            ValueError: none or several kinds of queries, an unknown attribute or item, a column that no item has,
                another number of weights, captions for a model of attributes; a search in several spaces of which
                some are not filled to the end.
            IncompatibleRevisionError: a checkpoint that makes other vectors than the entries.
            BadImage: a photo that cannot be used.
        """
        given = {"images": images, "items": items, "texts": texts}
        given = [name for name, queries in given.items() if queries is not None]
        alone = any(isinstance(queries, str | Path) for queries in (images, items, texts))
        if len(given) != 1 or alone:
            wrong = "one text alone" if alone else " and ".join(given) or "none"
            raise ValueError(f"Search by photos, items or captions: one list of images, items or texts; got {wrong}.")
        plan, images = self.plan(attributes, weights), None if images is None else list(images)
        if not len(next(queries for queries in (images, items, texts) if queries is not None)):
            return []
        if len(plan.spaces) > 1 and not self._is_one_task:
            check_spreads(self._index, self.settings, plan.spaces)
        if where is not None:
            where = self._resolved(where, plan.spaces[0])
        fingerprints, fusions, queries = None, {}, items
        if items is None:
            queries, fusions, fingerprints = self._embedded(images, texts, plan, checkpoint)
        elif plan.routed:
            photos = self.photos(items, missing=False)
            fusions = self._embedded([photos[name].load() for name in items], None, plan, checkpoint)[1]
        options = {"where": where, "exclude": exclude, "include_self": include_self, "distinct": distinct}
        try:
            found = search(self._index, plan, queries, k, fingerprints=fingerprints, fusions=fusions, **options)
        except KeyError as error:
            raise ValueError(f"{error.args[0]}; `mclfir index info` tells what each space has.") from None
        return hits_of(self._index, found)

    def plan(
        self, attributes: Sequence[str] | None = None, weights: Sequence[float] | Mapping[str, float] | None = None
    ) -> SearchPlan:
        """The spaces that a search over attributes is in, and what to know about them."""
        plan, lacking = plan_search(self._index, attributes, weights, self._is_one_task), self._unfinished()
        if is_first_build(self._index, lacking):
            plan.notes.append(
                "the build is not finished, and only what it has embedded so far is found; the same "
                "`mclfir index build` goes on"
            )
        return plan

    def photos(self, ids: Sequence[str], missing: bool = True) -> dict[str, Item]:
        """
        Where the photos of items are, from the newest source that has them.

        Args:
            missing: leave out those that are not to be had; else they are an error.

        Raises:
            ValueError: see `missing`.
        """
        from .reindexing import find_items

        found = find_items(self.sources(), ids)
        gone = [name for name in ids if name not in found]
        if gone and not missing:
            raise ValueError(
                f"The photos of {gone[:5]} are not in the sources that the catalogue remembers, and they say which of "
                "an attribute's spaces counts. Search by a photo, or name one space instead of the attribute."
            )
        return found

    def sources(self) -> list[Source]:
        """Those of the remembered sources that are where they were, oldest first."""
        from .opening import open_source

        found, gone = [], []
        for description in self.settings.sources:
            try:
                found.append(open_source(description))
            except (FileNotFoundError, ValueError) as error:
                gone.append(str(error))
        if gone and not found:
            raise FileNotFoundError(
                f"No source of the catalogue is where it was ({gone[-1]}). Name where the photos are now: --images, "
                "--parquet or --dataset."
            )
        return found

    def info(self) -> dict[str, Any]:
        """What the catalogue consists of, in plain values."""
        self.refresh()
        found, items = self._index.info(), self._index.num_items()
        for space in found["spaces"].values():
            space["share_filled"] = space["entries"] / items if items else 1.0
        lacking = self._unfinished()
        found |= {"items": items, "unfinished": lacking, "is_built": not is_first_build(self._index, lacking)}
        return found | asdict(self.settings)

    def export(self, path: str | Path, attributes: Sequence[str] | None = None, progress: bool = True) -> int:
        """Write the entries of some attributes, or of all, as Parquet → number of rows; see `export_parquet`."""
        from .exporting import export_parquet

        names = attributes or list(self._index.spaces)
        spaces = list(dict.fromkeys(space for name in names for space in self._index.spaces_of(name)))
        return export_parquet(self._index, spaces, Path(path), progress)

    def close(self) -> None:
        """Close every store; the catalogue is of no use afterwards."""
        self._index.close()

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _serving(self, checkpoint: str | None, units: Sequence[Sequence[str]], fp16: bool = False) -> list:
        """
        What embeds for live spaces, each with the spaces that it serves: the checkpoint named, or those that were
        used last and fit; several after a roll back, say.

        Args:
            units: spaces that one checkpoint must serve together.

        Raises:
            IncompatibleRevisionError: the checkpoint makes other vectors than the entries.
            ValueError: no checkpoint that is remembered fits.
        """
        spaces = [name for unit in units for name in unit]
        given = [(checkpoint, spaces)] if checkpoint else self._fitting(units)
        found = [(self._opened(path, fp16), names) for path, names in given]
        for embedder, names in found:
            wrong = [name for name in names if not self._serves(name, embedder.fingerprints)]
            if wrong:
                raise self._refusal(embedder, wrong)
        return found

    def _opened(self, checkpoint: str, fp16: bool = False):
        from .embedder import Embedder

        key = checkpoint, fp16
        if key not in self._embedders:
            self._embedders[key] = Embedder.open(checkpoint, fp16, self._device())
        found = self._embedders[key]
        if self.settings.model_type not in (None, found.model_type):
            raise ValueError(
                f"{self.folder} was built by checkpoints of {self.settings.model_type!r}, and {checkpoint} is one of "
                f"{found.model_type!r}: a catalogue is of attributes or of captions and images, never of both. Build "
                "another one with it, of the same photos."
            )
        return found

    def _device(self):
        return None

    @property
    def _is_one_task(self) -> bool:
        return self.settings.model_type not in (None, ATTRIBUTES)

    def _unfinished(self) -> list[str]:
        return unfinished(self._index, self.settings)

    def _resolved(self, where: Filter, space: str) -> Filter:
        known = self._columns.setdefault(self._index.stored(space).store, {})
        return resolved(self._index.store(space), where, known)

    def _fitting(self, units: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
        found, waiting = [], list(units)
        for entry in reversed(self.settings.checkpoints):
            known = entry["fingerprints"]
            served = [unit for unit in waiting if all(self._serves(name, known) for name in unit)]
            if served:
                found.append((entry["path"], [name for unit in served for name in unit]))
                waiting = [unit for unit in waiting if unit not in served]
        if waiting:
            names = [name for unit in waiting for name in unit]
            raise ValueError(
                f"No checkpoint that was used with this catalogue fits {names}. Name one with --checkpoint, or search "
                "in other spaces."
            )
        return found

    def _serves(self, space: str, fingerprints: Mapping[str, str]) -> bool:
        return space in fingerprints and self._index.answers(space, fingerprints[space])

    def _refusal(self, embedder, wrong: Sequence[str]) -> IncompatibleRevisionError:
        lacking = [name for name in wrong if name not in embedder.revisions]
        if lacking:
            return IncompatibleRevisionError(
                f"{embedder.checkpoint} does not know {lacking}; name a later checkpoint with --checkpoint, or other "
                "attributes."
            )
        live = self._index.spaces
        made_by = sorted({live[name].model_revision for name in wrong})
        fits = [
            entry["path"]
            for entry in self.settings.checkpoints
            if all(entry["fingerprints"].get(name) == live[name].fingerprint for name in wrong)
        ]
        way = f"--checkpoint {fits[-1]}, if it is as it was" if fits else "the checkpoint of that revision"
        return IncompatibleRevisionError(
            f"{embedder.checkpoint} makes other vectors than the entries of {list(wrong)}, which are of "
            f"{', '.join(made_by)}: they can't be compared. Ways out: {way}; or `mclfir index reindex --index "
            f"{self.folder} --checkpoint {embedder.checkpoint}` with --policy full (embeds every photo again), "
            "drift_compensated (maps queries to the old vectors) or none (searches them as they are)."
        )

    def _embedded(
        self, images: Sequence[Any] | None, texts: Sequence[str] | None, plan: SearchPlan, checkpoint: str | None
    ) -> tuple[dict, dict, dict]:
        """Of photos or captions the vectors, the fusion of routed spaces, and what made the vectors, each by space."""
        from ..data.images import decode_image

        images = None if images is None else [decode_image(image) for image in images]
        routed = {name for names in plan.routed.values() for name in names}
        units = [*plan.routed.values(), *([name] for name in plan.spaces if name not in routed)]
        queries, fusions, fingerprints = {}, {}, {}
        for embedder, names in self._serving(checkpoint, units):
            inputs = embedder.captions(texts) if images is None else embedder.photos(images)
            several = [spaces for spaces in plan.routed.values() if spaces[0] in names]
            found, fused = embedder.embed_routed(inputs, names, several)
            queries, fusions = queries | found, fusions | fused
            fingerprints |= {name: embedder.fingerprints[name] for name in names}
        return queries, fusions, fingerprints
