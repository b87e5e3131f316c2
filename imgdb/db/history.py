"""Where names pointed in the past, and going back there.

Rows are written by triggers, so plain SQL of an admin leaves its trace as well.
History keeps nothing alive: what it names may be gone. Source: design §3, ecosystem §7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from imgdb.db import events, images, pins
from imgdb.db.models import Blob, ImageHistory
from imgdb.db.sql import table_of
from imgdb.errors import NotFoundError, RefusedError
from imgdb.oci.digest import Digest
from imgdb.oci.reference import dangling_name
from imgdb.oci.spec import Descriptor

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from imgdb.oci.reference import Reference

_history = table_of(ImageHistory)
_blobs = table_of(Blob)


@dataclass(frozen=True, slots=True)
class Period:
    """A time during which a name pointed somewhere; microseconds since the epoch.

    Attributes:
        until_at: None while it still does.
        held: the target and what it leads to are still in the store.
    """

    target: Descriptor
    from_at: int
    until_at: int | None
    held: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """A name that points where it pointed before; `changed` are names for the mirror."""

    target: Digest
    changed: frozenset[str]


def of_name(connection: Connection, name: str) -> list[Period]:
    """Everything a canonical name pointed to, newest first."""
    rows = connection.execute(
        select(_history, _blobs.c.present, _blobs.c.expanded)
        .outerjoin(_blobs, _blobs.c.digest == _history.c.digest)
        .where(_history.c.name == name)
        .order_by(_history.c.from_at.desc(), _history.c.id.desc())
    )
    return [
        Period(
            Descriptor(row.media_type, Digest.parse(row.digest), row.size),
            row.from_at,
            row.until_at,
            held=bool(row.present and row.expanded),
        )
        for row in rows
    ]


def restore(connection: Connection, name: Reference, to: Digest | None, *, at: int) -> Restored:
    """Let a name point where it pointed before, or at one of its earlier targets.

    What it points to now is kept, as dangling if need be.

    Args:
        connection: inside a write transaction.
        name: tagged, or `latest` is meant.
        to: which earlier target; None for the one before.
        at: microseconds since the epoch.

    Raises:
        NotFoundError: the name never pointed anywhere else.
        RefusedError: what it pointed to is no longer in the store, or the name is pinned.
    """
    canonical = str(name.tag_or_latest())
    now = images.get(connection, canonical)
    current = now.target.digest if now else None
    earlier = [p for p in of_name(connection, canonical) if to == p.target.digest or to is None]
    before = next((p for p in earlier if p.target.digest != current), None)
    if before is None:
        raise NotFoundError(f"{name.familiar} has no earlier target{f' {to}' if to else ''} to go back to")
    if not before.held:
        raise RefusedError(f"{before.target.digest} is no longer in the store; import it again")
    if now is not None:
        pins.refuse(connection, {canonical: now.target.digest})
        images.keep_as_dangling(connection, canonical, at=at)
    images.put(connection, canonical, before.target, at=at)
    images.drop_useless_dangling(connection, [before.target.digest])
    events.record(connection, [events.NewEvent("tag", str(before.target.digest), canonical)], at)
    touched = {canonical, dangling_name(before.target.digest)}
    if current is not None:
        touched.add(dangling_name(current))
    return Restored(before.target.digest, frozenset(touched))
