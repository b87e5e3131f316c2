"""How a view is written down: each column's SQL beside its documentation, so neither drifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

TIME = "RFC 3339, UTC"
BYTES = "bytes"
FLAG = "0 or 1"


class Column(NamedTuple):
    """One column of a view.

    Attributes:
        sql: the expression.
        type: as SQLite stores it; ``json`` is text that holds JSON.
        unit: of the values; empty where there is none.
        meaning: one sentence for an admin; says when the value is NULL.
        example: a value as SQL shows it.
    """

    sql: str
    type: Literal["text", "integer", "json"]
    unit: str
    meaning: str
    example: str


@dataclass(frozen=True, slots=True)
class View:
    """A view: its columns, and the FROM clause that their expressions are over."""

    name: str
    meaning: str
    columns: Mapping[str, Column]
    source: str

    @property
    def create_sql(self) -> str:
        """The CREATE VIEW statement."""
        columns = ", ".join(f'{column.sql} AS "{name}"' for name, column in self.columns.items())
        return f"CREATE VIEW {self.name} AS SELECT {columns} {self.source}"


def text(sql: str, meaning: str, example: str, unit: str = "") -> Column:
    """A column of text."""
    return Column(sql, "text", unit, meaning, example)


def number(sql: str, meaning: str, example: str, unit: str = "") -> Column:
    """A column of integers."""
    return Column(sql, "integer", unit, meaning, example)


def flag(sql: str, meaning: str) -> Column:
    """A column of truths, always 0 or 1."""
    return Column(f"({sql}) <> 0", "integer", FLAG, meaning, "1")


def json(sql: str, meaning: str, example: str) -> Column:
    """A column of JSON."""
    return Column(sql, "json", "", meaning, example)


def moment(column: str, meaning: str) -> Column:
    """A column of times, from microseconds since the epoch."""
    seconds = f"strftime('%Y-%m-%dT%H:%M:%S', {column} / 1000000, 'unixepoch')"
    return Column(
        f"{seconds} || printf('.%06dZ', {column} % 1000000)",
        "text",
        TIME,
        meaning,
        "2026-11-24T04:15:00.123456Z",
    )


def inside(document: str, path: str) -> str:
    """The value at a path of a JSON text, an array or object as JSON text; NULL where it has none.

    The table function and not ``json_extract``: SQLite 3.40 counts the JSON functions among those
    that a schema must not use under ``trusted_schema=OFF``.
    """
    return f"(SELECT value FROM json_tree({document}, '{path}') LIMIT 1)"  # noqa: S608 - constants
