"""A little space kept back, so that a full disk can be emptied: SQLite can't even read without some.

``reserve`` is given up when a store can't be opened, or garbage can't be collected, on a full file
system, and taken back by the next collection that finds room. Source: design §4 (end), §6.
"""

from __future__ import annotations

import contextlib
import os

# SQLite writes 4 MiB to its log before it begins to use that space again.
SIZE = 6 << 20
_NAME = "reserve"


def fill(root: str) -> None:
    """Take the space, when there is twice as much; a store without its reserve is none the worse."""
    path = os.path.join(root, _NAME)
    with contextlib.suppress(OSError):
        if _size(path) >= SIZE or is_tight(root):
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Falls back to writing where the file system can't promise space.
            os.posix_fallocate(fd, 0, SIZE)
        finally:
            os.close(fd)


def is_tight(root: str) -> bool:
    """Whether there is so little room that `fill` would take none."""
    return _free(root) < 2 * SIZE


def give_up(root: str) -> bool:
    """Where room is tight, let the space go; whether anything was gained by that."""
    path = os.path.join(root, _NAME)
    try:
        if not is_tight(root) or not _size(path):
            return False
        os.truncate(path, 0)
    except OSError:
        return False
    return True


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def _free(root: str) -> int:
    space = os.statvfs(root)
    return space.f_bavail * space.f_frsize
