"""Small things that every statement shares: time, chunks, upserts, descriptor columns."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.dialects import postgresql, sqlite

from imgdb.oci.digest import Digest
from imgdb.oci.platform import Platform
from imgdb.oci.spec import Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection, Table
    from sqlalchemy.orm import DeclarativeBase

# Far below SQLite's limit of 32 766 variables in a statement.
CHUNK = 10_000

_T = TypeVar("_T")


clock: Callable[[], int] = time.time_ns
"""Nanoseconds since the epoch. Tests put another one here, and every row and expiry follows it."""


def now_us() -> int:
    """The clock of every row: microseconds since the epoch, UTC."""
    return clock() // 1000


def chunks(items: Iterable[_T], size: int = CHUNK) -> Iterator[list[_T]]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def table_of(model: type[DeclarativeBase]) -> Table:
    """The table behind a model, with the type that Core statements want."""
    table: Table = model.__table__  # type: ignore[assignment]
    return table


def insert_into(connection: Connection, model: type[DeclarativeBase]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT in the connection's dialect."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table_of(model))


def descriptor_values(descriptor: Descriptor) -> dict[str, Any]:
    """A descriptor as columns of `imgdb.db.models.DescriptorColumns`."""
    platform = descriptor.platform
    return {
        "media_type": descriptor.media_type,
        "size": descriptor.size,
        "artifact_type": descriptor.artifact_type or None,
        "annotations": dict(descriptor.annotations) or None,
        "urls": list(descriptor.urls) or None,
        "os": platform.os if platform else None,
        "architecture": platform.architecture if platform else None,
        "variant": (platform.variant or None) if platform else None,
        "os_version": (platform.os_version or None) if platform else None,
        "os_features": (list(platform.os_features) or None) if platform else None,
    }


def read_descriptor(row: Any, digest: str) -> Descriptor:
    """The reverse of `descriptor_values`."""
    platform = None
    if row.os is not None or row.architecture is not None:
        platform = Platform(
            row.os or "",
            row.architecture or "",
            row.variant or "",
            row.os_version or "",
            tuple(row.os_features or ()),
        )
    return Descriptor(
        media_type=row.media_type,
        digest=Digest.parse(digest),
        size=row.size,
        annotations=row.annotations or {},
        urls=tuple(row.urls or ()),
        platform=platform,
        artifact_type=row.artifact_type or "",
    )
