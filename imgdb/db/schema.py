"""The schema's version: checked by one SELECT, moved by Alembic without an ini file.

``check`` is what every opening of a store asks; it loads no Alembic. ``upgrade``, ``downgrade``
and ``remove`` are called on purpose only: by ``imgdb db``, by the first import into imgdb's own
file, or by a host application on its own connection. Source: design §3, §4.10, §9.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import OperationalError

from imgdb.db import catalog, models, triggers, views
from imgdb.errors import DataLossError, FailedPreconditionError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from sqlalchemy import Connection

REVISIONS = ("0001",)
HEAD = REVISIONS[-1]
VERSION_TABLE = "imgdb_alembic_version"

FORMAT = 1
READER = 1
WRITER = 1

_MISSING = "no imgdb tables in this database: run `imgdb db init`, or import an image"
_UNPAIRED = "the database belongs to no store yet: run `imgdb db init`"
_LOGGERS = ("alembic.runtime.migration", "alembic.runtime.plugins", "alembic.runtime.environment")


@dataclass(frozen=True, slots=True)
class Meta:
    """The database's half of the pair of store and database.

    Attributes:
        store_id: the same as in the store's ``store.json``.
        generation: rises by one in each transaction that adds blobs or names.
        format: of the files on disk.
        min_reader: the oldest `READER` that understands this database.
        min_writer: the oldest `WRITER` that keeps it right.
    """

    store_id: str
    generation: int
    format: int
    min_reader: int
    min_writer: int


def owns(name: str | None) -> bool:
    """Whether a table, index, view or trigger is imgdb's; for Alembic's ``include_name``."""
    return name is not None and name.startswith(models.PREFIX)


def current(connection: Connection) -> str | None:
    """The database's revision; None where imgdb has no tables."""
    try:
        found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
    except OperationalError as error:
        if "no such table" not in str(error.orig):
            raise
        return None
    return None if found is None else str(found)


def check(connection: Connection, *, writing: bool = True) -> None:
    """See whether this imgdb may use the database.

    A newer schema only adds, so it may be read where its ``min_reader`` allows that.

    Args:
        connection: any; two or three SELECTs are run on it.
        writing: False where nothing will be written.

    Raises:
        SchemaError: imgdb's tables are missing, too old or too new; the message says what to do.
    """
    revision = current(connection)
    if revision is None:
        raise SchemaError(_MISSING)
    if revision in REVISIONS[:-1]:
        raise SchemaError(f"the schema is at revision {revision}, older than {HEAD}: run `imgdb db upgrade`")
    if not _may_use(connection, revision, writing=writing):
        raise _too_new(revision)
    if writing and not _has_triggers(connection):
        raise SchemaError("triggers of imgdb are missing in this database: run `imgdb db upgrade`")


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Create or upgrade imgdb's tables, triggers and views; a database that has them is not touched.

    Where no transaction is open one is begun and committed; a transaction of the caller stays
    open, and its commit is the caller's.

    Raises:
        SchemaError: the database is newer than this imgdb.
        DataLossError: rows refer to nothing after the migration; it is rolled back.
    """
    with _transaction(connection):
        before = _known(connection)
        # Loading Alembic takes longer than all the rest, and others wait for the lock.
        if before == HEAD and revision in ("head", HEAD) and _derived_is_ours(connection):
            return
        _drop_derived(connection)
        _alembic(connection, "upgrade", revision)
        _make_derived(connection)
        if before is not None and before != current(connection):
            _check_foreign_keys(connection)


def downgrade(connection: Connection, revision: str) -> None:
    """Go back to an older revision (``base``: no tables); what it did not have is lost.

    The older imgdb makes its own triggers and views when it runs ``imgdb db upgrade``, and does
    not write before. Transactions: see `upgrade`.

    Raises:
        SchemaError: the database is newer than this imgdb, or has no imgdb tables.
    """
    with _transaction(connection):
        if _known(connection) is None:
            raise SchemaError(_MISSING)
        _drop_derived(connection)
        _alembic(connection, "downgrade", revision)
        _make_derived(connection)


def remove(connection: Connection) -> None:
    """Take everything of imgdb out of the database, and nothing else; see `upgrade`."""
    with _transaction(connection):
        catalog.drop(connection, "view")
        catalog.drop(connection, "trigger")
        ours = [table.name for table in reversed(models.Base.metadata.sorted_tables)]
        present = catalog.names(connection, "table")
        # Tables of a newer imgdb go first: they may refer to ours, ours never to them.
        for name in [*(n for n in present if n not in ours), *(n for n in ours if n in present)]:
            connection.execute(text(f'DROP TABLE "{name}"'))


def create_meta(connection: Connection, store_id: str) -> None:
    """Pair a new database with a store; generation 0."""
    row = {"id": 1, "store_id": store_id, "generation": 0}
    versions = {"format": FORMAT, "min_reader": READER, "min_writer": WRITER}
    connection.execute(insert(models.Meta).values(**row, **versions))


def read_meta(connection: Connection) -> Meta:
    """Read the pair's half in the database.

    Raises:
        SchemaError: the database was never paired with a store.
    """
    meta = find_meta(connection)
    if meta is None:
        raise SchemaError(_UNPAIRED)
    return meta


def find_meta(connection: Connection) -> Meta | None:
    """The pair's half in the database; None when it was never paired with a store."""
    m = models.Meta
    columns = select(m.store_id, m.generation, m.format, m.min_reader, m.min_writer)
    row = connection.execute(columns).mappings().one_or_none()
    return None if row is None else Meta(**row)


def bump_generation(connection: Connection) -> int:
    """Raise the generation by one and return it; at most once a transaction.

    Raises:
        SchemaError: the database was never paired with a store.
    """
    meta = models.Meta
    raised = update(meta).values(generation=meta.generation + 1).returning(meta.generation)
    found = connection.execute(raised).scalar()
    if found is None:
        raise SchemaError(_UNPAIRED)
    return int(found)


def migrations_dir() -> Path:
    """Where the migrations are: in the package (wheel), or beside it (checkout)."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _may_use(connection: Connection, revision: str, *, writing: bool) -> bool:
    meta = find_meta(connection)
    if revision not in REVISIONS:
        return not writing and meta is not None and meta.min_reader <= READER
    return meta is None or (meta.min_reader <= READER and (not writing or meta.min_writer <= WRITER))


def _too_new(revision: str) -> SchemaError:
    return SchemaError(f"a newer imgdb made this database (revision {revision}): upgrade imgdb")


def _has_triggers(connection: Connection) -> bool:
    return set(catalog.names(connection, "trigger")).issuperset(triggers.CREATE_SQL)


def _derived_is_ours(connection: Connection) -> bool:
    made = catalog.statements(connection, "trigger", triggers.PATTERN)
    return (
        made == triggers.CREATE_SQL
        and catalog.statements(connection, "view", views.PATTERN) == views.CREATE_SQL
    )


def _known(connection: Connection) -> str | None:
    revision = current(connection)
    if revision is not None and revision not in REVISIONS:
        raise _too_new(revision)
    return revision


def _drop_derived(connection: Connection) -> None:
    views.drop(connection)
    triggers.drop(connection)


def _make_derived(connection: Connection) -> None:
    # Those of this version fit the newest tables only.
    if current(connection) == HEAD:
        triggers.create(connection)
        views.create(connection)


def _check_foreign_keys(connection: Connection) -> None:
    for name in catalog.names(connection, "table"):
        lost = connection.exec_driver_sql(f'PRAGMA foreign_key_check("{name}")').fetchall()
        if lost:
            raise DataLossError(f"{name}: {len(lost)} rows refer to nothing after the migration; rolled back")


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """One real transaction: the caller's, or our own.

    Python's driver opens none before DDL by default, so half a migration would stay behind.
    """
    own = not connection.in_transaction()
    if own:
        connection.begin()
    try:
        if not _driver_in_transaction(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield
    except BaseException:
        if own:
            connection.rollback()
        raise
    if own:
        connection.commit()


def _driver_in_transaction(connection: Connection) -> bool:
    driver = connection.connection.driver_connection
    if connection.dialect.name != "sqlite" or driver is None:
        raise FailedPreconditionError(f"{connection.dialect.name}: only SQLite databases are supported")
    return bool(driver.in_transaction)


def _alembic(connection: Connection, command: str, revision: str) -> None:
    with _quiet():
        from alembic import command as commands  # noqa: PLC0415 - slow; only migrations need it

        getattr(commands, command)(_config(connection), revision)


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - slow; only migrations need it

    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop Alembic's chatter of this thread; the host's handlers and levels stay untouched."""
    me = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != me

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)
