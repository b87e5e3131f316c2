"""The database as a whole: a copy of one moment, a schema that moves, and what is wrong with a file."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest

from imgdb.check.report import CheckOptions, Level
from imgdb.db import backup, engine, schema
from imgdb.errors import BusyError, InvalidArgumentError, NotFoundError, RefusedError, SchemaError
from imgdb.rebuild import rebuild
from imgdb.store import ImageStore
from imgdb.upkeep import (
    backup_database,
    check_database,
    current_revision,
    downgrade_database,
    upgrade_database,
)
from tests import damage
from tests.builder import Image
from tests.damage import Sample, sql, tables
from tests.integrity import check_store
from tests.tools.sample import ROOT

FULL = CheckOptions(Level.FULL)
MORE = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "0099", "{last}", None, None
def upgrade():
    op.add_column("imgdb_blobs", sa.Column("extra", sa.Integer()))
    {end}
def downgrade():
    op.drop_column("imgdb_blobs", "extra")
"""


@pytest.fixture
def root(store_template, tmp_path):
    """The directory of a store with the sample, closed."""
    root = shutil.copytree(store_template, tmp_path / "store")
    with ImageStore.open(root, durable=False) as store:
        store.load(Sample(tmp_path).archive)
    return root


# -- backup ----------------------------------------------------------------------------------------


def test_a_copy(root, tmp_path):
    """Everything is in it, only its owner reads it, and nothing else is left behind."""
    folder = tmp_path / "backups"
    folder.mkdir()
    target = folder / "copy.db"
    previous = os.umask(0)
    try:
        size = backup_database(target, root)
    finally:
        os.umask(previous)
    assert os.listdir(folder) == ["copy.db"]
    assert (size, stat.S_IMODE(target.stat().st_mode)) == (target.stat().st_size, 0o600)
    shutil.copy(target, folder / "imgdb.db")
    assert tables(folder) == tables(root)


def test_what_lies_in_the_wal_is_copied(root, tmp_path):
    """A plain copy of the file would miss it."""
    with ImageStore.open(root, durable=False) as store, damage.shell(store) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM imgdb_images").fetchone()  # no checkpoint can go on
        store.tag("one:1", "late:1")
        shutil.copy(root / "imgdb.db", tmp_path / "plain.db")
        backup_database(tmp_path / "imgdb.db", root)
        reader.execute("COMMIT")
    late = "SELECT count(*) FROM imgdb_images WHERE name LIKE '%late:1'"
    found = {}
    for name in ("plain", "imgdb"):
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            (found[name],) = connection.execute(late).fetchone()
    assert found == {"plain": 0, "imgdb": 1}


WRITER = """
import sys, threading
from imgdb.store import ImageStore
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
done = 0
with ImageStore.open(sys.argv[1], durable=False) as store:
    while not ended.is_set():
        store.load(sys.argv[2 + done % 2])
        store.tag("w:1", f"w:{done % 7}")
        store.remove("w:1")
        done += 1
        if done == 1:
            print("ready", flush=True)
print(done)
"""


def test_beside_a_writer(root, tmp_path):
    """Copies taken while somebody writes are whole, each of a moment between two commits."""
    archives = [Image(labels={"n": str(n)}).oci_tar(tmp_path / f"{n}.tar", "w:1") for n in range(2)]
    command = [sys.executable, "-c", WRITER, str(root), *archives]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    copies = [tmp_path / f"copy{n}.db" for n in range(5)]
    with subprocess.Popen(command, cwd=ROOT, **pipes) as writer:
        assert writer.stdout.readline() == "ready\n"
        for copy in copies:
            backup_database(copy, root)
        out, _ = writer.communicate(timeout=60)
    assert (writer.returncode, int(out) > 0) == (0, True)
    for copy in copies:
        # The store has been written on; a store of that moment has at least these blobs.
        older = shutil.copytree(root, tmp_path / copy.stem, ignore=shutil.ignore_patterns("imgdb.db*"))
        shutil.copy(copy, older / "imgdb.db")
        with ImageStore.open(older, durable=False) as store:
            report = store.check(FULL)
            allowed = {"pair-mismatch", "mirror-stale"}  # it is older than the rest of the store
            assert {finding.id for finding in report.damage} <= allowed
        assert check_database(older)[1:] == ()
        rebuild(older, durable=False)
        with ImageStore.open(older, durable=False) as store:
            assert store.check(FULL).damage == ()
            check_store(store, garbage_files=True)


def test_a_backup_is_what_a_store_goes_back_to(root, tmp_path):
    """Put in the place of the database, and rebuilt: the store as it is now."""
    backup_database(tmp_path / "copy.db", root)
    with ImageStore.open(root, durable=False) as store:
        store.tag("one:1", "two:1")
        now = tables(root)
    for name in ("imgdb.db", "imgdb.db-wal", "imgdb.db-shm"):
        (root / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "copy.db", root / "imgdb.db")
    rebuild(root, durable=False)
    assert tables(root) == now


def test_nothing_appears_when_it_fails(root, tmp_path, monkeypatch):
    """Neither the file nor what it was to become; an older one stays."""
    folder = tmp_path / "backups"
    folder.mkdir()
    target = folder / "copy.db"
    target.write_bytes(b"the older one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "copy", full)
    with pytest.raises(OSError, match="No space"):
        backup_database(target, root)
    assert os.listdir(folder) == ["copy.db"]
    assert target.read_bytes() == b"the older one"


def test_what_is_no_target(root, tmp_path):
    """The database itself, a directory, a link, a device."""
    before = (root / "imgdb.db").stat()
    with pytest.raises(RefusedError, match="the database itself"):
        backup_database(root / "imgdb.db", root)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for target in (tmp_path, tmp_path / "link", "/dev/null"):
        with pytest.raises(RefusedError, match="no regular file"):
            backup_database(target, root)
    with pytest.raises(OSError, match="No such file"):
        backup_database(tmp_path / "no" / "such" / "folder", root)
    assert (root / "imgdb.db").stat().st_ino == before.st_ino


def test_a_locked_host(tmp_path, monkeypatch):
    """In a host's file that is locked for good there is an end to waiting."""
    host = tmp_path / "host.db"
    with closing(sqlite3.connect(host, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE runs (x)")
        connection.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(backup, "DEADLINE_S", 0.3)
        source = engine.engine_for(f"sqlite:///{host}")
        with pytest.raises(BusyError, match="locked"):
            backup.copy(source, str(tmp_path / "copy.db"))
        source.dispose()


# -- upgrade and downgrade -------------------------------------------------------------------------


@pytest.fixture
def newer(tmp_path, monkeypatch):
    """Makes this imgdb one revision newer; its upgrade ends as told."""
    last = schema.HEAD

    def make(end="pass"):
        folder = tmp_path / "migrations"
        shutil.copytree(schema.migrations_dir(), folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "0099_more.py").write_text(MORE.format(last=last, end=end))
        monkeypatch.setattr(schema, "migrations_dir", lambda: folder)
        monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "0099"))
        monkeypatch.setattr(schema, "HEAD", "0099")
        return last

    return make


def test_an_upgrade_copies_first(root, newer):
    """And a downgrade too; each copy is the database of before."""
    before = tables(root)
    last = newer()
    with pytest.raises(SchemaError, match="imgdb db upgrade"):
        ImageStore.open(root)
    assert current_revision(root) == last
    up = upgrade_database(root)
    assert (up.before, up.after, up.backup) == (last, "0099", f"{root}/imgdb.db.bak-{last}")
    with closing(sqlite3.connect(up.backup)) as connection:
        (revision,) = connection.execute("SELECT version_num FROM imgdb_alembic_version").fetchone()
        (count,) = connection.execute("SELECT count(*) FROM imgdb_blobs").fetchone()
    assert (revision, count) == (last, len(before["blobs"]))
    down = downgrade_database(last, root)
    assert (down.before, down.after, down.backup) == ("0099", last, f"{root}/imgdb.db.bak-0099")
    assert current_revision(root) == last
    assert tables(root) == before


def test_an_upgrade_that_fails(root, newer):
    """The database is what it was, and the copy is there all the same."""
    last = newer('raise RuntimeError("boom")')
    before = tables(root)
    with pytest.raises(RuntimeError, match="boom"):
        upgrade_database(root)
    assert tables(root) == before
    assert (root / f"imgdb.db.bak-{last}").exists()


def test_nothing_to_upgrade(root):
    """No copy is made where nothing changes, also where a lost trigger is made again."""
    with ImageStore.open(root, durable=False) as store:
        sql(store, "DROP TRIGGER imgdb_tr_images_count_insert")
    done = upgrade_database(root)
    assert (done.before, done.after, done.backup) == (schema.HEAD, schema.HEAD, None)
    assert check_database(root) == ()
    assert downgrade_database(schema.HEAD, root).backup is None
    with ImageStore.open(root, durable=False) as store:
        check_store(store)


def test_a_hosts_file_is_the_hosts_to_copy(tmp_path, newer):
    """Nobody fills the host's disk."""
    host = tmp_path / "host.db"
    with closing(sqlite3.connect(host)) as connection:
        connection.execute("CREATE TABLE runs (x)")
    root = tmp_path / "hosted"
    ImageStore.open(root, str(host), create=True, durable=False).close()
    newer()
    assert upgrade_database(root).backup is None
    assert [name for name in os.listdir(tmp_path) + os.listdir(root) if "bak" in name] == []


def test_downgrades_that_are_refused(root, newer):
    """To nothing, to what nobody knows, and upwards."""
    before = tables(root)
    with pytest.raises(RefusedError, match="everything is lost"):
        downgrade_database("base", root)
    with pytest.raises(InvalidArgumentError, match="no revision 7"):
        downgrade_database("7", root)
    newer()
    with pytest.raises(RefusedError, match="older than 0099"):
        downgrade_database("0099", root)
    assert tables(root) == before


@pytest.mark.parametrize("move", [upgrade_database, lambda path: downgrade_database("0001", path)])
def test_no_store(tmp_path, move):
    """Nothing is made."""
    with pytest.raises(NotFoundError, match="no store"):
        move(tmp_path / "nothing")
    assert os.listdir(tmp_path) == []


# -- check_database --------------------------------------------------------------------------------


def ids(root):
    """What is found."""
    return {finding.id for finding in check_database(root)}


def test_a_right_database(root):
    """Nothing is found, in imgdb's own file and in a host's."""
    assert check_database(root) == ()


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER imgdb_tr_images_count_insert",
        "DROP VIEW imgdb_v1_images",
        "DROP INDEX imgdb_blobs_ix_refcount",
        "ALTER TABLE imgdb_blobs ADD COLUMN more INTEGER",
        "CREATE TABLE imgdb_more (x)",
        "CREATE TRIGGER imgdb_tr_more AFTER INSERT ON imgdb_images BEGIN SELECT 1; END",
        "UPDATE imgdb_alembic_version SET version_num = '9999'",
    ],
)
def test_a_wrong_schema(root, statement):
    """What is missing, what is too much, and what another imgdb made."""
    with ImageStore.open(root, durable=False) as store:
        sql(store, statement)
    assert ids(root) == {"schema-wrong"}


def test_an_older_schema(root, newer):
    """Its command is named, and nothing else is compared."""
    newer()
    (finding,) = check_database(root)
    assert (finding.id, "imgdb db upgrade" in finding.detail) == ("schema-wrong", True)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE imgdb_meta SET store_id = 'x'",
        "UPDATE imgdb_meta SET generation = 0",
        "DELETE FROM imgdb_meta",
    ],
)
def test_a_database_that_does_not_fit(root, statement):
    """The way out is named."""
    with ImageStore.open(root, durable=False) as store:
        sql(store, statement)
    (finding,) = check_database(root)
    assert (finding.id, "imgdb db rebuild" in finding.detail) == ("pair-mismatch", True)


def test_broken_references(root):
    """Rows that refer to nothing."""
    with ImageStore.open(root, durable=False) as store:
        damage.without_triggers(store, "UPDATE imgdb_descriptors SET child_id = 4711")
    assert ids(root) == {"reference-broken"}


def test_a_file_that_is_none(root):
    """It is damage, not a crash."""
    for name in ("imgdb.db-wal", "imgdb.db-shm"):
        (root / name).unlink(missing_ok=True)
    (root / "imgdb.db").write_bytes(b"\xff" * 4096)
    assert ids(root) == {"database-damaged"}


def test_an_index_that_is_spoiled(root):
    """SQLite's own structures are compared with each other."""
    damage.spoil_index(root)
    assert ids(root) == {"database-damaged"}
