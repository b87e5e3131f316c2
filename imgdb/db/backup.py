"""A copy of a database as it is at one moment, by SQLite's backup API.

Copying the file would miss what is in the WAL, and opening it would drop SQLite's locks.
Source: design §7 (db backup); reliability §0.6, §4.2.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from imgdb.db.engine import DEADLINE_S, describe, translate
from imgdb.errors import BusyError, ImgdbError

if TYPE_CHECKING:
    from sqlalchemy import Engine

_RETRY_S = 0.05


def copy(source: Engine, target: str) -> None:
    """Copy a whole database, also while others write to it, who are not kept waiting in WAL mode.

    Args:
        source: an engine of `imgdb.db.engine`.
        target: an empty file that nobody else knows; what is written is not synced.

    Raises:
        BusyError: somebody locked the source for too long.
        ImgdbError: see `imgdb.db.engine.translate`.
    """
    name = describe(source)
    end = time.monotonic() + DEADLINE_S

    def check_time(_status: int, remaining: int, total: int) -> None:
        # Called after each attempt: nothing was copied while the source is locked.
        if remaining == total and time.monotonic() > end:
            raise BusyError(f"{name}: locked for {DEADLINE_S:.0f} s; try again later")

    with translate(name), source.connect() as connection:
        raw = connection.connection.driver_connection
        if not isinstance(raw, sqlite3.Connection):
            raise ImgdbError(f"{name}: only SQLite databases can be copied")
        made = sqlite3.connect(target)
        try:
            made.execute("PRAGMA synchronous=OFF")
            raw.backup(made, pages=-1, progress=check_time, sleep=_RETRY_S)
        finally:
            made.close()
