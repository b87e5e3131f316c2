"""``blob ls|stat|cat``: the bytes below the images."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import Settings, format_option, pass_settings
from imgdb.cli.output import Column, emit
from imgdb.cli.printable import human_size, rfc3339

if TYPE_CHECKING:
    from imgdb.results import BlobInfo


@click.group()
def blob() -> None:
    """Look at blobs: ls, stat, cat (ctr content)."""


def _record(info: BlobInfo) -> dict[str, Any]:
    return {
        "digest": str(info.digest),
        "size": info.size,
        "kind": info.kind,
        "media_type": info.media_type,
        "present": info.present,
        "damaged": info.damaged,
        "refcount": info.refcount,
        "flat_refcount": info.flat_refcount,
        "created_at": rfc3339(info.created_at),
        "verified_at": rfc3339(info.verified_at),
    }


@blob.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Digests only.")
@click.option("--absent", is_flag=True, help="Blobs that images refer to and that are not here.")
@format_option
@pass_settings
def ls(settings: Settings, /, quiet: bool, absent: bool, format_: str) -> None:
    """List blobs."""
    with settings.open() as store:
        records = [_record(info) for info in store.blobs() if info.present != absent]
    if quiet:
        for record in records:
            click.echo(record["digest"])
        return
    columns = [
        Column("DIGEST", lambda item: item["digest"]),
        Column("SIZE", lambda item: human_size(item["size"])),
        Column("KIND", lambda item: item["kind"]),
        Column("REFS", lambda item: item["refcount"]),
        Column("MEDIA TYPE", lambda item: item["media_type"]),
    ]
    emit(records, format=format_, columns=columns)


@blob.command("stat")
@click.argument("digest")
@click.option("--format", "format_", default="json", metavar="FORMAT", help="json, jsonl or a template.")
@pass_settings
def stat(settings: Settings, /, digest: str, format_: str) -> None:
    """Show a blob's row."""
    with settings.open() as store:
        record = _record(store.blob(digest))
    emit([record], format=format_, columns=[Column("DIGEST", lambda item: item["digest"])])


@blob.command("cat")
@click.argument("digest")
@pass_settings
def cat(settings: Settings, /, digest: str) -> None:
    """Write a blob's bytes to standard output."""
    from imgdb.archive.sink import PipeSink  # noqa: PLC0415 - not needed for help

    with settings.open() as store, store.open_blob(digest) as file:
        size = os.fstat(file.fileno()).st_size
        sys.stdout.flush()
        PipeSink(sys.stdout.fileno()).copy(file.fileno(), size, lambda _count: None)
