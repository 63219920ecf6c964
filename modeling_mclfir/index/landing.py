# SPDX-License-Identifier: Apache-2.0
"""What a landing, a switch, a roll back and a drop make of a manifest: nothing here touches a store or a file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .manifest import IndexManifest
from .policies import POLICIES, fit_map
from .spaces import BUILDING, LIVE, RETIRED, IncompatibleRevisionError, Link, Space, SpaceRevision, StoredRevision, now

# What a landing does with a space.
OPENED, UNCHANGED, LINKED, BUILT = "opened", "unchanged", "linked", "building"


def outcomes(manifest: IndexManifest, revisions: Sequence[SpaceRevision], policy: str) -> dict[str, str]:
    """
    Space → opened (it is new), unchanged (the same fingerprint), linked (its vectors stay, others are led to them) or
    building (a store beside the live one).

    Raises:
        ValueError: no such policy, a space twice, one named as an attribute, another attribute than before, a model
            revision that is known with another fingerprint, another build that is open.
        IncompatibleRevisionError: new_only, but the encoder of an old space changed.
    """
    if policy not in POLICIES:
        raise ValueError(f"There is no reindex policy {policy!r}; choose one of {', '.join(POLICIES)}.")
    _check_names(manifest, revisions)
    changed = {
        revision.space: manifest.spaces[revision.space].live
        for revision in revisions
        if revision.space in manifest.spaces
        and manifest.spaces[revision.space].live.fingerprint != revision.fingerprint
        # What landed before under another policy is no news.
        and not (policy == "new_only" and manifest.spaces[revision.space].knows(revision.fingerprint))
    }
    if changed and policy == "new_only":
        raise IncompatibleRevisionError(_not_only_new(changed, revisions))
    found = {}
    for revision in revisions:
        if revision.space not in manifest.spaces:
            found[revision.space] = OPENED
            continue
        _check_space(manifest.spaces[revision.space], revision, policy)
        outcome = BUILT if policy == "full" else LINKED
        found[revision.space] = outcome if revision.space in changed else UNCHANGED
    return found


def landed(
    manifest: IndexManifest,
    revisions: Sequence[SpaceRevision],
    policy: str,
    found: Mapping[str, str],
    stores: Mapping[str, str],
    links: Mapping[str, Link],
) -> IndexManifest:
    """
    The manifest after a landing.

    Args:
        found: of `outcomes`.
        stores: names for spaces that are opened or built anew.
        links: of spaces that are linked anew.
    """
    spaces = []
    for revision in revisions:
        name, outcome = revision.space, found[revision.space]
        if outcome == OPENED:
            spaces.append(Space(name, (StoredRevision(revision, stores[name], LIVE, policy),)))
        elif outcome == LINKED and name in links:
            space, link = manifest.spaces[name], links[name]
            kept = (other for other in space.links if (other.source, other.target) != (link.source, link.target))
            # The newest first: of two ways of one length it is taken.
            spaces.append(replace(space, links=(link, *kept)))
        elif outcome == BUILT:
            spaces.append(_with_build(manifest.spaces[name], revision, stores.get(name), policy))
    record: dict[str, Any] = {
        "time": now(),
        "event": "landing",
        "policy": policy,
        "spaces": {
            revision.space: {"model_revision": revision.model_revision, "outcome": found[revision.space]}
            for revision in revisions
        },
    }
    return replace(manifest.with_spaces(spaces), landings=(*manifest.landings, record))


def switched(manifest: IndexManifest, targets: Mapping[str, str], event: str) -> IndexManifest:
    """The manifest in which other revisions are live: space → fingerprint."""
    spaces = []
    for name, fingerprint in targets.items():
        space = manifest.spaces[name]
        states = {space.live.fingerprint: RETIRED, fingerprint: LIVE}
        revisions = tuple(
            replace(revision, state=states.get(revision.fingerprint, revision.state)) for revision in space.revisions
        )
        past = space.past[:-1] if event == "roll back" else (*space.past, space.live.fingerprint)
        spaces.append(replace(space, revisions=revisions, past=past))
    record = {
        "time": now(),
        "event": event,
        "spaces": {space.name: {"model_revision": space.live.description.model_revision} for space in spaces},
    }
    return replace(manifest.with_spaces(spaces), landings=(*manifest.landings, record))


def without(manifest: IndexManifest, name: str, revision: str) -> IndexManifest:
    """
    The manifest without a revision; its store waits to be emptied.

    Raises:
        ValueError: no such revision, or the live one.
    """
    space = manifest.spaces[name]
    gone = space.find(revision)
    if gone.state == LIVE:
        raise ValueError(
            f"{revision!r} is the live revision of {name!r}, which answers searches; switch to another one, or roll "
            "back, before dropping it."
        )
    revisions = tuple(other for other in space.revisions if other is not gone)
    past = _past_after(space, gone.fingerprint)
    links = _useful(space.links, {other.fingerprint for other in revisions})
    record = {
        "time": now(),
        "event": "drop",
        "spaces": {name: {"model_revision": gone.description.model_revision}},
    }
    manifest = manifest.with_spaces([replace(space, revisions=revisions, links=links, past=past)])
    return replace(
        manifest,
        landings=(*manifest.landings, record),
        dropping=(*manifest.dropping, (gone.store, gone.description.dim)),
    )


def check_calibration(policy: str, changed: Sequence[str], calibration: Mapping[str, Any] | None) -> None:
    """ValueError: a changed space has no calibration under drift_compensated, or there is one too many."""
    given = set(calibration or ())
    if policy != "drift_compensated":
        if given:
            raise ValueError(f"Only 'drift_compensated' takes a calibration; got one for {sorted(given)}, {policy!r}.")
        return
    lacking, left = sorted(set(changed) - given), sorted(given - set(changed))
    if lacking:
        raise ValueError(
            f"The encoder of {lacking} changed, but there is no calibration: give (old, new) vectors of the same "
            "items. VersionedIndex.calibration chooses items and has their old vectors."
        )
    if left:
        raise ValueError(
            f"A calibration for {left}, but the encoder of these spaces did not change, or is not landing."
        )


def link_of(
    space: Space,
    revision: SpaceRevision,
    policy: str,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    drift_map: str,
    mix: float,
    onto: str | None,
) -> tuple[Link, bytes | None]:
    """
    The way from a revision's vectors to the stored ones, and the content of its map's file.

    Raises:
        ValueError: a calibration that does not fit, see `fit_map`.
        IncompatibleRevisionError: `onto` does not lead to the live revision.
    """
    path = space.path(onto or space.live.fingerprint)
    if onto == revision.fingerprint:
        raise ValueError(f"A map of {onto!r} onto itself says nothing; name the revision of the old vectors.")
    link = Link(revision.fingerprint, onto or space.live.fingerprint, policy, revision.model_revision, revision.dim)
    if pairs is None:
        return link, None
    old, new = pairs
    expected = ((path[0].dim if path else space.live.description.dim), revision.dim)
    if np.ndim(old) != 2 or np.ndim(new) != 2 or (np.shape(old)[1], np.shape(new)[1]) != expected:
        raise ValueError(
            f"Expected a calibration of {space.name!r} of old vectors (n, {expected[0]}) and new ones (n, "
            f"{expected[1]}); got {np.shape(old)} and {np.shape(new)}."
        )
    found, details = fit_map(drift_map, old, new, mix)
    return replace(link, details={"kind": drift_map, "mix": float(mix)} | details), found.to_bytes()


def _useful(links: Sequence[Link], stored: set[str]) -> tuple[Link, ...]:
    """Links that lead somewhere, perhaps through others."""
    reached, count = set(stored), -1
    while count != len(reached):
        count = len(reached)
        reached |= {link.source for link in links if link.target in reached}
    return tuple(link for link in links if link.target in reached)


def _with_build(space: Space, revision: SpaceRevision, store: str | None, policy: str) -> Space:
    known = [stored for stored in space.revisions if stored.fingerprint == revision.fingerprint]
    if not known:
        return replace(space, revisions=(*space.revisions, StoredRevision(revision, store, BUILDING, policy)))
    # One that was live before, or whose build was cut off: what it has is of use.
    revisions = tuple(replace(stored, state=BUILDING) if stored in known else stored for stored in space.revisions)
    past = _past_after(space, revision.fingerprint)
    return replace(space, revisions=revisions, past=past)


def _past_after(space: Space, fingerprint: str) -> tuple[str, ...]:
    """What was live since a revision was; all of it where it never was. Beyond a gap no switch can be undone."""
    places = [place for place, other in enumerate(space.past) if other == fingerprint]
    return space.past[places[-1] + 1 :] if places else space.past


def _check_names(manifest: IndexManifest, revisions: Sequence[SpaceRevision]) -> None:
    names = [revision.space for revision in revisions]
    if not names:
        raise ValueError("Nothing lands: give the revision of one space at least.")
    if len(set(names)) < len(names):
        raise ValueError(f"A space may land once at a time; got {names}.")
    described = [space.live.description for space in manifest.spaces.values()] + list(revisions)
    both = {one.space for one in described} & {one.attribute for one in described}
    if both:
        raise ValueError(
            f"{sorted(both)} would name both a space and an attribute; name spaces 'ATTRIBUTE@INCREMENT'."
        )


def _check_space(space: Space, revision: SpaceRevision, policy: str) -> None:
    live = space.live.description
    if revision.attribute != live.attribute:
        raise ValueError(
            f"{space.name!r} is a space of {live.attribute!r}; got {revision.attribute!r}. Name another space."
        )
    names = [(stored.description.model_revision, stored.fingerprint) for stored in space.revisions]
    names += [(link.model_revision, link.source) for link in space.links]
    for model_revision, fingerprint in names:
        if model_revision == revision.model_revision and fingerprint != revision.fingerprint:
            raise ValueError(
                f"{space.name!r} knows the model revision {model_revision!r} by the fingerprint {fingerprint!r}; got "
                f"{revision.fingerprint!r}. Give what changed a name of its own."
            )
    if revision.fingerprint == live.fingerprint and revision.dim != live.dim:
        raise ValueError(f"{space.name!r} has vectors of {live.dim}; got {revision.dim} for the same fingerprint.")
    if policy == "none" and revision.dim != live.dim:
        raise ValueError(
            f"Queries of {revision.dim} can't search vectors of {live.dim} in {space.name!r} as they are; take "
            "'drift_compensated' with a Procrustes map, or 'full'."
        )
    if policy == "full" and space.building and space.building.fingerprint != revision.fingerprint:
        other = space.building.description.model_revision
        if revision.fingerprint != live.fingerprint:
            raise ValueError(
                f"Revision {other!r} of {space.name!r} is being built; switch to it, or drop it, before "
                f"{revision.model_revision!r} is."
            )


def _not_only_new(changed: Mapping[str, StoredRevision], revisions: Sequence[SpaceRevision]) -> str:
    given = {revision.space: revision.fingerprint for revision in revisions}
    told = [f"{name!r} from {live.fingerprint!r} to {given[name]!r}" for name, live in changed.items()]
    return (
        f"The policy 'new_only' leaves old spaces as they are, but the encoder changed of {', '.join(told)}. Land the "
        "new spaces alone and keep the old adapters and heads frozen, or choose by name what becomes of old vectors: "
        "'full' embeds every item again, 'drift_compensated' maps queries, 'none' searches them as they are."
    )
