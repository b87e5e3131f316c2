"""``export`` and ``import``: docker's save and load."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli import transfer
from imgdb.cli.context import Settings, complete_images, note, pass_settings
from imgdb.cli.filesystem import unpack_imported
from imgdb.cli.groups import Verb
from imgdb.cli.names import undo
from imgdb.cli.output import say
from imgdb.cli.params import Failures, OnePlatformType, PlatformType, SizeType, flatten
from imgdb.cli.printable import json_text, printable
from imgdb.cli.report import Sink
from imgdb.cli.streams import STDOUT, WRITE_ERRORS, blame, standard_input
from imgdb.errors import InvalidArgumentError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgdb.exporter.plan import ExportOptions
    from imgdb.importer.plan import ImportOptions
    from imgdb.results import LoadResult
    from imgdb.store import ImageStore

_PLATFORM_HELP = "Only this platform: os[/arch[/variant]]; repeatable, comma lists."
_STDIN = "standard input"

_EXPORT_EXAMPLES = (
    "imgdb export busybox:latest -o busybox.tar",
    "imgdb export busybox:latest | ssh host docker load",
    "imgdb export --all --compress zstd -o everything.tar.zst",
)
_IMPORT_EXAMPLES = (
    "imgdb import busybox.tar other.tar.gz",
    "docker save busybox | imgdb import",
    "imgdb import --dry-run layout/",
    "docker export web | imgdb import --rootfs --name web:snapshot -",
)


@click.command(cls=Verb, style=True, extras={"Examples": _EXPORT_EXAMPLES})
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=complete_images)
@click.option(
    "-o",
    "--output",
    metavar="FILE|-",
    type=click.Path(readable=False, allow_dash=True),
    help="Where to write, all or nothing.  [default: standard output, unless it is a terminal]",
)
@click.option("--all", "every", is_flag=True, help="All images of the store.")
@click.option(
    "--names-from",
    metavar="FILE|-",
    type=click.Path(readable=False, allow_dash=True),
    help="Read names from a file, one a line; # begins a comment.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["oci-archive", "docker-archive", "oci-dir"]),
    default="oci-archive",
    metavar="FORMAT",
    help="oci-archive (default; docker and podman load it, too), docker-archive, or oci-dir.",
)
@click.option(
    "--compress",
    type=click.Choice(["none", "gzip", "zstd"]),
    default="none",
    metavar="METHOD",
    help="Compress the whole archive: none (default), gzip or zstd.",
)
@click.option("--platform", "platforms", type=PlatformType(), multiple=True, help=_PLATFORM_HELP)
@click.option(
    "--prefer", type=OnePlatformType(), help="What tools that know no platforms get.  [default: this host's]"
)
@click.option("--strict", is_flag=True, help="Fail when anything of an image is not here.")
@click.option("--foreign", is_flag=True, help="Carry foreign (non-distributable) layers that are here.")
@click.option(
    "--referrers/--no-referrers",
    default=True,
    help="Carry signatures and attestations of the images.  [default: yes]",
)
@click.option(
    "--trust", is_flag=True, help="Don't verify blobs whose files have not changed since the last time."
)
@click.option(
    "--digestfile",
    metavar="FILE",
    type=click.Path(readable=False),
    help="Write the digests of the images there, one a line.",
)
@click.option("--json", "as_json", is_flag=True, help="Say what was written, as JSON.")
@pass_settings
def export(
    settings: Settings, /, names: tuple[str, ...], output: str | None, every: bool, **options: Any
) -> None:
    """Write images to one archive (docker save).

    A NAME without a tag is the whole repository; IDs, short IDs and digests of configs work, too.
    """
    wanted = _names(names, options["names_from"], every=every)
    target = _target(output, options["format_"])
    is_file = isinstance(target, str)
    chosen = _export_options(options)
    with settings.open() as store, blame(target if is_file else STDOUT, WRITE_ERRORS):
        result = store.export(wanted, target, chosen, every=every, reporter=settings.reporter())
    if options["digestfile"]:
        transfer.write_digests(options["digestfile"], result)
    if options["as_json"]:
        # When the archive is on standard output, the report must not be.
        report = json_text(transfer.of_export(result, output), ascii_only=True)
        (say if is_file else Sink(sys.stderr).line)(report)


def _names(names: tuple[str, ...], names_from: str | None, *, every: bool) -> list[str]:
    if every and (names or names_from is not None):
        raise InvalidArgumentError("--all and names contradict each other")
    if names_from is not None:
        listed = _read_names(names_from)
        if not listed and not names:
            raise NotFoundError(f"{_label(names_from)}: no names in it")
        return [*names, *listed]
    if not names and not every:
        raise InvalidArgumentError("export needs a NAME, --names-from or --all (see imgdb export --help)")
    return list(names)


def _read_names(source: str) -> list[str]:
    with ExitStack() as stack, blame(_label(source)):
        file = sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
        # What is no ASCII is no name, and is refused as such.
        lines = [line.decode("utf-8", "backslashreplace").strip() for line in file]
    return [line for line in lines if line and not line.startswith("#")]


def _label(source: str) -> str:
    return _STDIN if source == "-" else source


def _target(output: str | None, format_: str) -> Any:
    """A path, or the stream of standard output."""
    if output == "":
        raise InvalidArgumentError("-o is empty; it needs the name of a file")
    # The name of a link: replacing that by a file would be no way to write to standard output.
    if output not in {None, "-", "/dev/stdout"}:
        return output
    if format_ == "oci-dir":
        raise InvalidArgumentError("--format oci-dir needs -o DIR")
    if sys.stdout.isatty():
        raise RefusedError("cowardly refusing to save to a terminal; use -o FILE or redirect")
    return sys.stdout.buffer


def _export_options(options: dict[str, Any]) -> ExportOptions:
    from imgdb.exporter.plan import ExportOptions  # noqa: PLC0415 - not needed for help

    return ExportOptions(
        format=options["format_"],
        platforms=flatten(options["platforms"]),
        prefer=options["prefer"],
        strict=options["strict"],
        foreign=options["foreign"],
        referrers=options["referrers"],
        trust=options["trust"],
        compress=options["compress"],
    )


@click.command("import", cls=Verb, style=True, extras={"Examples": _IMPORT_EXAMPLES})
@click.argument(
    "sources", nargs=-1, metavar="[FILE|DIR|-]...", type=click.Path(readable=False, allow_dash=True)
)
@click.option(
    "-i",
    "--input",
    "inputs",
    metavar="FILE",
    type=click.Path(readable=False, allow_dash=True),
    multiple=True,
    help="The same as a FILE argument, as docker load has it.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Verify, and say what would change.")
@click.option("--platform", "platforms", type=PlatformType(), multiple=True, help=_PLATFORM_HELP)
@click.option("--name", metavar="REF", help="Name for the image, when the archive holds one only.")
@click.option(
    "--replace",
    type=click.Choice(["dangle", "refuse", "replace"]),
    default="dangle",
    metavar="RULE",
    help="When a name is taken by another image: dangle (default) keeps that without a name, "
    "replace drops it, refuse imports nothing.",
)
@click.option(
    "--rootfs",
    is_flag=True,
    help="A source is the tar of a root file system: make an image of it, for --platform or this host.",
)
@click.option(
    "--unpack/--no-unpack",
    default=False,
    help="Unpack what this host runs, or --platform, into snapshots.  [default: no]",
)
@click.option("--lease", metavar="ID", help="Let this lease keep the imported images, even without names.")
@click.option("--allow-incomplete", is_flag=True, help="Take images of which no platform is complete.")
@click.option("--max-size", type=SizeType(), help="Refuse archives that hold more, such as 20GB.")
@click.option("--json", "as_json", is_flag=True, help="Say what was imported, as JSON.")
@pass_settings
def import_(
    settings: Settings, /, sources: tuple[str, ...], inputs: tuple[str, ...], dry_run: bool, **options: Any
) -> None:
    """Read image archives (docker load) of docker, podman, skopeo, containerd and other OCI tools.

    A source is a file, a directory with an OCI layout, or standard input; gzip, bzip2, xz and zstd
    are recognised. With --rootfs it does what docker import does with the tars of docker export.
    """
    everything = _sources(sources + inputs, named=options["name"] is not None)
    chosen = _import_options(options)
    as_json = options["as_json"]
    done: list[dict[str, Any]] = []
    failures = Failures(settings)
    try:
        with _store_to_import(settings, dry_run=dry_run) as store:
            for source in everything:
                result = _load(store, source, chosen, settings, dry_run=dry_run)
                done.append(transfer.of_import(source, result))
                if not as_json and dry_run:
                    transfer.show_plan(result)
                elif not as_json:
                    _show(result, settings, kept=chosen.replace == "dangle")
                if options["unpack"] and not dry_run:
                    done[-1]["unpacked"] = unpack_imported(
                        store, result, chosen.platforms, settings, failures
                    )
    finally:
        # What came before a source that failed is in the store, so the report has it.
        if as_json:
            say(json_text(done, ascii_only=True))
    if failures.code:
        failures.leave()


def _sources(sources: tuple[str, ...], *, named: bool) -> tuple[str, ...]:
    """What to read, looked at before a store is made for it."""
    if named and len(sources) > 1:
        raise InvalidArgumentError("--name is for one archive; import the others by themselves")
    if sources.count("-") > 1:
        raise InvalidArgumentError("standard input can be read only once")
    for source in sources:
        if source != "-" and not os.path.lexists(source):
            raise NotFoundError(f"{source}: no such file")
    if not sources or "-" in sources:
        _check_stdin()
    return sources or ("-",)


def _check_stdin() -> None:
    if sys.stdin.isatty():
        raise InvalidArgumentError("import needs a FILE, a DIR, or an archive on standard input")
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except OSError:
        return  # not a file of the system: whoever embeds us knows what it is
    if stat.S_ISCHR(mode):
        raise InvalidArgumentError("requested import from standard input, but it is empty")


def _import_options(options: dict[str, Any]) -> ImportOptions:
    from imgdb.importer.plan import ImportOptions  # noqa: PLC0415 - not needed for help

    return ImportOptions(
        platforms=flatten(options["platforms"]),
        name=options["name"],
        replace=options["replace"],
        allow_incomplete=options["allow_incomplete"],
        max_size=options["max_size"],
        lease=options["lease"],
        rootfs=options["rootfs"],
    )


@contextmanager
def _store_to_import(settings: Settings, *, dry_run: bool) -> Iterator[ImageStore]:
    """The store, made if need be; a dry run that finds none gets an empty one for as long as it takes."""
    if not dry_run or (os.path.isdir(settings.root) and os.listdir(settings.root)):
        with settings.open(create=not dry_run) as store:
            yield store
        return
    from tempfile import TemporaryDirectory  # noqa: PLC0415 - needed here only

    with TemporaryDirectory(prefix="imgdb-") as directory:
        empty = replace(settings, store=directory, db=None)
        with empty.open(create=True) as store:
            yield store


def _load(
    store: ImageStore, source: str, chosen: ImportOptions, settings: Settings, *, dry_run: bool
) -> LoadResult:
    stream = standard_input() if source == "-" else source
    with blame(_label(source)), blame(store.root, WRITE_ERRORS):
        return store.load(stream, chosen, dry_run=dry_run, reporter=settings.reporter())


def _show(result: LoadResult, settings: Settings, *, kept: bool) -> None:
    """Docker's lines; `kept` says whether an image that lost its name is still here."""
    for image in result.images:
        label = "Loaded image" if image.name else "Loaded image ID"
        say(f"{label}: {printable(image.display_name)}")
        if image.absent:
            note(f"{image.display_name}: not in the archive: {', '.join(image.absent)}", settings)
        if image.previous is not None:
            name, before = image.display_name, image.previous
            way_back = f"; {undo(name)}" if kept else ""
            note(f"{name} moved from {before} to {image.digest}{way_back}", settings)
