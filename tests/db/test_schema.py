"""imgdb.db.schema: migrations on our own file and in a host's, and what they leave alone."""

# ruff: noqa: S608 - the table names are those of the tests

from __future__ import annotations

import logging
import re
import shutil
import sqlite3
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from imgdb.db import catalog, models, schema, triggers, views
from imgdb.db import engine as engines
from imgdb.errors import DataLossError, FailedPreconditionError, SchemaError
from tests.db.freeze import FROZEN, fill, freeze
from tests.db.rows import Rows, open_shell

OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY name"

BROKEN = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "0099", "0001", None, None
def upgrade():
    op.add_column("imgdb_blobs", sa.Column("extra", sa.Integer()))
    {end}
def downgrade():
    op.drop_column("imgdb_blobs", "extra")
"""


@pytest.fixture
def host(tmp_path):
    """A host's file: tables, data, an index, a view, a trigger and pragmas of its own."""
    path = tmp_path / "host.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        "PRAGMA user_version=41; PRAGMA application_id=42;"
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);"
        "INSERT INTO alembic_version VALUES ('host1');"
        "CREATE TABLE images (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT);"
        "CREATE TABLE imgdbx (y); CREATE INDEX ix_images_name ON images (name);"
        "CREATE VIEW names AS SELECT name FROM images;"
        "CREATE TRIGGER tr AFTER INSERT ON images BEGIN SELECT 1; END;"
        "INSERT INTO images (name) VALUES ('a'), ('b');"
    )
    connection.close()
    return path


@pytest.fixture
def host_engine(host):
    """The host's own engine, with the driver's defaults."""
    made = create_engine(f"sqlite:///{host}")
    yield made
    made.dispose()


@pytest.fixture
def two_revisions(tmp_path, monkeypatch):
    """Migrations with one more revision; the test says how its upgrade ends."""

    def make(end):
        folder = tmp_path / "migrations"
        shutil.copytree(schema.migrations_dir(), folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "0099_more.py").write_text(BROKEN.format(end=end))
        monkeypatch.setattr(schema, "migrations_dir", lambda: folder)
        monkeypatch.setattr(schema, "REVISIONS", ("0001", "0099"))
        monkeypatch.setattr(schema, "HEAD", "0099")

    return make


def dump(path):
    """Everything that a host would compare: objects, rows and what persists of pragmas."""
    connection = sqlite3.connect(path)
    names = ("user_version", "application_id", "journal_mode", "auto_vacuum", "page_size", "encoding")
    pragmas = [connection.execute(f"PRAGMA {name}").fetchone() for name in names]
    objects = [row for row in connection.execute(OBJECTS) if not row[1].startswith("imgdb_")]
    tables = [name for kind, name, *_rest in objects if kind == "table"]
    rows = [connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables]
    connection.close()
    return pragmas, objects, rows


def difference(connection):
    """What autogenerate would propose."""
    options = {
        "version_table": schema.VERSION_TABLE,
        "compare_type": True,
        "include_name": lambda name, type_, _parents: type_ != "table" or schema.owns(name),
    }
    context = MigrationContext.configure(connection, opts=options)
    return compare_metadata(context, models.Base.metadata)


def objects(engine):
    """All objects of a database."""
    with engines.read(engine) as connection:
        return connection.exec_driver_sql(OBJECTS).all()


def test_head_is_the_newest_file():
    """REVISIONS, which is read without Alembic, says what the folder says."""
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_dir()))
    script = ScriptDirectory.from_config(config)
    assert [r.revision for r in script.walk_revisions()][::-1] == list(schema.REVISIONS)
    assert script.get_heads() == [schema.HEAD]


def test_migrations_say_what_the_models_say(own):
    """Upgrade, downgrade, upgrade: autogenerate has nothing to propose."""
    before = objects(own)
    engines.run_write(own, lambda c: schema.downgrade(c, "base"))
    assert [row.name for row in objects(own)] == [schema.VERSION_TABLE]
    engines.run_write(own, schema.upgrade)
    assert objects(own) == before
    with engines.read(own) as connection:
        assert difference(connection) == []


def test_models_and_migrations_make_the_same_sql(own, tmp_path):
    """Checks and defaults too, which autogenerate does not compare."""

    def normal(row):
        words = re.split(r"\n|, (?=CONSTRAINT)", row.sql or "")
        return row.name, sorted(word.strip("\t ,)(") for word in words if word.strip("\t ,)("))

    other = create_engine(f"sqlite:///{tmp_path}/models.db")
    with other.begin() as connection:
        models.Base.metadata.create_all(connection)
        made = [normal(row) for row in connection.exec_driver_sql(OBJECTS)]
    other.dispose()
    kept = [normal(row) for row in objects(own) if row.type in ("table", "index")]
    assert [row for row in kept if row[0] != schema.VERSION_TABLE] == made


def test_every_name_has_the_prefix(own):
    """Tables, indexes, triggers, views and constraints, named on purpose."""
    assert all(schema.owns(row.name) and schema.owns(row.tbl_name) for row in objects(own))
    with engines.read(own) as connection:
        catalogue = inspect(connection)
        for table in catalog.names(connection, "table"):
            named = [
                *catalogue.get_unique_constraints(table),
                *catalogue.get_foreign_keys(table),
                *catalogue.get_check_constraints(table),
                catalogue.get_pk_constraint(table),
            ]
            assert all((constraint["name"] or "").startswith(table) for constraint in named), table
        assert set(catalog.names(connection, "trigger")) == set(triggers.CREATE_SQL)
        assert catalog.names(connection, "view") == [view.name for view in views.VIEWS]


@pytest.mark.parametrize("revision", schema.REVISIONS)
def test_frozen_databases_upgrade(tmp_path, revision):
    """A file of each released schema, with data, comes to the newest one and loses nothing."""
    path = shutil.copy(FROZEN / f"{revision}.sqlite", tmp_path / "imgdb.db")
    own = engines.own_engine(path)
    engines.run_write(own, schema.upgrade)
    with engines.read(own) as connection:
        schema.check(connection)
        assert difference(connection) == []
        assert schema.read_meta(connection).store_id == "frozen-store"
        (name, platforms, size) = connection.exec_driver_sql(
            "SELECT name, platforms, size FROM imgdb_v1_images"
        ).one()
        assert (name, platforms, size) == ("docker.io/library/frozen:latest", "linux/amd64", 130)
        for table in catalog.names(connection, "table"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar(), table
    shell = open_shell(path)
    assert Rows(shell).drift() == {}
    shell.close()
    own.dispose()


def test_the_newest_frozen_database_is_current(tmp_path):
    """Changed triggers or views need a new revision, or else old databases keep the old ones.

    Before the first release of a revision: freeze it again (python -m tests.db.freeze).
    """
    freeze(tmp_path / "now.sqlite")
    found = []
    for path in (FROZEN / f"{schema.HEAD}.sqlite", tmp_path / "now.sqlite"):
        connection = sqlite3.connect(path)
        found.append(connection.execute(OBJECTS).fetchall())
        connection.close()
    assert found[0] == found[1]


def test_a_migration_keeps_data(own, database, two_revisions):
    """Rows survive the way up and down, and counters count on."""
    shell = open_shell(database)
    rows = Rows(shell)
    fill(rows)
    before = rows.sql("SELECT * FROM imgdb_blobs")
    two_revisions("pass")
    engines.run_write(own, schema.upgrade)
    assert rows.sql("SELECT * FROM imgdb_blobs") == [(*row, None) for row in before]
    rows.edge(1, 2, position=9)
    engines.run_write(own, lambda c: schema.downgrade(c, "0001"))
    assert rows.drift() == {}
    assert rows.sql("SELECT name FROM sqlite_master WHERE type IN ('trigger', 'view')") == []
    shell.close()


@pytest.mark.parametrize("own_transaction", [True, False])
def test_a_failing_migration_leaves_nothing(database, two_revisions, own_transaction):
    """Half a migration is rolled back, also on a host's connection with the driver's defaults."""
    host = create_engine(f"sqlite:///{database}")
    two_revisions('raise RuntimeError("boom")')
    with host.connect() as connection:
        before = connection.exec_driver_sql(OBJECTS).all()
        connection.rollback()
        if own_transaction:
            connection.begin()
        with pytest.raises(RuntimeError, match="boom"):
            schema.upgrade(connection)
        connection.rollback()
        assert connection.exec_driver_sql(OBJECTS).all() == before
        assert schema.current(connection) == "0001"
    host.dispose()


def test_a_migration_that_loses_parents_is_refused(own, database, two_revisions):
    """Where foreign keys are off nobody else would notice."""
    shell = open_shell(database, foreign_keys=False)
    Rows(shell).edge(7, 8)
    two_revisions("pass")
    with pytest.raises(DataLossError, match="imgdb_descriptors"):
        engines.run_write(own, schema.upgrade)
    shell.close()


def test_a_guest_leaves_the_host_alone(host, host_engine):
    """Upgrade, use, remove: the host's objects, rows and pragmas are byte for byte the same."""
    before = dump(host)
    with host_engine.begin() as connection:
        schema.upgrade(connection)
        schema.create_meta(connection, "guest")
    assert dump(host) == before
    shell = open_shell(host)
    fill(Rows(shell))
    shell.execute("CREATE VIEW imgdb_of_an_admin AS SELECT 1")
    shell.close()
    with host_engine.begin() as connection:
        schema.upgrade(connection)
        assert "imgdb_of_an_admin" in catalog.names(connection, "view")
        schema.remove(connection)
        assert [catalog.names(connection, kind) for kind in ("table", "index", "trigger")] == [[], [], []]
        assert catalog.names(connection, "view") == []
    assert dump(host) == before


@pytest.mark.parametrize("foreign_keys", [True, False])
def test_remove_with_data(own, database, foreign_keys):
    """Every table full, foreign keys on or off, and a table of a newer imgdb that refers to ours."""
    shell = open_shell(database, foreign_keys=foreign_keys)
    fill(Rows(shell))
    shell.execute("CREATE TABLE imgdb_newer (blob INTEGER REFERENCES imgdb_blobs)")
    shell.execute("INSERT INTO imgdb_newer SELECT id FROM imgdb_blobs")
    shell.close()
    engine = own if foreign_keys else create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        schema.remove(connection)
    engine.dispose()
    assert objects(own) == []


def test_the_callers_transaction_stays_the_callers(host, host_engine):
    """Nothing is committed behind a host's back; without a transaction upgrade commits its own."""
    with host_engine.connect() as connection:
        connection.begin()
        schema.upgrade(connection)
        connection.rollback()
    with host_engine.connect() as connection:
        assert schema.current(connection) is None
        connection.rollback()
        schema.upgrade(connection)
        assert not connection.in_transaction()
    with host_engine.connect() as connection:
        schema.check(connection)
    assert "imgdb_blobs" in str(sqlite_objects(host))


def sqlite_objects(path):
    """As anybody else sees them."""
    connection = sqlite3.connect(path)
    found = connection.execute(OBJECTS).fetchall()
    connection.close()
    return found


UPGRADER = """
import sys
from imgdb.db import engine, schema
own = engine.own_engine(sys.argv[1], create=True)
print("ready", flush=True)
sys.stdin.readline()
engine.run_write(own, schema.upgrade)
with engine.read(own) as connection:
    schema.check(connection)
own.dispose()
"""


def test_eight_processes_upgrade_one_new_file(tmp_path):
    """They queue; all succeed, and the file is right."""
    path = tmp_path / "new.db"
    command = [sys.executable, "-c", UPGRADER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(8)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [(*child.communicate(timeout=120), child.returncode) for child in children]
    assert results == [("", "", 0)] * 8
    own = engines.own_engine(path)
    with engines.read(own) as connection:
        assert difference(connection) == []
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    own.dispose()


def check(engine, *statements, writing=True):
    """The message of `schema.check` after some changes that are rolled back; None when content."""
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
        try:
            schema.check(connection, writing=writing)
        except SchemaError as error:
            return str(error)
        finally:
            connection.rollback()
    return None


META = "INSERT INTO imgdb_meta VALUES (1, 's', 0, 1, {reader}, {writer})"
REVISION = "UPDATE imgdb_alembic_version SET version_num = '{}'"


def test_check_says_what_to_do(own, two_revisions):
    """Missing, incomplete and older name their command; the right one is content."""
    assert check(own) is None
    assert "`imgdb db init`" in check(own, "DROP TABLE imgdb_alembic_version")
    assert "`imgdb db init`" in check(own, "DELETE FROM imgdb_alembic_version")
    assert "`imgdb db upgrade`" in check(own, "DROP TRIGGER imgdb_tr_images_count_insert")
    two_revisions("pass")
    assert "`imgdb db upgrade`" in check(own)


@pytest.mark.parametrize(
    ("revision", "reader", "writer", "may_read", "may_write"),
    [
        ("0001", 1, 1, True, True),
        ("0001", 1, 2, True, False),
        ("0001", 2, 2, False, False),
        ("9999", 1, 1, True, False),
        ("9999", 2, 2, False, False),
    ],
)
def test_check_of_newer_databases(own, revision, reader, writer, may_read, may_write):
    """A newer schema only adds: it may be read where it says so, and never written."""
    changes = (META.format(reader=reader, writer=writer), REVISION.format(revision))
    for writing, allowed in ((False, may_read), (True, may_write)):
        message = check(own, *changes, writing=writing)
        assert message is None if allowed else "upgrade imgdb" in message


def test_upgrade_touches_only_what_differs(own):
    """A current database stays as it is; a lost trigger, a changed or an old view are mended."""
    before = objects(own)
    cookie = "PRAGMA schema_version"
    with engines.read(own) as connection:
        version = connection.exec_driver_sql(cookie).scalar()
    engines.run_write(own, schema.upgrade)
    with engines.read(own) as connection:
        assert connection.exec_driver_sql(cookie).scalar() == version
    for damage in (
        "DROP TRIGGER imgdb_tr_images_count_insert",
        "CREATE VIEW imgdb_v0_images AS SELECT 1",
        "CREATE TRIGGER imgdb_tr_old AFTER INSERT ON imgdb_images BEGIN SELECT 1; END",
    ):
        engines.run_write(own, lambda c, sql=damage: c.execute(text(sql)) and None)
        engines.run_write(own, schema.upgrade)
        assert objects(own) == before


def test_newer_databases_are_not_migrated(own):
    """Neither up nor down; removing is possible."""
    engines.run_write(own, lambda c: c.execute(text(REVISION.format("9999"))) and None)
    for move in (schema.upgrade, lambda c: schema.downgrade(c, "base")):
        with pytest.raises(SchemaError, match="upgrade imgdb"):
            engines.run_write(own, move)
    engines.run_write(own, schema.remove)


def test_nothing_to_downgrade(host_engine):
    """Said, not done."""
    with host_engine.connect() as connection, pytest.raises(SchemaError, match="no imgdb tables"):
        schema.downgrade(connection, "base")


def test_meta(own):
    """The pair's half: made once, read, and its generation raised."""
    with pytest.raises(SchemaError, match="belongs to no store"):
        engines.run_write(own, schema.read_meta)
    with pytest.raises(SchemaError, match="belongs to no store"):
        engines.run_write(own, schema.bump_generation)
    engines.run_write(own, lambda c: schema.create_meta(c, "id"))
    assert [engines.run_write(own, schema.bump_generation) for _ in range(2)] == [1, 2]
    assert engines.run_write(own, schema.read_meta) == schema.Meta("id", 2, 1, 1, 1)


def test_the_hosts_logging_stays(host_engine, caplog, capsys):
    """Alembic says nothing, and levels, handlers, filters and disabled flags are as before."""
    loggers = [
        logging.getLogger(),
        *(logging.getLogger(n) for n in ("alembic", "alembic.runtime.migration", "host")),
    ]

    def state():
        return [(x.level, list(x.handlers), list(x.filters), x.disabled, x.propagate) for x in loggers]

    before = state()
    with caplog.at_level(logging.DEBUG), host_engine.begin() as connection:
        during = state()[1:]
        schema.upgrade(connection)
        assert state()[1:] == during
    assert state() == before
    assert [record for record in caplog.records if record.name.startswith("alembic")] == []
    assert capsys.readouterr() == ("", "")


def test_awkward_checkout_path(tmp_path, monkeypatch, own):
    """Percent signs, colons and spaces in the path of the migrations mean nothing."""
    folder = tmp_path / "a b%(x)s:c" / "migrations"
    shutil.copytree(schema.migrations_dir(), folder)
    monkeypatch.setattr(schema, "migrations_dir", lambda: folder)
    engines.run_write(own, lambda c: schema.downgrade(c, "base"))
    engines.run_write(own, schema.upgrade)


def test_other_dialects_are_refused():
    """By name; PostgreSQL comes later."""
    dialect = type("Dialect", (), {"name": "postgresql"})
    driver = type("Fairy", (), {"driver_connection": object()})
    connection = type("Connection", (), {"connection": driver, "dialect": dialect})
    with pytest.raises(FailedPreconditionError, match="postgresql"):
        schema._driver_in_transaction(connection)
