"""What ``export`` and ``import`` did, for machines; keys in docs/formats.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgdb.cli.output import Column, emit, say
from imgdb.cli.printable import human_size

if TYPE_CHECKING:
    from imgdb.results import ExportResult, LoadResult


def of_export(result: ExportResult, output: str | None) -> dict[str, Any]:
    """The report of ``export --json``."""
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


def write_digests(path: str, result: ExportResult) -> None:
    """Write ``--digestfile``."""
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"{image.digest}\n" for image in result.images)


def of_import(source: str, result: LoadResult) -> dict[str, Any]:
    """One source's object in the report of ``import --json``."""
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


def show_plan(result: LoadResult) -> None:
    """What a dry run says to people."""
    columns = [
        Column("NAME", lambda image: image["name"] or "<none>"),
        Column("DIGEST", lambda image: image["digest"]),
        Column("PLATFORMS", lambda image: ",".join(image["platforms"]) or "-"),
        Column("STATE", lambda image: image["state"]),
    ]
    emit(of_import("", result)["images"], format="table", columns=columns)
    say(f"{result.new_blobs} new blobs, {result.new_bytes} bytes ({human_size(result.new_bytes)})")
