"""Names and targets, mirrored beside the blobs: the store survives its database.

``index.json`` makes the store an OCI layout that other tools can read. Rewriting it for one
name would cost too much in a store of thousands, so above `LIMIT` names changes are appended
to ``names.log`` instead: one JSON line each, the last line about a name wins.
Source: design §4.11.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from imgdb.content.disk import write_all, write_durably
from imgdb.oci import jsontext, spec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from imgdb.db.images import ImageRecord

LIMIT = 1000
_INDEX = "index.json"
_LOG = "names.log"


def write_index(root: str, records: Collection[ImageRecord], *, durable: bool = True) -> None:
    """Write ``index.json`` from all names, then empty the log that it stands for."""
    manifests = [_descriptor(record) for record in records]
    value = {"schemaVersion": 2, "mediaType": spec.OCI_INDEX, "manifests": manifests}
    write_durably(os.path.join(root, _INDEX), jsontext.dump(value), durable=durable)
    log = os.path.join(root, _LOG)
    if os.path.exists(log) and os.path.getsize(log):
        write_durably(log, b"", durable=durable)


def append(
    root: str, changes: Mapping[str, ImageRecord | None], generation: int, *, durable: bool = True
) -> None:
    """Append names that changed to the log; None for a name that is gone."""
    lines = [
        jsontext.dump(
            {
                "name": name,
                "descriptor": None if record is None else _descriptor(record),
                "pinned": False,
                "generation": generation,
            }
        )
        for name, record in sorted(changes.items())
    ]
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(os.path.join(root, _LOG), flags, 0o600)
    try:
        write_all(fd, _line_break(fd) + b"".join(line + b"\n" for line in lines))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _line_break(fd: int) -> bytes:
    """What ends a line that a killed append left torn, so that it spoils no other."""
    size = os.fstat(fd).st_size
    return b"\n" if size and os.pread(fd, 1, size - 1) != b"\n" else b""


def write_layout(root: str, *, durable: bool = True) -> None:
    """The file that makes a directory an OCI layout."""
    write_durably(os.path.join(root, "oci-layout"), spec.OCI_LAYOUT, durable=durable)


def _descriptor(record: ImageRecord) -> dict[str, Any]:
    value = record.target.to_json()
    annotations = dict(record.target.annotations)
    if not record.is_dangling:
        annotations[spec.REF_NAME] = record.name
    value.pop("annotations", None)
    if annotations:
        value["annotations"] = dict(sorted(annotations.items()))
    return value
