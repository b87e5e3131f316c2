"""Leases protect what has rows: while one lives, gc treats its resources as roots."""

from __future__ import annotations

import base64
import secrets
import time
from typing import TYPE_CHECKING

from sqlalchemy import delete

from imgdb.db.models import Lease, LeaseResource
from imgdb.db.sql import chunks, insert_into, table_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection

CONTENT = "content"


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
    labels: Mapping[str, str] | None = None,
) -> None:
    """Insert a lease; times in microseconds since the epoch, `expires_at` None for never."""
    values = {
        "id": lease_id,
        "created_at": created_at,
        "expires_at": expires_at,
        "flat": False,
        "labels": dict(labels or {}),
    }
    connection.execute(insert_into(connection, Lease), [values])


def add_content(connection: Connection, lease_id: str, digests: Iterable[str]) -> None:
    """Let a lease protect blobs and what they lead to; adding twice is fine."""
    statement = insert_into(connection, LeaseResource).on_conflict_do_nothing()
    for chunk in chunks({"lease_id": lease_id, "type": CONTENT, "key": key} for key in sorted(set(digests))):
        connection.execute(statement, chunk)


def remove(connection: Connection, lease_id: str) -> bool:
    """Delete a lease and, by trigger, its resources; False when there was none."""
    lease = table_of(Lease)
    return connection.execute(delete(lease).where(lease.c.id == lease_id)).rowcount > 0
