"""Opening paths below a directory, so that nothing ever leads out of it.

No component may be a symbolic link or lie on another file system: whoever wants links followed
does that himself, component by component (`imgdb.snapshots.merged`). The kernel holds this
with openat2; where there is none (before Linux 5.6, or forbidden by a container's filter) each
component is opened by itself. Source: reliability §4.7.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from imgdb.snapshots import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

_RESOLVE = (
    syscalls.RESOLVE_BENEATH
    | syscalls.RESOLVE_NO_SYMLINKS
    | syscalls.RESOLVE_NO_MAGICLINKS
    | syscalls.RESOLVE_NO_XDEV
)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _probe() -> bool:
    try:
        fd = os.open("/", DIRECTORY)
    except OSError:  # pragma: no cover - no root directory to try it on
        return False
    try:
        os.close(syscalls.openat2(fd, b".", DIRECTORY, _RESOLVE))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


HAVE_OPENAT2 = _probe()


def open_beneath(directory_fd: int, path: bytes, flags: int) -> int:
    """Open a path below a directory without following any link, the last component's included.

    Args:
        directory_fd: where to begin; stays open.
        path: components joined by ``/``, none of them ``..``; empty for the directory itself.
        flags: for open(2); O_CLOEXEC and O_NOFOLLOW are added.

    Raises:
        OSError: ENOENT, ENOTDIR or ELOOP where the path does not lead there by directories alone.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if HAVE_OPENAT2:
        return _by_openat2(directory_fd, path or b".", flags)
    return _by_components(directory_fd, path, flags)


def _by_openat2(directory_fd: int, path: bytes, flags: int) -> int:
    while True:
        try:
            return syscalls.openat2(directory_fd, path, flags, _RESOLVE)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # a rename somewhere on the machine; says the manual
                raise


def _by_components(directory_fd: int, path: bytes, flags: int) -> int:
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    if not parts:
        return os.open(b".", flags, dir_fd=directory_fd)
    device = os.fstat(directory_fd).st_dev
    current = os.dup(directory_fd)
    try:
        for part in parts[:-1]:
            following = os.open(part, LOOK | os.O_DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
            if os.fstat(current).st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return os.open(parts[-1], flags, dir_fd=current)
    finally:
        os.close(current)


@contextlib.contextmanager
def opened(directory_fd: int, path: bytes, flags: int) -> Iterator[int]:
    """`open_beneath` for the time of a block."""
    fd = open_beneath(directory_fd, path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def status(directory_fd: int, path: bytes) -> os.stat_result | None:
    """Status of a path below a directory; None where nothing is there, or no directories lead there."""
    try:
        with opened(directory_fd, path, LOOK) as fd:
            return os.fstat(fd)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise


def readlink(directory_fd: int, path: bytes) -> bytes:
    """The text of a symbolic link below a directory."""
    with opened(directory_fd, path, LOOK) as fd:
        return os.readlink(b"", dir_fd=fd)
