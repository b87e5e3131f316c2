"""Making a store, and finding its database; `imgdb.upkeep` brings that up to date.

Nobody migrates by surprise: a database is made with a new store, and upgraded on request.
Source: design §3 (end), §4.10, §6.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import URL

from imgdb import mirror, pair
from imgdb.content import reserve
from imgdb.content.disk import DiskBlobStore
from imgdb.db import engine, schema
from imgdb.errors import DataLossError, ImgdbError, NotFoundError, SchemaError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def create(root: str, db: str | None, *, durable: bool) -> None:
    """Make a store and its database; safe when two processes do it at once.

    Raises:
        RefusedError: the directory holds blobs, but no database that knows them.
        DataLossError: index.json is damaged.
    """
    DiskBlobStore.create(root, durable=durable)
    with pair.index_lock(root):
        if pair.exists(root):
            return
        seen = _mirror_of(root)
        half = pair.new_store(db)
        database = connect(root, db, create=True)
        try:
            meta = engine.run_write(database, lambda connection: _set_up(connection, root, half.store_id))
        finally:
            database.dispose()
        mirror.write_layout(root, durable=durable)
        if not seen.has_index:
            mirror.write_index(root, [], store_id=meta.store_id, generation=0, durable=durable)
        # Where only store.json was lost the mirror knows how far the database must have come.
        store_id = seen.store_id or meta.store_id
        generation = max(meta.generation, seen.generation or 0)
        pair.write(root, replace(half, store_id=store_id, generation=generation), durable=durable)


def connect(root: str, db: str | None, *, create: bool = False) -> Engine:
    """An engine for a store's database: the one in the store, or the one that `db` names."""
    if db is not None:
        # As a URL object: in the text of one, ? and % would mean something.
        return engine.engine_for(db if "://" in db else URL.create("sqlite", database=os.path.abspath(db)))
    path = os.path.join(root, "imgdb.db")
    if not create and not os.access(root, os.W_OK):
        return engine.read_only_engine(path)
    return engine.own_engine(path, create=create)


def check_database(root: str, database: Engine) -> None:
    """See whether the database of a store that exists can be used at all.

    On a full disk SQLite lacks room for what it needs even for reading; the store's reserve gives it.

    Raises:
        SchemaError: it is lost or empty, or of another version; the message names the way out.
        RefusedError: it can't be opened.
        DataLossError: it is damaged.
    """
    try:
        _check_database(root, database)
    except ImgdbError as error:
        if isinstance(error, SchemaError) or not reserve.give_up(root):
            raise
        _check_database(root, database)


def _check_database(root: str, database: Engine) -> None:
    name = engine.describe(database)
    try:
        with engine.read(database) as connection:
            if schema.current(connection) is None:
                raise SchemaError(f"{name}, the database of {root}, has no imgdb tables; {pair.WAY_OUT}")
            schema.check(connection, writing=False)
    except DataLossError as error:
        raise DataLossError(f"{error}; {pair.WAY_OUT}") from None
    except NotFoundError:
        raise SchemaError(f"{name}, the database of {root}, is not there; {pair.WAY_OUT}") from None


def _mirror_of(root: str) -> mirror.Mirror:
    try:
        return mirror.read(root)
    except DataLossError as error:
        raise DataLossError(f"{error}; {pair.WAY_OUT}") from None


def _set_up(connection: Connection, root: str, store_id: str) -> schema.Meta:
    """Tables and meta row; a database that was made before a crash keeps its id."""
    if schema.current(connection) is None:
        pair.check_new(root)
        schema.upgrade(connection)
        schema.create_meta(connection, store_id)
    return schema.read_meta(connection)
