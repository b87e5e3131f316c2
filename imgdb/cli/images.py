"""``images``, ``inspect``, ``history``, ``exists``: look at what is there."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import (
    PlatformType,
    Settings,
    complete_images,
    format_option,
    note,
    pass_settings,
)
from imgdb.cli.filters import select, sort_key
from imgdb.cli.output import Column, emit
from imgdb.cli.printable import human_duration, human_size, rfc3339
from imgdb.cli.times import parse_rfc3339
from imgdb.errors import ImgdbError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgdb.describe import HistoryEntry, ImageSummary

_SHORT = 12


@click.command()
@click.argument("reference", required=False, shell_complete=complete_images)
@click.option(
    "-a", "--all", "every", is_flag=True, help="Accepted for docker's sake: dangling images are always shown."
)
@click.option("-q", "--quiet", is_flag=True, help="Image IDs only.")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="dangling, label, label!, before, since, until, reference.",
)
@click.option(
    "--sort",
    default="created",
    show_default=True,
    help="created, name, repository, tag, id, size or last-used.",
)
@format_option
@pass_settings
def images(settings: Settings, /, reference: str | None, **options: Any) -> None:
    """List images (docker images)."""
    key = sort_key(options["sort"])
    filters = [*options["filters"], *([f"reference={reference}"] if reference else [])]
    try:
        with settings.open() as store:
            found = store.images()
            root = store.root
    except NotFoundError:
        _hint(settings, None)
        raise
    if not found:
        _hint(settings, root)
    records = [_image_record(summary) for summary in sorted(select(found, filters), key=key)]
    if options["quiet"]:
        ids = dict.fromkeys(record["id"] for record in records)
        for digest in ids:
            click.echo(digest if options["no_trunc"] else _short(digest))
        return
    columns = _image_columns(digests=options["digests"], full=options["no_trunc"])
    emit(
        records,
        format=options["format_"],
        columns=columns,
        template_fields=_template_fields(full=options["no_trunc"]),
        headers={"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT"},
    )


def _hint(settings: Settings, /, root: str | None) -> None:
    """Root and its user have different default stores; a mix-up looks like lost images."""
    if settings.store is not None or os.environ.get("IMGDB_STORE"):
        return
    own = os.path.expanduser(f"~{os.environ.get('SUDO_USER', '')}/.local/share/imgdb")
    other = own if os.geteuid() == 0 else "/var/lib/imgdb"
    if other != root and os.path.exists(os.path.join(other, "store.json")):
        note(f"there is another store in {other}; see it with --store {other}", settings)


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


def _template_fields(*, full: bool) -> Mapping[str, Any]:
    return {
        "ID": lambda image: image["id"] if full else _short(image["id"]),
        "Repository": lambda image: image["repository"] or "<none>",
        "Tag": lambda image: image["tag"] or "<none>",
        "Digest": lambda image: image["digest"],
        "Size": lambda image: human_size(image["size"]),
        "CreatedSince": lambda image: _since(image["created"]),
        "CreatedAt": lambda image: image["created"] or "N/A",
    }


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_images)
@click.option("--platform", type=PlatformType(), help="Show the image of this platform.")
@click.option(
    "-f", "--format", "format_", default="json", metavar="FORMAT", help="json, jsonl or a template."
)
@pass_settings
def inspect(settings: Settings, /, names: tuple[str, ...], platform: Any, format_: str) -> None:
    """Show everything about images (docker inspect)."""
    if format_ == "table":
        raise InvalidArgumentError("inspect has no table; use json, jsonl or a template")
    with settings.open() as store:
        records = [store.inspect(name, platform[0] if platform else None) for name in names]
    emit(records, format=format_, columns=[])


@click.command()
@click.argument("name", shell_complete=complete_images)
@click.option("-H/--no-human", "--human/", "human", default=True, help="Sizes and dates for people.")
@click.option("--no-trunc", is_flag=True, help="Whole commands and digests.")
@click.option("-q", "--quiet", is_flag=True, help="Layer digests only.")
@click.option("--platform", type=PlatformType(), help="The history of this platform's image.")
@format_option
@pass_settings
def history(
    settings: Settings, /, name: str, human: bool, no_trunc: bool, quiet: bool, **options: Any
) -> None:
    """Show how an image was made, newest step first (docker history)."""
    platform = options["platform"]
    with settings.open() as store:
        entries = store.history(name, platform[0] if platform else None)
    records = [_history_record(entry) for entry in entries]
    if quiet:
        for record in records:
            click.echo(_layer(record, full=no_trunc))
        return
    emit(
        records,
        format=options["format_"],
        columns=_history_columns(human=human, full=no_trunc),
        template_fields={
            "ID": lambda step: _layer(step, full=no_trunc),
            "CreatedSince": lambda step: _since(step["created"]),
            "CreatedAt": lambda step: step["created"],
            "CreatedBy": lambda step: step["created_by"],
            "Size": lambda step: human_size(step["size"]) if human else step["size"],
            "Comment": lambda step: step["comment"],
        },
    )


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


def _history_columns(*, human: bool, full: bool) -> list[Column]:
    width = 45

    def command(step: Mapping[str, Any]) -> str:
        text = str(step["created_by"])
        return text if full or len(text) <= width else text[: width - 1] + "…"

    return [
        Column("LAYER", lambda step: _layer(step, full=full)),
        Column("CREATED", lambda step: _since(step["created"]) if human else step["created"] or "N/A"),
        Column("CREATED BY", command),
        Column("SIZE", lambda step: human_size(step["size"]) if human else step["size"]),
        Column("COMMENT", lambda step: step["comment"]),
    ]


@click.command()
@click.argument("name", shell_complete=complete_images)
@pass_settings
@click.pass_context
def exists(ctx: click.Context, settings: Settings, name: str) -> None:
    """Exit with 0 when NAME is here, with 1 when it is not, with more when that can't be told."""
    try:
        with settings.open() as store:
            ctx.exit(0 if store.exists(name) else 1)
    except NotFoundError:
        ctx.exit(1)
    except ImgdbError as error:
        # 1 is an answer here, so trouble needs another code.
        error.exit_code = max(error.exit_code, 2)
        raise
