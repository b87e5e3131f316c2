"""``snapshot ls|prepare|view|commit|rm|usage|exec``: file systems under a key (ctr snapshots)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import Settings, complete_images, format_option, note, pass_settings
from imgdb.cli.groups import Group
from imgdb.cli.output import Column, emit, say
from imgdb.cli.params import Failures, read_labels
from imgdb.cli.printable import human_size, printable, rfc3339
from imgdb.errors import ImgdbError, InvalidArgumentError

if TYPE_CHECKING:
    from imgdb.db.snapshots import SnapshotRecord

_PARENT = "PARENT: key of a committed snapshot, or an image that is unpacked."


@click.group(cls=Group)
def snapshot() -> None:
    """File systems under a key (ctr snapshots): ls, prepare, view, commit, rm, usage, exec.

    unpack makes committed snapshots, one a layer. prepare puts one on top that can be written: the
    file system of a container. It and views stay until they are removed; committed ones that
    nothing needs are freed by gc.
    """


def _record(record: SnapshotRecord) -> dict[str, Any]:
    return {
        "key": record.key,
        "id": record.id,
        "kind": record.kind,
        "parent": record.parent,
        "chain_id": record.chain_id,
        "labels": dict(record.labels),
        "size": record.usage_bytes,
        "inodes": record.usage_inodes,
        "refcount": record.refcount,
        "created_at": rfc3339(record.created_at),
    }


def _size(value: int | None) -> str:
    return "-" if value is None else human_size(value)


def _columns(*, full: bool) -> list[Column]:
    def key(text: str | None) -> str:
        # Chain IDs are long; what people chose is shown as it is.
        is_chain = text is not None and text.startswith("sha256:") and not full
        return text[: len("sha256:") + 12] if text and is_chain else text or "-"

    return [
        Column("KEY", lambda item: key(item["key"])),
        Column("KIND", lambda item: item["kind"]),
        Column("SIZE", lambda item: _size(item["size"])),
        Column("INODES", lambda item: "-" if item["inodes"] is None else item["inodes"]),
        Column("PARENT", lambda item: key(item["parent"])),
    ]


@snapshot.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Keys only.")
@click.option("--no-trunc", is_flag=True, help="Whole keys.")
@format_option
@pass_settings
def ls(settings: Settings, /, quiet: bool, no_trunc: bool, format_: str) -> None:
    """List snapshots, parents before their children; the size of an active one is in usage."""
    with settings.open() as store:
        records = [_record(record) for record in store.snapshots()]
    if quiet:
        emit(records, format="{{.key}}", columns=[])
        return
    emit(records, format=format_, columns=_columns(full=no_trunc))


_label = click.option("--label", "labels", metavar="NAME[=VALUE]", multiple=True, help="Repeatable.")


@snapshot.command("prepare", epilog=_PARENT)
@click.argument("key")
@click.argument("parent", required=False, shell_complete=complete_images)
@_label
@pass_settings
def prepare(settings: Settings, /, key: str, parent: str | None, labels: tuple[str, ...]) -> None:
    """Make a snapshot that can be written, on top of PARENT or of nothing."""
    with settings.open() as store:
        store.prepare(key, parent, labels=read_labels(labels))


@snapshot.command("view", epilog=_PARENT)
@click.argument("key")
@click.argument("parent", required=False, shell_complete=complete_images)
@_label
@pass_settings
def view(settings: Settings, /, key: str, parent: str | None, labels: tuple[str, ...]) -> None:
    """Make a read-only snapshot of PARENT."""
    with settings.open() as store:
        store.view(key, parent, labels=read_labels(labels))


@snapshot.command("commit")
@click.argument("name")
@click.argument("key")
@_label
@pass_settings
def commit(settings: Settings, /, name: str, key: str, labels: tuple[str, ...]) -> None:
    """Turn the active snapshot KEY into a committed one called NAME.

    The next gc frees it unless a snapshot is prepared on it, or a lease keeps it.
    """
    with settings.open() as store:
        store.commit_snapshot(name, key, labels=read_labels(labels))
    note(
        f"the next gc frees {printable(name)}, unless a snapshot is prepared on it or a lease keeps it",
        settings,
    )


@snapshot.command("rm")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@pass_settings
def rm(settings: Settings, /, keys: tuple[str, ...]) -> None:
    """Remove snapshots, and what was written into them."""
    failures = Failures(settings)
    with settings.open() as store:
        for key in keys:
            try:
                store.remove_snapshot(key)
                say(printable(key))
            except ImgdbError as error:
                failures.add(error)
    if failures.code:
        failures.leave()


@snapshot.command("usage")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@format_option
@pass_settings
def usage(settings: Settings, /, keys: tuple[str, ...], format_: str) -> None:
    """Show what snapshots take on disk without their parents, active ones as they are now."""
    with settings.open() as store:
        wanted = keys or tuple(record.key for record in store.snapshots())
        found = [(key, store.snapshot_usage(key)) for key in wanted]
    records = [{"key": key, "size": item.bytes, "inodes": item.inodes} for key, item in found]
    columns = [
        Column("KEY", lambda item: item["key"]),
        Column("SIZE", lambda item: human_size(item["size"])),
        Column("INODES", lambda item: item["inodes"]),
    ]
    emit(records, format=format_, columns=columns)


@snapshot.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("key")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
@click.option("--chroot", "inside", is_flag=True, help="Run it inside, as root of there; no isolation.")
@pass_settings
def exec_(settings: Settings, /, key: str, command: tuple[str, ...], inside: bool) -> None:
    """Mount an active snapshot or a view, run a command on it, unmount it.

    The command is the host's, and starts in the root's directory, which $IMGDB_ROOTFS names, too:
    write etc/passwd, not /etc/passwd. Ends with the command's exit code, with 127 where there is no
    such command, and with 126 where it can't be executed. With --chroot there is what the image has:
    no /proc, and no devices, for the mount is nodev.
    """
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise InvalidArgumentError(f"which command? write imgdb snapshot exec {key} -- COMMAND")
    with settings.open() as store:
        code = store.execute(key, command, inside=inside)
    raise click.exceptions.Exit(code)
