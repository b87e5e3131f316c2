"""``info``: facts about the store, for people and bug reports."""

from __future__ import annotations

import click

from imgdb import __version__
from imgdb.cli.context import Settings, format_option_of, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import emit, say, table_lines
from imgdb.cli.printable import printable


@click.command(cls=Verb)
@format_option_of("table, json, jsonl, or a template such as '{{.root}}'.")
@pass_settings
def info(settings: Settings, /, format_: str) -> None:
    """Show where the store is and what is in it."""
    import platform  # noqa: PLC0415 - not needed for help
    from dataclasses import asdict  # noqa: PLC0415

    with settings.open() as store:
        record = {
            **asdict(store.info()),
            "imgdb": __version__,
            "python": platform.python_version(),
        }
    if format_ != "table":
        emit([record], format=format_, columns=[])
        return
    rows = [[f"{key.replace('_', ' ')}:", printable(str(value))] for key, value in record.items()]
    for line in table_lines(rows):
        say(line)
