"""Results of gc, why and df as records, lines and metrics."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from imgdb.cli.output import Column
from imgdb.cli.printable import human_size, printable, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgdb.db.why import Root, Way, Why
    from imgdb.df import Usage
    from imgdb.gc import GcPlan, GcResult
    from imgdb.oci.digest import Digest
    from imgdb.prune import Pruned, PrunePlan


def gc_plan(plan: GcPlan | None) -> dict[str, Any]:
    """What a dry run reports; the same keys as `gc_result`."""
    assert plan is not None  # noqa: S101 - a dry run has a plan
    freed = plan.freed
    return {
        "dry_run": True,
        "freed_bytes": plan.freed_bytes,
        "freed_blobs": len(freed),
        "freed_snapshots": len(plan.snapshots),
        "snapshots": [record.key for record in plan.snapshots],
        "expired_leases": len(plan.expired),
        "kept_bytes": plan.kept_bytes,
        "remaining_bytes": 0,
        "duration_s": 0.0,
        "complete": True,
        "blobs": [str(digest) for digest in sorted(freed)],
        "foreign": list(plan.foreign),
    }


def gc_result(result: GcResult) -> dict[str, Any]:
    """What a collection reports."""
    return {
        "dry_run": False,
        "freed_bytes": result.freed_bytes,
        "freed_blobs": len(result.freed),
        "freed_snapshots": len(result.snapshots),
        "snapshots": list(result.snapshots),
        "expired_leases": result.expired_leases,
        "kept_bytes": result.kept_bytes,
        "remaining_bytes": result.remaining_bytes,
        "duration_s": round(result.duration_s, 6),
        "complete": result.complete,
        "blobs": [str(digest) for digest in sorted(result.freed)],
        "foreign": list(result.foreign),
    }


def gc_line(report: Mapping[str, Any], *, dry_run: bool) -> str:
    """One line for people."""
    verb = "would free" if dry_run else "freed"
    blobs = f"{report['freed_blobs']} blob{'' if report['freed_blobs'] == 1 else 's'}"
    if report["freed_snapshots"]:
        blobs += f", {report['freed_snapshots']} snapshot{'' if report['freed_snapshots'] == 1 else 's'}"
    line = f"{verb} {blobs}, {human_size(report['freed_bytes'])}; kept {human_size(report['kept_bytes'])}"
    if report["expired_leases"]:
        line += f"; {report['expired_leases']} expired leases"
    return line if report["complete"] else f"{line}; stopped early, run gc again"


def explain(plan: GcPlan | None, kept: Mapping[Digest, Root]) -> Iterator[str]:
    """A line for each blob: freed because, or kept because."""
    assert plan is not None  # noqa: S101 - explaining makes a plan
    for item in plan.garbage:
        if item.frees:
            yield f"freed {item.digest} ({human_size(item.size)}): no image, lease or document needs it"
    for digest, size in plan.waiting:
        yield f"freed {digest} ({human_size(size)}): left by an earlier collection or a dead import"
    for digest, size in plan.orphans:
        yield f"freed {digest} ({human_size(size)}): a file that no row knows, older than the grace"
    for record in plan.snapshots:
        took = human_size(record.usage_bytes or 0)
        yield f"freed snapshot {printable(record.key)} ({took}): no image, snapshot, mount or lease needs it"
    for digest, root in sorted(kept.items()):
        yield f"kept {digest}: {printable(f'{root.kind} {root.name}')}"


def write_textfile(path: str, report: Mapping[str, Any], store_bytes: int) -> None:
    """Metrics in the text format of Prometheus, replaced in one step beside the old file."""
    values = {
        "imgdb_gc_last_success_timestamp_seconds": ("End of the last collection.", round(time.time(), 3)),
        "imgdb_gc_duration_seconds": ("How long it took.", report["duration_s"]),
        "imgdb_gc_freed_bytes": ("Bytes that it freed.", report["freed_bytes"]),
        "imgdb_gc_freed_blobs": ("Blobs that it freed.", report["freed_blobs"]),
        "imgdb_gc_remaining_bytes": ("Garbage that it left, by a limit.", report["remaining_bytes"]),
        "imgdb_store_bytes": ("Bytes of all blobs.", store_bytes),
    }
    lines = [
        f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value}\n"
        for name, (text, value) in values.items()
    ]
    from imgdb.content.files import write_durably  # noqa: PLC0415 - not needed for help

    # Readable for all: node_exporter runs as somebody else.
    try:
        write_durably(os.path.abspath(path), "".join(lines).encode("ascii"), mode=0o644)
    except OSError as error:
        # The name that was given, not that of the temporary file.
        error.filename, error.filename2 = path, None
        raise


def pruned(done: PrunePlan | Pruned) -> dict[str, Any]:
    """Images that a prune removed or would remove, the IDs that no name has any more, and the bytes."""
    listed = [
        {"name": record.name, "digest": str(record.target.digest), "updated_at": rfc3339(record.updated_at)}
        for record in done.records
    ]
    return {
        "images": listed,
        "deleted": [str(digest) for digest in done.deleted],
        "freed_bytes": done.freed_bytes,
    }


def why_record(answer: Why) -> dict[str, Any]:
    """The answer with raw values."""
    return {
        "digest": str(answer.digest),
        "size": answer.size,
        "present": answer.present,
        "garbage_since": rfc3339(answer.garbage_since),
        "ways": [
            {
                "root": {"kind": way.root.kind, "name": way.root.name},
                "steps": [{"digest": str(s.digest), "kind": s.kind, "role": s.role} for s in way.steps],
            }
            for way in answer.ways
        ],
    }


def why_lines(answer: Why) -> Iterator[str]:
    """One line for each root, from it down to the blob."""
    if not answer.ways:
        since = rfc3339(answer.garbage_since)
        yield f"{answer.digest} is garbage since {since}; the next gc frees {human_size(answer.size)}"
    for way in answer.ways:
        yield _line(way)


def _line(way: Way) -> str:
    steps = [f"{step.role or step.kind} {step.digest}" for step in way.steps]
    return " -> ".join([printable(f"{way.root.kind} {way.root.name}"), *steps])


def kind_usage(usage: Usage) -> list[dict[str, Any]]:
    """One record for each kind of thing."""
    return [
        {
            "type": line.type,
            "total": line.total,
            "active": line.active,
            "size": line.size,
            "reclaimable": line.reclaimable,
        }
        for line in usage.lines
    ]


KIND_USAGE = [
    Column("TYPE", lambda line: line["type"]),
    Column("TOTAL", lambda line: line["total"]),
    Column("ACTIVE", lambda line: line["active"]),
    Column("SIZE", lambda line: human_size(line["size"])),
    Column("RECLAIMABLE", lambda line: human_size(line["reclaimable"])),
]

KIND_FIELDS = {
    "TotalCount": lambda line: line["total"],
    "Size": lambda line: human_size(line["size"]),
    "Reclaimable": lambda line: human_size(line["reclaimable"]),
}
"""What docker's templates know, sizes for people among it."""


def image_usage(usage: Usage) -> list[dict[str, Any]]:
    """One record for each name."""
    return [
        {
            "name": image.record.display_name,
            "digest": str(image.record.target.digest),
            "size": image.size,
            "shared_size": image.shared,
            "unique_size": image.unique,
            "used": image.used,
        }
        for image in usage.images
    ]


IMAGE_USAGE = [
    Column("NAME", lambda image: image["name"]),
    Column("SIZE", lambda image: human_size(image["size"])),
    Column("SHARED SIZE", lambda image: human_size(image["shared_size"])),
    Column("UNIQUE SIZE", lambda image: human_size(image["unique_size"])),
    Column("USED", lambda image: "yes" if image["used"] else "no"),
]
