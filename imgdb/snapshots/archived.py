"""A merged tree of layers as one tar: directories before what is in them, by name, so always the same.

Hard links stay hard links, holes are written out, sockets are left out as every tar does.
Source: docker export; specification §7.3.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from imgdb.archive.memberwriter import member_headers
from imgdb.archive.tar import Member, MemberKind
from imgdb.archive.tarwriter import END, padding
from imgdb.errors import DataLossError
from imgdb.snapshots.beneath import opened
from imgdb.snapshots.copied import attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.archive.sink import Sink
    from imgdb.snapshots.merged import Found, Stack

_KINDS = {
    stat.S_IFREG: MemberKind.FILE,
    stat.S_IFDIR: MemberKind.DIRECTORY,
    stat.S_IFLNK: MemberKind.SYMLINK,
    stat.S_IFCHR: MemberKind.CHARACTER,
    stat.S_IFBLK: MemberKind.BLOCK,
    stat.S_IFIFO: MemberKind.FIFO,
}


def write_tree(tree: Stack, sink: Sink, advance: Callable[[int], None]) -> None:
    """Write everything below the root of a merged tree.

    Args:
        tree: layers that don't change meanwhile.
        sink: where the tar goes.
        advance: told the bytes of bodies.

    Raises:
        DataLossError: a file became shorter while it was read.
    """
    linked: dict[tuple[int, int], bytes] = {}
    pending = tree.entries(tree.root)[::-1]
    while pending:
        found = pending.pop()
        if stat.S_IFMT(found.status.st_mode) not in _KINDS:
            continue
        member = _member(tree, found, linked)
        sink.write(member_headers(member))
        if member.kind is MemberKind.FILE:
            _write_body(tree, found, sink, advance)
        if found.directory is not None:
            pending += tree.entries(found.directory)[::-1]
    sink.write(END)


def _member(tree: Stack, found: Found, linked: dict[tuple[int, int], bytes]) -> Member:
    status = found.status
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    target = tree.readlink(found) if kind is MemberKind.SYMLINK else b""
    if kind is not MemberKind.DIRECTORY and status.st_nlink > 1:
        first = linked.setdefault((found.layer, status.st_ino), found.path)
        if first != found.path:
            kind, target = MemberKind.HARDLINK, first
    attributes = attributes_of(tree, found)
    size = status.st_size if kind is MemberKind.FILE else 0
    device = status.st_rdev if kind in {MemberKind.CHARACTER, MemberKind.BLOCK} else 0
    return Member(
        found.path + (b"/" if kind is MemberKind.DIRECTORY else b""),
        kind,
        size,
        target,
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.mtime_ns,
        b"",
        b"",
        os.major(device),
        os.minor(device),
        {} if kind is MemberKind.HARDLINK else attributes.xattrs,
        0,
        size,
    )


def _write_body(tree: Stack, found: Found, sink: Sink, advance: Callable[[int], None]) -> None:
    size = found.status.st_size
    with opened(tree.fds[found.layer], found.path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        try:
            sink.copy(fd, size, advance)
        except DataLossError:
            raise DataLossError(f"{os.fsdecode(found.path)} changed while it was read") from None
    sink.write(padding(size))
