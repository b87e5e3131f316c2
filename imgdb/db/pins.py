"""Pins: names that are neither removed nor moved, and whose images stay.

A pin is a lease without expiry on a name's target, labelled with the name. Functions never
commit. Source: design §3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from imgdb.db import events, images, leases
from imgdb.db.models import Lease, LeaseResource
from imgdb.db.sql import chunks, table_of
from imgdb.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RefusedError,
)
from imgdb.oci.reference import familiar, parse_normalized

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection

    from imgdb.db.images import ImageRecord
    from imgdb.oci.digest import Digest

_leases = table_of(Lease)
_resources = table_of(LeaseResource)


def pinned(connection: Connection, targets: Collection[Digest] | None = None) -> dict[str, str]:
    """Pinned image names, canonical, each with the id of the lease that pins it.

    Args:
        connection: any.
        targets: only pins of these digests, found by index; None for all.
    """
    name = _leases.c.labels[leases.PIN].as_string()
    statement = select(name.label("name"), _leases.c.id).where(
        _leases.c.expires_at.is_(None), name.is_not(None)
    )
    if targets is None:
        return {row.name: row.id for row in connection.execute(statement)}
    found: dict[str, str] = {}
    for chunk in chunks(targets):
        on = select(_resources.c.lease_id).where(
            _resources.c.type == leases.CONTENT, _resources.c.key.in_([str(target) for target in chunk])
        )
        found |= {row.name: row.id for row in connection.execute(statement.where(_leases.c.id.in_(on)))}
    return found


def pin(connection: Connection, argument: str, *, at: int) -> str:
    """Pin what an argument names; one that is pinned stays so.

    Returns:
        The canonical name.

    Raises:
        InvalidArgumentError, NotFoundError: see `imgdb.db.images.resolve`.
        FailedPreconditionError: an ID of an image without a name.
        ConflictError: an ID of an image with several names.
    """
    record = _record(connection, argument)
    digest = record.target.digest
    if record.name in pinned(connection, [digest]):
        return record.name
    stale = pinned(connection).get(record.name)
    if stale is not None:
        # Somebody moved the name by plain SQL, which no pin can refuse.
        leases.remove(connection, stale)
    lease = leases.random_id()
    leases.create(connection, lease, created_at=at, expires_at=None, labels={leases.PIN: record.name})
    leases.add_content(connection, lease, [str(digest)])
    events.record(connection, [events.NewEvent("pin", str(digest), record.name)], at)
    return record.name


def unpin(connection: Connection, argument: str, *, at: int) -> str:
    """End a pin; returns the canonical name. The name itself need not exist any more.

    Raises:
        NotFoundError: not pinned, or no such image.
        InvalidArgumentError: no name and no ID.
        ConflictError: an ID of an image with several pinned names.
    """
    pins = pinned(connection)
    name = _canonical(argument)
    if name is None or name not in pins:
        found = [record.name for record in images.resolve(connection, argument) if record.name in pins]
        if not found:
            raise NotFoundError(f"{images.with_latest(argument)} is not pinned")
        name = _only(argument, found)
    gone = [resource.key for resource in leases.resources(connection, pins[name])]
    leases.remove(connection, pins[name])
    events.record(connection, [events.NewEvent("unpin", digest, name) for digest in gone], at)
    return name


def refuse(connection: Connection, leaving: Mapping[str, Digest]) -> None:
    """Before names are removed or moved: not the pinned ones; force is no way around.

    Args:
        connection: inside the transaction that does it.
        leaving: canonical names, each with the target that it has now.

    Raises:
        RefusedError: one of them is pinned.
    """
    kept = sorted(leaving.keys() & pinned(connection, set(leaving.values())).keys())
    if kept:
        name = familiar(kept[0])
        raise RefusedError(f"{name} is pinned; imgdb unpin {name} lets it be removed or moved")


def _record(connection: Connection, argument: str) -> ImageRecord:
    """The one record with a name that an argument means."""
    named = {r.name: r for r in images.resolve(connection, argument) if not r.is_dangling}
    if not named:
        raise FailedPreconditionError(f"{argument} has no name to be pinned; imgdb tag gives it one")
    canonical = _canonical(argument)
    return named[canonical if canonical in named else _only(argument, named)]


def _only(argument: str, names: Collection[str]) -> str:
    if len(names) > 1:
        listed = ", ".join(familiar(name) for name in sorted(names))
        raise ConflictError(f"{argument} has several names; say which: {listed}")
    return next(iter(names))


def _canonical(argument: str) -> str | None:
    try:
        return str(parse_normalized(argument).tag_or_latest())
    except InvalidArgumentError:
        return None
