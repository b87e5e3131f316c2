"""What the program says about itself on standard error: a line for people, or an object for machines.

A message may quote an archive or an argument, so control characters never come out raw; and a
standard error that is gone never ends an operation. Source: design §7.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from imgdb.cli.printable import json_text, printable

FORMS = ("text", "json")

_LOST = (OSError, ValueError)  # a broken pipe; a file that is closed, or can't encode the text
_PREFIXES = {"error": "error: ", "warning": "warning: ", "info": ""}


class Sink:
    """A stream whose failures don't matter: what can't be written is dropped.

    Args:
        stream: None is what Python has for standard error when descriptor 2 was closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def line(self, text: str) -> None:
        """Write a line, in one call so that other threads' lines stay whole, and flush it."""
        self.write(text + "\n")
        self.flush()

    def write(self, text: str) -> int:
        """Write, or drop, the text."""
        if self._stream is not None:
            with suppress(*_LOST):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what may be flushed."""
        if self._stream is not None:
            with suppress(*_LOST):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether this is a terminal that is still there."""
        with suppress(*_LOST):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """The descriptor, of which the bar asks the terminal's width; -1 when there is none."""
        with suppress(*_LOST):
            return -1 if self._stream is None else self._stream.fileno()
        return -1

    def has_size(self) -> bool:
        """Whether the terminal knows its size; a serial console has 0 rows, where tqdm draws nothing."""
        with suppress(*_LOST):
            return min(os.get_terminal_size(self.fileno())) > 0
        return False


class Messages:
    """Errors, warnings and notes, each on one line.

    Args:
        form: ``text``, or ``json`` for objects with ``level`` and ``message``.
    """

    def __init__(self, form: str = "text") -> None:
        self._form = form

    def error(self, message: str, trace: str = "") -> None:
        """Say what failed; `trace` is where, for those who asked for it."""
        self._say("error", message, trace)

    def warning(self, message: str) -> None:
        """Say what the user should know although it worked."""
        self._say("warning", message)

    def note(self, message: str) -> None:
        """Say what happened besides the result."""
        self._say("info", message)

    def _say(self, level: str, message: str, trace: str = "") -> None:
        sink = Sink(sys.stderr)
        if self._form == "json":
            members = {"level": level, "message": message} | ({"traceback": trace} if trace else {})
            # ASCII, because nobody told the reader which encoding our standard error has.
            sink.line(json_text(members, ascii_only=True))
            return
        for line in trace.splitlines():
            sink.line(printable(line))
        sink.line(f"imgdb: {_PREFIXES[level]}{printable(message)}")
