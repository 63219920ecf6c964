# SPDX-License-Identifier: Apache-2.0
"""Reindex policies compared on a real run: what old spaces still give when the model learned on.

Wang, Herranz and van de Weijer ("Continual learning in cross-modal retrieval", arXiv:2104.06806) report that not
reindexing the old part of a database gives significant gains over reindexing it. Here the checkpoints of one training
run land one after the other in a `VersionedIndex` under each policy, and every search goes through that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.increments import Increment, select_rows
from ..evaluation import Evaluator, Side
from ..index import FaissStore, SpaceRevision, VersionedIndex
from .snapshots import Snapshot

TOP = 10
OLD_MODEL = "old_model"


@dataclass(frozen=True)
class StudiedPolicy:
    """
    A reindex policy with its settings.

    Attributes:
        policy: of `VersionedIndex.land`.
        about: what it does, for the report.
        drift_map, mix: of drift_compensated, as `VersionedIndex.land` takes them.
        new_items: where a space learned new values, the items that have those are embedded again by the model that
            learned them, and added: each part of the gallery is as its own increment indexed it.
    """

    policy: str
    about: str
    drift_map: str | None = None
    mix: float = 1.0
    new_items: bool = False


STUDIED_POLICIES = {
    "full": StudiedPolicy("full", "every item is embedded again by the new model"),
    "new_only": StudiedPolicy("new_only", "old spaces are as they were, which the index has made sure of"),
    "none": StudiedPolicy("none", "items stay as they were embedded when the space was opened, queries are new"),
    "mean_drift": StudiedPolicy(
        "drift_compensated", "as none, queries relieved of the mean drift", drift_map="mean_drift"
    ),
    "procrustes": StudiedPolicy(
        "drift_compensated", "as none, queries turned back by an orthogonal map", drift_map="procrustes"
    ),
    "procrustes_mix": StudiedPolicy(
        "drift_compensated", "halfway on the sphere from the query to its turned one", drift_map="procrustes", mix=0.5
    ),
    "new_items": StudiedPolicy(
        "none", "as none, and items of values just learned are embedded again by the model that learned them",
        new_items=True,
    ),
    "procrustes_new_items": StudiedPolicy(
        "drift_compensated", "the same, queries and those items turned back by an orthogonal map",
        drift_map="procrustes", new_items=True,
    ),
}  # fmt: skip
ABOUT_OLD_MODEL = "items and queries by the model of their own increment: what was served before, kept as a reference"


@dataclass(frozen=True)
class Landing:
    """
    What happened when a checkpoint landed.

    Attributes:
        after: place of its increment.
        changed: old spaces whose encoder changed.
        unchanged: old spaces that stayed bit for bit.
        images_again: images of old spaces that had to be embedded again.
        cosine_before, cosine_after: means over the changed spaces: of old and new vectors of the calibration's items,
            as they are and mapped; None without a map.
    """

    after: int
    changed: int
    unchanged: int
    images_again: int
    cosine_before: float | None = None
    cosine_after: float | None = None


class ReindexStudy:
    """
    The checkpoints of one run, the increments they learned, and two sides to search.

    Args:
        increments: in the order of learning.
        snapshots: after each of them.
        evaluator: of the run's data.
        num_calibration: stored items that drift maps are fitted on, the same of all spaces.
        seed: of their choice.

    Raises:
        ValueError: fewer than two snapshots, another number of increments, no item to calibrate on.
    """

    def __init__(
        self,
        increments: Sequence[Increment],
        snapshots: Sequence[Snapshot],
        evaluator: Evaluator,
        num_calibration: int = 200,
        seed: int = 0,
    ):
        if len(snapshots) < 2 or len(increments) != len(snapshots):
            raise ValueError(
                f"The study needs the checkpoints of two increments at least, one an increment; got {len(snapshots)} "
                f"of {len(increments)} increments."
            )
        if num_calibration < 1:
            raise ValueError(f"Drift maps need at least 1 item to be fitted on; got {num_calibration}.")
        self.increments, self.snapshots, self.evaluator = list(increments), list(snapshots), evaluator
        self.num_calibration, self.seed = num_calibration, seed
        self.sides = [Side(table, None) for table in evaluator.tables]
        gallery = self.sides[1].table
        self.ids = [f"{gallery.split}/{row}" for row in gallery.rows]
        self.place_of = {name: place for place, name in enumerate(self.ids)}

    @property
    def spaces_learn_on(self) -> bool:
        """Whether an old space learned new values in a later increment."""
        return any(
            snapshot.revisions[place].increment != increment.name
            for increment, snapshot in zip(self.increments, self.snapshots, strict=True)
            for place in snapshot.places(increment)
        )

    @property
    def spaces_change(self) -> bool:
        """Whether the encoder of an old space changed in a later increment."""
        pairs = zip(self.snapshots, self.snapshots[1:], strict=False)
        return any(
            one.fingerprint != other.fingerprint
            for before, after in pairs
            for one, other in zip(before.revisions, after.revisions, strict=False)
        )

    def policies(self) -> dict[str, StudiedPolicy]:
        """Those that this run can tell something about: new_only refuses what changed."""
        return {
            name: one
            for name, one in STUDIED_POLICIES.items()
            if (self.spaces_learn_on or not one.new_items) and not (self.spaces_change and one.policy == "new_only")
        }

    def compare(self, folder: Path) -> tuple[list[dict], dict[str, list[Landing]]]:
        """
        Let all checkpoints land under every policy, and score every increment learned so far after each.

        Args:
            folder: where the indexes are while they are needed.

        Returns:
            A row a policy, landing, increment and attribute, see `_score`; policy → its landings.
        """
        rows, landings = [], {}
        for name, policy in tqdm(self.policies().items(), desc="policies", unit="policy"):
            with TemporaryDirectory(dir=folder, prefix="index-") as place:
                found, landings[name] = self._run(policy, Path(place))
            rows += [{"policy": name} | row for row in found]
        full = [row for row in rows if row["policy"] == "full"]
        served = {(row["increment"], row["attribute"]): row for row in full if row["new"]}
        for row in full:
            before = served[row["increment"], row["attribute"]]
            rows.append(before | {"policy": OLD_MODEL, "after": row["after"], "new": row["new"]})
        return rows, landings

    def _run(self, policy: StudiedPolicy, folder: Path) -> tuple[list[dict], list[Landing]]:
        rows, landings = [], []
        with VersionedIndex(folder, lambda name, dim: FaissStore(folder / "stores" / name, dim)) as index:
            for after, snapshot in enumerate(self.snapshots):
                landings.append(self._land(index, after, policy))
                for learned, increment in enumerate(self.increments[: after + 1]):
                    found = self._score(index, snapshot, increment)
                    rows += [{"after": after, "new": learned == after} | row for row in found]
        return rows, landings

    def _land(self, index: VersionedIndex, after: int, policy: StudiedPolicy) -> Landing:
        """A checkpoint lands: new spaces are filled, old ones treated as the policy says."""
        snapshot, gallery = self.snapshots[after], self.sides[1].table
        old = index.spaces
        changed = [
            place
            for place, revision in enumerate(snapshot.revisions)
            if revision.space in old and old[revision.space].fingerprint != revision.fingerprint
        ]
        options: dict[str, Any] = {}
        again: set[str] = set()
        if policy.drift_map and changed:
            calibration, again = self._calibration(index, snapshot, changed)
            options = {"calibration": calibration, "drift_map": policy.drift_map, "mix": policy.mix}
        found = index.land(snapshot.revisions, policy.policy, **options)
        for place, revision in enumerate(snapshot.revisions):
            if found[revision.space] in ("opened", "building"):
                self._add(index, snapshot, place, np.arange(len(gallery)))
        if "building" in found.values():
            index.switch()
            again = set(self.ids)
        if policy.new_items:
            rows = select_rows(self.increments[after], gallery)
            for place in set(snapshot.places(self.increments[after])) & set(changed):
                self._add(index, snapshot, place, rows)
                again |= {self.ids[row] for row in rows}
        cosines = _cosines(index.info()["spaces"], snapshot.revisions) if options else (None, None)
        return Landing(after, len(changed), len(old) - len(changed), len(again), *cosines)

    def _add(self, index: VersionedIndex, snapshot: Snapshot, place: int, rows: np.ndarray) -> None:
        revision = snapshot.revisions[place]
        labels = self.sides[1].table.labels(revision.attribute)
        metadata = [{"labelled": bool(labels[row] >= 0)} for row in rows]
        ids = [self.ids[row] for row in rows]
        embeds = snapshot.embeds[1][rows, place]
        index.add(revision.space, ids, embeds, metadata, fingerprint=revision.fingerprint)

    def _calibration(
        self, index: VersionedIndex, snapshot: Snapshot, changed: Sequence[int]
    ) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], set[str]]:
        """
        Space → vectors (old, new) of the same stored items, and the ids of those. They are chosen in the first space
        that changed and taken in all: one pass over so many images serves every map. Each map leads from the model
        that lands to the one that made the stored vectors, however many landed between: no errors add up.
        """
        ids = index.calibration(snapshot.revisions[changed[0]].space, self.num_calibration, self.seed).ids
        pairs = {}
        for place in changed:
            entries = index.get(snapshot.revisions[place].space, ids)
            own = [row for row, made_by in enumerate(entries.made_by) if made_by == entries.revision]
            rows = [self.place_of[entries.ids[row]] for row in own]
            pairs[snapshot.revisions[place].space] = entries.embeds[own], snapshot.embeds[1][rows, place]
        return pairs, set(ids)

    def _score(self, index: VersionedIndex, snapshot: Snapshot, increment: Increment) -> list[dict]:
        """
        A row an attribute of the increment, queries by the snapshot's model: MAP of the ranking by what the index
        makes of its queries and by the vectors that it holds (`Evaluator.score`, 0–1), and the precision of its first
        `TOP` results.
        """
        places = snapshot.places(increment)
        vectors = [], []
        for place in places:
            revision = snapshot.revisions[place]
            queries = index.map_queries(revision.space, snapshot.embeds[0][:, place], revision.fingerprint)
            for side, found in zip(vectors, (queries, index.get(revision.space, self.ids).embeds), strict=True):
                side.append(torch.from_numpy(np.array(found)))
        rows = self.evaluator.score(self.sides, [torch.stack(side, dim=1) for side in vectors], increment)
        return [
            {name: row[name] for name in ("increment", "attribute", "mean_average_precision", "random_ranking")}
            | {"space": snapshot.revisions[place].space}
            | {f"precision_at_{TOP}": self._precision(index, snapshot, place, increment)}
            for place, row in zip(places, rows, strict=True)
        ]

    def _precision(self, index: VersionedIndex, snapshot: Snapshot, place: int, increment: Increment) -> float:
        """Mean share of the query's value among the first `TOP` labelled items; queries whose value none has are
        left out."""
        revision, (queries, gallery) = snapshot.revisions[place], (side.table for side in self.sides)
        labels, theirs = (table.labels(revision.attribute) for table in (queries, gallery))
        rows = select_rows(increment, queries)
        rows = rows[(labels[rows] >= 0) & np.isin(labels[rows], theirs)]
        same = self.evaluator.same_side  # an image is not among its own results
        found = index.search(
            revision.space, snapshot.embeds[0][rows, place], TOP + same,
            fingerprint=revision.fingerprint, filter={"labelled": True},
        )  # fmt: skip
        shares = []
        for row, ids in zip(rows, found.ids, strict=True):
            results = [self.place_of[name] for name in ids if not same or self.place_of[name] != row][:TOP]
            shares.append(np.mean(theirs[results] == labels[row]))
        return float(np.mean(shares)) if shares else float("nan")


def _cosines(spaces: Mapping[str, dict], revisions: Sequence[SpaceRevision]) -> tuple[float, float]:
    """Mean cosines of calibration pairs before and after the maps of the revisions that have just landed."""
    details = [
        link["details"]
        for revision in revisions
        for link in spaces[revision.space]["links"]
        if link["source"] == revision.fingerprint
    ]
    return tuple(float(np.mean([found[name] for found in details])) for name in ("cosine_before", "cosine_after"))
