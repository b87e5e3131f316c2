"""Files without rows, and directories: what a listing of the store shows.

Files are listed first, holds are read second and rows third, so that a running import, whose
hold goes after its commit, is never taken for a leftover. Source: design §4.7, §7 (check).
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING

from imgdb.check.case import Case, blob_case
from imgdb.check.content import examine
from imgdb.check.report import Finding
from imgdb.db import audit, blobs, garbage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.check.content import Meter
    from imgdb.content.store import BlobStat
    from imgdb.db.blobs import BlobRow
    from imgdb.oci.digest import Digest

# Nobody stages, sweeps or removes for longer, between what it does to files and to rows.
_SECOND_LOOK_S = 0.5
# Where holds can't be asked, only what is old is judged.
_GRACE_NS = 24 * 3600 * 10**9


def unlisted(access: Access, meter: Meter, *, writable: bool) -> Iterator[Case]:
    """Blob files that no row knows: adoptable where a row misses them, else garbage.

    Args:
        access: the store.
        meter: counts what is read to verify them.
        writable: holds can be asked.
    """
    files = access.files
    listing = dict(files.walk())
    held, dead = (files.held(), set(files.dead_holds())) if writable else (set(), set())
    unknown = access.read(partial(_unknown, digests=listing.keys()))
    if not writable:
        newest = time.time_ns() - _GRACE_NS
        unknown = {digest for digest in unknown if listing[digest].ctime_ns < newest}
    candidates = _still_there(access, unknown - held, listing)
    wanted: dict[Digest, BlobRow] = {
        row.digest: row for row in access.read(lambda c: audit.wanted_stubs(c, candidates - dead))
    }
    for digest in sorted(candidates):
        row = wanted.get(digest)
        verdict = examine(files, row, meter, full=True) if row is not None else None
        if row is not None and verdict is not None and verdict.is_sound:
            yield blob_case("blob-unrecorded", row, "its file is here", methodcaller("adopt", row, verdict))
        else:
            spoiled = verdict is not None and verdict.status is not None
            detail = f"{listing[digest].size} bytes{', not those that its row misses' if spoiled else ''}"
            cure = methodcaller("quarantine", digest, verdict) if spoiled else None
            yield Case(Finding("orphan-file", str(digest), detail, digest), cure)


def _unknown(connection: Connection, digests: Collection[Digest]) -> set[Digest]:
    """Those of the digests that neither a present row nor a doom knows."""
    found = set(digests) - blobs.known(connection, digests)
    return found - set(garbage.doomed(connection))


def _still_there(access: Access, unknown: set[Digest], listing: dict[Digest, BlobStat]) -> set[Digest]:
    """Look twice: a failed import is just about to sweep what it had put."""
    if not unknown:
        return unknown
    time.sleep(_SECOND_LOOK_S)
    again: set[Digest] = access.read(partial(_unknown, digests=unknown))
    return {digest for digest in again if access.files.stat(digest) == listing[digest]}


def foreign(access: Access) -> Iterator[Case]:
    """Names below ``blobs/`` that are no blobs."""
    for path in access.files.foreign():
        yield Case(Finding("foreign-file", path, "in the folder of blobs"))


def quarantined(access: Access) -> Iterator[Case]:
    """What earlier repairs set aside."""
    with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(access.root, "quarantine")) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            size = entry.stat(follow_symlinks=False).st_size
            yield Case(Finding("quarantined", entry.path, f"{size} bytes"))


def snapshots(access: Access) -> Iterator[Case]:
    """Snapshots without a directory, and directories without a snapshot."""
    folder = os.path.join(access.root, "snapshots")
    there = {int(name) for name in _names(folder) if name.isdecimal()}
    rows: dict[int, str] = access.read(audit.snapshot_ids)
    if rows.keys() == there:
        return
    time.sleep(_SECOND_LOOK_S)
    again: dict[int, str] = access.read(audit.snapshot_ids)
    now = {int(name) for name in _names(folder) if name.isdecimal()}
    for rowid in sorted((rows.keys() & again.keys()) - there - now):
        detail = f"{folder}/{rowid} is not there"
        yield Case(Finding("snapshot-missing", again[rowid], detail))
    for rowid in sorted((there & now) - rows.keys() - again.keys()):
        yield Case(Finding("snapshot-orphan", f"{folder}/{rowid}", "no row has this number"))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
