"""Leases protect what has rows: while one lives, gc treats its resources as roots.

A lease is dead when its expiry lies strictly in the past, unless what owns it still lives. An
owner of kind ``hold`` is a running operation and lives as long as the hold of that name is
locked, so no clock ends the lease of a running command; an owner that nobody here can ask
counts as alive.

A lease on a name (type ``images``) keeps the name, not its target: names are never collected,
`imgdb.prune` passes over it, and removing it takes force. A pin is a lease without expiry on a
name's target, labelled with the name; a pinned name is neither removed nor moved.

Functions never commit. Source: specification §3; design §3, §9.9.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, func, or_, select, update

from imgdb.db.models import Lease, LeaseResource
from imgdb.db.revive import revive
from imgdb.db.sql import chunks, insert_into, table_of
from imgdb.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    RefusedError,
)
from imgdb.oci.digest import Digest
from imgdb.oci.reference import dangling_name, familiar, parse_normalized

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import Connection, Select

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
    """A lease; times in microseconds since the epoch.

    Attributes:
        expires_at: None for never.
        flat: protects only what is listed, not what that leads to.
        owner_kind, owner_id: what keeps it alive beyond its expiry; None for nothing.
        resources: how many things it lists.
        expired: gc treats it as gone; told by `imgdb.leasing`, which can ask owners.
    """

    id: str
    created_at: int
    expires_at: int | None
    flat: bool
    labels: Mapping[str, str]
    owner_kind: str | None = None
    owner_id: str | None = None
    resources: int = 0
    expired: bool = False

    def is_dead(self, now: int, living_holds: Collection[str]) -> bool:
        """Whether gc treats it as gone; `living_holds` as of any time after `now`."""
        expired = self.expires_at is not None and self.expires_at < now
        return expired and not _lives(self.owner_kind, self.owner_id, living_holds)


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
        if not key:
            raise InvalidArgumentError("a label needs a name")
        if len(f"{key}{value}".encode("utf-8", "surrogatepass")) > MAX_LABEL:
            raise InvalidArgumentError(f"label {key[:40]!r} is longer than {MAX_LABEL} bytes with its value")
    return {key: value for key, value in labels.items() if value}


def find(connection: Connection, lease_id: str) -> LeaseRecord | None:
    """The lease, or None."""
    row = connection.execute(_query().where(_leases.c.id == lease_id)).first()
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


def changeable(connection: Connection, lease_id: str) -> LeaseRecord:
    """The lease, when it is one that its users change.

    Raises:
        NotFoundError: there is none.
        RefusedError: it is a pin.
    """
    record = get(connection, lease_id)
    if PIN in record.labels:
        name = familiar(record.labels[PIN])
        raise RefusedError(f"lease {lease_id} is the pin of {name}; imgdb unpin {name} ends it")
    return record


def listing(connection: Connection) -> list[LeaseRecord]:
    """All leases, by id."""
    return [_read(row) for row in connection.execute(_query().order_by(_leases.c.id))]


def _query() -> Select[Any]:
    count = (
        select(func.count())
        .select_from(_resources)
        .where(_resources.c.lease_id == _leases.c.id)
        .correlate(_leases)
    )
    return select(_leases, count.scalar_subquery().label("resources"))


def _read(row: Any) -> LeaseRecord:
    return LeaseRecord(
        id=row.id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        flat=row.flat,
        labels=row.labels,
        owner_kind=row.owner_kind,
        owner_id=row.owner_id,
        resources=row.resources,
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

    A document that only a flat lease kept gets its edges again, when this lease is none.

    Raises:
        NotFoundError: there is no such lease.
        InvalidArgumentError: a content key that is no digest, an images key that is no name, or
            an empty key.
        NotSupportedError: a type that leases don't know.
    """
    lease = get(connection, lease_id)
    values = [
        {"lease_id": lease_id, "type": resource.type, "key": resource.key}
        for resource in sorted({check_resource(resource) for resource in resources})
    ]
    statement = insert_into(connection, LeaseResource).on_conflict_do_nothing()
    for chunk in chunks(values):
        connection.execute(statement, chunk)
    if not lease.flat:
        revive(connection)


def add_content(connection: Connection, lease_id: str, digests: Iterable[str]) -> None:
    """`add` for blobs."""
    add(connection, lease_id, (Resource(CONTENT, digest) for digest in digests))


def drop(connection: Connection, lease_id: str, resource: Resource) -> None:
    """Let go of one thing; it need not be listed. Errors as `add`."""
    get(connection, lease_id)
    resource = check_resource(resource)
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
    """Validate a resource and write its key as rows have it; errors as `add`."""
    if resource.type not in TYPES:
        raise NotSupportedError(f"leases don't protect {resource.type!r}; they know {', '.join(TYPES)}")
    if not resource.key:
        raise InvalidArgumentError(f"a resource of type {resource.type} needs a key")
    if resource.type == CONTENT:
        return Resource(CONTENT, str(Digest.parse(resource.key)))
    return Resource(IMAGES, _canonical(resource.key)) if resource.type == IMAGES else resource


def _canonical(name: str) -> str:
    reference = parse_normalized(name)
    if reference.digest is not None and name == dangling_name(reference.digest):
        return name
    return str(reference.tag_or_latest())


def dead(connection: Connection, now: int, living_holds: Collection[str]) -> list[str]:
    """Ids of leases that expired and that no owner keeps alive.

    Args:
        connection: any.
        now: microseconds since the epoch; to be read before the holds are, so that a lease
            that was made in between can't have expired.
        living_holds: names of the holds whose operation runs.
    """
    rows = connection.execute(
        select(_leases.c.id, _leases.c.owner_kind, _leases.c.owner_id)
        .where(_leases.c.expires_at < now)
        .order_by(_leases.c.id)
    )
    return [row.id for row in rows if not _lives(row.owner_kind, row.owner_id, living_holds)]


def _lives(kind: str | None, owner: str | None, living_holds: Collection[str]) -> bool:
    """Whether an owner lives; of one that can't be asked here nobody knows, so it does."""
    return kind is not None and (kind != HOLD or owner in living_holds)


def on_names(connection: Connection, names: Collection[str], now: int) -> dict[str, str]:
    """Those of some image names that living leases list, each with the id of one lease.

    A lease that expired while its operation runs on does not count: holds are not asked here.
    """
    lives = or_(
        _leases.c.expires_at.is_(None),
        _leases.c.expires_at >= now,
        and_(_leases.c.owner_kind.is_not(None), _leases.c.owner_kind != HOLD),
    )
    statement = (
        select(_resources.c.key, _leases.c.id)
        .join(_leases, _leases.c.id == _resources.c.lease_id)
        .where(_resources.c.type == IMAGES, lives)
        .order_by(_leases.c.id.desc())
    )
    found: dict[str, str] = {}
    for chunk in chunks(names):
        found |= {row.key: row.id for row in connection.execute(statement.where(_resources.c.key.in_(chunk)))}
    return found
