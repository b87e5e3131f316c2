"""Death of a process at a chosen effect, played inside the test's process.

Whatever changes the disk or commits is an effect. `dying` lets some happen; from then on each raises,
those of the cleaning up as well, which is all that a dead process leaves behind: half of its work, its
locks let go by the kernel.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from unittest import mock

from sqlalchemy import event

from imgdb.content import holds, ingest

EFFECTS = ("rename", "unlink", "rmdir", "mkdir", "write", "pwrite", "ftruncate")


class Died(BaseException):
    """The process is gone."""


class _Life:
    def __init__(self, effects):
        self.left = effects
        self.ended = False

    def spend(self):
        self.ended = self.left <= 0
        self.left -= 1
        if self.ended:
            raise Died

    def wrapped(self, function):
        def effect(*args, **kwargs):
            self.spend()
            return function(*args, **kwargs)

        return effect


@contextmanager
def dying(store, effects):
    """Run a block that dies before its effect number `effects`, if it comes that far.

    Yields an object whose `ended` says whether it died.
    """
    life = _Life(effects)
    before = set(holds._open_holds), set(ingest._open_ingests)
    patches = {name: life.wrapped(getattr(os, name)) for name in EFFECTS}

    def commit(_connection):
        life.spend()

    event.listen(store._engine, "commit", commit)
    try:
        with mock.patch.multiple(os, **patches):
            yield life
    except Died:
        assert life.ended
    finally:
        event.remove(store._engine, "commit", commit)
        # What the kernel does for the dead.
        for opened, were_open in zip((holds._open_holds, ingest._open_ingests), before, strict=True):
            for thing in set(opened) - were_open:
                thing.abandon()
