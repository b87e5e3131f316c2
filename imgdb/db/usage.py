"""Which images are used.

Used means pinned, leased by name or target, mounted, unpacked for a container, or owned.
Source: design §7 (prune).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from imgdb.db import leases
from imgdb.db.graph import above
from imgdb.db.models import Blob, Image, LeaseResource, Mount, Snapshot, Unpack
from imgdb.db.snapshots import COMMITTED
from imgdb.db.sql import now_us, table_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

_images = table_of(Image)
_blobs = table_of(Blob)
_resources = table_of(LeaseResource)
_snapshots = table_of(Snapshot)


def used_names(connection: Connection, dead: Collection[str] | None = None) -> set[str]:
    """Names of images that somebody uses.

    Args:
        connection: one consistent view.
        dead: ids of leases that count as gone; None for those that expired by the clock.
    """
    gone = leases.dead(connection, now_us(), ()) if dead is None else list(dead)
    alive = _resources.c.lease_id.not_in(gone)
    by_name = select(_resources.c.key).where(_resources.c.type == leases.IMAGES, alive)
    by_target = select(_resources.c.key).where(_resources.c.type == leases.CONTENT, alive)
    statement = select(_images.c.name).join(_blobs, _blobs.c.id == _images.c.target_id)
    used = set(connection.execute(statement.where(_images.c.name.in_(by_name))).scalars())
    used |= set(connection.execute(statement.where(_blobs.c.digest.in_(by_target))).scalars())
    return used | _unpacked(connection)


def _unpacked(connection: Connection) -> set[str]:
    """Images of which a manifest is unpacked below an active snapshot, a view or a mount."""
    unpack, mount = table_of(Unpack), table_of(Mount)
    mounted = _snapshots.c.id.in_(select(mount.c.snapshot_id))
    roots = select(_snapshots.c.id).where(or_(_snapshots.c.kind != COMMITTED, mounted))
    needed = roots.cte("needed", recursive=True)
    needed = needed.union(
        select(_snapshots.c.parent_id)
        .join(needed, needed.c.id == _snapshots.c.id)
        .where(_snapshots.c.parent_id.is_not(None))
    )
    live = select(unpack.c.manifest_id).join(needed, needed.c.id == unpack.c.snapshot_id)
    manifests = list(connection.execute(live).scalars())
    if not manifests:
        return set()
    targets = above(connection, manifests)
    return set(connection.execute(select(_images.c.name).where(_images.c.target_id.in_(targets))).scalars())
