"""Leases protect what has rows: while one lives, gc treats its resources as roots.

A lease is dead when its expiry lies strictly in the past, unless the operation that owns it
still runs: an owner of kind ``hold`` lives as long as the hold of that name is locked, so no
clock ends the lease of a running command. Functions never commit. Source: specification §3.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, update

from imgdb.db.models import Lease, LeaseResource
from imgdb.db.sql import chunks, insert_into, table_of
from imgdb.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, NotSupportedError
from imgdb.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import Connection

CONTENT = "content"
IMAGES = "images"
SNAPSHOTS = "snapshots"
TYPES = (CONTENT, IMAGES, SNAPSHOTS)
HOLD = "hold"
PIN = "io.imgdb.pinned"
MAX_LABEL = 4096

_leases = table_of(Lease)
_resources = table_of(LeaseResource)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease; times in microseconds since the epoch, `expires_at` None for never."""

    id: str
    created_at: int
    expires_at: int | None
    flat: bool
    labels: Mapping[str, str]
    owner_kind: str | None
    owner_id: str | None


@dataclass(frozen=True, slots=True, order=True)
class Resource:
    """What a lease protects: a digest, an image name or a snapshot key, by type."""

    type: str
    key: str


def random_id() -> str:
    """An id as containerd makes them: nanoseconds and three random bytes."""
    tail = base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()
    return f"{time.time_ns() % 1_000_000_000}-{tail}"


def create(
    connection: Connection,
    lease_id: str,
    *,
    created_at: int,
    expires_at: int | None,
    flat: bool = False,
    labels: Mapping[str, str] | None = None,
    owner: tuple[str, str] | None = None,
) -> LeaseRecord:
    """Insert a lease.

    Args:
        connection: inside a write transaction.
        lease_id: chosen, or from `random_id`.
        created_at: microseconds since the epoch.
        expires_at: likewise; None for never.
        flat: protect only what is listed, not what that leads to.
        labels: a label without a value is not stored.
        owner: kind and id of what keeps it alive beyond its expiry.

    Raises:
        InvalidArgumentError: the id is empty, or a label is too long.
        AlreadyExistsError: the id is taken.
    """
    if not lease_id:
        raise InvalidArgumentError("a lease needs an id that is not empty")
    if find(connection, lease_id) is not None:
        raise AlreadyExistsError(f"lease {lease_id} exists")
    record = LeaseRecord(
        lease_id, created_at, expires_at, flat, _checked(labels or {}), *(owner or (None, None))
    )
    values = {
        "id": lease_id,
        "created_at": created_at,
        "expires_at": expires_at,
        "flat": flat,
        "labels": dict(record.labels),
        "owner_kind": record.owner_kind,
        "owner_id": record.owner_id,
    }
    connection.execute(insert_into(connection, Lease), [values])
    return record


def _checked(labels: Mapping[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if len(key) + len(value) > MAX_LABEL:
            raise InvalidArgumentError(f"label {key[:40]!r} is longer than {MAX_LABEL} bytes with its value")
    return {key: value for key, value in labels.items() if value}


def find(connection: Connection, lease_id: str) -> LeaseRecord | None:
    """The lease, or None."""
    row = connection.execute(select(_leases).where(_leases.c.id == lease_id)).first()
    return None if row is None else _read(row)


def get(connection: Connection, lease_id: str) -> LeaseRecord:
    """The lease.

    Raises:
        NotFoundError: there is none.
    """
    record = find(connection, lease_id)
    if record is None:
        raise NotFoundError(f"no lease {lease_id}")
    return record


def listing(connection: Connection) -> list[LeaseRecord]:
    """All leases, by id."""
    return [_read(row) for row in connection.execute(select(_leases).order_by(_leases.c.id))]


def _read(row: Any) -> LeaseRecord:
    return LeaseRecord(
        row.id, row.created_at, row.expires_at, row.flat, row.labels, row.owner_kind, row.owner_id
    )


def renew(connection: Connection, lease_id: str, expires_at: int | None) -> None:
    """Move a lease's expiry.

    Raises:
        NotFoundError: there is no such lease.
    """
    statement = update(_leases).where(_leases.c.id == lease_id).values(expires_at=expires_at)
    if not connection.execute(statement).rowcount:
        raise NotFoundError(f"no lease {lease_id}")


def remove(connection: Connection, lease_id: str) -> bool:
    """Delete a lease and, by trigger, its resources; False when there was none."""
    return connection.execute(delete(_leases).where(_leases.c.id == lease_id)).rowcount > 0


def add(connection: Connection, lease_id: str, resources: Iterable[Resource]) -> None:
    """Let a lease protect things; they need not exist, and adding twice is fine.

    Raises:
        NotFoundError: there is no such lease.
        InvalidArgumentError: a content key that is no digest, or an empty key.
        NotSupportedError: a type that leases don't know.
    """
    get(connection, lease_id)
    values = [
        {"lease_id": lease_id, "type": resource.type, "key": check_resource(resource).key}
        for resource in sorted(set(resources))
    ]
    statement = insert_into(connection, LeaseResource).on_conflict_do_nothing()
    for chunk in chunks(values):
        connection.execute(statement, chunk)


def add_content(connection: Connection, lease_id: str, digests: Iterable[str]) -> None:
    """`add` for blobs."""
    add(connection, lease_id, (Resource(CONTENT, digest) for digest in digests))


def drop(connection: Connection, lease_id: str, resource: Resource) -> None:
    """Let go of one thing; it need not be listed.

    Raises:
        NotFoundError: there is no such lease.
    """
    get(connection, lease_id)
    connection.execute(
        delete(_resources).where(
            _resources.c.lease_id == lease_id,
            _resources.c.type == resource.type,
            _resources.c.key == resource.key,
        )
    )


def resources(connection: Connection, lease_id: str) -> list[Resource]:
    """What a lease protects: content, images, snapshots, each by key.

    Raises:
        NotFoundError: there is no such lease.
    """
    get(connection, lease_id)
    rows = connection.execute(
        select(_resources.c.type, _resources.c.key).where(_resources.c.lease_id == lease_id)
    )
    return sorted(Resource(row.type, row.key) for row in rows)


def check_resource(resource: Resource) -> Resource:
    """Validate a resource; errors as `add`."""
    if resource.type not in TYPES:
        raise NotSupportedError(f"leases don't protect {resource.type!r}; they know {', '.join(TYPES)}")
    if not resource.key:
        raise InvalidArgumentError(f"a resource of type {resource.type} needs a key")
    if resource.type == CONTENT:
        Digest.parse(resource.key)
    return resource


def dead(connection: Connection, now: int, living_holds: Collection[str]) -> list[str]:
    """Ids of leases that expired and whose owner, if it is an operation, is gone."""
    rows = connection.execute(
        select(_leases.c.id, _leases.c.owner_kind, _leases.c.owner_id)
        .where(_leases.c.expires_at < now)
        .order_by(_leases.c.id)
    )
    return [row.id for row in rows if not (row.owner_kind == HOLD and row.owner_id in living_holds)]


def pinned(connection: Connection) -> dict[str, str]:
    """Pinned image names, each with the id of the lease that pins it."""
    return {record.labels[PIN]: record.id for record in listing(connection) if PIN in record.labels}
