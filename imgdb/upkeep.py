"""The database as a whole: upgrade, downgrade, backup, check.

imgdb's own file is copied before its schema changes; a host's file is the host's to back up.
Source: design §3, §7 (db).
"""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb import pair, places, setup
from imgdb.check.report import Finding
from imgdb.content.files import create_private_file, discard, publish
from imgdb.db import audit, backup, engine, schema
from imgdb.errors import DataLossError, InvalidArgumentError, NotFoundError, RefusedError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine


DAMAGE = frozenset({"database-damaged", "reference-broken"})
"""Findings of `check_database` that mean damage; the others say that the database can't be used."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What an upgrade or a downgrade did.

    Attributes:
        before, after: revisions; None for no tables.
        backup: where the database was copied to before; None when nothing changed, or when the
            file is a host's.
    """

    before: str | None
    after: str | None
    backup: str | None


def upgrade_database(path: str | None = None, db: str | None = None) -> Migration:
    """Bring the database of a store to this imgdb's schema.

    Args:
        path: the store's directory; None for the default one.
        db: path or URL of its database, when the store does not remember it.

    Raises:
        NotFoundError: there is no store.
        RefusedError: it is another user's.
        SchemaError: the database is newer than this imgdb.
    """
    return _migrate(path, db, None, schema.upgrade)


def downgrade_database(revision: str, path: str | None = None, db: str | None = None) -> Migration:
    """Bring the database back to an older schema; what that did not have is lost.

    Args:
        revision: one of `imgdb.db.schema.REVISIONS`.
        path: the store's directory; None for the default one.
        db: path or URL of its database, when the store does not remember it.

    Raises:
        InvalidArgumentError: no such revision.
        RefusedError: it is newer than the database's, or would leave no tables.
        NotFoundError, SchemaError: see `upgrade_database`.
    """
    if revision == "base":
        raise RefusedError("without tables everything is lost but the blobs; imgdb db remove does that")
    if revision not in schema.REVISIONS:
        raise InvalidArgumentError(f"no revision {revision}; there are {', '.join(schema.REVISIONS)}")
    return _migrate(path, db, revision, lambda connection: schema.downgrade(connection, revision))


def _migrate(
    path: str | None, db: str | None, down_to: str | None, work: Callable[[Connection], None]
) -> Migration:
    """Run a migration; `down_to` is the revision that a downgrade ends at."""
    root = os.path.abspath(path or places.default_root())
    half = pair.read(root)
    pair.check_owner(root)
    database = setup.connect(root, db or half.database)
    try:
        with engine.read(database) as connection:
            before = schema.current(connection)
        _check_direction(before, down_to)
        saved = None
        if before not in {None, down_to or schema.HEAD} and (db or half.database) is None:
            saved = f"{root}/imgdb.db.bak-{before}"
            copy(database, saved)
        engine.run_write(database, work)
        with engine.read(database) as connection:
            after = schema.current(connection)
    finally:
        database.dispose()
    return Migration(before, after, saved)


def _check_direction(before: str | None, down_to: str | None) -> None:
    order = schema.REVISIONS
    if down_to is not None and before in order and order.index(down_to) > order.index(before):
        raise RefusedError(f"the database is at revision {before}, which is older than {down_to}")


@contextmanager
def _opened(path: str | None, db: str | None) -> Iterator[tuple[str, pair.StoreFile, Engine]]:
    """A store's directory, its half of the pair and its database, whatever state that is in."""
    root = os.path.abspath(path or places.default_root())
    half = pair.read(root)
    database = setup.connect(root, db or half.database)
    try:
        yield root, half, database
    finally:
        database.dispose()


def backup_database(target: str, path: str | None = None, db: str | None = None) -> int:
    """Copy the database to a file, as it is at one moment, while others may write to it.

    The file appears when it is whole and durable. To go back to it, stop what uses the store,
    put it in the place of the database, and run ``imgdb db rebuild``.

    Args:
        target: the file; replaced when it is there.
        path: the store's directory; None for the default one.
        db: path or URL of its database, when the store does not remember it.

    Returns:
        Its size in bytes.

    Raises:
        NotFoundError: there is no store, or no database.
        RefusedError: `target` is the database, or no regular file.
        BusyError: the database was locked for too long.
        OSError: the file can't be written.
    """
    with _opened(path, db) as (_, _, database):
        _check_target(target, engine.describe(database))
        copy(database, os.path.abspath(target))
    return os.path.getsize(target)


def _check_target(target: str, source: str) -> None:
    if not os.path.lexists(target):
        return
    if not os.path.isfile(target) or os.path.islink(target):
        raise RefusedError(f"{target} is no regular file; give the name of a file")
    if os.path.exists(source) and os.path.samefile(target, source):
        raise RefusedError(f"{target} is the database itself; give another file")


def copy(database: Engine, target: str) -> None:
    """Copy a database to a file that appears when it is whole and durable; errors as `backup_database`."""
    temporary = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{secrets.token_hex(4)}")
    create_private_file(temporary)
    try:
        backup.copy(database, temporary)
    except BaseException:
        discard(temporary)
        raise
    publish(temporary, target)


def current_revision(path: str | None = None, db: str | None = None) -> str | None:
    """The revision of a database's schema, of whichever imgdb it is; None where there is no schema.

    Args:
        path: the store's directory; None for the default one.
        db: path or URL of its database, when the store does not remember it.

    Raises:
        NotFoundError: there is no store.
        SchemaError: there is no database.
        RefusedError: it can't be opened.
    """
    with _opened(path, db) as (_, _, database), engine.read(database) as connection:
        return schema.current(connection)


def check_database(path: str | None = None, db: str | None = None) -> tuple[Finding, ...]:
    """Look at the database alone: SQLite's structures, references, schema, and the pair with the store.

    Args:
        path: the store's directory; None for the default one.
        db: path or URL of its database, when the store does not remember it.

    Raises:
        NotFoundError: there is no store.
        SchemaError: there is no database.
        RefusedError: it can't be opened.
    """
    with _opened(path, db) as (root, half, database):
        try:
            return tuple(_findings(database, root, half))
        except NotFoundError as error:
            raise SchemaError(f"{error}; {pair.WAY_OUT}") from None


def _findings(database: Engine, root: str, half: pair.StoreFile) -> Iterator[Finding]:
    name = engine.describe(database)
    try:
        with engine.read(database) as connection:
            yield from (Finding("database-damaged", name, line) for line in audit.integrity(connection))
            broken = audit.broken_references(connection)
            for table, rows in broken.items():
                yield Finding("reference-broken", table, f"{len(rows)} rows refer to nothing")
            yield from _schema(connection, name)
            pair.check_writable(root, half, schema.find_meta(connection))
    except DataLossError as error:
        yield Finding("database-damaged", name, str(error))
    except RefusedError as error:
        yield Finding("pair-mismatch", root, str(error))


def _schema(connection: Connection, name: str) -> Iterator[Finding]:
    try:
        schema.check(connection, writing=False)
    except SchemaError as error:
        yield Finding("schema-wrong", name, str(error))
        return
    revision = schema.current(connection)
    if revision != schema.HEAD:
        detail = f"revision {revision}, which a newer imgdb made: it can be read, and not be written"
        yield Finding("schema-wrong", name, detail)
        return
    for other in [*audit.altered(connection), *audit.altered_tables(connection)]:
        yield Finding("schema-wrong", other, "missing, foreign, or not as this imgdb makes it")
