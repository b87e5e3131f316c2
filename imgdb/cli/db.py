"""``db``: make a store, and bring its database up to date."""

from __future__ import annotations

import click

from imgdb.cli.context import Settings, note, pass_settings


@click.group()
def db() -> None:
    """The database: init, upgrade, current."""


@db.command()
@pass_settings
def init(settings: Settings) -> None:
    """Make an empty store; harmless when there is one."""
    with settings.open(create=True) as store:
        note(f"store in {store.root}", settings)


@db.command()
@pass_settings
def upgrade(settings: Settings) -> None:
    """Bring the schema to this imgdb's revision."""
    from imgdb.setup import upgrade_database  # noqa: PLC0415 - loads SQLAlchemy

    before, after = upgrade_database(settings.store, settings.db)
    note(f"schema {after}" if before == after else f"schema {before or 'none'} -> {after}", settings)


@db.command()
@pass_settings
def current(settings: Settings) -> None:
    """Print the schema's revision."""
    with settings.open() as store:
        click.echo(store.info().schema)
