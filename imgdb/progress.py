"""Progress as an object: the walks report, the command line draws.

A reporter is handed to `ImageStore.load` and `ImageStore.export`; the base class does
nothing, so library callers pay nothing. Source: resolvelib's reporters (style.md §4.15).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reporter:
    """Receives progress; every method is a no-op to be overridden.

    One operation has one or more phases in sequence (``read``, ``verify``, ``store``,
    ``write``). Within a phase `blob` announces what is being worked on and `advance` adds
    bytes. Methods may be called from several threads, but never at once.
    """

    def start(self, phase: str, total: int | None = None) -> None:
        """Begin a phase.

        Args:
            phase: what happens, one word.
            total: bytes to come; None when they can't be known (a pipe).
        """

    def blob(self, name: str, size: int) -> None:
        """Work on this blob (a digest or a member's path) of `size` bytes begins."""

    def advance(self, count: int) -> None:
        """`count` more bytes of the phase are done."""

    def finish(self) -> None:
        """The phase is over."""

    def warn(self, message: str) -> None:
        """One line that the user should see, whatever the progress style."""

    @contextmanager
    def phase(self, phase: str, total: int | None = None) -> Iterator[None]:
        """`start` and `finish` around a block, also when it fails."""
        self.start(phase, total)
        try:
            yield
        finally:
            self.finish()


class OneAtATime(Reporter):
    """Passes everything on to a reporter, from several threads, one call at a time."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._lock = threading.Lock()

    def start(self, phase: str, total: int | None = None) -> None:
        """Begin a phase."""
        with self._lock:
            self._reporter.start(phase, total)

    def blob(self, name: str, size: int) -> None:
        """Work on a blob begins."""
        with self._lock:
            self._reporter.blob(name, size)

    def advance(self, count: int) -> None:
        """More bytes are done."""
        with self._lock:
            self._reporter.advance(count)

    def finish(self) -> None:
        """The phase is over."""
        with self._lock:
            self._reporter.finish()

    def warn(self, message: str) -> None:
        """One line for the user."""
        with self._lock:
            self._reporter.warn(message)


SILENT = Reporter()
