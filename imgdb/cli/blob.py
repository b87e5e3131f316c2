"""``blob ls|stat|cat``: the bytes below the images."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from imgdb.cli.context import Settings, format_option, format_option_of, pass_settings
from imgdb.cli.groups import Group
from imgdb.cli.output import Column, emit, say
from imgdb.cli.printable import human_size, printable, rfc3339
from imgdb.cli.streams import STDOUT, blame
from imgdb.errors import RefusedError

if TYPE_CHECKING:
    from imgdb.results import BlobInfo

_SHOWN_ON_TERMINAL = 8 << 20  # no document is larger


@click.group(cls=Group)
def blob() -> None:
    """Look at the bytes below the images: manifests, indexes, configs, layers (ctr content)."""


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
@click.option("--absent", is_flag=True, help="Instead, blobs that images refer to and that are not here.")
@format_option
@pass_settings
def ls(settings: Settings, /, quiet: bool, absent: bool, format_: str) -> None:
    """List blobs that are here, by digest."""
    with settings.open() as store:
        records = [_record(info) for info in store.blobs() if info.present != absent]
    if quiet:
        emit(records, format="{{.digest}}", columns=[])
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
@format_option_of("json (default), jsonl, or a template such as '{{.size}}'.", default="json", table=False)
@pass_settings
def stat(settings: Settings, /, digest: str, format_: str) -> None:
    """Show what is recorded about a blob.

    DIGEST may be the beginning of one.
    """
    with settings.open() as store:
        record = _record(store.blob(digest))
    emit([record], format=format_, columns=[])


@blob.command("cat")
@click.argument("digest")
@pass_settings
def cat(settings: Settings, /, digest: str) -> None:
    """Write a blob's bytes to standard output.

    To a terminal only text is written, with control characters escaped.
    """
    with settings.open() as store, store.open_blob(digest) as file, blame(STDOUT):
        if sys.stdout.isatty():
            _show(file)
            return
        from imgdb.exporter.write import open_sink  # noqa: PLC0415 - not needed for help

        with open_sink(sys.stdout.buffer, "none") as sink:
            sink.copy(file.fileno(), os.fstat(file.fileno()).st_size, lambda _count: None)


def _show(file: BinaryIO) -> None:
    data = file.read(_SHOWN_ON_TERMINAL + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or len(data) > _SHOWN_ON_TERMINAL:
        raise RefusedError("refusing to write bytes that are no text to a terminal; redirect them")
    for line in text.splitlines():
        say(printable(line))
