"""What the walks get of a store: its files, and a way to ask and to change its rows.

Only `imgdb.store` begins and commits transactions; the walks say what happens inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sqlalchemy import Connection

    from imgdb.content.disk import DiskBlobStore


class Write(Protocol):
    """Runs ``work(connection)`` in one write transaction of the store, maybe more than once."""

    def __call__(
        self,
        work: Callable[[Connection], Any],
        *,
        changes: Callable[[Any], Collection[str]] | None = None,
        raises_generation: bool = True,
    ) -> Any:
        """See `imgdb.store.ImageStore`; `changes` gives names for the mirror."""


@dataclass(frozen=True, slots=True)
class Access:
    """One store, as a walk sees it.

    Attributes:
        root: its directory.
        files: its blobs.
        read: runs ``question(connection)`` in a read transaction of its own.
        write: runs ``work(connection)`` in a write transaction.
    """

    root: str
    files: DiskBlobStore
    read: Callable[[Callable[[Connection], Any]], Any]
    write: Write
