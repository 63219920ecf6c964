# SPDX-License-Identifier: Apache-2.0
"""An index of several spaces that is searched for years while the model that fills it goes on learning."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

import numpy as np

from .fusion import get_present
from .landing import (
    BUILT,
    LINKED,
    UNCHANGED,
    check_calibration,
    landed,
    link_of,
    outcomes,
    switched,
    without,
)
from .manifest import write_map
from .policies import MADE_BY, choose_calibration, score_spread
from .spaces import SpaceRevision
from .store import checked_embeds, checked_ids, checked_metadata
from .writer import IndexWriter

_NO_SPREAD = 1e-6  # of squared lengths


class VersionedIndex(IndexWriter):
    """
    Items in several spaces: each revision of a space has a store of its own, and one of them answers.

    Vectors of different spaces are never compared, nor those of revisions that no map links: what is refused names
    the ways out. `land` says what becomes of old vectors when a model revision comes; under the policy "full" a store
    is built beside the live one, while that goes on answering, and `switch` moves the alias when it is complete.

    Any number of processes may hold the index. Those that write take turns by a lock in the folder; each of their
    calls sees the index as it stands. Those that read go on with what they opened until `refresh`.

    Args:
        folder: of the manifest and the maps; made where it is not there.
        make_store: name and dim of a store → the store, made where there is none. Names are of letters, digits and _,
            and no name is given twice.
        drop_store: deletes the store of a name for good, after it was closed; default: its entries are removed.
        lock_timeout: seconds to wait for another writer.
    """

    def land(
        self,
        revisions: Sequence[SpaceRevision],
        policy: str,
        *,
        calibration: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
        drift_map: str = "procrustes",
        mix: float = 1.0,
        onto: str | None = None,
    ) -> dict[str, str]:
        """
        A model revision lands. New spaces are opened, spaces of the same fingerprint stay as they are; what becomes
        of the others, see `POLICIES`. All of it holds, or nothing. Again, it changes nothing.

        Args:
            revisions: of the spaces that the model has; others stay.
            policy: new_only, none, drift_compensated or full.
            calibration: for drift_compensated, space → vectors (old, new) of the same items, say of `calibration`.
                Under the link items may be added, too: where queries and items are made differently, of items.
            drift_map: mean_drift or procrustes.
            mix: 1: mapped queries, 0: as they are, between them on the sphere.
            onto: fingerprint of the old vectors; default: the live revision's. Another one that is linked already
                makes a chain of maps.

        Returns:
            Space → opened, unchanged, linked, or building: then add the `pending` items, and `switch`.

        Raises:
            ValueError: see `outcomes` and `fit_map`; a calibration that is missing, or not asked for.
            IncompatibleRevisionError: new_only, but an old space changed; `onto` leads nowhere; other entries were
                added through a map that this one would replace.
        """
        with self._writing() as view:
            found = outcomes(view.manifest, revisions, policy)
            linked = [revision for revision in revisions if found[revision.space] == LINKED]
            check_calibration(policy, [revision.space for revision in linked], calibration)
            links, contents = {}, {}
            for revision in linked:
                pairs = calibration[revision.space] if calibration else None
                space = view.spaces[revision.space]
                link, content = link_of(space, revision, policy, pairs, drift_map, mix, onto)
                if not self._is_registered(space, link, content):
                    links[space.name], contents[space.name] = link, content
            building = {name for name, space in view.spaces.items() if space.building}
            if all(
                outcome == UNCHANGED
                or (outcome == LINKED and name not in links)
                or (outcome == BUILT and name in building)
                for name, outcome in found.items()
            ):
                return found
            names = self._make_stores(view, revisions, found)
            for name, content in contents.items():
                if content is not None:
                    file = write_map(self._folder, f"{token_hex(8)}.safetensors", content)
                    links[name] = replace(links[name], file=file)
            self._write(landed(view.manifest, revisions, policy, found, names, links))
            return found

    def add(
        self,
        space: str,
        ids: Sequence[str],
        embeds: np.ndarray,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        fingerprint: str,
        replace_present: bool = True,
        only_known: bool = False,
    ) -> None:
        """
        Add items to a space; one that is there already takes the old one's place. They are durable on return.

        Vectors of the live revision go to its store; of the revision that is being built, to its own; of a linked
        one, through the map to the live store, marked as such. An item of the live store that changed is taken out of
        the space's other revisions, where it would still be what it was before: it is pending there again.

        Args:
            ids: n different names.
            embeds: (n, D).
            metadata: n mappings; default: none, or in a build those that the live revision has.
            fingerprint: of what made the vectors.
            replace_present: else items that are there already stay as they are.
            only_known: items that no live revision of any space has, removed by now, are left out.

        Raises:
            ValueError: see `VectorStore.add`; an unknown space, a column that is called "made_by".
            IncompatibleRevisionError: made by something that nothing links to the live revision.
        """
        ids, named = checked_ids(ids), metadata is not None
        metadata = checked_metadata(metadata, len(ids))
        if any(MADE_BY in columns for columns in metadata):
            raise ValueError(f"Metadata may not have a column {MADE_BY!r}: the index marks entries of a map with it.")
        with self._writing() as view:
            found = view.space(space)
            if not replace_present or only_known:
                if len(embeds) != len(ids):
                    raise ValueError(f"Expected a vector of each of {len(ids)} ids; got {len(embeds)}.")
                places = self._admitted(view, self.stored(space, fingerprint), ids, replace_present, only_known)
                if not places:
                    return
                ids, metadata = [ids[place] for place in places], [metadata[place] for place in places]
                embeds = np.asarray(embeds)[places]
            if found.building and found.building.fingerprint == fingerprint:
                if not named:
                    live = get_present(self._stores.of(found.live), ids)
                    metadata = [_unmarked(live[name][1]) if name in live else {} for name in ids]
                self._stores.of(found.building).add(ids, embeds, metadata)
                return
            vectors = self._mapped(found, embeds, fingerprint)
            if fingerprint != found.live.fingerprint:
                metadata = [columns | {MADE_BY: fingerprint} for columns in metadata]
            vectors = checked_embeds(vectors, found.live.description.dim, len(ids))
            self._forget_changed(found, ids, vectors, metadata)
            self._stores.of(found.live).add(ids, vectors, metadata)

    def remove(self, ids: Sequence[str], spaces: str | Sequence[str] | None = None) -> dict[str, int]:
        """
        Remove items from all revisions of every space, or of some → space: how many its live revision had of them.
        """
        ids, removed = checked_ids(ids), {}
        with self._writing() as view:
            for name in view.spaces if spaces is None else view.names(spaces):
                for stored in view.spaces[name].revisions:
                    count = self._stores.of(stored).remove(ids)
                    is_live = stored is view.spaces[name].live
                    removed[name] = count if is_live else removed.get(name, 0)
        return removed

    def switch(self, spaces: Sequence[str] | None = None, allow_pending: bool = False) -> dict[str, str]:
        """
        Make the revisions that were built the live ones, all of them at one moment; the old ones are kept.

        Args:
            spaces: default: all in which something is being built.
            allow_pending: also where items of the live revision have no vector yet; they are not found afterwards.

        Returns:
            Space → model revision that is live now.

        Raises:
            ValueError: nothing is being built, or items are pending.
        """
        with self._writing() as view:
            found = [space for space in view.spaces.values() if space.building]
            if spaces is not None:
                found = [view.space(name) for name in spaces]
            idle = [space.name for space in found if not space.building]
            if idle or not found:
                raise ValueError(
                    f"Nothing is being built in {idle or 'any space'}; land a revision under 'full' first."
                )
            for space in found if not allow_pending else ():
                self._check_complete(space)
            self._write(switched(view.manifest, {space.name: space.building.fingerprint for space in found}, "switch"))
            return {space.name: space.building.description.model_revision for space in found}

    def roll_back(self, spaces: str | Sequence[str]) -> dict[str, dict[str, Any]]:
        """
        Make the revisions live again that were so before the last switch, all of them at one moment. They are as they
        were then, without what was removed since; items added or changed since are missing.

        Returns:
            Space → model revision that is live now, how many entries it has, and how many the one before had.

        Raises:
            ValueError: there was no switch, or what was live then has been dropped.
        """
        with self._writing() as view:
            found = [view.spaces[name] for name in view.names(spaces)]
            first = [space.name for space in found if not space.past]
            if first:
                raise ValueError(f"{first} can't be rolled back: no earlier live revision of them is kept.")
            before = {space.name: space.live for space in found}
            manifest = switched(view.manifest, {space.name: space.past[-1] for space in found}, "roll back")
            self._write(manifest)
            return {
                name: {
                    "model_revision": manifest.spaces[name].live.description.model_revision,
                    "entries": self._stores.of(manifest.spaces[name].live).count(),
                    "entries_before": self._stores.of(old).count(),
                }
                for name, old in before.items()
            }

    def drop(self, space: str, revision: str) -> None:
        """
        Give up a revision that is not live, a build that is not wanted any more say, and its vectors.

        Args:
            revision: model revision or fingerprint.

        Raises:
            ValueError: there is none of that name, or it is live.
        """
        with self._writing() as view:
            self._write(without(view.manifest, view.space(space).name, revision))
            self._finish_drops()

    def measure_spread(
        self, space: str, num_items: int = 2000, seed: int = 0, *, fingerprint: str | None = None
    ) -> float | None:
        """
        Measure the spread of a space's scores from stored vectors, and keep it for searches over several spaces.

        Args:
            num_items: stored items that are looked at.
            fingerprint: of the revision that is being built, for its own spread; default: the live one.

        Returns:
            The spread; None, and nothing changes: there are too few different vectors to know it.
        """
        with self._writing() as view:
            found, measured = view.space(space), self.stored(space, fingerprint)
            store = self._stores.of(measured)
            embeds = store.get(choose_calibration(store, num_items, seed)).embeds
            spread = score_spread(embeds, seed=seed) if len(embeds) > 1 else 0.0
            # Vectors that are all the same have a spread as well: of rounding.
            if not spread > _NO_SPREAD * float(np.square(embeds, dtype=np.float64).sum(axis=1).max(initial=0.0)):
                return None
            known = replace(measured, description=replace(measured.description, spread=spread))
            revisions = tuple(known if stored is measured else stored for stored in found.revisions)
            self._write(view.manifest.with_spaces([replace(found, revisions=revisions)]))
            return spread


def _unmarked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != MADE_BY}
