"""What happened to images, for people, scripts and audits."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from imgdb import __version__
from imgdb.db.models import Event
from imgdb.db.sql import table_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from sqlalchemy import Connection

_events = table_of(Event)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be written.

    Attributes:
        action: docker's word: load, save, tag, untag, delete.
        actor: the digest that it is about.
        name: the image name involved, canonical, if any.
        source: for loads and saves, the archive.
    """

    action: str
    actor: str
    name: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event as it was written; `at` in microseconds since the epoch, UTC."""

    id: int
    at: int
    action: str
    actor: str
    name: str | None
    attributes: Mapping[str, Any]
    uid: int | None
    sudo_user: str | None
    host: str | None
    version: str | None
    source: str | None


@cache
def _who() -> dict[str, Any]:
    return {
        "uid": os.getuid(),
        "sudo_user": os.environ.get("SUDO_USER"),
        "host": socket.gethostname(),
        "version": __version__,
    }


def record(connection: Connection, events: Collection[NewEvent], at: int) -> None:
    """Write events, with who did it, in the transaction that did it."""
    values = [
        {
            "at": at,
            "action": event.action,
            "actor": event.actor,
            "name": event.name,
            "attributes": dict(event.attributes),
            "source": event.source,
            **_who(),
        }
        for event in events
    ]
    if values:
        connection.execute(insert(_events), values)


def listing(connection: Connection, *, since: int | None = None, after_id: int = 0) -> Iterator[EventRecord]:
    """Events in the order in which they were written.

    Args:
        connection: any.
        since: microseconds since the epoch; older ones are left out.
        after_id: only those written after this one.
    """
    statement = select(_events).where(_events.c.id > after_id).order_by(_events.c.id)
    if since is not None:
        statement = statement.where(_events.c.at >= since)
    for row in connection.execute(statement):
        yield EventRecord(
            id=row.id,
            at=row.at,
            action=row.action,
            actor=row.actor,
            name=row.name,
            attributes=row.attributes,
            uid=row.uid,
            sudo_user=row.sudo_user,
            host=row.host,
            version=row.version,
            source=row.source,
        )


def prune(connection: Connection, before: int) -> int:
    """Delete events older than a time; returns how many."""
    return connection.execute(delete(_events).where(_events.c.at < before)).rowcount
