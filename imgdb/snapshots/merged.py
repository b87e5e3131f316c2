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

from imgdb.archive.layernames import MAX_DEPTH
from imgdb.archive.pax import show
from imgdb.archive.tarheader import MAX_COMPONENT, MAX_PATH
from imgdb.errors import BadArchiveError
from imgdb.snapshots.beneath import DIRECTORY, opened, readlink, status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_LINKS = 255
MAX_STEPS = 10_000
"""Components that may be gone through for one name, those of links included."""
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


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a path leads.

    Attributes:
        parts: components without links; what does not exist is as it was written.
        found: what is there, for each of them; None from where nothing exists.
        directory: what is at the end; None where nothing is.
    """

    parts: tuple[bytes, ...]
    found: tuple[Found | None, ...]
    directory: Directory | None

    @property
    def path(self) -> bytes:
        """The components in one."""
        return b"/".join(self.parts)


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

    def resolve(self, parts: Iterable[bytes]) -> Resolved:
        """Where a path leads when the tree is the whole world: ``..`` stops at its root.

        Args:
            parts: components of a directory's path; links in them are followed, also the last.

        Raises:
            BadArchiveError: a component is neither directory nor link, or there are too many.
        """
        way = _Way(self.root)
        pending = deque(parts)
        links = 0
        for _ in range(MAX_STEPS):
            if not pending:
                return way.resolved()
            part = pending.popleft()
            way.check(part)
            here = way.directory
            found = None if here is None or part in _DOTS else self.lookup(here, part)
            if found is None or not stat.S_ISLNK(found.status.st_mode):
                way.go(part, found)
                continue
            links += 1
            if links > MAX_LINKS:
                raise BadArchiveError(f"too many symbolic links at {show(found.path)}")
            target = self.readlink(found)
            if target.startswith(b"/"):
                way = _Way(self.root)
            pending.extendleft(reversed(target.split(b"/")))
        raise BadArchiveError(f"too many steps through symbolic links, at {show(b'/'.join(way.parts))}")

    def find(self, parts: Sequence[bytes]) -> Found | None:
        """What is at a path, links in its directory followed, its last component not."""
        directory = self.resolve(parts[:-1]).directory
        return None if directory is None else self.lookup(directory, parts[-1])


_DOTS = frozenset((b"", b".", b".."))


class _Way:
    """Steps of `Stack.resolve`, from the root."""

    def __init__(self, root: Directory) -> None:
        self._root = root
        self.parts: list[bytes] = []
        self.found: list[Found | None] = []

    @property
    def directory(self) -> Directory | None:
        """Where it has led to; None where nothing is."""
        if not self.found:
            return self._root
        last = self.found[-1]
        return None if last is None else last.directory

    def go(self, part: bytes, found: Found | None) -> None:
        """Take a component that is no link."""
        if part == b"..":
            del self.parts[-1:], self.found[-1:]
        elif part not in _DOTS:
            if found is not None and found.directory is None:
                raise BadArchiveError(f"{show(found.path)} is no directory, and something lies below it")
            self.parts.append(part)
            self.found.append(found)

    def check(self, part: bytes) -> None:
        """Refuse a component that no path can have, or after so many."""
        length = sum(map(len, self.parts)) + len(self.parts) + len(part)
        if len(self.parts) >= MAX_DEPTH and part not in _DOTS:
            where = show(b"/".join(self.parts))
            raise BadArchiveError(f"{where} leads to something deeper than {MAX_DEPTH} directories")
        if len(part) > MAX_COMPONENT or length >= MAX_PATH:
            raise BadArchiveError(f"{show(b'/'.join(self.parts))} leads to a path that is too long")

    def resolved(self) -> Resolved:
        """The end of the way."""
        return Resolved(tuple(self.parts), tuple(self.found), self.directory)
