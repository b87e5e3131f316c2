"""Layers that are unpacked and verified, and become snapshots together.

One sync makes all of them durable and one transaction gives all of them their rows: a sync for each
would cost more than unpacking a small layer. Source: design §4.9, §4.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from imgdb.db import snapshots
from imgdb.db.snapshots import COMMITTED, NewSnapshot
from imgdb.db.sql import now_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from imgdb.access import Access
    from imgdb.snapshots.disk import SnapshotDirectory, StagedSnapshot


@dataclass(frozen=True, slots=True)
class Finished:
    """A layer that is unpacked.

    Attributes:
        key: its chain ID.
        parent: that of the layer below; None for none.
        lock: its blob, locked against others who unpack the same; None where there is none.
    """

    staged: StagedSnapshot
    key: str
    parent: str | None
    labels: Mapping[str, str]
    lock: BinaryIO | None


class Batch:
    """Finished layers of one image, parents before their children."""

    def __init__(self, access: Access, directory: SnapshotDirectory) -> None:
        self._access = access
        self._directory = directory
        self._finished: list[Finished] = []

    def __len__(self) -> int:
        return len(self._finished)

    def add(self, finished: Finished) -> None:
        """Take a layer."""
        key = finished.key
        finished.staged.describe(snapshots.description(key, COMMITTED, finished.parent, key, finished.labels))
        self._finished.append(finished)

    def publish(self) -> None:
        """Make them snapshots, and let go of them.

        Raises:
            OSError: syncing failed; none of them is one.
            BusyError: the database was locked too long.
        """
        try:
            if self._finished:
                self._publish()
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove those that are no snapshots yet, and let go of all."""
        while self._finished:
            finished = self._finished.pop()
            self._directory.end(finished.staged)
            if finished.lock is not None:
                finished.lock.close()

    def _publish(self) -> None:
        keys = [finished.key for finished in self._finished]
        # A row whose directory was lost gets it back, with everything that refers to it.
        lost: dict[str, int] = self._access.read(lambda c: snapshots.ids(c, keys))
        floor: int = self._access.read(snapshots.largest_id)
        wanted = [(finished.staged, lost.get(finished.key)) for finished in self._finished]
        numbers = self._directory.publish(wanted, floor)
        new = [self._row(*pair) for pair in zip(self._finished, numbers, strict=True)]
        refused: set[int] = self._access.write(lambda c: _add(c, new), raises_generation=False)
        for finished, number in zip(self._finished, numbers, strict=True):
            if number in refused:
                # Somebody was faster, and both are right.
                self._directory.withdraw(finished.staged)

    def _row(self, finished: Finished, number: int) -> NewSnapshot:
        usage = self._directory.measure(number)
        return NewSnapshot(
            number,
            finished.key,
            COMMITTED,
            finished.parent,
            finished.key,
            finished.labels,
            usage.bytes,
            usage.inodes,
        )


def _add(connection: Connection, new: Sequence[NewSnapshot]) -> set[int]:
    """Write rows; ids of those whose key has another row already."""
    refused = set()
    for snapshot in new:
        there = snapshots.find(connection, snapshot.key)
        if there is None:
            snapshots.add(connection, snapshot, now_us())
        elif there.id != snapshot.id:
            refused.add(snapshot.id)
    return refused
