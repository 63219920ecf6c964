# SPDX-License-Identifier: Apache-2.0
"""What the verbs of a catalogue that change it have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .backends import is_one_process_only
from .reading import CatalogueReader
from .settings import Settings, change_settings
from .sources import Source

if TYPE_CHECKING:
    from .embedder import Embedder
    from .filling import FillReport, FillSettings
    from .ranks import Ranks

_GROWN = 0.05  # by such a share, an index of FAISS is built anew: what is not in it is searched exactly


class CatalogueWriter(CatalogueReader):
    """A catalogue that can be changed; see `Catalogue`."""

    def __init__(self, folder: str | Path, token: str | None = None):
        super().__init__(folder, token)
        self._ranks: Ranks | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that share the work."""
        if self._ranks is None:
            from .ranks import join_ranks

            self._ranks = join_ranks()
            if self._ranks.num_ranks > 1 and is_one_process_only(self.settings.backend):
                raise ValueError(
                    f"The Milvus file {self.settings.backend['uri']} is held by one process at a time. Fill it with "
                    "one, or use a server (--uri http://host:19530) or FAISS."
                )
        return self._ranks

    def _land(self, embedder: Embedder, names: Sequence[str], source: Source | None, replaces: bool = True) -> None:
        """Open the spaces that are new. All processes may: again, it changes nothing."""
        self._check_unchanged(embedder, names)
        self._index.land([embedder.revisions[name] for name in names], "new_only")
        self._remember(embedder, source, replaces)

    def _remembered(self, embedder: Embedder) -> list[str]:
        """Spaces of the attributes that are remembered, as far as a checkpoint knows them; of none an error."""
        wanted = self.settings.attributes
        known = {*embedder.revisions, *(revision.attribute for revision in embedder.revisions.values())}
        return embedder.spaces_of([name for name in wanted or () if name in known] or wanted)

    def _check_unchanged(self, embedder: Embedder, names: Sequence[str]) -> None:
        live, made = self._index.spaces, embedder.fingerprints
        wrong = [name for name in names if name in live and not self._index.knows(name, made[name])]
        if wrong:
            raise self._refusal(embedder, wrong)

    def _remember(self, embedder: Embedder | None, source: Source | None, replaces: bool = True) -> None:
        def change(settings: Settings) -> Settings:
            if embedder is not None:
                made = embedder.model_type, embedder.model_revision, embedder.fingerprints
                settings = settings.with_checkpoint(embedder.checkpoint, *made)
            return settings if source is None else settings.with_source(source.describe(), replaces)

        self._change(change)

    def _builds(self, embedder: Embedder) -> bool:
        building = self._index.building()
        return any(building.get(name) == revision.fingerprint for name, revision in embedder.revisions.items())

    def _lacking(self) -> str:
        """The checkpoint that was used last and can fill a space that lacks something, or else the last one."""
        if not self.settings.checkpoints:
            raise ValueError(f"{self.folder} remembers no checkpoint; name one with --checkpoint.")
        items, spaces = self._index.num_items(), self._index.spaces
        for entry in reversed(self.settings.checkpoints):
            for name, made in entry["fingerprints"].items():
                if name in spaces and self._index.knows(name, made) and self._index.num_stored(name, made) < items:
                    return entry["path"]
        return self.settings.checkpoints[-1]["path"]

    def _unfilled(self, embedder: Embedder, names: Sequence[str]) -> list[str]:
        """Spaces that this checkpoint can add to and that have fewer entries than there are items; or all of them."""
        items, able = self._index.num_items(), {}
        for name in names:
            fingerprint = embedder.fingerprints[name]
            if name in self._index.spaces and self._index.knows(name, fingerprint):
                able[name] = self._index.num_stored(name, fingerprint)
        return [name for name, count in able.items() if count < items] or list(able)

    def _filled(
        self,
        event: str,
        embedder: Embedder,
        sources: Sequence[Source],
        names: Sequence[str],
        which: str,
        settings: FillSettings | None,
        ranks: Ranks,
        unserved: Sequence[str] = (),
    ) -> FillReport:
        from .filling import FillReport, FillSettings, fill

        whole, before, settings = FillReport(), self._index.num_items(), settings or FillSettings()
        for source in reversed(sources) if names else ():  # the newest first: it has the photo that counts
            whole.add(fill(self._index, embedder, source, names, which, settings, ranks, unserved))
            ranks.wait()
        self._index.refresh()
        if ranks.is_first:
            grown = event != "add" or whole.embedded > _GROWN * before
            for name in names:
                self._finish(name, embedder.revisions[name].fingerprint, grown, whole)
            details = {"checkpoint": embedder.checkpoint, "model_revision": embedder.model_revision}
            details |= {"spaces": list(names), "embedded": whole.embedded, "bad": dict(whole.bad.counts)}
            details |= {"seconds": round(whole.seconds, 1), "precision": "float16" if embedder.fp16 else "float32"}
            self._change(lambda settings: settings.with_event(event, **details))
        ranks.wait()
        self.refresh()
        return whole

    def _add_to_builds(self, source: Source, whole: FillReport, fp16: bool, fill: FillSettings | None, ranks: Ranks):
        """
        Photos that were added, into the revisions that are being built too: whoever builds them goes through sources
        in which some of the photos may be older ones, and leaves alone what is there.
        """
        waiting = self._index.building()
        for entry in reversed(self.settings.checkpoints):
            names = [name for name, made in waiting.items() if entry["fingerprints"].get(name) == made]
            if not names:
                continue
            waiting = {name: made for name, made in waiting.items() if name not in names}
            try:
                embedder = self._opened(entry["path"], fp16)
            except (OSError, ValueError) as error:
                whole.notes.append(f"{names} are being built without these photos, until `backfill`: {error}")
                continue
            names = [name for name in names if self._index.building().get(name) == embedder.fingerprints.get(name)]
            if names:
                whole = whole.beside(self._filled("add", embedder, [source], names, "all", fill, ranks))
        return whole

    def _finish(self, name: str, fingerprint: str, grown: bool, report: FillReport) -> None:
        if grown or self._index.stored(name, fingerprint).description.spread is None:
            self._index.measure_spread(name, fingerprint=fingerprint)
        if grown:
            try:
                self._index.optimize(name, fingerprint)
            except ValueError as error:
                report.notes.append(f"{name} is searched exactly, without an index: {error}")

    def _change(self, change: Callable[[Settings], Settings]) -> None:
        self.settings = change_settings(self.folder, change)

    def _device(self):
        return None if self._ranks is None else self._ranks.device
