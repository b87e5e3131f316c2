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
from imgdb.errors import BadArchiveError
from imgdb.snapshots import attributes as attrs
from imgdb.snapshots.attributes import DEFAULT, Attributes, Skipped
from imgdb.snapshots.beneath import DIRECTORY, opened
from imgdb.snapshots.copied import attributes_of, copy_entry
from imgdb.snapshots.merged import Stack, is_whiteout
from imgdb.snapshots.places import Parents
from imgdb.snapshots.trees import remove_entry, remove_whiteouts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgdb.archive.tar import Member, TarReader
    from imgdb.snapshots.merged import Found

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
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
    """

    def __init__(
        self,
        fd: int,
        lowers: Sequence[int],
        *,
        on_warning: Callable[[str], None],
        on_skip: Callable[[Skipped], None],
        max_bytes: int,
    ) -> None:
        self._fd = fd
        self._tree = Stack([fd, *lowers])
        self._parents = Parents(self._tree)
        self._has_lowers = bool(lowers)
        self._private = os.geteuid() != 0
        self._settable = 0o777 & ~attrs.umask()
        self._warn = on_warning
        self._on_skip = on_skip
        self._left = self._max = max_bytes
        self._directories: dict[bytes, Attributes] = {}
        self._copied: set[bytes] = set()
        self._buffer = memoryview(bytearray(_PIECE))
        self.hides_all = False
        """The root itself is opaque: nothing of lower layers is seen."""

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
        elif member.kind is MemberKind.DIRECTORY:
            raise BadArchiveError(f"whiteout {show(member.name)} is a directory")
        elif kind is Whiteout.OPAQUE:
            self._hide_all(parts[:-1])
        else:
            self._hide(parts[:-1], hidden)

    def finish(self) -> None:
        """Give the directories their attributes, the deepest first."""
        self._parents.close()
        for path in sorted(self._directories, key=lambda path: path.count(b"/"), reverse=True):
            # One that was replaced later is none any more.
            fd = self._parents.open(path)
            if fd is not None:
                wanted = self._directories[path]
                try:
                    skipped = attrs.give(fd, wanted, private=self._private)
                finally:
                    os.close(fd)
                self._report(path, skipped, "directory", wanted)

    def close(self) -> None:
        """Let go of descriptors; after an error instead of `finish`."""
        self._parents.close()

    # -- whiteouts ---------------------------------------------------------------------------

    def _hide(self, parents: list[bytes], name: bytes) -> None:
        """Hide an entry of lower layers; what this layer made stays, whenever it made it."""
        real, directory = self._tree.resolve(parents)
        if directory is None:
            self._ensure(real)
            return
        path = directory.child(name)
        own = self._own(path)
        if own is not None:
            if stat.S_ISDIR(own.st_mode):
                self._make_opaque(path)
                self._forget_attributes(path)
            return
        if self._tree.lookup(directory, name) is None:
            return
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=self._ensure(real))
        self._parents.forget_names()

    def _hide_all(self, parents: list[bytes]) -> None:
        real, _ = self._tree.resolve(parents)
        self._ensure(real)
        if real:
            self._make_opaque(b"/".join(real))
            self._forget_attributes(b"/".join(real), itself=False)
        elif self._has_lowers:
            # overlayfs has no opaque root: whoever stacks the layers ends the stack here.
            with opened(self._fd, b"", DIRECTORY) as fd:
                remove_whiteouts(fd)
            self._forget_attributes(b"", itself=False)
            self._forget_lowers()

    def _forget_lowers(self) -> None:
        self.hides_all = True
        self._has_lowers = False
        self._tree = Stack([self._fd])
        self._parents.close()
        self._parents = Parents(self._tree)

    def _make_opaque(self, path: bytes) -> None:
        """Whiteouts in it go: in a directory that is not merged overlayfs would show them."""
        if self._has_lowers:
            with opened(self._fd, path, DIRECTORY) as fd:
                attrs.set_opaque(fd)
                remove_whiteouts(fd)
            self._parents.forget_names()

    def _forget_attributes(self, path: bytes, *, itself: bool = True) -> None:
        """Directories that no member lists had theirs from what is hidden now."""
        below = path + b"/" if path else b""
        for copied in [p for p in self._copied if p.startswith(below) or (itself and p == path)]:
            self._copied.discard(copied)
            self._directories[copied] = DEFAULT

    def _own(self, path: bytes) -> os.stat_result | None:
        """What this layer has at a path, whiteouts aside."""
        found = self._parents.status(path)
        return None if found is None or is_whiteout(found) else found

    # -- entries -----------------------------------------------------------------------------

    def _make(self, parts: list[bytes], member: Member, body: TarReader) -> None:
        wanted, warnings = attrs.of_member(member)
        for warning in warnings:
            self._warn(warning)
        # Before the place is opened: it may copy up many directories.
        target = self._link_target(member) if member.kind is MemberKind.HARDLINK else None
        directory_fd, parent = self._place(parts[:-1])
        name = parts[-1]
        path = b"%b/%b" % (parent, name) if parent else name
        there = self._parents.status(path)
        if target is not None:
            self._hard_link(member, target, there, directory_fd, path)
            return
        if member.kind is MemberKind.DIRECTORY:
            self._directory(there, directory_fd, name, path, wanted)
            return
        self._clear(there, directory_fd, path)
        skipped = self._create(member, body, directory_fd, name, wanted)
        self._report(path, skipped, _KINDS[member.kind], wanted, (member.devmajor, member.devminor))

    def _place(self, parents: list[bytes]) -> tuple[int, bytes]:
        """The directory for an entry, made where it lacks; its descriptor and its path without links."""
        raw = b"/".join(parents)
        known = self._parents.get(raw)
        if known is not None:
            return known
        real, _ = self._tree.resolve(parents)
        return self._parents.put(raw, self._ensure(real), b"/".join(real))

    def _ensure(self, real: Sequence[bytes]) -> int:
        """A descriptor of a directory of this layer, copied up or made; owned by the cache."""
        path = b"/".join(real)
        fd = self._parents.directory(path)
        if fd is not None:
            return fd
        above = self._ensure(real[:-1])
        found = self._tree.find(real)
        wanted = DEFAULT if found is None else attributes_of(self._tree, found)
        own = self._parents.status(path)
        if own is not None:  # a whiteout of this layer
            os.unlink(real[-1], dir_fd=above)
        os.mkdir(real[-1], 0o700, dir_fd=above)
        self._parents.forget_names()
        if own is not None:
            self._make_opaque(path)
        self._directories[path] = wanted
        if found is not None:
            self._copied.add(path)
        fd = self._parents.directory(path)
        if fd is None:
            raise BadArchiveError(f"{show(path)} is no directory, and something lies below it")
        return fd

    def _directory(
        self, there: os.stat_result | None, directory_fd: int, name: bytes, path: bytes, wanted: Attributes
    ) -> None:
        if there is None or not stat.S_ISDIR(there.st_mode):
            self._clear(there, directory_fd, path)
            os.mkdir(name, 0o700, dir_fd=directory_fd)
            self._parents.forget_names()
            if there is not None:
                # It takes the place of something that hid what is below, and goes on hiding it.
                self._make_opaque(path)
        self._directories[path] = wanted
        self._copied.discard(path)

    def _clear(self, there: os.stat_result | None, directory_fd: int, path: bytes) -> None:
        """Make room: the last entry of a name counts."""
        if there is None:
            return
        if stat.S_ISDIR(there.st_mode):
            self._parents.forget_below(path)
        elif stat.S_ISLNK(there.st_mode) or is_whiteout(there):
            self._parents.forget_names()
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
            os.symlink(member.linkname, name, dir_fd=directory_fd)
            self._parents.forget_names()
        elif member.kind is MemberKind.FIFO:
            os.mkfifo(name, 0o600, dir_fd=directory_fd)
        elif not self._make_device(member, directory_fd, name):
            return ["device"]
        return attrs.give_unopened(directory_fd, name, wanted, link=member.kind is MemberKind.SYMLINK)

    def _make_device(self, member: Member, directory_fd: int, name: bytes) -> bool:
        kind, major, minor = _DEVICES[member.kind], member.devmajor, member.devminor
        if kind == stat.S_IFCHR and (major, minor) == (0, 0):
            raise BadArchiveError(f"{show(member.name)} is the device by which overlayfs hides files")
        if major >= 1 << 12 or minor >= 1 << 20:
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
            done = 0
            while done < count:
                done += os.write(fd, self._buffer[done:count])
            size -= count

    # -- hard links --------------------------------------------------------------------------

    def _link_target(self, member: Member) -> Found:
        """What a hard link shares its inode with, brought into this layer."""
        parts = cleaned(member.linkname)
        found = self._tree.find(parts) if parts else None
        if found is None:
            raise BadArchiveError(f"{show(member.name)} links to {show(member.linkname)}, which is not there")
        if found.directory is not None:
            raise BadArchiveError(f"{show(member.name)} links to the directory {show(member.linkname)}")
        if found.layer:
            self._copy_up(found)
        return found

    def _hard_link(
        self, member: Member, target: Found, there: os.stat_result | None, directory_fd: int, path: bytes
    ) -> None:
        if target.path == path:
            raise BadArchiveError(f"{show(member.name)} links to itself")
        self._clear(there, directory_fd, path)
        above, _, base = target.path.rpartition(b"/")
        name = path.rpartition(b"/")[2]
        try:
            with opened(self._fd, above, DIRECTORY) as source:
                os.link(base, name, src_dir_fd=source, dst_dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            # It lay in what made room for this very link.
            raise BadArchiveError(
                f"{show(member.name)} links to {show(member.linkname)}, which it replaces"
            ) from None
        if stat.S_ISLNK(target.status.st_mode):
            self._parents.forget_names()

    def _copy_up(self, found: Found) -> None:
        """Bring a lower layer's file into this one, under its own name."""
        copy_entry(self._tree, found, self._ensure(found.path.split(b"/")[:-1]))

    def _report(
        self,
        path: bytes,
        skipped: list[str],
        kind: str,
        wanted: Attributes,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        if skipped:
            self._on_skip(Skipped(path, tuple(skipped), kind, wanted, device))
