"""Applying one layer's members to a directory in overlay form; hostile names stay inside.

Every name is looked up in the merged tree of this layer and those below, component by component
and by descriptors; what a layer needs of lower ones (directories on the way, targets of hard
links) is copied up as overlayfs would. So the result is what containerd gets by unpacking on a
mounted overlay, and needs no mount and no rights.

* Whiteouts concern lower layers only, wherever they stand among the members.
* Directories stay private, and get their attributes at the end, from the bottom up.
* An entry that resolves to the root is ignored when it is a directory, else refused.

Source: specification §7.3, reliability §2a, §4.7.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from imgdb.archive.layernames import Whiteout, below_whiteout, cleaned, whiteout
from imgdb.archive.pax import show
from imgdb.archive.tar import MemberKind
from imgdb.archive.tarheader import MAX_MAJOR, MAX_MINOR, MAX_PATH
from imgdb.content.files import write_all
from imgdb.errors import BadArchiveError
from imgdb.snapshots import attributes as attrs
from imgdb.snapshots.attributes import Attributes, Skipped
from imgdb.snapshots.beneath import DIRECTORY, opened
from imgdb.snapshots.copied import copy_entry
from imgdb.snapshots.directories import Directories
from imgdb.snapshots.merged import is_whiteout
from imgdb.snapshots.trees import remove_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgdb.archive.tar import Member, TarReader
    from imgdb.snapshots.merged import Found

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_WHITEOUT_KINDS = frozenset((MemberKind.FILE, MemberKind.HARDLINK))
_DEVICES = {MemberKind.CHARACTER: stat.S_IFCHR, MemberKind.BLOCK: stat.S_IFBLK}
_KINDS = {
    MemberKind.FILE: "file",
    MemberKind.DIRECTORY: "directory",
    MemberKind.SYMLINK: "symlink",
    MemberKind.CHARACTER: "char",
    MemberKind.BLOCK: "block",
    MemberKind.FIFO: "fifo",
}


class Extractor:
    """One layer being unpacked.

    Args:
        fd: an empty directory that only this process sees; it becomes the layer.
        lowers: directories of the layers below, topmost first.
        on_warning: called with one line for what is left out.
        on_skip: called for each entry that this process has no right to make completely.
        max_bytes: of all files together.
        max_entries: directories that may be made, those included that no member lists.
    """

    def __init__(
        self,
        fd: int,
        lowers: Sequence[int],
        *,
        on_warning: Callable[[str], None],
        on_skip: Callable[[Skipped], None],
        max_bytes: int,
        max_entries: int,
    ) -> None:
        self._directories = Directories([fd, *lowers], max_entries)
        self._settable = 0o777 & ~attrs.umask()
        self._warn = on_warning
        self._on_skip = on_skip
        self._left = self._max = max_bytes
        self._skipped_devices: set[bytes] = set()
        self._buffer = memoryview(bytearray(_PIECE))

    @property
    def hides_all(self) -> bool:
        """The root itself is opaque: nothing of lower layers is seen."""
        return self._directories.hides_all

    def apply(self, member: Member, body: TarReader) -> None:
        """Make what a member describes.

        Raises:
            BadArchiveError: a name, link or device that no layer may have.
        """
        parts = cleaned(member.name)
        if not parts:
            if member.kind is not MemberKind.DIRECTORY:
                raise BadArchiveError(f"{show(member.name)} is the root, and a {member.kind.value}")
            return
        kind, hidden = whiteout(parts[-1])
        if kind is Whiteout.RESERVED or below_whiteout(parts[:-1]) is Whiteout.RESERVED:
            self._warn(f"{show(member.name)} is AUFS's own and left out")
        elif kind is Whiteout.NONE:
            self._make(parts, member, body)
        elif member.kind not in _WHITEOUT_KINDS:
            raise BadArchiveError(f"whiteout {show(member.name)} is a {member.kind.value}")
        elif kind is Whiteout.OPAQUE:
            self._hide_all(parts[:-1])
        else:
            self._hide(parts[:-1], hidden)

    def finish(self) -> None:
        """Give the directories their attributes."""
        for path, missing, wanted in self._directories.finish():
            self._report(path, missing, "directory", wanted)

    def close(self) -> None:
        """Let go of descriptors; after an error instead of `finish`."""
        self._directories.close()

    # -- whiteouts ---------------------------------------------------------------------------

    def _hide(self, parents: list[bytes], name: bytes) -> None:
        """Hide an entry of lower layers; what this layer made stays, whenever it made it."""
        resolved = self._directories.tree.resolve(parents)
        if resolved.directory is None:
            self._directories.ensure(resolved)
            return
        path = resolved.directory.child(name)
        own = self._directories.own(path)
        if own is not None and not self._directories.remove_hollow(path):
            if stat.S_ISDIR(own.st_mode):
                self._directories.make_opaque(path)
                self._directories.forget_copied(path, itself=True)
            return
        if self._directories.tree.lookup(resolved.directory, name) is not None:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=self._directories.ensure(resolved))
            self._directories.link_changed()

    def _hide_all(self, parents: list[bytes]) -> None:
        resolved = self._directories.tree.resolve(parents)
        self._directories.ensure(resolved)
        if resolved.parts:
            self._directories.make_opaque(resolved.path)
            self._directories.forget_copied(resolved.path, itself=False)
        else:
            self._directories.forget_lowers()

    # -- entries -----------------------------------------------------------------------------

    def _make(self, parts: list[bytes], member: Member, body: TarReader) -> None:
        wanted, warnings = attrs.of_member(member)
        for warning in warnings:
            self._warn(warning)
        # Before the place is opened: it may copy up many directories.
        target = self._link_target(member) if member.kind is MemberKind.HARDLINK else None
        directory_fd, parent = self._directories.place(parts[:-1])
        name = parts[-1]
        path = b"%b/%b" % (parent, name) if parent else name
        if len(path) >= MAX_PATH:
            raise BadArchiveError(f"{show(member.name)} leads to a path that is too long")
        self._skipped_devices.discard(path)
        there = self._directories.status(path)
        if target is not None:
            self._hard_link(member, target, there, directory_fd, path)
        elif member.kind is MemberKind.DIRECTORY:
            self._directory(there, directory_fd, name, path, wanted)
        else:
            self._clear(there, directory_fd, path)
            skipped = self._create(member, body, directory_fd, name, wanted)
            device = (member.devmajor, member.devminor)
            self._report(path, skipped, _KINDS.get(member.kind, "hardlink"), wanted, device)

    def _directory(
        self, there: os.stat_result | None, directory_fd: int, name: bytes, path: bytes, wanted: Attributes
    ) -> None:
        if there is None or not stat.S_ISDIR(there.st_mode):
            self._clear(there, directory_fd, path)
            self._directories.mkdir(directory_fd, name, path)
            if there is not None:
                # It takes the place of something that hid what is below, and goes on hiding it.
                self._directories.make_opaque(path)
        self._directories.listed(path, wanted)

    def _clear(self, there: os.stat_result | None, directory_fd: int, path: bytes) -> None:
        """Make room: the last entry of a name counts."""
        if there is None:
            return
        if stat.S_ISDIR(there.st_mode):
            self._directories.going(path)
        elif stat.S_ISLNK(there.st_mode) or is_whiteout(there):
            self._directories.link_changed()
        remove_entry(directory_fd, path.rpartition(b"/")[2])

    def _create(
        self, member: Member, body: TarReader, directory_fd: int, name: bytes, wanted: Attributes
    ) -> list[str]:
        """Make anything but directories and hard links; returns what could not be given."""
        if member.kind is MemberKind.FILE:
            # Nobody else sees it yet, so it may have its mode at once.
            mode = wanted.mode & self._settable
            fd = os.open(name, _NEW, mode, dir_fd=directory_fd)
            try:
                self._write(fd, member, body)
                return attrs.give(fd, wanted, mode=mode)
            finally:
                os.close(fd)
        if member.kind is MemberKind.SYMLINK:
            if len(member.linkname) >= MAX_PATH:
                raise BadArchiveError(f"{show(member.name)}: its target is longer than {MAX_PATH - 1} bytes")
            os.symlink(member.linkname, name, dir_fd=directory_fd)
            self._directories.link_changed()
        elif member.kind is MemberKind.FIFO:
            os.mkfifo(name, 0o600, dir_fd=directory_fd)
        elif member.kind is MemberKind.HARDLINK or not self._make_device(member, directory_fd, name):
            return ["device"]  # or a further name of one that was skipped
        return attrs.give_unopened(directory_fd, name, wanted, link=member.kind is MemberKind.SYMLINK)

    def _make_device(self, member: Member, directory_fd: int, name: bytes) -> bool:
        kind, major, minor = _DEVICES[member.kind], member.devmajor, member.devminor
        if kind == stat.S_IFCHR and (major, minor) == (0, 0):
            raise BadArchiveError(f"{show(member.name)} is the device by which overlayfs hides files")
        if major > MAX_MAJOR or minor > MAX_MINOR:
            raise BadArchiveError(f"{show(member.name)}: there is no device {major}:{minor}")
        return attrs.try_chown(
            lambda: os.mknod(name, kind | 0o600, os.makedev(major, minor), dir_fd=directory_fd)
        )

    def _write(self, fd: int, member: Member, body: TarReader) -> None:
        self._left -= member.realsize
        if self._left < 0:
            raise BadArchiveError(f"the layer holds more than {self._max} bytes; see --max-size")
        if member.sparse is None:
            self._copy(fd, member.size, body)
            return
        for offset, length in member.sparse:
            os.lseek(fd, offset, os.SEEK_SET)
            self._copy(fd, length, body)
        os.ftruncate(fd, member.realsize)

    def _copy(self, fd: int, size: int, body: TarReader) -> None:
        while size:
            count = body.readinto(self._buffer[: min(size, _PIECE)])
            write_all(fd, self._buffer[:count])
            size -= count

    # -- hard links --------------------------------------------------------------------------

    def _link_target(self, member: Member) -> Found | None:
        """What a hard link shares its inode with, brought into this layer; None for what was skipped."""
        parts = cleaned(member.linkname)
        found = None
        if parts:
            resolved = self._directories.tree.resolve(parts[:-1])
            if resolved.directory is not None:
                found = self._directories.tree.lookup(resolved.directory, parts[-1])
                if found is None and resolved.directory.child(parts[-1]) in self._skipped_devices:
                    return None
        if found is None:
            raise BadArchiveError(f"{show(member.name)} links to {show(member.linkname)}, which is not there")
        if found.directory is not None:
            raise BadArchiveError(f"{show(member.name)} links to the directory {show(member.linkname)}")
        if found.layer:
            above = self._directories.tree.resolve(found.path.split(b"/")[:-1])
            copy_entry(self._directories.tree, found, self._directories.ensure(above))
        return found

    def _led_on(self, there: os.stat_result | None, path: bytes) -> bool:
        """Whether what is replaced, in this layer or below it, was a directory or a link."""
        tree = self._directories.tree
        below = tree.find(path.split(b"/")) if len(tree.fds) > 1 else None
        replaced = [
            status for status in (there, None if below is None else below.status) if status is not None
        ]
        return any(stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode) for status in replaced)

    def _check_way(self, member: Member, target: Found, directory_fd: int, name: bytes) -> None:
        """What made room, in this layer or below, may have been on the way to the target, or above it."""
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory_fd)
        self._directories.link_changed()
        try:
            parts = cleaned(member.linkname)
            found = self._directories.tree.find(parts)
        finally:
            os.unlink(name, dir_fd=directory_fd)
        if found is None or found.path != target.path:
            raise BadArchiveError(f"{show(member.name)} links to {show(member.linkname)}, which is not there")

    def _hard_link(
        self, member: Member, target: Found, there: os.stat_result | None, directory_fd: int, path: bytes
    ) -> None:
        if target.path == path:
            raise BadArchiveError(f"{show(member.name)} links to itself")
        self._clear(there, directory_fd, path)
        name = path.rpartition(b"/")[2]
        if self._led_on(there, path):
            self._check_way(member, target, directory_fd, name)
        above, _, base = target.path.rpartition(b"/")
        with opened(self._directories.tree.fds[0], above, DIRECTORY) as source:
            os.link(base, name, src_dir_fd=source, dst_dir_fd=directory_fd, follow_symlinks=False)
        if stat.S_ISLNK(target.status.st_mode):
            self._directories.link_changed()

    def _report(
        self,
        path: bytes,
        skipped: list[str],
        kind: str,
        wanted: Attributes,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        if "device" in skipped:
            self._skipped_devices.add(path)
        if skipped:
            self._on_skip(Skipped(path, tuple(skipped), kind, wanted, device))
