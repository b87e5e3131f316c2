"""``export`` and ``import``: docker's save and load."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import click

from imgdb.cli.context import (
    PlatformType,
    Settings,
    SizeType,
    complete_images,
    flatten,
    note,
    pass_settings,
    progress_options,
)
from imgdb.cli.output import Column, emit
from imgdb.cli.printable import human_size, json_text, printable
from imgdb.errors import InvalidArgumentError, RefusedError

if TYPE_CHECKING:
    from imgdb.exporter.plan import ExportOptions
    from imgdb.results import ExportResult, LoadResult

_PLATFORM_HELP = "Only this platform, os[/arch[/variant]]; repeatable, comma lists."


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=complete_images)
@click.option("-o", "--output", metavar="FILE|-", help="Where to; standard output when it is no terminal.")
@click.option("--all", "every", is_flag=True, help="All images of the store.")
@click.option("--names-from", metavar="FILE|-", help="Read names from a file, one a line.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["oci-archive", "docker-archive", "oci-dir"]),
    default="oci-archive",
    show_default=True,
    help="oci-archive is loaded by docker and podman as well.",
)
@click.option("--platform", "platforms", type=PlatformType(), multiple=True, help=_PLATFORM_HELP)
@click.option(
    "--prefer", type=PlatformType(), help="What tools that know no platforms get; default: this host's."
)
@click.option("--strict", is_flag=True, help="Fail when anything of an image is not here.")
@click.option("--foreign", is_flag=True, help="Carry foreign (non-distributable) layers that are here.")
@click.option(
    "--trust", is_flag=True, help="Don't read blobs whose files have not changed since verification."
)
@click.option("--compress", type=click.Choice(["none", "gzip", "zstd"]), default="none", show_default=True)
@click.option("--referrers/--no-referrers", default=True, help="Signatures and attestations of the images.")
@click.option("--digestfile", metavar="FILE", help="Write the images' digests there, one a line.")
@click.option("--json", "as_json", is_flag=True, help="Say what was written, as JSON.")
@progress_options
@pass_settings
def export(
    settings: Settings, /, names: tuple[str, ...], output: str | None, every: bool, **options: Any
) -> None:
    """Write images to one archive (docker save).

    A NAME without a tag is the whole repository; IDs, short IDs and config digests work too.
    """
    wanted = _names(names, options.pop("names_from"), every=every)
    target = _target(output, options["format_"])
    digestfile, as_json = options.pop("digestfile"), options.pop("as_json")
    reporter = settings.reporter(options.pop("progress"), quiet=options.pop("quiet"))
    chosen = _export_options(options)
    with settings.open() as store:
        result = store.export(wanted, target, chosen, every=every, reporter=reporter)
    if digestfile:
        _write_digests(digestfile, result)
    if as_json:
        # When the archive is on standard output, the report must not be.
        click.echo(json_text(_export_report(result, output)), err=not isinstance(target, str))


def _names(names: tuple[str, ...], names_from: str | None, *, every: bool) -> list[str]:
    if every and (names or names_from):
        raise InvalidArgumentError("--all and names contradict each other")
    wanted = list(names)
    if names_from == "-":
        wanted += sys.stdin.read().split()
    elif names_from is not None:
        with open(names_from, encoding="utf-8") as file:
            wanted += file.read().split()
    if not wanted and not every and names_from is None:
        raise InvalidArgumentError("export needs a NAME, --names-from or --all (see imgdb export --help)")
    return wanted


def _target(output: str | None, format_: str) -> Any:
    if output not in {None, "-"}:
        return output
    if format_ == "oci-dir":
        raise InvalidArgumentError("--format oci-dir needs -o DIR")
    if sys.stdout.isatty():
        raise RefusedError("cowardly refusing to save to a terminal; use -o FILE or redirect")
    return sys.stdout.buffer


def _export_options(options: dict[str, Any]) -> ExportOptions:
    from imgdb.exporter.plan import ExportOptions  # noqa: PLC0415 - not needed for help

    prefer = options["prefer"]
    return ExportOptions(
        format=options["format_"],
        platforms=flatten(options["platforms"]),
        prefer=prefer[0] if prefer else None,
        strict=options["strict"],
        foreign=options["foreign"],
        referrers=options["referrers"],
        trust=options["trust"],
        compress=options["compress"],
    )


def _write_digests(path: str, result: ExportResult) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"{image.digest}\n" for image in result.images)


def _export_report(result: ExportResult, output: str | None) -> dict[str, Any]:
    return {
        "output": output or "-",
        "blobs": result.blobs,
        "blob_bytes": result.blob_bytes,
        "images": [
            {
                "name": image.name,
                "digest": str(image.digest),
                "platforms": list(image.platforms),
                "missing_platforms": list(image.missing),
            }
            for image in result.images
        ],
    }


@click.command("import")
@click.argument("sources", nargs=-1, metavar="[FILE|DIR|-]...", type=click.Path(allow_dash=True))
@click.option("-i", "--input", "inputs", metavar="FILE", multiple=True, help="Same as a FILE argument.")
@click.option("-n", "--dry-run", is_flag=True, help="Verify, and say what would change.")
@click.option("--platform", "platforms", type=PlatformType(), multiple=True, help=_PLATFORM_HELP)
@click.option("--name", metavar="REF", help="Name for the image, when the archive holds one only.")
@click.option(
    "--replace",
    type=click.Choice(["dangle", "refuse", "replace"]),
    default="dangle",
    show_default=True,
    help="What to do with the image whose name is taken.",
)
@click.option("--allow-incomplete", is_flag=True, help="Take images of which no platform is complete.")
@click.option("--max-size", type=SizeType(), help="Refuse archives that hold more, such as 20GB.")
@click.option("--json", "as_json", is_flag=True, help="Say what was imported, as JSON.")
@progress_options
@pass_settings
def import_(
    settings: Settings, /, sources: tuple[str, ...], inputs: tuple[str, ...], dry_run: bool, **options: Any
) -> None:
    """Import image archives (docker load): docker, podman, skopeo, containerd, OCI.

    Reads files, directories with an OCI layout, or standard input; gzip, bzip2, xz and zstd are
    recognised. For a root file system made by docker export, use docker import instead.
    """
    from imgdb.importer.plan import ImportOptions  # noqa: PLC0415 - not needed for help

    chosen = ImportOptions(
        platforms=flatten(options["platforms"]),
        name=options["name"],
        replace=options["replace"],
        allow_incomplete=options["allow_incomplete"],
        max_size=options["max_size"],
    )
    quiet = options["quiet"] or settings.quiet
    reporter = settings.reporter(options["progress"], quiet=options["quiet"])
    reports = []
    everything = _sources(sources + inputs)
    with settings.open(create=True) as store:
        for source in everything:
            stream = sys.stdin.buffer if source == "-" else source
            result = store.load(stream, chosen, dry_run=dry_run, reporter=reporter)
            reports.append(_load_report(source, result))
            if not options["as_json"]:
                _show_load(result, settings, dry_run=dry_run, quiet=quiet)
    if options["as_json"]:
        click.echo(json_text(reports))


def _sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    if sources:
        return sources
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidArgumentError("import needs a FILE, a DIR, or an archive on standard input")
    if stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode):
        raise InvalidArgumentError("requested import from standard input, but it is empty")
    return ("-",)


def _show_load(result: LoadResult, settings: Settings, *, dry_run: bool, quiet: bool) -> None:
    if dry_run:
        _show_plan(result)
        return
    for image in result.images:
        if not quiet:
            label = "Loaded image" if image.name else "Loaded image ID"
            click.echo(f"{label}: {printable(image.display_name)}")
        if image.absent:
            note(f"{printable(image.display_name)}: not in the archive: {', '.join(image.absent)}", settings)
        if image.previous is not None:
            name = printable(image.display_name)
            moved = f"{name} moved from {image.previous} to {image.digest}"
            note(f"{moved}; undo: imgdb tag {image.previous} {name}", settings)


def _show_plan(result: LoadResult) -> None:
    columns = [
        Column("NAME", lambda image: image["name"] or "<none>"),
        Column("DIGEST", lambda image: image["digest"]),
        Column("PLATFORMS", lambda image: ",".join(image["platforms"]) or "-"),
        Column("STATE", lambda image: image["state"]),
    ]
    emit(_load_report("", result)["images"], format="table", columns=columns)
    click.echo(f"{result.new_blobs} new blobs, {result.new_bytes} bytes ({human_size(result.new_bytes)})")


def _load_report(source: str, result: LoadResult) -> dict[str, Any]:
    return {
        "source": source,
        "new_blobs": result.new_blobs,
        "new_bytes": result.new_bytes,
        "warnings": list(result.warnings),
        "images": [
            {
                "name": image.name,
                "digest": str(image.digest),
                "platforms": list(image.platforms),
                "missing_platforms": list(image.absent),
                "state": image.state,
                "previous": str(image.previous) if image.previous else None,
            }
            for image in result.images
        ],
    }
