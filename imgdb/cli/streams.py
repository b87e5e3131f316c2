"""The three standard descriptors: whole when the program begins, and named when they fail."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

STDOUT = "standard output"

# What only a write can run into: such an error without a name is the target's, not the source's.
WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF})


def complete() -> None:
    """Open descriptors 0 to 2 where the caller closed them.

    Else the next file that is opened would get the number, and the archive or the database would
    receive what was meant for a terminal. They are opened the wrong way round, so that using them
    fails as it should ("Bad file descriptor"); only messages have nowhere to go.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as we do
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - likewise


def standard_input() -> BinaryIO:
    """Without a buffer: what has come through a pipe is read at once, not when the buffer is full."""
    buffer = sys.stdin.buffer
    return getattr(buffer, "raw", buffer)


def drop_stdout() -> None:
    """Nobody reads any more: don't let the interpreter fail at its end with what is buffered."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def blame(name: str, errors: Collection[int] | None = None) -> Iterator[None]:
    """Give an error of an unnamed descriptor the name of what it is.

    Args:
        name: for the message.
        errors: the numbers that can only be its; None for all.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and (errors is None or error.errno in errors):
            error.filename = name
        raise
