"""Snapshots whose rows were lost with the database, from what is written beside their directories.

Source: design §4.11: the store survives its database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgdb.db import snapshots
from imgdb.db.snapshots import ACTIVE, COMMITTED, VIEW, NewSnapshot
from imgdb.db.sql import now_us
from imgdb.errors import ImgdbError

if TYPE_CHECKING:
    from imgdb.access import Access
    from imgdb.snapshots.disk import SnapshotDirectory


def restore(access: Access, directory: SnapshotDirectory) -> tuple[int, list[str]]:
    """Make the rows of directories that have none, parents first, and tie images to them.

    Returns:
        How many snapshots came back, and a sentence for each directory of which nothing is known.
    """
    numbers = directory.directories()
    known: set[int] = access.read(lambda c: snapshots.known(c, numbers))
    pending = {number: directory.description(number) for number in numbers if number not in known}
    restored = 0
    progress = True
    while pending and progress:
        made = [number for number, told in pending.items() if _restore(access, directory, number, told)]
        for number in made:
            del pending[number]
        restored += len(made)
        progress = bool(made)
    access.write(snapshots.tie_unpacked, raises_generation=False)
    warnings = [f"{directory.path}/{number} is no snapshot that can be brought back" for number in pending]
    return restored, warnings


def _restore(access: Access, directory: SnapshotDirectory, number: int, told: dict[str, Any] | None) -> bool:
    new = None if told is None else _read(number, told)
    if new is None:
        return False
    try:
        if new.kind == COMMITTED:
            usage = directory.measure(number)
            new = NewSnapshot(
                number, new.key, new.kind, new.parent, new.chain_id, new.labels, usage.bytes, usage.inodes
            )
        access.write(lambda c: snapshots.add(c, new, now_us()), raises_generation=False)
    except ImgdbError:
        return False  # its layer is lost, its parent is not there yet, or its key has another row
    return True


def _read(number: int, told: dict[str, Any]) -> NewSnapshot | None:
    key, kind, parent, chain_id, labels = (
        told.get(name) for name in ("key", "kind", "parent", "chain_id", "labels")
    )
    texts = isinstance(key, str) and isinstance(parent, str | None) and isinstance(chain_id, str | None)
    if not texts or kind not in {ACTIVE, VIEW, COMMITTED} or not isinstance(labels, dict):
        return None
    if not all(isinstance(item, str) for pair in labels.items() for item in pair):
        return None
    return NewSnapshot(number, str(key), str(kind), parent, chain_id, labels)
