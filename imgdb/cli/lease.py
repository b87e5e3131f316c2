"""``lease ls|show|create|add|renew|rm``, ``pin``, ``unpin``: what must stay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import Settings, complete_images, format_option, format_option_of, pass_settings
from imgdb.cli.groups import Group, Verb
from imgdb.cli.output import Column, emit, say
from imgdb.cli.params import Failures, read_labels
from imgdb.cli.printable import human_duration, printable, rfc3339
from imgdb.cli.times import parse_duration, parse_rfc3339
from imgdb.errors import ImgdbError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgdb.db.leases import LeaseRecord
    from imgdb.store import ImageStore

_TYPES = ("content", "images", "snapshots")
_FILTERS = "Only those with: id=ID, label=NAME[=VALUE]; repeatable."


def _life(_ctx: click.Context, _param: click.Parameter, value: str) -> float | None:
    return None if value in {"never", "0"} else parse_duration(value) / 1e6


_expires = click.option(
    "-x",
    "--expires",
    default="24h",
    show_default=True,
    callback=_life,
    metavar="DURATION|never",
    help="How long from now it lasts, such as 90m or 7d.",
)


def _owner(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None
    kind, colon, owner = value.partition(":")
    if not colon:
        raise InvalidArgumentError(f"--owner {value}: write KIND:ID")
    return kind, owner


@click.group(cls=Group)
def lease() -> None:
    """Protect blobs, images and snapshots from gc: ls, show, create, add, renew, rm (ctr leases).

    A lease protects what it lists, and all that leads to, until it expires.
    """


@lease.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="IDs only.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help=_FILTERS)
@format_option
@pass_settings
def ls(settings: Settings, /, quiet: bool, filters: tuple[str, ...], format_: str) -> None:
    """List leases; pins are among them."""
    with settings.open() as store:
        records = [_record(item) for item in store.leases(**_selection(filters))]
    if not quiet:
        emit(records, format=format_, columns=_columns(), template_fields=_fields())
        return
    for record in records:
        say(printable(record["id"]))


def _selection(filters: tuple[str, ...]) -> dict[str, Any]:
    """Several ids mean any of them, several labels all of them, as docker has it."""
    ids, labels = [], {}
    for text in filters:
        key, _, value = text.partition("=")
        if key == "id" and value:
            ids.append(value)
        elif key == "label" and value:
            name, equals, wanted = value.partition("=")
            labels[name] = wanted if equals else None
        else:
            raise InvalidArgumentError(f"filter {text!r}: write id=ID, label=NAME or label=NAME=VALUE")
    return {"ids": ids, "labels": labels}


@lease.command("show")
@click.argument("lease_id", metavar="ID")
@format_option_of("json (default), jsonl, table, or a template such as '{{.expires_at}}'.", default="json")
@pass_settings
def show(settings: Settings, /, lease_id: str, format_: str) -> None:
    """Show a lease and what it protects; as a table, only that."""
    with settings.open() as store:
        found = store.leases(ids=[lease_id])
        listed = [{"type": r.type, "key": r.key} for r in store.lease_resources(lease_id)]
    records = [_record(item) | {"protects": listed} for item in found]
    if format_ == "table":
        emit(listed, format=format_, columns=_RESOURCE_COLUMNS)
    else:
        emit(records, format=format_, columns=_columns(), template_fields=_fields())


@lease.command("create")
@click.option("--id", "lease_id", metavar="ID", help="Its name.  [default: a random one]")
@_expires
@click.option("--flat", is_flag=True, help="Protect only what is listed, not what that leads to.")
@click.option("--label", "labels", metavar="NAME[=VALUE]", multiple=True, help="Repeatable.")
@click.option(
    "--owner", metavar="KIND:ID", callback=_owner, help="What keeps it alive beyond its expiry: a host's row."
)
@pass_settings
def create(settings: Settings, /, lease_id: str | None, labels: tuple[str, ...], **options: Any) -> None:
    """Make a lease, which protects nothing yet, and print its ID."""
    with settings.open() as store:
        made = store.create_lease(
            lease_id,
            expires_s=options["expires"],
            flat=options["flat"],
            labels=read_labels(labels),
            owner=options["owner"],
        )
    say(printable(made.id))


@lease.command("add")
@click.argument("lease_id", metavar="ID")
@click.argument("things", nargs=-1, required=True, metavar="DIGEST|NAME...", shell_complete=complete_images)
@click.option(
    "--type",
    "type_",
    type=click.Choice(_TYPES),
    help="What DIGEST|NAME is: a blob's digest, an image name to be kept, a snapshot's key.",
)
@pass_settings
def add(settings: Settings, /, lease_id: str, things: tuple[str, ...], type_: str | None) -> None:
    """Let a lease protect more.

    Without --type a digest is that of a blob, and a NAME stands for what it points to now: the
    image stays, whatever happens to the name. With --type images the name stays: prune passes
    over it, and rm needs --force; it may still be moved.
    """
    from imgdb.db.leases import Resource  # noqa: PLC0415 - not needed for help

    wanted = things if type_ is None else [Resource(type_, thing) for thing in things]
    with settings.open() as store:
        added = store.add_to_lease(lease_id, wanted)
    for resource in added:
        say(printable(f"{resource.type} {resource.key}"))


@lease.command("renew")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@_expires
@pass_settings
def renew(settings: Settings, /, ids: tuple[str, ...], expires: float | None) -> None:
    """Let leases expire later, or sooner."""
    _each_lease(settings, ids, lambda store, lease_id: store.renew_lease(lease_id, expires))


@lease.command("rm")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@pass_settings
def rm(settings: Settings, /, ids: tuple[str, ...]) -> None:
    """End leases; the next gc frees what only they protected."""
    _each_lease(settings, ids, lambda store, lease_id: store.remove_lease(lease_id))


def _each_lease(
    settings: Settings, ids: tuple[str, ...], change: Callable[[ImageStore, str], object]
) -> None:
    failures = Failures(settings)
    with settings.open() as store:
        for lease_id in ids:
            try:
                change(store, lease_id)
                say(printable(lease_id))
            except ImgdbError as error:
                failures.add(error)
    failures.leave()


@click.command(cls=Verb)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_images)
@pass_settings
def pin(settings: Settings, /, names: tuple[str, ...]) -> None:
    """Keep images: nobody removes or moves a pinned NAME, by force neither."""
    _each_name(settings, "Pinned", lambda store: store.pin(*names))


@click.command(cls=Verb)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_images)
@pass_settings
def unpin(settings: Settings, /, names: tuple[str, ...]) -> None:
    """Let images be removed and moved again."""
    _each_name(settings, "Unpinned", lambda store: store.unpin(*names))


def _each_name(settings: Settings, word: str, change: Callable[[ImageStore], list[str]]) -> None:
    from imgdb.oci.reference import familiar  # noqa: PLC0415 - not needed for help

    with settings.open() as store:
        names = change(store)
    for name in names:
        say(f"{word}: {printable(familiar(name))}")


def _record(item: LeaseRecord) -> dict[str, Any]:
    return {
        "id": item.id,
        "created_at": rfc3339(item.created_at),
        "expires_at": rfc3339(item.expires_at),
        "expired": item.expired,
        "flat": item.flat,
        "labels": dict(item.labels),
        "owner_kind": item.owner_kind,
        "owner_id": item.owner_id,
        "resources": item.resources,
    }


def _columns() -> list[Column]:
    fields = _fields()
    return [
        Column("ID", lambda item: item["id"]),
        Column("CREATED", fields["Created"]),
        Column("EXPIRES", fields["Expires"]),
        Column("FLAT", lambda item: item["flat"]),
        Column("RESOURCES", lambda item: item["resources"]),
        Column("LABELS", lambda item: ",".join(f"{k}={v}" for k, v in sorted(item["labels"].items()))),
    ]


def _fields() -> dict[str, Callable[[Mapping[str, Any]], str]]:
    now = time.time_ns() // 1000
    return {
        "Created": lambda item: human_duration((now - (parse_rfc3339(item["created_at"]) or now)) / 1e6),
        "Expires": lambda item: _expiry(item, now),
    }


def _expiry(item: Mapping[str, Any], now: int) -> str:
    if item["expired"]:
        return "expired"
    at = None if item["expires_at"] is None else parse_rfc3339(item["expires_at"])
    if at is None:
        return "never"
    kind, owner = item["owner_kind"], item["owner_id"]
    if at < now:
        return "while running" if kind == "hold" else f"kept by {kind}:{owner}"
    return f"in {human_duration((at - now) / 1e6, suffix='').lower()}"


_RESOURCE_COLUMNS = [
    Column("TYPE", lambda resource: resource["type"]),
    Column("KEY", lambda resource: resource["key"]),
]
