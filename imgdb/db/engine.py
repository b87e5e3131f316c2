"""SQLite set up as imgdb needs it: pragmas, transactions, retries, and errors in one place.

=================  =====================================================================
`own_engine`       imgdb's own file: WAL, ``synchronous=FULL``
`engine_for`       a file that may belong to a host application: its journal mode stays
`read_only_engine` a file that can't or mustn't be written
`run_write`        whole transactions with ``BEGIN IMMEDIATE``, again until a deadline
`read`             one consistent view of the database, writing forbidden
`translate`        the driver's and SQLAlchemy's errors become imgdb's
=================  =====================================================================

The driver begins no transactions here; the ``begin`` event does. Listeners sit on the engines
made here and never on the `Engine` class, so a host's connections stay as the host made them.
The file is opened by SQLite only: another open and close in this process would drop SQLite's
locks, and a child that closed an inherited connection would undo its parent's transaction.
Source: design §4, §9.3; reliability §0.1, §0.6, §4.2.
"""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote
from weakref import WeakSet

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from imgdb.errors import (
    BusyError,
    ConflictError,
    DataLossError,
    FailedPreconditionError,
    ImgdbError,
    InvalidArgumentError,
    NotFoundError,
    RefusedError,
    SchemaError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

BUSY_TIMEOUT_S = 10.0
DEADLINE_S = 30.0
_MIN_SQLITE = (3, 35, 0)  # RETURNING
_JITTER_S = 0.1
_BEGIN = "imgdb_begin"
_BUSY_MS = "imgdb_busy_ms"

_engines: WeakSet[Engine] = WeakSet()
_connections: WeakSet[_Connection] = WeakSet()
_inherited: list[_Connection] = []


class _Connection(sqlite3.Connection):
    """Belongs to the process that opened it; in a forked child it does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pid = os.getpid()
        _connections.add(self)

    def commit(self) -> None:
        if self._pid != os.getpid():
            raise ImgdbError("a database connection was carried over a fork; its transaction is the parent's")
        super().commit()

    def rollback(self) -> None:
        if self._pid == os.getpid():
            super().rollback()

    def close(self) -> None:
        if self._pid == os.getpid():
            super().close()


def _forget_inherited() -> None:
    """In a forked child: new pools for all engines, and no inherited connection is ever closed."""
    import ctypes  # noqa: PLC0415 - only a forked child pays for it

    for connection in list(_connections):
        # One reference too many, so that not even the interpreter's end closes the connection.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        _inherited.append(connection)
    _connections.clear()
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_inherited)


def own_engine(path: str | os.PathLike[str], *, create: bool = False) -> Engine:
    """Make an engine for imgdb's own database file.

    Args:
        path: the file; any characters.
        create: make the file, mode 0600, when there is none.

    Raises:
        ImgdbError: SQLite is older than 3.35.
        OSError: the file can't be created.
    """
    if create:
        _create_file(path)
    return _listen(_file_url(path, "rw"), _set_up_own)


def engine_for(url: str | URL) -> Engine:
    """Make an engine for a SQLite file that may be a host application's.

    Nothing that persists in the file is changed, and no file is created.

    Args:
        url: a SQLAlchemy URL; its path or SQLite URI is used, options of the driver are not.

    Raises:
        InvalidArgumentError: no URL, or a database in memory, which no second engine could see.
        RefusedError: another dialect, or a driver that is not Python's ``sqlite3``.
    """
    return _listen(_host_url(_parse(url)), _set_up_guest)


def read_only_engine(path: str | os.PathLike[str]) -> Engine:
    """Make an engine that can't write, for stores that can't be written.

    On a read-only file system SQLite can't make the files that WAL needs; where no WAL is left
    to be read, nobody can be writing either, and the file is read as immutable.
    """
    url = _file_url(path, "ro")
    if _is_frozen(os.fspath(path)):
        url = url.update_query_dict({"immutable": "1"})
    return _listen(url, _set_up_reader, begin="DEFERRED")


def run_write(engine: Engine, work: Callable[[Connection], _T], *, deadline_s: float = DEADLINE_S) -> _T:
    """Run ``work(connection)`` in one ``BEGIN IMMEDIATE`` transaction and commit it.

    A transaction that meets a lock is rolled back and run again as a whole, so `work` may run
    more than once and must have no effect outside the database.

    Args:
        engine: an engine of this module.
        work: what to do; its result is returned, its exception rolls back.
        deadline_s: seconds after which a lock is no longer waited for.

    Raises:
        BusyError: the lock could not be had in time; the message names the database.
        ImgdbError: see `translate`.
    """
    end = time.monotonic() + deadline_s
    with translate(describe(engine)):
        while True:
            try:
                return _attempt(engine, work, end - time.monotonic())
            except DBAPIError as error:
                if not _is_busy(error) or time.monotonic() >= end:
                    raise
            time.sleep(random.uniform(0, _JITTER_S))  # noqa: S311 - jitter needs no secrecy


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """Give a connection in one read transaction: every statement sees the same state.

    Raises:
        RefusedError: something in the block tried to write.
        ImgdbError: see `translate`.
    """
    with translate(describe(engine)), engine.connect() as connection:
        connection.execution_options(**{_BEGIN: "DEFERRED"})
        with connection.begin():
            yield connection


@contextmanager
def translate(name: str) -> Iterator[None]:
    """Raise imgdb's errors instead of the driver's and SQLAlchemy's.

    Args:
        name: the database, for the message.

    Raises:
        BusyError: locked by somebody, or no connection of the pool came free.
        DataLossError: the file is damaged or no database.
        RefusedError: read-only, or not to be opened.
        NotFoundError: there is no such file.
        SchemaError: imgdb's tables are not in it.
        FailedPreconditionError: a trigger of imgdb forbids it.
        ConflictError: a constraint forbids it.
        ImgdbError: the disk is full, and everything else.
    """
    try:
        yield
    except PoolTimeoutError as error:
        raise BusyError(f"{name}: all connections are in use; try again") from error
    except DBAPIError as error:
        raise _explain(error.orig, name) from error
    except sqlite3.Error as error:
        raise _explain(error, name) from error


def describe(engine: Engine) -> str:
    """The path of the engine's database, for messages."""
    database = engine.url.database or ":memory:"
    if not database.startswith("file:"):
        return database
    return unquote(database.removeprefix("file:"), errors="surrogateescape")


def _parse(url: str | URL) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise InvalidArgumentError(f"not a database URL: {url!r}") from error


def _host_url(url: URL) -> URL:
    if url.get_backend_name() != "sqlite":
        raise RefusedError(f"{url.get_backend_name()}: only SQLite databases are supported")
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise RefusedError(f"{url.drivername}: use a synchronous sqlite:// URL for imgdb")
    database = url.database or ""
    if database in ("", ":memory:", "file::memory:") or url.query.get("mode") == "memory":
        raise InvalidArgumentError("a database in memory has no file that a second engine could open")
    if not database.startswith("file:"):
        return _file_url(database, "rw")
    options = {key: url.query[key] for key in ("mode", "vfs", "immutable", "nolock") if key in url.query}
    return URL.create("sqlite+pysqlite", database=database, query={"mode": "rw", **options, "uri": "true"})


def _file_url(path: str | os.PathLike[str], mode: str) -> URL:
    # A URI, since only there `mode` can say that a missing file is not to be created.
    database = "file:" + quote(os.path.abspath(os.fsencode(path)))
    return URL.create("sqlite+pysqlite", database=database, query={"mode": mode, "uri": "true"})


def _create_file(path: str | os.PathLike[str]) -> None:
    """Make an empty 0600 file without opening it (SQLite's would follow the umask)."""
    try:
        os.mknod(path, stat.S_IFREG | 0o600)
    except FileExistsError:
        return
    os.chmod(path, 0o600)


def _is_frozen(path: str) -> bool:
    try:
        read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False
    return read_only and not (os.path.exists(path + "-wal") and os.path.getsize(path + "-wal"))


def _listen(url: URL, set_up: Callable[[sqlite3.Connection], None], begin: str = "IMMEDIATE") -> Engine:
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        raise ImgdbError(f"SQLite {sqlite3.sqlite_version} is too old; imgdb needs 3.35 or newer")
    arguments = {"factory": _Connection, "isolation_level": None, "timeout": BUSY_TIMEOUT_S}
    engine = create_engine(url, connect_args=arguments, execution_options={_BEGIN: begin})
    event.listen(engine, "connect", lambda connection, _record: set_up(connection))
    event.listen(engine, "begin", _begin)
    _engines.add(engine)
    return engine


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    mode = options[_BEGIN]
    connection.exec_driver_sql(f"PRAGMA busy_timeout={options.get(_BUSY_MS, int(BUSY_TIMEOUT_S * 1000))}")
    # Set at each begin, so a pooled connection needs no reset after a reader.
    connection.exec_driver_sql(f"PRAGMA query_only={int(mode == 'DEFERRED')}")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _set_up_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA recursive_triggers=ON")


def _set_up_guest(connection: sqlite3.Connection) -> None:
    _set_up_reader(connection)
    mode = _journal_mode(connection)
    # In mode DELETE the commit is an unlink, and FULL does not sync the directory.
    connection.execute(f"PRAGMA synchronous={'EXTRA' if mode == 'delete' else 'FULL'}")


def _set_up_own(connection: sqlite3.Connection) -> None:
    end = time.monotonic() + BUSY_TIMEOUT_S
    while _journal_mode(connection) != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            break  # where the file system has no shared memory the mode stays as it was
        except sqlite3.OperationalError as error:
            # The switch needs the file alone, and SQLite does not always wait for that.
            if not _is_busy(error) or time.monotonic() >= end:
                raise
        time.sleep(random.uniform(0, _JITTER_S))  # noqa: S311 - jitter needs no secrecy
    _set_up_guest(connection)


def _journal_mode(connection: sqlite3.Connection) -> str:
    mode: str = connection.execute("PRAGMA journal_mode").fetchone()[0]
    return mode


def _attempt(engine: Engine, work: Callable[[Connection], _T], left_s: float) -> _T:
    busy_ms = int(max(0.0, min(left_s, BUSY_TIMEOUT_S)) * 1000)
    with engine.connect() as connection:
        connection.execution_options(**{_BEGIN: "IMMEDIATE", _BUSY_MS: busy_ms})
        with connection.begin():
            return work(connection)


def _code(error: BaseException | None) -> int | None:
    """SQLite's primary result code; the module's own errors have none."""
    if isinstance(error, DBAPIError):
        error = error.orig
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_busy(error: BaseException) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


_MEANING: dict[int, tuple[type[ImgdbError], str]] = {
    sqlite3.SQLITE_BUSY: (BusyError, "the database is locked by somebody else; try again"),
    sqlite3.SQLITE_LOCKED: (BusyError, "the database is locked by this process; try again"),
    sqlite3.SQLITE_FULL: (ImgdbError, "the disk is full; imgdb gc can still free space"),
    sqlite3.SQLITE_IOERR: (ImgdbError, "input or output failed"),
    sqlite3.SQLITE_CORRUPT: (DataLossError, "the database is damaged; see imgdb db rebuild"),
    sqlite3.SQLITE_NOTADB: (DataLossError, "the file is damaged or no SQLite database"),
    sqlite3.SQLITE_READONLY: (RefusedError, "the database is opened for reading only"),
    sqlite3.SQLITE_PERM: (RefusedError, "no permission"),
    sqlite3.SQLITE_AUTH: (RefusedError, "no permission"),
    sqlite3.SQLITE_CONSTRAINT: (ConflictError, "a constraint of the database forbids this"),
}


def _explain(error: BaseException | None, name: str) -> ImgdbError:
    code, text = _code(error), str(error)
    if code == sqlite3.SQLITE_CANTOPEN:
        return _explain_open(name)
    if code == sqlite3.SQLITE_CONSTRAINT and text.startswith("imgdb: "):
        return FailedPreconditionError(f"{name}: {text.removeprefix('imgdb: ')}")
    if text.startswith("no such table: imgdb_"):
        return SchemaError(f"{name}: {text}; run `imgdb db init`, or `imgdb db upgrade`")
    kind, meaning = _MEANING.get(code or 0, (ImgdbError, "the database failed"))
    return kind(f"{name}: {meaning} ({text})")


def _explain_open(name: str) -> ImgdbError:
    if not os.path.exists(name):
        return NotFoundError(f"{name}: no such database")
    return RefusedError(f"{name}: the database can't be opened; check its owner and its directory")
