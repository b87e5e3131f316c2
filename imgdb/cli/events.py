"""``events``: what happened, when, by whom."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import Settings, format_option_of, note, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import Column, emit
from imgdb.cli.printable import rfc3339
from imgdb.cli.times import parse_moment
from imgdb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgdb.store import ImageStore

_POLL_S = 0.5
_TAIL = "{{.at}} {{.action}} {{.actor}} {{.name}}"


@click.command(cls=Verb)
@click.option("--since", metavar="TIME", help="Only newer ones: 24h, a date, or an RFC 3339 time.")
@click.option("--follow", is_flag=True, help="Go on as events come.")
@click.option("--prune-before", metavar="TIME", help="Forget older events instead of listing any.")
@format_option_of("table, json, jsonl, or a template such as '{{.at}} {{.name}}'.")
@pass_settings
def events(
    settings: Settings, /, since: str | None, follow: bool, prune_before: str | None, format_: str
) -> None:
    """List what happened to images, oldest first."""
    if prune_before is not None:
        _prune(settings, prune_before, alone=since is None and not follow)
        return
    start = None if since is None else parse_moment(since)
    chosen = _tail_format(format_) if follow else format_
    with settings.open() as store:
        emit(_records(store, start, follow=follow), format=chosen, columns=_COLUMNS)


def _prune(settings: Settings, before: str, *, alone: bool) -> None:
    if not alone:
        raise InvalidArgumentError("--prune-before lists nothing, so --since and --follow contradict it")
    moment = parse_moment(before)
    with settings.open() as store:
        note(f"{store.prune_events(moment)} events forgotten", settings)


def _tail_format(format_: str) -> str:
    """A table and an array need all their records; a tail never has them."""
    if format_.strip() in {"", "table"}:
        return _TAIL
    if format_.strip() == "json" or format_.startswith("table "):
        raise InvalidArgumentError("--follow never has all events; use --format jsonl or a template")
    return format_


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
