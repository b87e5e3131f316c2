"""Names and targets, mirrored beside the blobs: the store survives its database.

``index.json`` makes the store an OCI layout that other tools can read. Rewriting it for one
name would cost too much in a store of thousands, so above `LIMIT` names changes are appended
to ``names.log`` instead: one JSON line each, the last line about a name wins.

``index.json`` says as annotations of which store and generation it is; lines of the log that
are not newer than it were left by a writer that was killed before it emptied the log.
Source: design §4.11.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imgdb.content.files import write_all, write_durably
from imgdb.db.leases import PIN
from imgdb.errors import BadArchiveError, DataLossError, InvalidArgumentError
from imgdb.oci import jsontext, spec
from imgdb.oci.reference import dangling_name, parse_normalized

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from imgdb.db.images import ImageRecord
    from imgdb.oci.spec import Descriptor

LIMIT = 1000
STORE = "io.imgdb.store"
GENERATION = "io.imgdb.generation"
_INDEX = "index.json"
_LOG = "names.log"
_LONG = 64 << 10
# A million names; what is read here is what imgdb wrote.
_READ_LIMIT = 1 << 30


def write_index(
    root: str,
    records: Collection[ImageRecord],
    *,
    store_id: str,
    generation: int,
    pinned: Collection[str] = (),
    durable: bool = True,
) -> None:
    """Write ``index.json`` from all names, then empty the log that it stands for.

    Args:
        root: the store's directory.
        records: all names, read after the lock was taken.
        store_id: of the store.
        generation: of the database, read together with the names.
        pinned: those names that are pinned.
        durable: False skips syncing; for tests.
    """
    manifests = [_descriptor(record, pinned=record.name in pinned) for record in records]
    value = {"schemaVersion": 2, "mediaType": spec.OCI_INDEX, "manifests": manifests}
    value["annotations"] = {GENERATION: str(generation), STORE: store_id}
    index, body = os.path.join(root, _INDEX), jsontext.dump(value)
    if not _holds(index, body):
        write_durably(index, body, durable=durable)
    log = os.path.join(root, _LOG)
    if _size(log):
        write_durably(log, b"", durable=durable)


def _holds(path: str, body: bytes) -> bool:
    """Whether a file has these bytes, so that nothing is written for nothing."""
    if _size(path) != len(body):
        return False
    with open(path, "rb") as file:
        return file.read() == body


def _size(path: str) -> int:
    """Of a file; 0 when there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def is_log_long(root: str) -> bool:
    """Whether the log has grown so much that writing ``index.json`` anew is worth its while."""
    return _size(os.path.join(root, _LOG)) > max(_LONG, _size(os.path.join(root, _INDEX)) // 2)


def append(
    root: str,
    changes: Mapping[str, ImageRecord | None],
    generation: int,
    *,
    pinned: Collection[str] = (),
    durable: bool = True,
) -> None:
    """Append names that changed to the log; None for a name that is gone."""
    lines = [
        jsontext.dump(
            {
                "name": name,
                "descriptor": None if record is None else _descriptor(record),
                "pinned": record is not None and name in pinned,
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


def _descriptor(record: ImageRecord, *, pinned: bool = False) -> dict[str, Any]:
    value = record.target.to_json()
    # An archive of another store's directory has that store's pins.
    annotations = {key: text for key, text in record.target.annotations.items() if key != PIN}
    if not record.is_dangling:
        annotations[spec.REF_NAME] = record.name
    if pinned:
        annotations[PIN] = "true"
    value.pop("annotations", None)
    if annotations:
        value["annotations"] = dict(sorted(annotations.items()))
    return value


@dataclass(frozen=True, slots=True)
class Entry:
    """What the mirror says about a name."""

    target: Descriptor
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Mirror:
    """What the mirror says.

    Attributes:
        entries: by canonical name, or ``moby-dangling@<digest>``.
        store_id: of the store; None where index.json does not tell.
        generation: how far the database had come when a name was last written here; None where
            index.json does not tell.
        has_index: there is an index.json, and it can be read.
    """

    entries: dict[str, Entry]
    store_id: str | None = None
    generation: int | None = None
    has_index: bool = True


def read(root: str) -> Mirror:
    """Read ``index.json`` and, over it, ``names.log``; torn lines are passed over.

    Raises:
        DataLossError: index.json is there, and is damaged; the log alone says too little.
    """
    try:
        with open(os.path.join(root, _INDEX), "rb") as file:
            found = _parse_index(file.read())
    except FileNotFoundError:
        found = Mirror({}, has_index=False)
    except (BadArchiveError, InvalidArgumentError) as error:
        raise DataLossError(f"{root}/{_INDEX} is damaged: {error}") from None
    return _replay(found, _log_lines(root))


def read_log(root: str) -> Mirror:
    """What ``names.log`` alone says, where index.json is damaged."""
    return _replay(Mirror({}, has_index=False), _log_lines(root))


def entry_of(record: ImageRecord, *, pinned: bool) -> Entry:
    """What `read` gives for a name after it was written."""
    return _entry(_descriptor(record, pinned=pinned))[1]


def _parse_index(raw: bytes) -> Mirror:
    value = jsontext.parse(raw, limit=_READ_LIMIT, what=_INDEX)
    if not isinstance(value, dict) or not isinstance(value.get("manifests"), list):
        raise BadArchiveError(f"{_INDEX} is no index")
    notes = value.get("annotations") or {}
    generation = str(notes.get(GENERATION, ""))
    entries = dict(map(_entry, value["manifests"]))
    return Mirror(entries, notes.get(STORE), int(generation) if generation.isdecimal() else None)


def _replay(found: Mirror, lines: Iterator[dict[str, Any]]) -> Mirror:
    """The log over the index, as far as it is newer."""
    entries, newest = dict(found.entries), found.generation
    for line in lines:
        if found.generation is not None and line["generation"] <= found.generation:
            continue
        newest = max(newest or 0, line["generation"])
        entries.pop(line["name"], None)
        if line["descriptor"] is not None:
            name, entry = _entry(line["descriptor"])
            entries[name] = replace(entry, pinned=line["pinned"])
    return replace(found, entries=entries, generation=newest)


def _log_lines(root: str) -> Iterator[dict[str, Any]]:
    try:
        with open(os.path.join(root, _LOG), "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return
    for raw in lines:
        try:
            line = jsontext.parse(raw, limit=_READ_LIMIT, what=_LOG)
            if line["descriptor"] is not None:
                _entry(line["descriptor"])
            yield {
                "name": str(line["name"]),
                "descriptor": line["descriptor"],
                "pinned": bool(line["pinned"]),
                "generation": int(line["generation"]),
            }
        except (BadArchiveError, InvalidArgumentError, KeyError, TypeError, ValueError):
            continue  # torn by a writer that was killed, or by a full disk


def _entry(value: Any) -> tuple[str, Entry]:
    """A descriptor of the mirror, as name and target."""
    target = spec.read_descriptor(value, _INDEX)
    notes = dict(target.annotations)
    name, pinned = notes.pop(spec.REF_NAME, None), notes.pop(PIN, None)
    target = replace(target, annotations=notes)
    canonical = dangling_name(target.digest) if name is None else str(parse_normalized(name))
    return canonical, Entry(target, pinned is not None)
