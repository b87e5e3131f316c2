"""imgdb.db.engine: pragmas, transactions, locks of other processes, forks, odd paths."""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import create_engine, select, text

from imgdb import errors
from imgdb.db import engine as engines
from imgdb.db import models, schema

HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(database):
    """Another process takes the write lock for some seconds."""
    children = []

    def take(seconds):
        command = [sys.executable, "-c", HOLDER, str(database), str(seconds)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout.readline() == "locked\n"

    yield take
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def host(tmp_path):
    """A host's file with a table of its own, mode DELETE."""
    path = tmp_path / "host.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    return path


def pragma(connection, name):
    """Its value."""
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def bump(connection):
    """Something small to write."""
    connection.exec_driver_sql("INSERT INTO imgdb_doomed VALUES (hex(randomblob(8)), 1, 1)")


def doomed(engine):
    """How many rows `bump` wrote."""
    with engines.read(engine) as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM imgdb_doomed").scalar()


def test_pragmas_of_the_own_file(own):
    """WAL, FULL and the safe settings."""
    with engines.read(own) as connection:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0}
        wanted |= {"recursive_triggers": 1, "busy_timeout": 10_000}
        assert {name: pragma(connection, name) for name in wanted} == wanted


@pytest.mark.parametrize(("mode", "synchronous"), [("delete", 3), ("truncate", 2), ("wal", 2)])
def test_a_hosts_journal_mode_stays(host, mode, synchronous):
    """Only `synchronous` follows it: EXTRA where the commit is an unlink."""
    with sqlite3.connect(host) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    connection.close()
    guest = engines.engine_for(f"sqlite:///{host}")
    engines.run_write(guest, lambda c: c.exec_driver_sql("INSERT INTO t VALUES (1)"))
    with engines.read(guest) as connection:
        assert pragma(connection, "journal_mode") == {"truncate": "delete"}.get(mode, mode)
        assert pragma(connection, "synchronous") == (3 if mode != "wal" else synchronous)
    guest.dispose()


def test_other_engines_are_left_alone(host):
    """Listeners sit on imgdb's engines, not on the class."""
    mine = engines.engine_for(f"sqlite:///{host}")
    theirs = create_engine(f"sqlite:///{host}")
    with engines.read(mine), theirs.connect() as connection:
        assert (pragma(connection, "foreign_keys"), pragma(connection, "trusted_schema")) == (0, 1)
    mine.dispose()
    theirs.dispose()


def test_write_commits_or_rolls_back(own):
    """The result comes back, an exception leaves nothing."""
    assert engines.run_write(own, lambda c: bump(c) or 7) == 7

    def fail(connection):
        bump(connection)
        raise KeyError

    with pytest.raises(KeyError):
        engines.run_write(own, fail)
    assert doomed(own) == 1


def test_write_takes_the_lock_at_once(own, database):
    """BEGIN IMMEDIATE: nobody else can write while the function still reads."""
    other = sqlite3.connect(database, isolation_level=None, timeout=0)

    def work(_connection):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    engines.run_write(own, work)
    other.close()


def test_read_is_consistent(own, database):
    """A commit by somebody else does not show up between two statements."""
    other = sqlite3.connect(database)
    with engines.read(own) as connection:
        before = connection.scalars(select(models.Doomed.digest)).all()
        other.execute("INSERT INTO imgdb_doomed VALUES ('d', 1, 1)")
        other.commit()
        assert connection.scalars(select(models.Doomed.digest)).all() == before == []
    other.close()
    assert doomed(own) == 1


def test_read_forbids_writing(own):
    """Even by mistake, and the next writer on the same connection can write."""
    with pytest.raises(errors.RefusedError, match="reading only"), engines.read(own) as connection:
        bump(connection)
    engines.run_write(own, bump)


def test_waits_for_another_process(own, hold):
    """A short lock is waited for."""
    hold(0.6)
    engines.run_write(own, bump)
    assert doomed(own) == 1


def test_busy_names_the_database(own, hold, database):
    """After the deadline: exit code 75 and the file's name; before it, not."""
    hold(30)
    start = time.monotonic()
    with pytest.raises(errors.BusyError, match=str(database)) as caught:
        engines.run_write(own, bump, deadline_s=0.5)
    assert 0.5 <= time.monotonic() - start < 5
    assert caught.value.exit_code == 75


def test_a_busy_commit_runs_again_as_a_whole(database, monkeypatch):
    """In a rollback journal a reader blocks the commit; the second run finds nothing of the first."""
    reader = sqlite3.connect(database, isolation_level=None)
    reader.execute("PRAGMA journal_mode=DELETE")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM imgdb_doomed").fetchall()
    guest = engines.engine_for(f"sqlite:///{database}")
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0.1)
    runs = []

    def work(connection):
        bump(connection)
        runs.append(connection.exec_driver_sql("SELECT count(*) FROM imgdb_doomed").scalar())
        if len(runs) == 2:
            reader.execute("ROLLBACK")

    engines.run_write(guest, work)
    assert runs == [1, 1]
    assert doomed(guest) == 1
    reader.close()
    guest.dispose()


def test_busy_for_another_reason_is_not_retried(own):
    """Only SQLite's lock is waited for, not a lock of the caller's."""
    runs = []

    def work(_connection):
        runs.append(1)
        raise errors.BusyError("another gc is running")

    with pytest.raises(errors.BusyError, match="another gc"):
        engines.run_write(own, work)
    assert runs == [1]


def test_writers_in_threads_queue(own):
    """Twenty threads write twice each, more than the pool holds; none fails."""
    failures = []

    def write():
        try:
            for _ in range(2):
                engines.run_write(own, bump)
        except errors.ImgdbError as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert doomed(own) == 40


def in_child(work):
    """Exit code of a forked child that runs `work` and ends as Python does."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_gets_its_own_connections(own):
    """After a fork both sides write, each by a connection of its own."""
    engines.run_write(own, bump)
    assert in_child(lambda: engines.run_write(own, bump)) == 0
    engines.run_write(own, bump)
    assert doomed(own) == 3


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_fork_within_a_transaction_harms_nothing(database, mode):
    """The child neither closes nor rolls back what is the parent's; the parent's commit holds."""
    with sqlite3.connect(database) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    connection.close()
    guest = engines.engine_for(f"sqlite:///{database}")

    def work(connection):
        bump(connection)

        def misuse():
            with pytest.raises(errors.ImgdbError, match="over a fork"):
                connection.commit()
            connection.close()
            guest.dispose()

        assert in_child(misuse) == 0
        bump(connection)

    engines.run_write(guest, work)
    assert doomed(guest) == 2
    with engines.read(guest) as connection:
        assert pragma(connection, "integrity_check") == "ok"
    guest.dispose()


FORK_AND_EXIT = """
import os, sys
from imgdb.db import engine
own = engine.engine_for("sqlite:///" + sys.argv[1])
insert = "INSERT INTO imgdb_doomed VALUES (hex(randomblob(8)), 1, 1)"
def work(connection):
    connection.exec_driver_sql(insert)
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    connection.exec_driver_sql(insert)
engine.run_write(own, work)
own.dispose()
"""


def test_a_child_may_even_exit_through_the_interpreter(database):
    """The worst child, one that tears everything down, leaves the transaction alone."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    command = [sys.executable, "-c", FORK_AND_EXIT, str(database)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM imgdb_doomed").fetchone() == (2,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize(
    "name", ["a b", "a?b=c", "a#b", "a%20b", "a&mode=memory", "é", "\udcff", "file:x", ":memory:"]
)
@pytest.mark.parametrize("make", [engines.own_engine, engines.engine_for, engines.read_only_engine])
def test_any_path(migrated, tmp_path, name, make):
    """No character of a path is taken for syntax, and messages show it as it is."""
    path = tmp_path / name
    path.write_bytes(migrated.read_bytes())
    url = engines.URL.create("sqlite", database=str(path)) if make is engines.engine_for else path
    engine = make(url)
    with engines.read(engine) as connection:
        assert schema.current(connection) == schema.HEAD
    assert engines.describe(engine) == str(path)
    engine.dispose()
    assert {entry.name for entry in tmp_path.iterdir()} <= {name, name + "-wal", name + "-shm"}


def test_nothing_is_created_unasked(tmp_path):
    """A missing file is an error; with `create` it is private whatever the umask."""
    path = tmp_path / "new.db"
    for make in (
        engines.own_engine,
        engines.read_only_engine,
        lambda p: engines.engine_for(f"sqlite:///{p}"),
    ):
        with pytest.raises(errors.NotFoundError, match=str(path)), engines.read(make(path)):
            pass
    assert not path.exists()
    old = os.umask(0o277)
    try:
        own = engines.own_engine(path, create=True)
    finally:
        os.umask(old)
    engines.run_write(own, lambda c: c.exec_driver_sql("CREATE TABLE t (x)"))
    assert {entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()} == {0o600}
    own.dispose()


def test_read_only(database):
    """A read-only engine can't write, not even when asked to."""
    reader = engines.read_only_engine(database)
    with pytest.raises(errors.RefusedError, match="reading only"):
        engines.run_write(reader, bump)
    assert doomed(reader) == 0
    reader.dispose()


def test_read_only_file_system(own, database, monkeypatch):
    """There WAL's files can't be made: the file is immutable, unless a WAL is left to be read."""
    engines.run_write(own, bump)
    read_only = type("Flags", (), {"f_flag": os.ST_RDONLY})
    monkeypatch.setattr(os, "statvfs", lambda _path: read_only)
    assert "immutable" not in engines.read_only_engine(database).url.query
    own.dispose()
    reader = engines.read_only_engine(database)
    assert reader.url.query["immutable"] == "1"
    assert doomed(reader) == 1
    reader.dispose()
    assert {entry.name for entry in database.parent.iterdir()} == {database.name}


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("postgresql://h/db", errors.RefusedError, "postgresql"),
        ("sqlite+aiosqlite:////x.db", errors.RefusedError, "sqlite\\+aiosqlite"),
        ("sqlite://", errors.InvalidArgumentError, "in memory"),
        ("sqlite:///:memory:", errors.InvalidArgumentError, "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", errors.InvalidArgumentError, "in memory"),
        ("no url", errors.InvalidArgumentError, "no url"),
    ],
)
def test_refused_urls(url, error, message):
    """Each is refused by name."""
    with pytest.raises(error, match=message):
        engines.engine_for(url)


def test_uri_urls(host):
    """A host may say its database as a SQLite URI."""
    guest = engines.engine_for(f"sqlite:///file:{host}?mode=ro&uri=true")
    with pytest.raises(errors.RefusedError, match="reading only"):
        engines.run_write(guest, lambda c: c.exec_driver_sql("INSERT INTO t VALUES (1)"))
    guest.dispose()


@pytest.mark.parametrize("content", [b"x" * 4096, b"SQLite format 3\0" + b"\xff" * 4080])
def test_no_database(tmp_path, content):
    """Another file, or a damaged one, is data loss and says so."""
    path = tmp_path / "broken.db"
    path.write_bytes(content)
    with pytest.raises(errors.DataLossError, match=str(path)), engines.read(engines.own_engine(path)):
        pass


def test_full_disk(own):
    """The disk's limit, by SQLite's own: a plain error with a way out."""

    def work(connection):
        connection.exec_driver_sql(f"PRAGMA max_page_count={pragma(connection, 'page_count')}")
        connection.exec_driver_sql("INSERT INTO imgdb_doomed VALUES (hex(zeroblob(100000)), 1, 1)")

    with pytest.raises(errors.ImgdbError, match="disk is full"):
        engines.run_write(own, work)


def test_errors_of_the_schema_and_its_rules(own, host):
    """No tables, a trigger's no, and a constraint's no are told apart."""
    guest = engines.engine_for(f"sqlite:///{host}")
    with pytest.raises(errors.SchemaError, match="imgdb db init"):
        engines.run_write(guest, bump)
    guest.dispose()
    with pytest.raises(errors.FailedPreconditionError, match="a resource needs a lease"):
        engines.run_write(
            own, lambda c: c.exec_driver_sql("INSERT INTO imgdb_lease_resources VALUES ('x', 'content', 'k')")
        )
    with pytest.raises(errors.ConflictError, match="UNIQUE"):
        engines.run_write(
            own, lambda c: c.execute(text("INSERT INTO imgdb_doomed VALUES ('d', 1, 1), ('d', 1, 1)"))
        )


def test_old_sqlite(database, monkeypatch):
    """RETURNING needs 3.35."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(errors.ImgdbError, match=r"needs 3\.35"):
        engines.own_engine(database)


def test_alembic_stays_out():
    """Opening a store must not pay for migrations."""
    program = "import sys; from imgdb.db import engine, schema; print('alembic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
