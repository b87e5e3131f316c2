"""Headers for any member, of whatever kind, as it came out of a reader. PURE.

ustar where it can hold everything, else a PAX header in front with what it can't: the same
member gives the same bytes, and GNU tar, bsdtar, Go and Python read the same member in them.
Names of owner and group are left out, since they mean something on one machine only. A sparse
file is written as an ordinary one, so its body has `realsize` bytes.
Source: POSIX pax, GNU tar (base-256 device numbers), Go's archive/tar (``SCHILY.xattr.``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgdb.archive.pax import MAX_NUMBER, MAX_XATTR_NAME, MAX_XATTR_VALUE, XATTR, show
from imgdb.archive.tarheader import MAX_COMPONENT, MAX_EXTENSION, MAX_PATH, MemberKind
from imgdb.archive.tarwriter import DEVICE_LIMIT, NAME, OCTAL_LIMIT, extended, record, split_path, ustar_block
from imgdb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgdb.archive.tarheader import Member

_FLAGS = {
    MemberKind.FILE: b"0",
    MemberKind.HARDLINK: b"1",
    MemberKind.SYMLINK: b"2",
    MemberKind.CHARACTER: b"3",
    MemberKind.BLOCK: b"4",
    MemberKind.DIRECTORY: b"5",
    MemberKind.FIFO: b"6",
}
_ID_LIMIT = 8**7
_NANOSECOND = 10**9


def member_headers(member: Member) -> bytes:
    """All headers of one member; of a file, `realsize` bytes of body and padding are to follow.

    Args:
        member: `offset`, `uname` and `gname` don't matter.

    Returns:
        A multiple of 512 bytes; the same for the same member.

    Raises:
        InvalidArgumentError: no reader of this package would give such a member, or its headers
            need more than a megabyte.
    """
    _check(member)
    records = b"".join(record(key, value) for key, value in sorted(_records(member)))
    if len(records) > MAX_EXTENSION:
        raise InvalidArgumentError(f"{show(member.name)}: {len(records)} bytes of tar headers are too many")
    own = _own(member)
    return extended(member.name, records) + own if records else own


def _own(member: Member) -> bytes:
    """The member's own header; fields that don't fit are 0 or cut, and the PAX header has them."""
    prefix, name = split_path(member.name) if _fits(member.name) else (b"", member.name[:NAME])
    return ustar_block(
        name,
        prefix,
        member.realsize if member.realsize < OCTAL_LIMIT else 0,
        _FLAGS[member.kind],
        member.mode,
        owner=(_id(member.uid), _id(member.gid)),
        mtime=member.mtime_ns // _NANOSECOND if 0 <= member.mtime_ns < OCTAL_LIMIT * _NANOSECOND else 0,
        linkname=member.linkname[:NAME],
        device=(member.devmajor, member.devminor),
    )


def _records(member: Member) -> Iterator[tuple[bytes, bytes]]:
    """What ustar can't hold."""
    if not _fits(member.name):
        yield b"path", member.name
    if len(member.linkname) > NAME or not _is_unambiguous(member.linkname):
        yield b"linkpath", member.linkname
    if member.realsize >= OCTAL_LIMIT:
        yield b"size", b"%d" % member.realsize
    if member.uid >= _ID_LIMIT:
        yield b"uid", b"%d" % member.uid
    if member.gid >= _ID_LIMIT:
        yield b"gid", b"%d" % member.gid
    if member.mtime_ns % _NANOSECOND or not 0 <= member.mtime_ns < OCTAL_LIMIT * _NANOSECOND:
        yield b"mtime", _seconds(member.mtime_ns)
    for name, value in member.xattrs.items():
        yield XATTR + name, value


def _id(number: int) -> int:
    return number if number < _ID_LIMIT else 0


def _fits(path: bytes) -> bool:
    return _is_unambiguous(path) and bool(split_path(path)[1])


def _is_unambiguous(text: bytes) -> bool:
    """Whether everybody reads the bytes in a header as they are.

    PAX is UTF-8 whatever the reader's locale, and a header has no encoding. What is no UTF-8 is
    bytes in both, but some warn of it in PAX.
    """
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


def _seconds(nanoseconds: int) -> bytes:
    """A time as PAX has it: seconds with as many digits behind the point as it needs."""
    whole, part = divmod(abs(nanoseconds), _NANOSECOND)
    fraction = b".%09d" % part if part else b""
    return b"%s%d%s" % (b"-" if nanoseconds < 0 else b"", whole, fraction.rstrip(b"0"))


def _check(member: Member) -> None:
    is_link = member.kind is MemberKind.HARDLINK or member.kind is MemberKind.SYMLINK
    right = (
        _is_name(member.name)
        and max(map(len, member.name.split(b"/"))) <= MAX_COMPONENT
        and (_is_name(member.linkname) if is_link else not member.linkname)
        and 0 <= member.realsize <= (MAX_NUMBER if member.kind is MemberKind.FILE else 0)
        and 0 <= member.mode <= 0o7777  # noqa: PLR2004 - all permission bits
        and max(member.uid, member.gid) <= MAX_NUMBER
        and max(member.devmajor, member.devminor) < DEVICE_LIMIT
        and min(member.uid, member.gid, member.devmajor, member.devminor) >= 0
        and -MAX_NUMBER - 1 <= member.mtime_ns <= MAX_NUMBER
        and all(map(_is_xattr, member.xattrs.items()))
    )
    if not right:
        raise InvalidArgumentError(f"{show(member.name)}: no tar can hold this {member.kind.value}")


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= MAX_PATH and 0 not in name


def _is_xattr(attribute: tuple[bytes, bytes]) -> bool:
    name, value = attribute
    # A record's key ends at its first equals sign.
    return (
        0 < len(name) <= MAX_XATTR_NAME
        and 0 not in name
        and b"=" not in name
        and len(value) <= MAX_XATTR_VALUE
    )
