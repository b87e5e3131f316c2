"""Tagging and removing names: docker's rules, without containers.

Functions take a connection inside a write transaction and never commit.
Source: specification §1.5-1.7, §8.1; the table there is the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.db import events, images, leases, pins
from imgdb.errors import ConflictError, InvalidArgumentError, NotFoundError
from imgdb.oci.digest import Digest
from imgdb.oci.reference import (
    Reference,
    check_taggable,
    dangling_name,
    familiar,
    parse_any,
    parse_normalized,
    short_id_hex,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from imgdb.db.images import ImageRecord


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing an argument does.

    Attributes:
        records: the names that go.
        deletes: no name of the target is left, so that its content becomes garbage.
    """

    target: Digest
    records: tuple[ImageRecord, ...]
    deletes: bool


@dataclass(frozen=True, slots=True)
class Tagging:
    """What giving a name did.

    Attributes:
        name: canonical.
        target: what it points to now.
        moved_from: the record that it was before, when that pointed elsewhere.
        changed: names whose records may have changed, for the mirror.
    """

    name: str
    target: Digest
    moved_from: ImageRecord | None
    changed: frozenset[str]


def tag(connection: Connection, source: str, name: Reference, *, at: int) -> Tagging:
    """Let a name point to an image; the image that had it is kept, as dangling if need be.

    Raises:
        InvalidArgumentError: `name` may not be given.
        NotFoundError: `source` is no image.
        RefusedError: `name` is pinned and points elsewhere.
    """
    check_taggable(name)
    canonical = str(name.tag_or_latest())
    target = images.resolve(connection, source)[0].target
    before = images.get(connection, canonical)
    moved = before is not None and before.target.digest != target.digest
    if before is not None and moved:
        pins.refuse(connection, {canonical: before.target.digest})
        images.keep_as_dangling(connection, canonical, at=at)
    if before is None or moved:
        images.put(connection, canonical, target, at=at)
    images.drop_useless_dangling(connection, [target.digest])
    events.record(connection, [events.NewEvent("tag", str(target.digest), canonical)], at)
    changed = {canonical, dangling_name(target.digest)}
    if before is not None:
        changed.add(dangling_name(before.target.digest))
    return Tagging(canonical, target.digest, before if moved else None, frozenset(changed))


def remove(connection: Connection, argument: str, *, force: bool, at: int) -> Removal:
    """Remove what an argument means, and say so in the events.

    Raises:
        NotFoundError, ConflictError: as `plan_removal`.
        ConflictError: a lease lists a name that would go, without `force`.
        RefusedError: a name that would go is pinned.
    """
    plan = plan_removal(connection, argument, force=force)
    _refuse_kept(connection, plan.records, force=force, at=at)
    happened = []
    for record in plan.records:
        images.remove(connection, record.name)
        if not record.is_dangling:
            happened.append(events.NewEvent("untag", str(plan.target), record.name))
    if plan.deletes:
        happened.append(events.NewEvent("delete", str(plan.target)))
    events.record(connection, happened, at)
    return plan


def _refuse_kept(connection: Connection, records: Sequence[ImageRecord], *, force: bool, at: int) -> None:
    """Not a pinned name; one that a lease lists only by force, as docker does with a used image."""
    pins.refuse(connection, {record.name: record.target.digest for record in records})
    leased = {} if force else leases.on_names(connection, [record.name for record in records], at)
    for name, lease in leased.items():
        raise ConflictError(
            f"unable to remove {familiar(name)} (must be forced) - lease {lease} keeps the name"
        )


def plan_removal(connection: Connection, argument: str, *, force: bool) -> Removal:
    """Decide what goes.

    Raises:
        NotFoundError: no such image, or an ambiguous ID.
        ConflictError: an ID whose image has names in several repositories, without `force`.
    """
    named, every = resolve_all(connection, argument)
    if not every:
        raise images.not_found(argument)
    target = every[0].target.digest
    if named is not None and images.is_id(argument, target) and "@" not in argument:
        return Removal(target, tuple(every), deletes=True)
    reference = _reference(named.name if named else argument)
    same = _same_references(reference, every)
    if reference is not None and not same:
        raise images.not_found(argument)
    if reference is not None and len(same) < len(every):
        return Removal(target, tuple(same), deletes=False)
    if reference is None and len(_same_references(None, every)) < len(every) and not force:
        raise ConflictError(
            f"unable to delete {target.short} (must be forced) - image is referenced in multiple repositories"
        )
    return Removal(target, tuple(every), deletes=True)


def resolve_all(connection: Connection, argument: str) -> tuple[ImageRecord | None, list[ImageRecord]]:
    """The record that an argument names exactly, if it does, and all records of its target."""
    try:
        parsed = parse_any(argument)
    except InvalidArgumentError:
        parsed = None
    if isinstance(parsed, Reference):
        record = images.get(connection, str(parsed.tag_or_latest() if parsed.digest is None else parsed))
        if record is not None:
            return record, images.by_targets(connection, [record.target.digest])
        if parsed.digest is not None:
            return None, images.by_targets(connection, [parsed.digest])
        if short_id_hex(argument) is None:
            raise images.not_found(argument)
    dangling = images.get(connection, argument)
    if dangling is not None:
        return dangling, images.by_targets(connection, [dangling.target.digest])
    found = images.resolve(connection, argument)
    return None, images.by_targets(connection, [found[0].target.digest])


def _reference(text: str) -> Reference | None:
    """The name in an argument; None when it is an ID, the image's own or its config's."""
    if short_id_hex(text):
        return None
    try:
        parsed = parse_any(text)
    except InvalidArgumentError:
        return None
    return None if isinstance(parsed, Digest) else parsed


def _same_references(name: Reference | None, records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Records of one target that stand for one name: its tag, its digests, and dangling ones."""
    dangling = [record for record in records if record.is_dangling]
    parsed = [(record, reference) for record in records if (reference := _parse(record)) is not None]
    if name is None:
        if not parsed:
            return dangling
        name = parsed[0][1]
    mine = [(record, reference) for record, reference in parsed if reference.name == name.name]
    if name.digest is not None and name.tag is None:
        return dangling + [record for record, _ in mine]
    tag = name.tag or next((reference.tag for _, reference in mine if reference.tag), None)
    others = any(reference.tag not in {None, tag} for _, reference in mine)
    same = [record for record, reference in mine if reference.tag == tag]
    if not others:
        same += [record for record, reference in mine if reference.tag is None]
    return dangling + same


def _parse(record: ImageRecord) -> Reference | None:
    if record.is_dangling:
        return None
    try:
        return parse_normalized(record.name)
    except (InvalidArgumentError, NotFoundError):
        return None
