"""A tree of its own where nothing can be mounted: what lower layers have is copied up, all of it.

The result is a layer that needs none below it. Copying can be interrupted at any time and begun
again: until the snapshot is marked as standing alone, it is a layer of the same stack that shows
the same tree, but for times of directories.
Source: containerd's native snapshotter.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from imgdb.snapshots import attributes as attrs
from imgdb.snapshots.beneath import DIRECTORY, LOOK, opened
from imgdb.snapshots.merged import Stack
from imgdb.snapshots.trees import copy_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgdb.snapshots.attributes import Attributes
    from imgdb.snapshots.merged import Found


def copy_up_all(upper: int, lowers: Sequence[int]) -> None:
    """Bring everything that is seen of lower layers into the topmost one.

    Args:
        upper: descriptor of its directory.
        lowers: of those below it, topmost first.
    """
    Copier(Stack([upper, *lowers])).run()


class Copier:
    """Copies a merged tree into its own topmost layer."""

    def __init__(self, tree: Stack) -> None:
        self._tree = tree
        self._upper = tree.fds[0]
        self._linked: dict[tuple[int, int], bytes] = {}
        self._directories: list[tuple[bytes, Attributes]] = []

    def run(self) -> None:
        """Copy all; directories get their attributes at the end, the deepest first."""
        pending = [self._tree.root]
        while pending:
            directory = pending.pop()
            for found in self._tree.entries(directory):
                if found.layer:
                    self._copy(found)
                if found.directory is not None:
                    pending.append(found.directory)
        for path, wanted in reversed(self._directories):
            self._give(path, wanted)

    def _give(self, path: bytes, wanted: Attributes) -> None:
        with opened(self._upper, path, DIRECTORY) as fd:
            attrs.give(fd, wanted, private=os.geteuid() != 0, exact=True)

    def _make_directory(self, found: Found, directory_fd: int, name: bytes) -> None:
        wanted = attributes_of(self._tree, found)
        os.mkdir(name, 0o700, dir_fd=directory_fd)
        self._give(found.path, wanted)
        # Once more at the end, for what is put into it changes its time.
        self._directories.append((found.path, wanted))

    def _copy(self, found: Found) -> None:
        above, _, name = found.path.rpartition(b"/")
        with opened(self._upper, above, DIRECTORY) as directory_fd:
            if found.directory is not None:
                self._make_directory(found, directory_fd, name)
            elif not self._link(found, directory_fd, name):
                copy_entry(self._tree, found, directory_fd)

    def _link(self, found: Found, directory_fd: int, name: bytes) -> bool:
        """A further name of a file that was copied under another one."""
        if found.status.st_nlink == 1:
            return False
        first = self._linked.setdefault((found.layer, found.status.st_ino), found.path)
        if first == found.path:
            return False
        above, _, base = first.rpartition(b"/")
        with opened(self._upper, above, DIRECTORY) as source:
            os.link(base, name, src_dir_fd=source, dst_dir_fd=directory_fd, follow_symlinks=False)
        return True


def attributes_of(tree: Stack, found: Found) -> Attributes:
    """What an entry of a lower layer has, for its copy."""
    flags = LOOK if found.directory is None else DIRECTORY
    with opened(tree.fds[found.layer], found.path, flags) as fd:
        return attrs.of_file(fd, found.status)


def copy_entry(tree: Stack, found: Found, directory_fd: int) -> None:
    """Copy a file, link or device of a lower layer, under its own base name, into a directory."""
    name = found.path.rpartition(b"/")[2]
    mode = found.status.st_mode
    wanted = attributes_of(tree, found)
    if stat.S_ISREG(mode):
        with opened(tree.fds[found.layer], found.path, os.O_RDONLY | os.O_NONBLOCK) as source:
            fd = os.open(b".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
            try:
                copy_bytes(source, fd)
                attrs.give(fd, wanted, exact=True)
                # It appears whole or not at all.
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd)
            finally:
                os.close(fd)
        return
    if stat.S_ISLNK(mode):
        os.symlink(tree.readlink(found), name, dir_fd=directory_fd)
    else:
        os.mknod(name, stat.S_IFMT(mode) | 0o600, found.status.st_rdev, dir_fd=directory_fd)
    attrs.give_unopened(directory_fd, name, wanted, link=stat.S_ISLNK(mode), exact=True)
