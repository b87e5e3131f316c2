"""What of imgdb is in a SQLite file; a host's objects are never seen here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

Kind = Literal["table", "index", "trigger", "view"]

# GLOB, since LIKE takes the underscore for a wildcard and depends on a pragma of the host.
_SQL = text("SELECT name, sql FROM sqlite_master WHERE type = :kind AND name GLOB :pattern ORDER BY rowid")


def statements(connection: Connection, kind: Kind, pattern: str = "imgdb_*") -> dict[str, str]:
    """The CREATE statement of each of imgdb's objects of one kind."""
    found = connection.execute(_SQL, {"kind": kind, "pattern": pattern})
    return {row.name: row.sql for row in found}


def names(connection: Connection, kind: Kind, pattern: str = "imgdb_*") -> list[str]:
    """The names of imgdb's objects of one kind, oldest first."""
    return list(statements(connection, kind, pattern))


def drop(connection: Connection, kind: Kind, pattern: str = "imgdb_*") -> None:
    """Drop imgdb's objects of one kind, those of other versions too."""
    for name in names(connection, kind, pattern):
        connection.exec_driver_sql(f'DROP {kind.upper()} "{name}"')
