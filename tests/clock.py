"""A clock that tests move: put in place of `imgdb.db.sql.clock`."""

from __future__ import annotations

import time

HOUR = 3600.0
DAY = 24 * HOUR


class Clock:
    """The real time, and what was added to it; or a moment that stays until it is moved."""

    def __init__(self):
        self.ahead_ns = 0
        self.frozen_ns = None

    def __call__(self):
        """Nanoseconds since the epoch."""
        return (self.frozen_ns or time.time_ns()) + self.ahead_ns

    def freeze(self):
        """Stop it at a whole microsecond."""
        self.frozen_ns = time.time_ns() // 1000 * 1000

    def forward(self, seconds):
        """Let time pass for this process alone."""
        self.ahead_ns += int(seconds * 1e9)
