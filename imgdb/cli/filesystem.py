"""``unpack``, ``mount``, ``umount``, ``rootfs``: what images hold, as directories and as one tar."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import Settings, complete_images, format_option, note, pass_settings
from imgdb.cli.groups import Verb
from imgdb.cli.output import Column, emit, say
from imgdb.cli.params import PlatformType, SizeType, flatten
from imgdb.cli.printable import json_text, printable, rfc3339
from imgdb.cli.streams import STDOUT, WRITE_ERRORS, blame
from imgdb.errors import (
    ImgdbError,
    InvalidArgumentError,
    NothingToUnpackError,
    NotSupportedError,
    RefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgdb.cli.params import Failures
    from imgdb.db.mounts import MountRecord
    from imgdb.oci.platform import Platform
    from imgdb.results import LoadResult
    from imgdb.store import ImageStore
    from imgdb.unpacker.plan import Unpacked

_PLATFORMS = "Of this platform: os[/arch[/variant]]; repeatable, comma lists.  [default: this host's]"
_ROOTFS_EXAMPLES = (
    "imgdb rootfs busybox:latest -o rootfs.tar",
    "imgdb rootfs busybox:latest | tar -x -C /srv/root",
)


def unpacked_record(name: str, done: Unpacked) -> dict[str, Any]:
    """One unpacked manifest, for machines."""
    return {
        "name": name,
        "manifest": str(done.manifest),
        "platform": str(done.platform) if done.platform else None,
        "snapshot": done.snapshot,
        "layers": done.layers,
        "new_layers": done.new_layers,
        "skipped": done.skipped,
    }


@click.command(cls=Verb, style=True)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_images)
@click.option("--platform", "platforms", type=PlatformType(), multiple=True, help=_PLATFORMS)
@click.option("--max-size", type=SizeType(), help="Refuse layers whose files take more.  [default: 64GiB]")
@click.option("--json", "as_json", is_flag=True, help="Say what was unpacked, as JSON.")
@pass_settings
def unpack(settings: Settings, /, names: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Unpack the layers of images into snapshots, and print the keys of these.

    A layer that several images have is unpacked once. A key is what snapshot prepare and mount take.
    """
    done = []
    with settings.open() as store:
        for name in names:
            found = store.unpack(
                name,
                flatten(options["platforms"]),
                max_bytes=options["max_size"],
                reporter=settings.reporter(),
            )
            done += [unpacked_record(name, item) for item in found]
    if as_json:
        say(json_text(done))
        return
    for item in done:
        say(item["snapshot"])


def unpack_imported(
    store: ImageStore,
    result: LoadResult,
    platforms: Sequence[Platform],
    settings: Settings,
    failures: Failures,
) -> list[dict[str, Any]]:
    """Unpack what an import brought; what can't be unpacked stays imported, and is told."""
    done = []
    for image in result.images:
        name = image.name or str(image.digest)
        try:
            found = store.unpack(name, platforms, reporter=settings.reporter())
        except (NotSupportedError, NothingToUnpackError) as error:
            note(f"{error}; nothing was unpacked", settings)
        except ImgdbError as error:
            settings.tell(error, f"{image.display_name} is imported, but not unpacked: {error}")
            failures.code = failures.code or error.exit_code
        else:
            done += [unpacked_record(name, item) for item in found]
    return done


def _mount_record(record: MountRecord, there: dict[str, str]) -> dict[str, Any]:
    return {
        "target": record.target,
        "snapshot": record.key,
        "mounted": record.target in there,
        "created_at": rfc3339(record.created_at),
    }


_MOUNT_COLUMNS = [
    Column("TARGET", lambda item: item["target"]),
    Column("SNAPSHOT", lambda item: item["snapshot"]),
    Column("STATE", lambda item: "mounted" if item["mounted"] else "gone"),
]


@click.command(cls=Verb)
@click.argument("what", metavar="NAME|KEY", required=False, shell_complete=complete_images)
@click.argument("directory", metavar="DIR", required=False, type=click.Path())
@format_option
@pass_settings
def mount(settings: Settings, /, what: str | None, directory: str | None, format_: str) -> None:
    """Mount an image or a snapshot at a directory; without arguments, list what is mounted.

    An image is unpacked where need be, and mounted read-only, as views and committed snapshots are;
    an active snapshot can be written. nosuid and nodev.
    """
    if what is not None and directory is None:
        raise InvalidArgumentError(f"where to? write imgdb mount {what} DIR")
    with settings.open() as store:
        if what is not None and directory is not None:
            store.mount(what, directory)
            return
        from imgdb.snapshots.mount import mounted  # noqa: PLC0415 - not needed for help

        records = [_mount_record(record, mounted()) for record in store.mounts()]
    emit(records, format=format_, columns=_MOUNT_COLUMNS)


@click.command(cls=Verb)
@click.argument("what", nargs=-1, required=True, metavar="DIR|KEY...")
@pass_settings
def umount(settings: Settings, /, what: tuple[str, ...]) -> None:
    """End mounts that imgdb made; also forgets one that has ended without it."""
    with settings.open() as store:
        for item in what:
            record = store.unmount(item)
            note(f"{printable(record.target)}: unmounted", settings)


@click.command(cls=Verb, style=True, extras={"Examples": _ROOTFS_EXAMPLES})
@click.argument("what", metavar="NAME|KEY", shell_complete=complete_images)
@click.option(
    "-o",
    "--output",
    metavar="FILE|-",
    type=click.Path(readable=False, allow_dash=True),
    help="Where to write, all or nothing.  [default: standard output, unless it is a terminal]",
)
@click.option("--platform", "platforms", type=PlatformType(), multiple=True, help=_PLATFORMS)
@pass_settings
def rootfs(settings: Settings, /, what: str, output: str | None, platforms: Any) -> None:
    """Write a root file system as one flat tar (docker export).

    Of an image, read from its layers without unpacking them; of a snapshot, as it is now.
    """
    target: Any = output
    if output in {None, "-", "/dev/stdout"}:
        if sys.stdout.isatty():
            raise RefusedError("refusing to write a tar to a terminal; use -o FILE or redirect")
        target = sys.stdout.buffer
    where = STDOUT if target is not output or output is None else output
    with settings.open() as store, blame(where, WRITE_ERRORS):
        store.rootfs(what, target, flatten(platforms), reporter=settings.reporter())
