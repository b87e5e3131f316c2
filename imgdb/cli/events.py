"""``events``: what happened, when, by whom."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import Settings, format_option, note, pass_settings
from imgdb.cli.output import Column, emit
from imgdb.cli.printable import rfc3339
from imgdb.cli.times import parse_moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgdb.store import ImageStore

_POLL_S = 0.5


@click.command()
@click.option("--since", metavar="TIME", help="Only newer ones: 24h, or an RFC 3339 time.")
@click.option("--follow", is_flag=True, help="Go on as events come.")
@click.option("--prune-before", metavar="TIME", help="Forget older events instead of listing.")
@format_option
@pass_settings
def events(
    settings: Settings, /, since: str | None, follow: bool, prune_before: str | None, format_: str
) -> None:
    """List what happened to images."""
    with settings.open() as store:
        if prune_before is not None:
            note(f"{store.prune_events(parse_moment(prune_before))} events forgotten", settings)
            return
        start = None if since is None else parse_moment(since)
        if follow and format_ == "table":
            # A table needs all its rows; a tail never has them.
            format_ = "{{.at}} {{.action}} {{.actor}} {{.name}}"
        emit(_records(store, start, follow=follow), format=format_, columns=_COLUMNS)


def _records(store: ImageStore, since: int | None, *, follow: bool) -> Iterator[dict[str, Any]]:
    last = 0
    while True:
        for event in store.events(since=since, after_id=last):
            last = event.id
            yield {
                "id": event.id,
                "at": rfc3339(event.at),
                "action": event.action,
                "actor": event.actor,
                "name": event.name,
                "attributes": dict(event.attributes),
                "uid": event.uid,
                "sudo_user": event.sudo_user,
                "host": event.host,
                "version": event.version,
                "source": event.source,
            }
        if not follow:
            return
        sys.stdout.flush()
        time.sleep(_POLL_S)


_COLUMNS = [
    Column("TIME", lambda event: event["at"]),
    Column("ACTION", lambda event: event["action"]),
    Column("NAME", lambda event: event["name"] or "-"),
    Column("ID", lambda event: event["actor"]),
    Column("USER", lambda event: event["sudo_user"] or event["uid"]),
]
