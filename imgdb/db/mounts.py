"""What is mounted where, as far as imgdb did it. Functions never commit. Source: design §3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from imgdb.db.models import Mount, Snapshot
from imgdb.db.sql import table_of
from imgdb.errors import AlreadyExistsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_mounts = table_of(Mount)
_snapshots = table_of(Snapshot)


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount.

    Attributes:
        key: of the snapshot.
        target: where, absolute.
        boot_id: of the machine's run in which it was made; over, the mount is gone.
        pid: who made it.
        created_at: microseconds since the epoch.
    """

    key: str
    target: str
    boot_id: str
    pid: int | None
    created_at: int


def listing(connection: Connection) -> list[MountRecord]:
    """All mounts, by target."""
    rows = connection.execute(
        select(_mounts, _snapshots.c.key)
        .join(_snapshots, _snapshots.c.id == _mounts.c.snapshot_id)
        .order_by(_mounts.c.target)
    )
    return [_read(row) for row in rows]


def _read(row: Any) -> MountRecord:
    return MountRecord(row.key, row.target, row.boot_id, row.pid, row.created_at)


def add(connection: Connection, snapshot: int, target: str, boot_id: str, pid: int, at: int) -> None:
    """Note a mount, before it is made: a row without a mount is harmless, the opposite is not.

    Raises:
        AlreadyExistsError: something of imgdb is mounted there.
    """
    if connection.execute(select(_mounts.c.id).where(_mounts.c.target == target)).first():
        raise AlreadyExistsError(f"{target} has a mount already; imgdb umount {target} ends it")
    values = {
        "snapshot_id": snapshot,
        "target": target,
        "boot_id": boot_id,
        "pid": pid,
        "created_at": at,
    }
    connection.execute(insert(_mounts), [values])


def remove(connection: Connection, target: str) -> bool:
    """Forget a mount; False where there was none."""
    return connection.execute(delete(_mounts).where(_mounts.c.target == target)).rowcount > 0


def of_other_boots(connection: Connection, boot_id: str) -> bool:
    """Whether mounts are noted that ended when the machine did."""
    return connection.execute(select(_mounts.c.id).where(_mounts.c.boot_id != boot_id)).first() is not None


def remove_of_other_boots(connection: Connection, boot_id: str) -> int:
    """Forget mounts that ended when the machine did; returns how many."""
    return connection.execute(delete(_mounts).where(_mounts.c.boot_id != boot_id)).rowcount
