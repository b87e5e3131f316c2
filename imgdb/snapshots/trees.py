"""Whole trees on disk: removed, measured, copied; by descriptors, never following a link.

A tree may be as deep and as wide as whoever ran in it liked. Nothing recurses and few
descriptors are open: what lies too deep to be removed is first moved up.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.content.files import write_all
from imgdb.snapshots.beneath import DIRECTORY
from imgdb.snapshots.merged import is_whiteout

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEEP = 64
_PIECE = 1 << 20
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot's own directory takes: bytes on disk, and inodes, hard links counted once."""

    bytes: int
    inodes: int


def remove_entry(directory_fd: int, name: bytes) -> None:
    """Remove a file, link or whole directory; nothing there is fine."""
    pending = [name]
    while pending:
        _remove(directory_fd, pending.pop(), pending)


def _remove(directory_fd: int, name: bytes, moved: list[bytes]) -> None:
    """Remove one entry; what lies too deep is moved to `directory_fd` and listed in `moved`."""
    if not _unlink(directory_fd, name):
        return
    levels = [(_open_for_removal(directory_fd, name), name)]
    try:
        while levels:
            fd, own = levels[-1]
            deeper = _empty(fd, directory_fd, moved, last=len(levels) >= _DEEP)
            if deeper is not None:
                levels.append((_open_for_removal(fd, deeper), deeper))
                continue
            os.close(fd)
            levels.pop()
            os.rmdir(own, dir_fd=levels[-1][0] if levels else directory_fd)
    finally:
        for fd, _ in levels:
            os.close(fd)


def _empty(fd: int, top_fd: int, moved: list[bytes], *, last: bool) -> bytes | None:
    """Unlink what is in a directory; returns a directory that is still in it, None when it is empty."""
    for text in os.listdir(fd):
        entry = os.fsencode(text)
        if not _unlink(fd, entry):
            continue
        if not last:
            return entry
        aside = b".imgdb-" + secrets.token_hex(8).encode()
        os.rename(entry, aside, src_dir_fd=fd, dst_dir_fd=top_fd)
        moved.append(aside)
    return None


def _unlink(directory_fd: int, name: bytes) -> bool:
    """Unlink an entry; True when it is a directory, and so still there."""
    try:
        os.unlink(name, dir_fd=directory_fd)
    except IsADirectoryError:
        return True
    except FileNotFoundError:
        return False
    return False


def _open_for_removal(directory_fd: int, name: bytes) -> int:
    """A directory that may have taken its owner's rights away."""
    if os.geteuid():
        os.chmod(name, stat.S_IRWXU, dir_fd=directory_fd)
    return os.open(name, DIRECTORY, dir_fd=directory_fd)


def walk(fd: int) -> Iterator[tuple[int, bytes, os.stat_result]]:
    """Every entry below a directory: its directory's descriptor, its name, its status.

    A directory comes before what is in it. Mounts on the way are not entered.
    """
    device = os.fstat(fd).st_dev
    levels = [(os.dup(fd), _names(fd))]
    try:
        while levels:
            current, names = levels[-1]
            if not names:
                os.close(current)
                levels.pop()
                continue
            name = names.pop()
            status = os.stat(name, dir_fd=current, follow_symlinks=False)
            yield current, name, status
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                inner = os.open(name, DIRECTORY, dir_fd=current)
                levels.append((inner, _names(inner)))
    finally:
        for current, _ in levels:
            os.close(current)


def _names(fd: int) -> list[bytes]:
    return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)


def remove_whiteouts(fd: int) -> None:
    """Remove the whiteouts in a directory and below it."""
    for directory, name, status in walk(fd):
        if is_whiteout(status):
            os.unlink(name, dir_fd=directory)


def measure(fd: int) -> Usage:
    """What a directory and everything below it takes on disk."""
    own = os.fstat(fd)
    total, inodes, linked = own.st_blocks, 1, set()
    for _, _, status in walk(fd):
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in linked:
                continue
            linked.add(status.st_ino)
        total += status.st_blocks
        inodes += 1
    return Usage(total * _SECTOR, inodes)


def copy_bytes(source_fd: int, target_fd: int) -> None:
    """Copy a file's content in the kernel where that is possible, from here to its end."""
    try:
        while os.copy_file_range(source_fd, target_fd, _PIECE << 6):
            pass
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
        while data := os.read(source_fd, _PIECE):
            write_all(target_fd, data)
