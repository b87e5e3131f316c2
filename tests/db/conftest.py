"""Databases for tests, made by the migrations once a session and copied."""

from __future__ import annotations

import shutil

import pytest

from imgdb.db import engine as engines
from imgdb.db import schema
from tests.db.rows import Rows, open_shell


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A file at the newest revision; to be copied only."""
    path = tmp_path_factory.mktemp("migrated") / "imgdb.db"
    own = engines.own_engine(path, create=True)
    engines.run_write(own, schema.upgrade)
    own.dispose()
    return path


@pytest.fixture
def database(migrated, tmp_path):
    """An own file at the newest revision."""
    return shutil.copy(migrated, tmp_path / "imgdb.db")


@pytest.fixture
def own(database):
    """The engine of imgdb's own file, on `database`."""
    made = engines.own_engine(database)
    yield made
    made.dispose()


@pytest.fixture(params=[True, False], ids=["foreign-keys", "careless-host"])
def rows(request, database):
    """A SQL shell on `database`: with all safety, and as a careless host has it."""
    connection = open_shell(database, foreign_keys=request.param, recursive_triggers=request.param)
    yield Rows(connection)
    connection.close()
