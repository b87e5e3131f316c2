"""Owners, modes, extended attributes and times: set on descriptors, so no link can be in the way.

Order matters: a change of owner clears set-user-ID bits, so modes come after it, and an access
ACL comes after the mode, which would rewrite it; times come last. What a process without the
rights can't set is reported and left out, never half set: without its owner a file gets no
set-user-ID bit. Source: specification §7.3, reliability A10, A22.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgdb.archive.pax import show
from imgdb.archive.xattrs import is_kept, is_overlay
from imgdb.errors import BadArchiveError
from imgdb.snapshots.merged import OPAQUE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgdb.archive.tarheader import Member

_OVERLAYS = "; it is overlayfs's own"
NOBODY = 0xFFFFFFFF  # (uid_t) -1, which means "leave it" to chown
_REFUSED = frozenset({errno.EPERM, errno.EINVAL, errno.EACCES})
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is set on an entry; `xattrs` by full name, `mtime_ns` in nanoseconds since the epoch."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """What an entry should have had, and this process has no right to give.

    Attributes:
        path: below the root, raw.
        what: owner, mode, device or xattr, those of them that are missing.
        kind: file, directory, symlink, char, block, fifo.
        device: major and minor of a device.
    """

    path: bytes
    what: tuple[str, ...]
    kind: str
    attributes: Attributes
    device: tuple[int, int] = (0, 0)


DEFAULT = Attributes(0o755, 0, 0, 0)
"""Of directories that a layer needs and nobody describes."""


def of_member(member: Member) -> tuple[Attributes, list[str]]:
    """A tar member's attributes, and warnings about those that are left out.

    Raises:
        BadArchiveError: an owner that Linux can't have.
    """
    if not (0 <= member.uid < NOBODY and 0 <= member.gid < NOBODY):
        raise BadArchiveError(f"{show(member.name)}: there is no owner {member.uid}:{member.gid}")
    kept = {name: value for name, value in member.xattrs.items() if is_kept(name, value)}
    warnings = [
        f"{show(member.name)}: extended attribute {show(name)} is left out{_OVERLAYS * is_overlay(name)}"
        for name in member.xattrs.keys() - kept.keys()
    ]
    return Attributes(member.mode, member.uid, member.gid, member.mtime_ns, kept), warnings


def of_file(fd: int, status: os.stat_result) -> Attributes:
    """The attributes of something that exists; overlayfs's own are left out.

    Args:
        fd: of it, maybe opened with O_PATH.
        status: of it.
    """
    path = f"/proc/self/fd/{fd}"
    xattrs = {}
    if not stat.S_ISLNK(status.st_mode):
        for name in os.listxattr(path):
            raw, value = os.fsencode(name), _read_xattr(path, name)
            if value is not None and is_kept(raw, value):
                xattrs[raw] = value
    return Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def _read_xattr(path: str, name: str) -> bytes | None:
    """None for one that is not given back: gone meanwhile, or a capability that is none."""
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENODATA}:
            return None
        raise


def give(
    fd: int, attributes: Attributes, *, private: bool = False, mode: int = -1, exact: bool = False
) -> list[str]:
    """Set everything on a file or directory that this process has just made.

    Args:
        fd: open for reading or writing, not with O_PATH.
        attributes: to be set.
        private: keep the owner's own rights, which a plain user needs to go on with a directory.
        mode: what it has, where that is known.
        exact: its directory may have passed on a group.

    Returns:
        What could not be set, as in `Skipped.what`.
    """
    skipped = []
    wanted = attributes.mode
    is_own = not exact and _is_own(attributes)
    if not is_own and not try_chown(lambda: os.fchown(fd, attributes.uid, attributes.gid)):
        skipped.append("owner")
        wanted &= ~(stat.S_ISUID | stat.S_ISGID)
    if private and wanted & stat.S_IRWXU != stat.S_IRWXU:
        wanted |= stat.S_IRWXU
        skipped.append("mode")
    if wanted != mode or skipped:
        os.fchmod(fd, wanted)
    if attributes.xattrs and not _set_xattrs(fd, attributes.xattrs):
        skipped.append("xattr")
    os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
    return skipped


def _is_own(attributes: Attributes) -> bool:
    """Whether what this process makes has that owner already.

    While a layer is unpacked no directory has its set-group-ID bit, so none passes a group on.
    """
    return attributes.uid == os.geteuid() and attributes.gid == os.getegid()


def try_chown(chown: Callable[[], None]) -> bool:
    """Run a change of owner; False where this process has no right to it, or the kernel no such owner."""
    try:
        chown()
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True


def _set_xattrs(target: int | str, xattrs: Mapping[bytes, bytes], *, follow: bool = True) -> bool:
    """False when one was refused for want of rights; a file system without them takes none."""
    complete = True
    for name, value in sorted(xattrs.items()):
        try:
            if follow:
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno in _REFUSED:
                complete = False
            elif error.errno not in _UNSUPPORTED:
                raise
    return complete


def give_unopened(
    directory_fd: int, name: bytes, attributes: Attributes, *, link: bool, exact: bool = False
) -> list[str]:
    """Set everything on a link, fifo or device just made, without opening it.

    Args:
        directory_fd: where it is.
        name: one component.
        attributes: to be set.
        link: it is a symbolic link, which has no mode.
        exact: its directory may have passed on a group.
    """
    skipped = []
    mode = attributes.mode
    is_own = not exact and _is_own(attributes)
    if not is_own and not try_chown(
        lambda: os.chown(name, attributes.uid, attributes.gid, dir_fd=directory_fd, follow_symlinks=False)
    ):
        skipped.append("owner")
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
    if not link:
        # It was made by us a moment ago in a directory of ours, and it is no link.
        os.chmod(name, mode, dir_fd=directory_fd)
    here = f"/proc/self/fd/{directory_fd}/".encode() + name
    if attributes.xattrs and not _set_xattrs(os.fsdecode(here), _special(attributes.xattrs), follow=False):
        skipped.append("xattr")
    times = (attributes.mtime_ns, attributes.mtime_ns)
    os.utime(name, ns=times, dir_fd=directory_fd, follow_symlinks=False)
    return skipped


def _special(xattrs: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Linux has no ``user.*`` on anything but files and directories; containerd drops them, too."""
    return {name: value for name, value in xattrs.items() if not name.startswith(b"user.")}


def umask() -> int:
    """This process's, without changing it for a moment, which other threads would notice."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next((line for line in file if line.startswith("Umask:")), "Umask: 777")
    return int(line.split()[1], 8)


def set_opaque(fd: int) -> None:
    """Let a directory hide what lower layers have in it.

    Raises:
        OSError: the file system has no extended attributes.
    """
    trusted, user = OPAQUE
    try:
        os.setxattr(fd, trusted, b"y")
    except PermissionError:
        os.setxattr(fd, user, b"y")
