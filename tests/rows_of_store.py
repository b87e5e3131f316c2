"""A store's database as an admin's SQL shell sees it."""

from __future__ import annotations

import contextlib
import sqlite3


@contextlib.contextmanager
def shell(store):
    """A read-only connection to the store's own database."""
    with contextlib.closing(sqlite3.connect(f"file:{store.root}/imgdb.db?mode=ro", uri=True)) as connection:
        yield connection
