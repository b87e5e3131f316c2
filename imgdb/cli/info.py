"""``info``: facts about the store, for people and bug reports."""

from __future__ import annotations

import platform
import sqlite3
from dataclasses import asdict

import click

from imgdb import __version__
from imgdb.cli.context import Settings, pass_settings
from imgdb.cli.output import Column, emit, table_lines
from imgdb.cli.printable import printable


@click.command()
@click.option(
    "--format", "format_", default="table", metavar="FORMAT", help="table, json, jsonl or a template."
)
@pass_settings
def info(settings: Settings, /, format_: str) -> None:
    """Show where the store is and what is in it."""
    with settings.open() as store:
        record = {
            **asdict(store.info()),
            "imgdb": __version__,
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        }
    if format_ != "table":
        emit([record], format=format_, columns=[Column("STORE", lambda item: item["root"])])
        return
    for line in table_lines(
        [f"{key.replace('_', ' ')}:", printable(str(value))] for key, value in record.items()
    ):
        click.echo(line)
