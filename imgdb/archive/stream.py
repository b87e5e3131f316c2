"""Bytes from a file, a pipe or a decompressor: counted, read ahead, in bounded memory.

A tar header is 512 bytes and a body may be gigabytes. `Stream` reads ahead for the first
and gets out of the way for the second: large reads go straight into the caller's buffer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

READ_AHEAD = 1 << 16
"""Bytes that are read at once while headers and small bodies are wanted."""


class SupportsReadinto(Protocol):
    """A raw or buffered binary file, open for reading."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the beginning of `buffer`; 0 at the end."""


class SupportsRead(Protocol):
    """The least that can be read from."""

    def read(self, size: int, /) -> bytes | None:
        """At most `size` bytes; none at the end."""


class Reader(SupportsReadinto, SupportsRead, Protocol):
    """What can be read both ways; every reader of this package can."""


Source = SupportsReadinto | SupportsRead


def ignore(_message: str) -> None:
    """Take a warning and do nothing: the default of every `on_warning`."""


def is_seekable(source: Source) -> bool:
    """Whether `source` says that it can seek (a regular file, a BytesIO)."""
    seekable = getattr(source, "seekable", None)
    return seekable is not None and bool(seekable())


def filler(source: Source) -> Callable[[memoryview], int]:
    """One function over both kinds of source.

    Returns:
        A function that fills the beginning of a memoryview and returns how many bytes
        came, 0 only at the end. It raises what the source raises, and BlockingIOError
        where a non-blocking source has nothing to give.
    """
    readinto = getattr(source, "readinto", None)
    read = getattr(source, "read", None)

    def fill(view: memoryview) -> int:
        if readinto is not None:
            count = readinto(view)
        else:
            data = None if read is None else read(len(view))
            count = None if data is None else len(data)
            if data:
                view[:count] = data
        if count is None:
            raise BlockingIOError("the source is non-blocking and has no data yet")
        return int(count)

    return fill


class Stream:
    """Reads a source from where it stands to its end, once.

    Args:
        source: anything with ``readinto`` or ``read``. Nobody else may move it meanwhile.

    Attributes:
        offset: position of the next byte to be handed out; counted from the beginning of
            a seekable source, else from where reading began.
    """

    __slots__ = ("_buffer", "_end", "_fill", "_seek", "_start", "_stop", "_view", "offset")

    def __init__(self, source: Source) -> None:
        self._fill = filler(source)
        self._buffer = bytearray(READ_AHEAD)
        self._view = memoryview(self._buffer)
        self._start = self._stop = 0
        self.offset = 0
        self._end: int | None = None
        self._seek: Callable[[int], int] | None = None
        if is_seekable(source):
            self._measure(source)

    def _measure(self, source: Source) -> None:
        seek = source.seek  # type: ignore[union-attr] # is_seekable
        self.offset = seek(0, os.SEEK_CUR)
        end = seek(0, os.SEEK_END)
        seek(self.offset)
        if end > self.offset:  # a character device claims to be seekable and has no end
            self._end, self._seek = end, seek

    @property
    def remaining(self) -> int | None:
        """Bytes until the end, as it was when reading began; None for a pipe."""
        return None if self._end is None else self._end - self.offset

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes, fewer only at the end. The caller bounds `count`."""
        start = self._start
        stop = start + count
        if stop > self._stop:
            return self._take_slowly(count)
        self._start = stop
        self.offset += count
        return bytes(self._view[start:stop])

    def _take_slowly(self, count: int) -> bytes:
        if count <= READ_AHEAD:
            count = min(count, self._ensure(count))
            return self.take(count)
        whole = bytearray(count)
        return bytes(memoryview(whole)[: self.readfull(memoryview(whole))])

    def peek(self, count: int) -> bytes:
        """What `take` would return, without moving. At most `READ_AHEAD` bytes."""
        count = min(count, self._ensure(count))
        return bytes(self._view[self._start : self._start + count])

    def _ensure(self, count: int) -> int:
        """Buffer at least `count` bytes, fewer only at the end; how many there are."""
        if self._stop - self._start >= count:
            return self._stop - self._start
        held = self._stop - self._start
        self._view[:held] = self._view[self._start : self._stop]
        self._start, self._stop = 0, held
        while self._stop < count:
            got = self._fill(self._view[self._stop :])
            if not got:
                break
            self._stop += got
        return self._stop

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer` with what is at hand; 0 only at the end."""
        if self._start == self._stop:
            if len(buffer) >= READ_AHEAD:
                count = self._fill(buffer)
                self.offset += count
                return count
            self._ensure(1)
        count = min(len(buffer), self._stop - self._start)
        buffer[:count] = self._view[self._start : self._start + count]
        self._start += count
        self.offset += count
        return count

    def readfull(self, buffer: memoryview) -> int:
        """Fill all of `buffer`; fewer bytes only at the end."""
        filled = 0
        while filled < len(buffer):
            count = self.readinto(buffer[filled:])
            if not count:
                break
            filled += count
        return filled

    def read(self, size: int, /) -> bytes:
        """Between one and `size` bytes; none at the end."""
        buffer = bytearray(min(size, READ_AHEAD))
        return bytes(memoryview(buffer)[: self.readinto(memoryview(buffer))])

    def skip(self, count: int) -> int:
        """Move on without looking, by seeking where the source can.

        Returns:
            Bytes skipped: fewer than `count` only at the end.
        """
        held = min(count, self._stop - self._start)
        self._start += held
        self.offset += held
        rest = count - held
        if rest and self._seek is not None and self._end is not None:
            step = max(0, min(rest, self._end - self.offset))
            self.offset = self._seek(self.offset + step)
            return held + step
        return held + self._read_away(rest)

    def _read_away(self, count: int) -> int:
        left = count
        while left:
            held = min(left, self._ensure(1))
            if not held:
                break
            self._start += held
            self.offset += held
            left -= held
        return count - left
