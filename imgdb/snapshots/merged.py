"""Directories of layers seen as one tree, as overlayfs would show them, without mounting anything.

A layer's directory is in overlay form: a character device 0/0 hides what is below it, and a
directory with an ``overlay.opaque`` attribute is not merged with those below. Nothing here
changes anything; only links inside the tree are followed, and they never leave it.
Source: Linux, Documentation/filesystems/overlayfs.rst; reliability §4.7.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.archive.pax import show
from imgdb.errors import BadArchiveError
from imgdb.snapshots.beneath import DIRECTORY, opened, readlink, status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_LINKS = 255
MAX_DEPTH = 256
OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of the merged tree.

    Attributes:
        path: from the root, empty for the root itself; free of links.
        layers: which layers' directories make it up, topmost first.
    """

    path: bytes
    layers: tuple[int, ...]

    def child(self, name: bytes) -> bytes:
        """Path of an entry."""
        return b"%b/%b" % (self.path, name) if self.path else name


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of the merged tree.

    Attributes:
        status: of the topmost layer that has it.
        layer: that layer.
        directory: what it merges to; None for anything but directories.
    """

    path: bytes
    status: os.stat_result
    layer: int
    directory: Directory | None


def is_whiteout(status: os.stat_result) -> bool:
    """Whether an entry of a layer hides what is below it."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(fd: int) -> bool:
    """Whether a directory of a layer is not merged with those below."""
    return any(_attribute(fd, name) == b"y" for name in OPAQUE)


def _attribute(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.ENOTSUP, errno.EPERM}:
            return None
        raise


class Stack:
    """Layers on top of each other.

    Args:
        fds: descriptors of the layers' directories, topmost first; they stay the caller's.
    """

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = tuple(fds)
        self.root = Directory(b"", tuple(range(len(self.fds))))

    def lookup(self, directory: Directory, name: bytes) -> Found | None:
        """An entry of a directory, itself and not what it may link to; None where there is none."""
        path = directory.child(name)
        top: tuple[os.stat_result, int] | None = None
        merged = []
        for layer in directory.layers:
            found = self._status(layer, directory, name)
            if found is None:
                continue
            if not stat.S_ISDIR(found.st_mode):
                if top is None and not is_whiteout(found):
                    return Found(path, found, layer, None)
                break
            top = top or (found, layer)
            merged.append(layer)
            # The lowest layer hides nothing, opaque or not.
            if layer != directory.layers[-1] and self._is_opaque(layer, path):
                break
        return None if top is None else Found(path, *top, Directory(path, tuple(merged)))

    def _status(self, layer: int, directory: Directory, name: bytes) -> os.stat_result | None:
        """Of an entry of one layer; None where that has none."""
        if directory.path:
            return status(self.fds[layer], directory.child(name))
        try:
            # Below the root there is nothing to be resolved, and a stack may be 500 layers high.
            return os.stat(name, dir_fd=self.fds[layer], follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _is_opaque(self, layer: int, path: bytes) -> bool:
        with opened(self.fds[layer], path, DIRECTORY) as fd:
            return is_opaque(fd)

    def names(self, directory: Directory) -> list[bytes]:
        """Names that may be in a directory, sorted; whiteouts are among them, `lookup` tells."""
        names: set[bytes] = set()
        for layer in directory.layers:
            with opened(self.fds[layer], directory.path, DIRECTORY) as fd:
                names.update(map(os.fsencode, os.listdir(fd)))
        return sorted(names)

    def entries(self, directory: Directory) -> list[Found]:
        """Everything in a directory, by name."""
        return [found for name in self.names(directory) if (found := self.lookup(directory, name))]

    def readlink(self, found: Found) -> bytes:
        """The text of a symbolic link."""
        return readlink(self.fds[found.layer], found.path)

    def resolve(self, parts: Iterable[bytes]) -> tuple[list[bytes], Directory | None]:
        """Where a path leads when the tree is the whole world: ``..`` stops at its root.

        Args:
            parts: components of a directory's path; links in them are followed, also the last.

        Returns:
            The components without links, and the directory; None where it does not exist, when
            what is missing is taken as it was written.

        Raises:
            BadArchiveError: a component is neither directory nor link, or there are too many.
        """
        pending = deque(parts)
        real: list[bytes] = []
        nodes: list[Directory | None] = [self.root]
        links = 0
        while pending:
            part = pending.popleft()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                del real[-1:]
                del nodes[max(1, len(nodes) - 1) :]
                continue
            found = None if nodes[-1] is None else self.lookup(nodes[-1], part)
            if found is not None and stat.S_ISLNK(found.status.st_mode):
                links += 1
                target = self.readlink(found)
                if links > MAX_LINKS:
                    raise BadArchiveError(f"too many symbolic links at {show(found.path)}")
                if target.startswith(b"/"):
                    real, nodes = [], [self.root]
                pending.extendleft(reversed(target.split(b"/")))
                continue
            if found is not None and found.directory is None:
                raise BadArchiveError(f"{show(found.path)} is no directory, and something lies below it")
            real.append(part)
            nodes.append(None if found is None else found.directory)
            if len(real) > MAX_DEPTH:
                raise BadArchiveError(f"{show(b'/'.join(real))} lies deeper than {MAX_DEPTH} directories")
        return real, nodes[-1]

    def find(self, parts: Sequence[bytes]) -> Found | None:
        """What is at a path, links in its directory followed, its last component not."""
        _, directory = self.resolve(parts[:-1])
        return None if directory is None else self.lookup(directory, parts[-1])
