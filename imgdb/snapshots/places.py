"""Where a layer's entries go: descriptors of directories, and what was resolved lately.

A cache, for a layer names the same directory many times in a row. What changes directories or
links says so, and everything is looked up anew. Source: reliability §4.6 (few descriptors).
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from imgdb.snapshots.beneath import DIRECTORY, open_beneath, status

if TYPE_CHECKING:
    from imgdb.snapshots.merged import Stack

_OPEN = 32
_NAMES = 4096


class Parents:
    """Directories of the topmost layer of a tree."""

    def __init__(self, tree: Stack) -> None:
        self._root = tree.fds[0]
        self._fds: OrderedDict[bytes, int] = OrderedDict()
        self._names: dict[bytes, bytes] = {}

    def get(self, raw: bytes) -> tuple[int, bytes] | None:
        """The directory that a name's parents led to: descriptor, and path without links."""
        real = self._names.get(raw)
        if real is None:
            fd = self.directory(raw)
            # Directories all the way: there is nothing to be resolved.
            return None if fd is None else self.put(raw, fd, raw)
        fd = self.directory(real)
        return None if fd is None else (fd, real)

    def put(self, raw: bytes, fd: int, real: bytes) -> tuple[int, bytes]:
        """Remember where a name's parents lead; returns what `get` will."""
        if len(self._names) >= _NAMES:
            self._names.clear()
        self._names[raw] = real
        return fd, real

    def directory(self, path: bytes) -> int | None:
        """A descriptor of a directory of this layer, the cache's own; None where there is none."""
        fd = self._fds.get(path)
        if fd is not None:
            self._fds.move_to_end(path)
            return fd
        fd = self.open(path)
        if fd is None:
            return None
        self._fds[path] = fd
        if len(self._fds) > _OPEN:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def open(self, path: bytes) -> int | None:
        """A new descriptor of a directory of this layer; None where there is none."""
        try:
            return open_beneath(self._root, path, DIRECTORY)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return None
            raise

    def status(self, path: bytes) -> os.stat_result | None:
        """Status of an entry of this layer; None where there is none."""
        above, _, name = path.rpartition(b"/")
        fd = self._fds.get(above)
        if fd is None:
            return status(self._root, path)
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def forget_names(self) -> None:
        """A link came or went: names may lead elsewhere."""
        self._names.clear()

    def forget_below(self, path: bytes) -> None:
        """A directory goes, and everything below it."""
        self.forget_names()
        below = path + b"/"
        for known in [known for known in self._fds if known == path or known.startswith(below)]:
            os.close(self._fds.pop(known))

    def close(self) -> None:
        """Close all descriptors."""
        while self._fds:
            os.close(self._fds.popitem()[1])
