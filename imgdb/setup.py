"""Making a store, finding its database, and bringing that up to date.

Nobody migrates by surprise: a database is made with a new store, and upgraded on request.
Source: design §3 (end), §4.10, §6.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from imgdb import mirror, pair
from imgdb.content.disk import DiskBlobStore
from imgdb.db import engine, schema

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def default_root() -> str:
    """``$IMGDB_STORE``, else /var/lib/imgdb for root, else the user's data directory."""
    if root := os.environ.get("IMGDB_STORE"):
        return root
    if os.geteuid() == 0:
        return "/var/lib/imgdb"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(data, "imgdb")


def create(root: str, db: str | None, *, durable: bool) -> None:
    """Make a store and its database; safe when two processes do it at once.

    Raises:
        RefusedError: the directory holds blobs, but no database that knows them.
    """
    DiskBlobStore.create(root, durable=durable)
    with pair.index_lock(root):
        if pair.exists(root):
            return
        half = pair.new_store(db)
        database = connect(root, db, create=True)
        try:
            store_id = engine.run_write(database, lambda connection: _set_up(connection, root, half.store_id))
        finally:
            database.dispose()
        mirror.write_layout(root, durable=durable)
        mirror.write_index(root, [], durable=durable)
        pair.write(root, replace(half, store_id=store_id), durable=durable)


def connect(root: str, db: str | None, *, create: bool = False) -> Engine:
    """An engine for a store's database: the one in the store, or the one that `db` names."""
    if db is not None:
        return engine.engine_for(db if "://" in db else f"sqlite:///{os.path.abspath(db)}")
    path = os.path.join(root, "imgdb.db")
    if not create and not os.access(root, os.W_OK):
        return engine.read_only_engine(path)
    return engine.own_engine(path, create=create)


def upgrade_database(path: str | None = None, db: str | None = None) -> tuple[str | None, str]:
    """Bring the database of a store to this imgdb's schema.

    Args:
        path: the store's directory; None for the default one.
        db: path or URL of its database, when the store does not remember it.

    Returns:
        The revisions before and after.

    Raises:
        NotFoundError: there is no store.
        RefusedError: it is another user's.
        SchemaError: the database is newer than this imgdb.
    """
    root = os.path.abspath(path or default_root())
    half = pair.read(root)
    pair.check_owner(root)
    database = connect(root, db or half.database)
    try:
        with engine.read(database) as connection:
            before = schema.current(connection)
        engine.run_write(database, schema.upgrade)
    finally:
        database.dispose()
    return before, schema.HEAD


def _set_up(connection: Connection, root: str, store_id: str) -> str:
    """Tables and meta row; a database that was made before a crash keeps its id."""
    if schema.current(connection) is None:
        pair.check_new(root)
        schema.upgrade(connection)
        schema.create_meta(connection, store_id)
    return schema.read_meta(connection).store_id
