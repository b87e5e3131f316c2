"""``images``, ``inspect``, ``history``, ``exists``: look at what is there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import Settings, complete_images, format_option_of, note, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import Column, emit, say
from imgdb.cli.params import Failures, OnePlatformType
from imgdb.cli.printable import human_duration, human_size, rfc3339
from imgdb.cli.times import parse_rfc3339
from imgdb.errors import ImgdbError, NotFoundError
from imgdb.places import other_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgdb.describe import HistoryEntry, ImageSummary
    from imgdb.oci.platform import Platform

_SHORT = 12
_COMMAND_WIDTH = 45
_SORT_KEYS = ("created", "name", "repository", "tag", "id", "size", "last-used")
_NO_PLATFORM = "The image of this platform, for an index.  [default: the best for this host]"


@click.command(cls=Verb)
@click.argument("reference", required=False, shell_complete=complete_images)
@click.option(
    "-a", "--all", "every", is_flag=True, help="Accepted for docker's sake: dangling images are always shown."
)
@click.option("-q", "--quiet", is_flag=True, help="IDs only.")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only those with: dangling=true, label=K[=V], label!=K[=V], before=NAME, since=NAME, "
    "until=TIME, reference=PATTERN; repeatable.",
)
@click.option(
    "--sort",
    type=click.Choice(_SORT_KEYS),
    default="created",
    metavar="KEY",
    help="created (default), name, repository, tag, id, size or last-used.",
)
@format_option_of("table, json, jsonl, or a template such as '{{.Repository}}:{{.Tag}}'.")
@pass_settings
def images(settings: Settings, /, reference: str | None, **options: Any) -> None:
    """List images (docker images).

    REFERENCE is a name, a repository, or a pattern of one such as 'example.org/*'.
    """
    from imgdb.cli.filters import select, sort_key  # noqa: PLC0415 - not needed for help

    filters = [*options["filters"], *([f"reference={reference}"] if reference else [])]
    found = select(_all_images(settings), filters)
    records = [_image_record(summary) for summary in sorted(found, key=sort_key(options["sort"]))]
    full = options["no_trunc"]
    if options["quiet"]:
        for digest in dict.fromkeys(record["id"] for record in records):
            say(digest if full else _short(digest))
        return
    emit(
        records,
        format=options["format_"],
        columns=_image_columns(digests=options["digests"], full=full),
        template_fields=_image_fields(full=full),
        headers={"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT"},
    )


def _all_images(settings: Settings) -> list[ImageSummary]:
    """All images; where there are none, a hint at the other default store: a mix-up looks like a loss."""
    root = None
    found: list[ImageSummary] = []
    try:
        with settings.open() as store:
            found, root = store.images(), store.root
    finally:
        other = None if found or settings.store else other_store(root)
        if other is not None:
            note(f"there is another store in {other}; see it with --store {other}", settings)
    return found


def _image_record(summary: ImageSummary) -> dict[str, Any]:
    record = summary.record
    return {
        "name": None if record.is_dangling else record.name,
        "repository": summary.repository,
        "tag": summary.tag,
        "id": str(record.target.digest),
        "digest": str(record.target.digest),
        "media_type": record.target.media_type,
        "dangling": record.is_dangling,
        "size": summary.size,
        "created": summary.created or None,
        "platforms": list(summary.platforms),
        "labels": dict(summary.labels),
        "imported_at": rfc3339(record.created_at),
        "updated_at": rfc3339(record.updated_at),
        "last_used_at": rfc3339(record.last_used_at),
    }


def _short(digest: str) -> str:
    return digest.partition(":")[2][:_SHORT]


def _since(created: str | None) -> str:
    at = parse_rfc3339(created) if created else None
    return "N/A" if at is None else human_duration(time.time() - at / 1e6)


def _image_columns(*, digests: bool, full: bool) -> list[Column]:
    columns = [
        Column("REPOSITORY", lambda image: image["repository"] or "<none>"),
        Column("TAG", lambda image: image["tag"] or "<none>"),
    ]
    if digests:
        columns.append(Column("DIGEST", lambda image: image["digest"]))
    return [
        *columns,
        Column("IMAGE ID", lambda image: image["id"] if full else _short(image["id"])),
        Column("CREATED", lambda image: _since(image["created"])),
        Column("SIZE", lambda image: human_size(image["size"])),
    ]


def _image_fields(*, full: bool) -> Mapping[str, Any]:
    return {
        "ID": lambda image: image["id"] if full else _short(image["id"]),
        "Repository": lambda image: image["repository"] or "<none>",
        "Tag": lambda image: image["tag"] or "<none>",
        "Digest": lambda image: image["digest"],
        "Size": lambda image: human_size(image["size"]),
        "CreatedSince": lambda image: _since(image["created"]),
        "CreatedAt": lambda image: image["created"] or "N/A",
    }


@click.command(cls=Verb)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_images)
@click.option("--platform", type=OnePlatformType(), help=_NO_PLATFORM)
@format_option_of(
    "json (default), jsonl, or a template such as '{{.Id}}'.", "-f", default="json", table=False
)
@pass_settings
def inspect(settings: Settings, /, names: tuple[str, ...], platform: Platform | None, format_: str) -> None:
    """Show everything about images, as JSON (docker inspect)."""
    failures = Failures(settings)
    records = []
    with settings.open() as store:
        for name in names:
            try:
                records.append(store.inspect(name, platform))
            except ImgdbError as error:
                failures.add(error)
    # Docker's inspect is indented wherever it goes.
    emit(records, format=format_, columns=[], indented=True)
    failures.leave()


@click.command(cls=Verb)
@click.argument("name", shell_complete=complete_images)
@click.option("-H", "--human/--no-human", default=True, help="Sizes and dates for people.  [default: yes]")
@click.option("--no-trunc", is_flag=True, help="Whole commands and digests.")
@click.option("-q", "--quiet", is_flag=True, help="Digests of layers only.")
@click.option("--platform", type=OnePlatformType(), help=_NO_PLATFORM)
@click.option("--tag", "of_tag", is_flag=True, help="Where NAME pointed in the past, newest first.")
@format_option_of("table, json, jsonl, or a template such as '{{.CreatedBy}}'.")
@pass_settings
def history(
    settings: Settings, /, name: str, human: bool, no_trunc: bool, quiet: bool, **options: Any
) -> None:
    """Show how an image was made, newest step first (docker history)."""
    if options["of_tag"]:
        _tag_history(settings, name, options["format_"])
        return
    with settings.open() as store:
        records = [_history_record(entry) for entry in store.history(name, options["platform"])]
    if quiet:
        for record in records:
            say(_layer(record, full=no_trunc))
        return
    emit(
        records,
        format=options["format_"],
        columns=_history_columns(human=human, full=no_trunc),
        template_fields=_history_fields(human=human, full=no_trunc),
        headers={"CreatedSince": "CREATED"},
    )


def _tag_history(settings: Settings, name: str, format_: str) -> None:
    with settings.open() as store:
        periods = store.tag_history(name)
    records = [
        {
            "digest": str(period.target.digest),
            "from": rfc3339(period.from_at),
            "until": rfc3339(period.until_at),
            "held": period.held,
        }
        for period in periods
    ]
    columns = [
        Column("DIGEST", lambda period: period["digest"]),
        Column("FROM", lambda period: period["from"]),
        Column("UNTIL", lambda period: period["until"] or "now"),
        Column("STILL HELD", lambda period: "yes" if period["held"] else "no"),
    ]
    emit(records, format=format_, columns=columns)


def _history_record(entry: HistoryEntry) -> dict[str, Any]:
    return {
        "layer": str(entry.layer) if entry.layer else None,
        "created": entry.created or None,
        "created_by": entry.created_by,
        "size": entry.size,
        "comment": entry.comment,
    }


def _layer(step: Mapping[str, Any], *, full: bool) -> str:
    if step["layer"] is None:
        return "<none>"
    return str(step["layer"]) if full else _short(step["layer"])


def _command(step: Mapping[str, Any], *, full: bool) -> str:
    text = str(step["created_by"])
    return text if full or len(text) <= _COMMAND_WIDTH else text[: _COMMAND_WIDTH - 1] + "…"


def _history_fields(*, human: bool, full: bool) -> Mapping[str, Any]:
    """Docker's fields."""
    return {
        "ID": lambda step: _layer(step, full=full),
        "CreatedSince": lambda step: _since(step["created"]),
        "CreatedAt": lambda step: step["created"] or "N/A",
        "CreatedBy": lambda step: _command(step, full=full),
        "Size": lambda step: human_size(step["size"]) if human else step["size"],
        "Comment": lambda step: step["comment"],
    }


def _history_columns(*, human: bool, full: bool) -> list[Column]:
    fields = _history_fields(human=human, full=full)
    return [
        Column("LAYER", fields["ID"]),
        Column("CREATED", fields["CreatedSince" if human else "CreatedAt"]),
        Column("CREATED BY", fields["CreatedBy"]),
        Column("SIZE", fields["Size"]),
        Column("COMMENT", fields["Comment"]),
    ]


@click.command(cls=Verb)
@click.argument("name", shell_complete=complete_images)
@pass_settings
def exists(settings: Settings, /, name: str) -> None:
    """Exit with 0 when NAME is here, with 1 when it is not (podman image exists).

    Any other code means that it can't be told.
    """
    settings.least_code = 2  # 1 is an answer here, so trouble needs another code
    try:
        with settings.open() as store:
            found = store.exists(name)
    except NotFoundError:
        found = False
    raise click.exceptions.Exit(0 if found else 1)
