"""Committing an import: one transaction, or for large imports several under a lease.

`write` runs a function in a write transaction of the store; it is the store's own.
Source: design §4.4, §4.12.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from imgdb.db import leases
from imgdb.db.sql import chunks, now_us
from imgdb.importer import rows
from imgdb.oci.reference import dangling_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy import Connection

    from imgdb.importer.rows import LoadedImage
    from imgdb.importer.walk import StagedImport
    from imgdb.oci.digest import Digest

# Rows of one transaction: a second's worth at most, so that others get their turn.
BATCH = 4000
_LEASE_US = 24 * 3600 * 1_000_000


def commit(
    write: Callable[..., Any], staged: StagedImport, *, replace: str, into: str | None = None
) -> list[LoadedImage]:
    """Write all rows of an import; nothing is visible under a name before the last transaction.

    Args:
        write: runs ``work(connection)`` in a transaction; ``changes(result)`` names the names.
        staged: files durable, hold alive.
        replace: see `ImportOptions`.
        into: id of a lease that shall keep the targets.
    """
    batches = list(chunks(staged.plan.kept, BATCH))
    if len(batches) <= 1:
        return _names(write, staged, replace, batches, into=into)
    # Asked again at the end; here so that what is refused leaves nothing behind.
    write(partial(rows.compare, wanted=staged.plan.images, replace=replace), raises_generation=False)
    lease = leases.random_id()
    try:
        _blobs_under_lease(write, staged, batches, lease)
        return _names(write, staged, replace, [], into=into, lease=lease)
    except BaseException:
        write(partial(leases.remove, lease_id=lease))
        raise


def _blobs_under_lease(
    write: Callable[..., Any], staged: StagedImport, batches: Sequence[list[Digest]], lease: str
) -> None:
    def begin(connection: Connection) -> None:
        at = now_us()
        owner = (leases.HOLD, staged.hold.name)
        leases.create(connection, lease, created_at=at, expires_at=at + _LEASE_US, owner=owner)
        leases.add_content(connection, lease, (str(digest) for digest in staged.plan.kept))

    write(begin)
    for batch in batches:
        write(partial(rows.write_content, staged=staged, digests=batch))


def _names(
    write: Callable[..., Any],
    staged: StagedImport,
    replace: str,
    batches: Sequence[list[Digest]],
    *,
    into: str | None,
    lease: str | None = None,
) -> list[LoadedImage]:
    def work(connection: Connection) -> list[LoadedImage]:
        for batch in batches:
            rows.write_content(connection, staged, batch)
        loaded = rows.write_names(connection, staged, replace=replace, at=now_us(), lease=into)
        if lease is not None:
            leases.remove(connection, lease)
        return loaded

    loaded: list[LoadedImage] = write(work, changes=_touched)
    return loaded


def _touched(loaded: Collection[LoadedImage]) -> set[str]:
    """Names whose place in the mirror may have changed."""
    names = {image.name for image in loaded if image.name}
    names |= {dangling_name(image.digest) for image in loaded}
    return names | {dangling_name(image.previous) for image in loaded if image.previous}
