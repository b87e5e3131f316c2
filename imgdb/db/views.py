"""The views, which are the stable surface for admins who write SQL.

`VIEWS` holds each view's columns with type, unit, meaning and example; documentation is made
from it. Within ``v1`` columns are added at the end and never change their meaning. Times are
RFC 3339 text, sizes are bytes, truths are 0 or 1. Source: design §3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgdb.db import catalog
from imgdb.db.views_images import CONFIGS, IMAGES, LAYER_SHARING, LAYERS, MANIFESTS
from imgdb.db.views_store import BLOBS, DISK_USAGE, GARBAGE, HISTORY, LEASES, MOUNTS, SNAPSHOTS

if TYPE_CHECKING:
    from sqlalchemy import Connection

PATTERN = "imgdb_v[0-9]*"

VIEWS = (
    IMAGES,
    MANIFESTS,
    LAYERS,
    LAYER_SHARING,
    BLOBS,
    GARBAGE,
    DISK_USAGE,
    LEASES,
    CONFIGS,
    HISTORY,
    SNAPSHOTS,
    MOUNTS,
)


CREATE_SQL = {view.name: view.create_sql for view in VIEWS}
"""Name -> statement, as SQLite keeps it."""


def create(connection: Connection) -> None:
    """Make all views; there must be none of the same name."""
    for statement in CREATE_SQL.values():
        connection.exec_driver_sql(statement)


def drop(connection: Connection) -> None:
    """Drop all views of imgdb, those of other versions too, but not those that admins made."""
    catalog.drop(connection, "view", PATTERN)
