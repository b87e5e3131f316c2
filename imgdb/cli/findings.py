"""What ``check`` and ``db check`` found, as lines for people and as records for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgdb.cli.printable import human_size, printable, rfc3339

if TYPE_CHECKING:
    from imgdb.check.report import CheckReport, Finding

_MAX_IMAGES = 3


def line(finding: Finding) -> str:
    """One finding: its id, what it is about, what is wrong, the images, and what to do or what was done."""
    parts = [printable(f"{finding.id} {finding.subject}: {finding.detail}")]
    if finding.images:
        shown = ", ".join(printable(name) for name in finding.images[:_MAX_IMAGES])
        more = len(finding.images) - _MAX_IMAGES
        parts.append(f"images {shown}{f' and {more} more' if more > 0 else ''}")
    if finding.state != "found":
        parts.append(finding.state.replace("-", " "))
    if finding.state != "repaired":
        parts.append(finding.remedy)
    return ("note: " if finding.is_note else "") + "; ".join(parts)


def record(finding: Finding) -> dict[str, Any]:
    """One finding, raw."""
    return {
        "id": finding.id,
        "subject": finding.subject,
        "digest": None if finding.digest is None else str(finding.digest),
        "images": list(finding.images),
        "detail": finding.detail,
        "remedy": finding.remedy,
        "state": str(finding.state),
    }


def report_record(report: CheckReport) -> dict[str, Any]:
    """A whole check."""
    return {
        "level": str(report.level),
        "complete": report.complete,
        "damage": len(report.damage),
        "blobs": report.blobs,
        "verified": report.verified,
        "left": report.left,
        "read_bytes": report.read_bytes,
        "oldest_verified_at": rfc3339(report.oldest_verified_at),
        "duration_s": round(report.duration_s, 3),
        "findings": [record(finding) for finding in report.findings if not finding.is_note],
        "notes": [record(finding) for finding in report.findings if finding.is_note],
    }


def summary(report: CheckReport) -> str:
    """One line about a check."""
    found = [finding for finding in report.findings if not finding.is_note]
    count = f"{len(found)} finding{'' if len(found) == 1 else 's'}"
    mended = len(found) - len(report.damage)
    text = f"{report.verified} of {report.blobs} blobs read ({human_size(report.read_bytes)}): {count}"
    text += f", {mended} repaired" if mended else ""
    if not report.complete:
        text += f"; no time for {report.left} blobs, with which the next check begins"
    return text
