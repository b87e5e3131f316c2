"""What the database alone tells: its structure, its counters, its pair, its mirror.

Each question is one consistent view, so that nothing is seen half; what lies outside of the
database is looked at again before it is called wrong. Source: design §3, §4.10-4.11, §7.
"""

from __future__ import annotations

import time
from operator import methodcaller
from typing import TYPE_CHECKING

from imgdb import mirror, pair
from imgdb.check.case import Case, blob_case
from imgdb.check.report import Finding
from imgdb.db import audit, images, pins, schema
from imgdb.errors import DataLossError, RefusedError
from imgdb.oci.reference import familiar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgdb.access import Access
    from imgdb.db.blobs import BlobRow

# A writer that has committed and not yet written the mirror is slower than this only when it is dead.
_LOOKS = 5
_PAUSE_S = 0.3


def damaged(access: Access) -> Iterator[Case]:
    """What SQLite finds damaged; with any of it nothing else that rows say can be trusted."""
    for line in access.read(audit.integrity):
        yield Case(Finding("database-damaged", line.partition(":")[0], line))


def schema_and_pair(access: Access) -> Iterator[Case]:
    """Triggers and views, and whether the database is this store's."""
    for name in access.read(audit.altered):
        yield Case(Finding("schema-wrong", name, "missing, foreign, or not as this imgdb makes it"))
    half = pair.read(access.root)
    try:
        pair.check_writable(access.root, half, access.read(schema.find_meta))
    except RefusedError as error:
        yield Case(Finding("pair-mismatch", access.root, str(error)))


def references(access: Access) -> Iterator[Case]:
    """Rows that refer to rows that don't exist."""
    for table, rows in access.read(audit.broken_references).items():
        cure = methodcaller("broken", table, rows)
        yield Case(Finding("reference-broken", table, f"{len(rows)} rows refer to nothing"), cure)


def counters(access: Access) -> Iterator[Case]:
    """Counters against a count of the references."""
    for table, rowid, key in access.read(audit.drifted):
        yield Case(Finding("counter-wrong", key, f"in {table}"), methodcaller("recount", table, rowid))


def names(access: Access) -> Iterator[Case]:
    """Names against their targets."""
    for name, target in access.read(audit.contradicted_images):
        detail = f"its target has {target.size} bytes and is of type {target.media_type!r}"
        yield Case(Finding("image-wrong", familiar(name), detail), methodcaller("image", name, target))


def referrers(access: Access) -> Iterator[Case]:
    """Referrer rows against the subject rows that they are derived from."""
    wrong: dict[int, str] = access.read(audit.wrong_referrers)
    for row in access.read(lambda c: audit.by_ids(c, wrong)):
        yield blob_case("referrers-wrong", row, wrong[row.id], methodcaller("referrers", row.id))


def unexpanded(access: Access, *, writable: bool) -> Iterator[Case]:
    """Documents in use whose references are not recorded, and that no running import is about to."""
    found: list[BlobRow] = access.read(audit.unexpanded)
    if not found:
        return
    held = access.files.held() if writable else set()
    again = {row.id for row in access.read(audit.unexpanded)}
    for row in found:
        if row.digest not in held and row.id in again:
            detail = f"{row.kind} whose references are not recorded"
            yield blob_case("document-unexpanded", row, detail, methodcaller("expand", row))


def mirrored(access: Access, *, writable: bool) -> Iterator[Case]:
    """Names against their mirror."""
    try:
        wrong = _stale(access, writable=writable)
        for _ in range(_LOOKS):
            if not wrong:
                return
            time.sleep(_PAUSE_S)
            wrong &= _stale(access, writable=writable)
        detail = f"differs about {', '.join(sorted(familiar(name) for name, _ in wrong)[:3])}"
    except DataLossError as error:
        detail = str(error)
    # A name whose row lost its target is known to the mirror alone.
    spared = "imgdb_images" in access.read(audit.broken_references)
    yield Case(Finding("mirror-stale", access.root, detail), None if spared else methodcaller("mirror"))


def _stale(access: Access, *, writable: bool) -> set[tuple[str, str]]:
    """Names about which rows and mirror differ, each with what the rows say, so that it can be told again."""
    if writable:
        with pair.index_lock(access.root):
            return _compare_mirror(access)
    return _compare_mirror(access)


def _compare_mirror(access: Access) -> set[tuple[str, str]]:
    seen = mirror.read(access.root)
    records, pinned = access.read(lambda c: (images.listing(c), set(pins.pinned(c))))
    rows = {record.name: mirror.entry_of(record, pinned=record.name in pinned) for record in records}
    names_ = rows.keys() | seen.entries.keys()
    return {(name, str(rows.get(name))) for name in names_ if rows.get(name) != seen.entries.get(name)}
