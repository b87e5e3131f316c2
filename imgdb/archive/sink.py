"""Where an archive goes: the kernel moves the bodies, Python writes the headers only.

`FileSink` shares or copies extents inside the kernel, `PipeSink` hands pages to a pipe, a
socket or a device, and `StreamSink` is for everything else (a compressor, a BytesIO).
Source: design §5, ecosystem §4.
"""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING, Protocol

from imgdb.errors import DataLossError

if TYPE_CHECKING:
    from collections.abc import Callable

# Large enough that system calls don't count, small enough that progress moves.
STEP = 16 << 20
BLOCK = 4096

_NOT_SUPPORTED = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
)


class Sink(Protocol):
    """Takes an archive, front to back."""

    # Whether bytes are gone once they are written; if not, a bad archive can still be withdrawn.
    final: bool

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def copy(self, fd: int, size: int, advance: Callable[[int], None]) -> None:
        """Append the first `size` bytes of a file, reporting each step.

        Raises:
            DataLossError: the file is shorter.
        """


class Writable(Protocol):
    """What `StreamSink` needs."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


class FileSink:
    """A regular file, written from its current offset on."""

    def __init__(self, fd: int, *, final: bool = False) -> None:
        self.final = final
        self._fd = fd
        self._kernel_copies = True

    def write(self, data: bytes) -> None:
        """Append bytes."""
        write_all(self._fd, data)

    def copy(self, fd: int, size: int, advance: Callable[[int], None]) -> None:
        """Append a file; whole blocks first, so that a file system that shares extents shares them."""
        done = self._copy_in_kernel(fd, size - size % BLOCK, advance) if self._kernel_copies else 0
        if self._kernel_copies:
            done += self._copy_in_kernel(fd, size - done, advance, done)
        if done < size:
            _read_and_write(fd, done, size, self.write, advance)

    def _copy_in_kernel(self, fd: int, size: int, advance: Callable[[int], None], start: int = 0) -> int:
        done = 0
        while done < size:
            try:
                count = os.copy_file_range(fd, self._fd, min(STEP, size - done), start + done)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                self._kernel_copies = False
                return done
            if not count:
                raise _short(start + done, start + size)
            done += count
            advance(count)
        return done


class PipeSink:
    """A pipe, a socket, a terminal or a device."""

    final = True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        """Append bytes."""
        write_all(self._fd, data)

    def copy(self, fd: int, size: int, advance: Callable[[int], None]) -> None:
        """Append a file by sendfile."""
        done = 0
        while done < size:
            try:
                count = os.sendfile(self._fd, fd, done, min(STEP, size - done))
            except BlockingIOError:
                select.select([], [self._fd], [])
                continue
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                _read_and_write(fd, done, size, self.write, advance)
                return
            if not count:
                raise _short(done, size)
            done += count
            advance(count)


class StreamSink:
    """Any object with a write method."""

    def __init__(self, stream: Writable, *, final: bool = True) -> None:
        self.final = final
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._stream.write(data)

    def copy(self, fd: int, size: int, advance: Callable[[int], None]) -> None:
        """Append a file by reading it."""
        _read_and_write(fd, 0, size, self.write, advance)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything; os.write may take less than it is given, and a pipe may be non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def _read_and_write(
    fd: int, start: int, size: int, write: Callable[[bytes], None], advance: Callable[[int], None]
) -> None:
    done = start
    while done < size:
        data = os.pread(fd, min(1 << 20, size - done), done)
        if not data:
            raise _short(done, size)
        write(data)
        done += len(data)
        advance(len(data))


def _short(done: int, size: int) -> DataLossError:
    return DataLossError(f"a blob has {done} bytes instead of {size}")
