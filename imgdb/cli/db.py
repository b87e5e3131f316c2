"""``db``: make a store, and keep its database: upgrade, back up, check, rebuild."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgdb.cli import findings
from imgdb.cli.check import DAMAGE_EXIT
from imgdb.cli.context import Settings, note, pass_settings
from imgdb.cli.groups import Group
from imgdb.cli.output import say
from imgdb.cli.printable import human_size, json_text, printable
from imgdb.cli.streams import blame

if TYPE_CHECKING:
    from imgdb.rebuild import Rebuilt
    from imgdb.upkeep import Migration

_REFUSED_EXIT = 4


@click.group(cls=Group)
def db() -> None:
    """Make a store, and keep its database."""


@db.command()
@pass_settings
def init(settings: Settings) -> None:
    """Make an empty store; harmless when there is one."""
    with settings.open(create=True) as store:
        note(f"store in {store.root}", settings)


@db.command()
@pass_settings
def upgrade(settings: Settings) -> None:
    """Bring the schema to this imgdb's revision; imgdb's own file is copied before."""
    from imgdb.upkeep import upgrade_database  # noqa: PLC0415 - loads SQLAlchemy

    settings.check()
    _tell(upgrade_database(settings.store, settings.db), settings)


@db.command()
@click.argument("revision")
@pass_settings
def downgrade(settings: Settings, /, revision: str) -> None:
    """Bring the schema back to REVISION, for an older imgdb; what that did not have is lost.

    imgdb's own file is copied before.
    """
    from imgdb.upkeep import downgrade_database  # noqa: PLC0415 - loads SQLAlchemy

    settings.check()
    _tell(downgrade_database(revision, settings.store, settings.db), settings)


def _tell(migration: Migration, settings: Settings) -> None:
    if migration.backup is not None:
        note(f"the database as it was is in {migration.backup}", settings)
    same = migration.before == migration.after
    moved = f"{migration.before or 'none'} -> {migration.after}"
    note(f"schema {migration.after if same else moved}", settings)


@db.command()
@pass_settings
def current(settings: Settings) -> None:
    """Print the schema's revision, also of a database that this imgdb can't use."""
    from imgdb.upkeep import current_revision  # noqa: PLC0415 - loads SQLAlchemy

    settings.check()
    say(current_revision(settings.store, settings.db) or "")


@db.command()
@click.argument("file", type=click.Path(dir_okay=False))
@pass_settings
def backup(settings: Settings, /, file: str) -> None:
    """Copy the database to FILE as it is at one moment, while others may write to it.

    FILE is replaced when it is there. To go back: stop what uses the store, put FILE in the place of
    the database, imgdb db rebuild.
    """
    from imgdb.upkeep import backup_database  # noqa: PLC0415 - loads SQLAlchemy

    settings.check()
    with blame(file):
        size = backup_database(file, settings.store, settings.db)
    note(f"{printable(file)} written, {human_size(size)}", settings)


@db.command("check")
@click.option("--json", "as_json", is_flag=True, help="The findings as a JSON array.")
@pass_settings
def check(settings: Settings, /, as_json: bool) -> None:
    """Look at the database alone: SQLite's structures, references, schema, the pair with the store.

    Exits with 3 when it is damaged, with 4 when it can't be used as it is.
    """
    from imgdb.upkeep import DAMAGE, check_database  # noqa: PLC0415 - loads SQLAlchemy

    settings.check()
    found = check_database(settings.store, settings.db)
    if as_json:
        say(json_text([findings.record(finding) for finding in found]))
    else:
        for finding in found:
            say(findings.line(finding))
    damaged = any(finding.id in DAMAGE for finding in found)
    raise click.exceptions.Exit(DAMAGE_EXIT if damaged else _REFUSED_EXIT if found else 0)


@db.command()
@pass_settings
def rebuild(settings: Settings) -> None:
    """Make the database fit its store again, from the blobs and the mirror of names.

    For a database that is lost, damaged, another store's, or older than the store. Leases, events and
    where names pointed before are in the database alone: if there is a copy (imgdb db backup), put it in
    place first. Exits with 3 when blobs are lost.
    """
    from imgdb.rebuild import rebuild as make  # noqa: PLC0415 - loads SQLAlchemy

    settings.check()
    result = make(settings.store, settings.db, reporter=settings.reporter())
    for warning in result.warnings:
        settings.messages.warning(warning)
    for text in _rebuilt(result):
        note(text, settings)
    for digest in result.lost:
        say(f"blob-lost {digest}")
    raise click.exceptions.Exit(DAMAGE_EXIT if result.lost else 0)


def _rebuilt(result: Rebuilt) -> list[str]:
    lines = [f"{result.database}: {result.names} names, {result.pins} pins, {result.blobs} blobs"]
    if result.snapshots:
        lines.append(f"{result.snapshots} snapshots are back")
    if result.aside is not None:
        lines.append(f"the database that was there is in {result.aside}")
    lines += [f"{printable(name)} was removed since and is gone" for name in result.removed]
    if result.unnamed:
        lines.append(f"{result.unnamed} images have lost their names; imgdb tag gives them new ones")
    if result.left:
        lines.append(f"{result.left} files are needed by nothing; imgdb gc --full frees them after a day")
    lines.append("imgdb check verifies all blobs")
    return lines
