# SPDX-License-Identifier: Apache-2.0
"""A shop's catalogue: photos embedded once, searched for years while the model learns on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backends import faiss_backend
from .settings import Settings, make_settings, read_settings
from .sources import Source
from .versions import last_switched
from .writing import CatalogueWriter

if TYPE_CHECKING:
    from .filling import FillReport, FillSettings

_REMOVED = 10_000  # ids at a time


class Catalogue(CatalogueWriter):
    """
    Photos in several spaces, embedded by a checkpoint, kept in FAISS or Milvus, with their metadata.

    The folder remembers the backend (never its token), the sources of the photos and the checkpoints. Every batch is
    durable when it is written: after a kill the same call goes on. Processes of `accelerate launch` that make the same
    call share the work.

    Example:
    ```python
    with Catalogue.create("shop.index") as catalogue:
        catalogue.build("runs/shop/increment-01", FolderSource("photos"))
        hits = catalogue.search(images=["dress.jpg"], attributes=["neckline", "sleeve_length"], k=5)[0]
    ```

    Args:
        folder: of a catalogue; see `create`.
        token: of Milvus; default: the environment's MCLFIR_MILVUS_TOKEN.

    Raises:
        FileNotFoundError: there is none.
    """

    @classmethod
    def open(cls, folder: str | Path, token: str | None = None) -> Catalogue:
        """The catalogue in a folder. FileNotFoundError: there is none."""
        return cls(folder, token)

    @classmethod
    def create(
        cls, folder: str | Path, backend: Mapping[str, Any] | None = None, token: str | None = None
    ) -> Catalogue:
        """
        Make a catalogue, or open the one that is there.

        Args:
            backend: of `faiss_backend` or `milvus_backend`; default: FAISS, exact; of one that is there its own.

        Raises:
            ValueError: it is kept in another backend; the folder holds something else.
        """
        folder = Path(folder)
        if backend is None:
            try:
                backend = read_settings(folder).backend
            except FileNotFoundError:
                backend = faiss_backend()
        make_settings(folder, Settings(dict(backend)))
        return cls(folder, token)

    def build(
        self,
        checkpoint: str,
        source: Source,
        attributes: Sequence[str] | None = None,
        *,
        fp16: bool = False,
        fill: FillSettings | None = None,
    ) -> FillReport:
        """
        Embed all photos of a source in every space of a checkpoint. Those that are there stay; after a kill the same
        call ends with the same catalogue.

        Args:
            attributes: only these; remembered beside those that are there. Default: all that are remembered, or all.
            fp16: half precision, on a GPU.

        Raises:
            FileNotFoundError: the source has no photo.
            IncompatibleRevisionError: the catalogue has a space with vectors of something else: reindex.
            ValueError: an unknown attribute, too many unusable photos.
        """
        source.check_not_empty()
        ranks, embedder = self.ranks, self._opened(checkpoint, fp16)
        names = embedder.spaces_of(attributes) if attributes else self._remembered(embedder)
        if attributes:
            there = [revision.attribute for revision in self._index.spaces.values()]
            self._change(lambda settings: settings.with_attributes([*(settings.attributes or there), *attributes]))
        self._land(embedder, names, source, replaces=False)  # photos that are there stay
        return self._filled("build", embedder, [source], names, "missing", fill, ranks)

    def add(
        self,
        source: Source,
        checkpoint: str | None = None,
        *,
        keep_present: bool = False,
        fp16: bool = False,
        fill: FillSettings | None = None,
    ) -> FillReport:
        """
        Embed photos in all spaces of the catalogue; one with an id that is there takes the old one's place. Where a
        checkpoint does not know a space, items that were replaced leave it, until `backfill` brings them back.

        Args:
            checkpoint: default: the one that was used last and fits.
            keep_present: photos whose ids are there stay as they are and are not embedded; after a kill this goes on
                where it stopped.

        Raises:
            IncompatibleRevisionError: a checkpoint that makes other vectors than the entries.
            ValueError: too many unusable photos.
        """
        ranks, spaces, unserved = self.ranks, list(self._index.spaces), []
        if checkpoint is not None:  # those that it knows: `backfill` gives the photos their other vectors
            known = self._opened(checkpoint, fp16).revisions
            unserved = [name for name in spaces if name not in known]
            spaces = [name for name in spaces if name in known]
            if unserved and not spaces:
                raise self._refusal(self._opened(checkpoint, fp16), unserved)
        whole = None
        for embedder, names in self._serving(checkpoint, [[name] for name in spaces], fp16):
            # It was chosen because it fits: it does not come before one that is being built.
            known = any(entry["path"] == embedder.checkpoint for entry in self.settings.checkpoints)
            self._remember(None if known else embedder, source, replaces=not keep_present)
            which = "missing" if keep_present else "all"
            report = self._filled("add", embedder, [source], names, which, fill, ranks, unserved)
            whole = report if whole is None else whole.beside(report)
        if whole is None:
            raise ValueError(f"{self.folder} has no space to add to; `mclfir index build` opens some.")
        return whole if keep_present else self._add_to_builds(source, whole, fp16, fill, ranks)

    def remove(self, ids: Iterable[str], *, on_unknown: Callable[[list[str]], None] | None = None) -> int:
        """
        Remove items from all spaces and revisions → how many of them there were. `build` would bring them back.

        Args:
            on_unknown: is told ids of no item, some at a time.
        """
        if isinstance(ids, str):
            raise ValueError(f"ids must be several texts; got one, {ids!r}. Write [{ids!r}].")
        removed, rest = 0, iter(dict.fromkeys(ids))
        while some := list(islice(rest, _REMOVED)):
            known = self._index.knows_any(some)
            removed += sum(known)
            if on_unknown is not None and not all(known):
                on_unknown([name for name, is_there in zip(some, known, strict=True) if not is_there])
            self._index.remove(some)
        self._change(lambda settings: settings.with_event("remove", items=removed))
        return removed

    def reindex(
        self,
        checkpoint: str,
        policy: str,
        source: Source | None = None,
        *,
        drift_map: str = "procrustes",
        mix: float = 1.0,
        calibration: int = 500,
        fp16: bool = False,
        fill: FillSettings | None = None,
    ) -> tuple[dict[str, str], FillReport | None]:
        """
        A new checkpoint lands. What becomes of spaces whose vectors it makes differently is the policy's say:
        "new_only" refuses it, "none" keeps the old vectors and searches them as they are, "drift_compensated" maps
        queries to them, "full" embeds every photo again beside them, until `switch`. Its new spaces are opened under
        each of them; "full" fills them as well, otherwise `backfill` does.

        Args:
            source: where the photos are; default: the sources that are remembered.
            drift_map, mix: see `VersionedIndex.land`.
            calibration: items whose photos are embedded again to fit the maps.

        Returns:
            Space → opened, unchanged, linked or building; what was embedded under "full".

        Raises:
            IncompatibleRevisionError: "new_only", but old spaces changed.
            ValueError: see `VersionedIndex.land`; too few photos for the maps; too many unusable ones.
        """
        from .filling import FillSettings
        from .reindexing import calibration_pairs, changed_spaces

        ranks, embedder = self.ranks, self._opened(checkpoint, fp16)
        needs_photos = policy in ("drift_compensated", "full")
        sources = [] if not needs_photos else self.sources() if source is None else [source]
        names = self._remembered(embedder)
        settings, pairs = fill or FillSettings(), None
        if policy == "drift_compensated" and ranks.is_first:
            changed = changed_spaces(self._index, embedder, names)
            if changed:
                pairs = calibration_pairs(self._index, embedder, sources, changed, calibration, settings.batch_size)
        if policy == "new_only":
            self._check_unchanged(embedder, names)
        found = {}
        if ranks.is_first:
            revisions = [embedder.revisions[name] for name in names]
            found = self._index.land(revisions, policy, calibration=pairs, drift_map=drift_map, mix=mix)
            self._remember(embedder, source)
        ranks.wait()
        self.refresh()
        found = next(outcome for outcome in ranks.gather(found) if outcome)
        if policy != "full":
            return found, None
        if source is None:  # from here on, whoever adds photos adds them to the build too; others came before
            sources = self.sources()
        targets = [name for name, outcome in found.items() if outcome in ("building", "opened")]
        targets += [name for name in self._unfilled(embedder, names) if name not in targets]
        return found, self._filled("reindex", embedder, sources, targets, "known", fill, ranks)

    def backfill(
        self,
        checkpoint: str | None = None,
        source: Source | None = None,
        *,
        fp16: bool = False,
        fill: FillSettings | None = None,
    ) -> FillReport:
        """
        Give the items of the catalogue their vectors in spaces that lack them: of attributes of a later increment, or
        of a build that was cut off. All such spaces from one pass.

        Args:
            checkpoint: a new one, whose new spaces are opened first; default: the one that was used last and can fill
                what lacks.
            source: where the photos are; default: the sources that are remembered.

        Raises:
            IncompatibleRevisionError: the checkpoint changed old spaces: reindex.
        """
        ranks, embedder = self.ranks, self._opened(checkpoint or self._lacking(), fp16)
        names = self._remembered(embedder)
        if checkpoint is not None and not self._builds(embedder):
            self._land(embedder, names, source)
        self.refresh()
        sources = self.sources() if source is None else [source]
        targets = self._unfilled(embedder, names)
        return self._filled("backfill", embedder, sources, targets, "known", fill, ranks)

    def switch(self, allow_pending: bool = False) -> dict[str, str]:
        """Make what was built live, all of it at one moment → space: model revision. See `VersionedIndex.switch`."""
        self.refresh()
        for name, made in self._index.building().items():
            if self._index.stored(name, made).description.spread is None:  # what filled it was cut off before that
                self._index.measure_spread(name, fingerprint=made)
        return self._index.switch(allow_pending=allow_pending)

    def roll_back(self) -> dict[str, dict[str, Any]]:
        """
        Undo the last switch that is not undone yet, in all of its spaces. See `VersionedIndex.roll_back`.

        Raises:
            ValueError: there is none, or what was live before it has been dropped.
        """
        return self._index.roll_back(last_switched(self._index.info()))

    def drop(self, revision: str) -> list[str]:
        """
        Give up a revision, and its vectors, in every space that has it and is not answered by it → these spaces.

        Raises:
            ValueError: no space has it; it answers in all that have.
        """
        states = {
            name: entry["state"]
            for name, space in self._index.info()["spaces"].items()
            for entry in space["revisions"]
            if revision in (entry["model_revision"], entry["fingerprint"])
        }
        if not states:
            raise ValueError(f"No space has a revision {revision!r}; `mclfir index info` lists them.")
        idle = [name for name, state in states.items() if state != "live"]
        for name in idle or states:  # of a live one the index tells what is to be done
            self._index.drop(name, revision)
        return idle
