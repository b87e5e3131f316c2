"""Keeping things while an operation runs: a lease that lives as long as its hold.

No clock ends it while the process lives, and after a crash the next gc drops it.
Source: design §4.2; specification §3.2.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from imgdb.db import leases
from imgdb.db.sql import now_us
from imgdb.errors import ImgdbError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.db.leases import Resource

_LIFE_US = 24 * 3600 * 1_000_000


@contextlib.contextmanager
def leased(access: Access, resources: Collection[Resource], label: tuple[str, str]) -> Iterator[None]:
    """Keep blobs and snapshots for the time of a block.

    Args:
        access: the store.
        resources: what to keep; it need not exist yet.
        label: says what for.
    """
    lease = leases.random_id()
    with access.files.hold() as hold:

        def begin(connection: Connection) -> None:
            at = now_us()
            leases.create(
                connection,
                lease,
                created_at=at,
                expires_at=at + _LIFE_US,
                owner=(leases.HOLD, hold.name),
                labels=dict([label]),
            )
            leases.add(connection, lease, resources)

        access.write(begin, raises_generation=False)
        try:
            yield
        finally:
            # It expires by itself once the hold is gone; a full disk must not spoil good work.
            with contextlib.suppress(ImgdbError):
                access.write(lambda c: leases.remove(c, lease), raises_generation=False)
