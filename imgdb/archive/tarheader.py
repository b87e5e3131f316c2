"""What one tar header says. PURE: bytes in, values out.

Reads v7, ustar, star, PAX and GNU headers, and nothing that two parsers could understand
differently: numbers are digits and nothing else, and where two headers of a member
contradict each other it is refused. Source: reliability §2b, POSIX pax, GNU tar.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from imgdb.archive.pax import MAX_NUMBER, MalformedError, Pax, interpret, nanoseconds, show

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
MAX_EXTENSION = 1 << 20
MAX_PATH = 4096
MAX_COMPONENT = 255
MAX_MAJOR = (1 << 12) - 1
MAX_MINOR = (1 << 20) - 1
"""The largest device numbers that Linux has."""

_FIELDS = struct.Struct("100s8s8s8s12s12s8sB100s8s32s32s8s8s155s12x")
_USTAR = b"ustar\0"
GNU_MAGIC = b"ustar  \0"

EXTENDED, GLOBAL, LONG_LINK, LONG_NAME = b"xgKL"
EXTENSIONS = frozenset((EXTENDED, GLOBAL, LONG_LINK, LONG_NAME))
_OLD_FILE, SPARSE_FILE = b"\0S"


class MemberKind(Enum):
    """What a member is."""

    FILE = "file"
    HARDLINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER = "character device"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS = {
    _OLD_FILE: MemberKind.FILE,
    ord("0"): MemberKind.FILE,
    ord("1"): MemberKind.HARDLINK,
    ord("2"): MemberKind.SYMLINK,
    ord("3"): MemberKind.CHARACTER,
    ord("4"): MemberKind.BLOCK,
    ord("5"): MemberKind.DIRECTORY,
    ord("6"): MemberKind.FIFO,
    ord("7"): MemberKind.FILE,  # contiguous, a file anywhere but on MASSCOMP's RTU
}
_SPARSE_KINDS = _KINDS | {SPARSE_FILE: MemberKind.FILE}
_LINKS = (MemberKind.HARDLINK, MemberKind.SYMLINK)
_DEVICES = (MemberKind.CHARACTER, MemberKind.BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """One member, all its headers taken together.

    Attributes:
        name: raw bytes; never empty, no NUL, at most 4096 with components of at most 255.
        kind: what it is.
        size: bytes of body that can be read; 0 for everything but files. Of a sparse file these
            are its data without the holes.
        linkname: target of a link, raw; empty for everything else.
        mode: permission bits, 0 to 0o7777.
        uid: owner.
        gid: group.
        mtime_ns: nanoseconds since the epoch, clamped to 64 bits.
        uname: owner's name, raw; may be empty.
        gname: group's name, raw; may be empty.
        devmajor: of devices, else 0.
        devminor: of devices, else 0.
        xattrs: extended attributes by their raw full name, as ``user.comment``.
        offset: where the body begins in the stream, in bytes.
        realsize: length of the file when it is written out; `size` for all but sparse files.
        sparse: of a sparse file, offset and length of each piece of data, ascending and disjoint;
            the lengths add up to `size`. None for all others.
    """

    name: bytes
    kind: MemberKind
    size: int
    linkname: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    uname: bytes
    gname: bytes
    devmajor: int
    devminor: int
    xattrs: Mapping[bytes, bytes]
    offset: int
    realsize: int
    sparse: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class Extensions:
    """What the headers in front of a member said about it; None where there was none.

    `sparse` has the PAX records of a sparse file, in order, where these are wanted.
    """

    name: bytes | None = None
    linkname: bytes | None = None
    pax: dict[bytes, bytes] | None = None
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.name is not None or self.linkname is not None or self.pax is not None


_NO_PAX = Pax()


def is_ustar(block: bytes) -> bool:
    """Whether a block, complete or not, has the magic of ustar, PAX or GNU."""
    return block[257:262] == b"ustar"


def checksum_matches(block: bytes) -> bool:
    """Whether the header's checksum is right, as sum of unsigned or (historic Sun) signed bytes."""
    digits = block[148:156].strip(b" \0")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        return False
    stored = int(digits, 8)
    # Most of a header is NUL: summing the rest alone takes a third of the time.
    total = sum((block[:148] + block[156:]).translate(None, b"\0")) + 8 * ord(" ")
    return stored == total or stored == total - 256 * _high_bytes(block)


def _high_bytes(block: bytes) -> int:
    return sum(byte > 127 for byte in block[:148] + block[156:])  # noqa: PLR2004 - the sign bit


def extension_size(block: bytes) -> int:
    """Bytes of an extension header's body.

    Raises:
        MalformedError: no number, or more than 1 MiB.
    """
    size = number(block[124:136], "size")
    if size > MAX_EXTENSION:
        raise MalformedError(f"extension header of {size} bytes, more than {MAX_EXTENSION}")
    return size


def header_name(block: bytes) -> bytes:
    """The name field alone, for messages about headers that can't be understood."""
    return _text(block[:100])


def long_name(data: bytes) -> bytes:
    """The name in the body of a GNU ``L`` or ``K`` header.

    Raises:
        MalformedError: empty, or something follows the terminating NUL.
    """
    name = data.rstrip(b"\0")
    if not name or 0 in name:
        raise MalformedError("GNU long name is empty or has a NUL inside")
    return name


def build_member(
    block: bytes, extensions: Extensions, offset: int, *, sparse: bool = False
) -> tuple[Member, int]:
    """Put a member together from its last header and the extensions before it.

    Args:
        block: the header, whose checksum was verified.
        extensions: what came before.
        offset: where the body begins.
        sparse: let sparse files pass, as ordinary ones: their map is read elsewhere.

    Returns:
        The member, and how many bytes its headers say that it has. These are stored behind
        the header only for files and (perhaps) for hard links.

    Raises:
        MalformedError: a rule is broken.
    """
    name, mode, uid, gid, size, mtime, _, flag, link, magic, *rest = _FIELDS.unpack(block)
    uname, gname, major, minor, prefix = rest
    kind = _SPARSE_KINDS.get(flag) if sparse else _KINDS.get(flag)
    if kind is None:
        raise MalformedError(_unknown(flag))
    pax = _NO_PAX if extensions.pax is None else interpret(extensions.pax, sparse=sparse)
    posix = magic[:6] == _USTAR
    named = posix or magic == GNU_MAGIC
    own = _ustar_path(name, prefix, block) if posix and prefix[0] else _text(name)
    path = _check_path(_choose(own, extensions.name, pax.path))
    if flag == _OLD_FILE and path.endswith(b"/"):
        kind = MemberKind.DIRECTORY
    said = _size(number(size, "size"), pax.size)
    stored = said if kind is MemberKind.FILE else 0
    member = Member(
        path,
        kind,
        stored,
        _linkname(_choose(_text(link), extensions.linkname, pax.linkpath)) if kind in _LINKS else b"",
        number(mode, "mode") & 0o7777,
        number(uid, "uid") if pax.uid is None else pax.uid,
        number(gid, "gid") if pax.gid is None else pax.gid,
        _time(mtime) if pax.mtime_ns is None else pax.mtime_ns,
        pax.uname or (_text(uname) if named else b""),
        pax.gname or (_text(gname) if named else b""),
        number(major, "device number") if kind in _DEVICES and named else 0,
        number(minor, "device number") if kind in _DEVICES and named else 0,
        pax.xattrs,
        offset,
        stored,
    )
    return member, said


def _unknown(flag: int) -> str:
    if flag == SPARSE_FILE:
        return "sparse files are not supported"
    return f"unknown type flag {chr(flag)!r}"


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _ustar_path(name: bytes, prefix: bytes, block: bytes) -> bytes:
    if block[508:] == b"tar\0":  # star keeps times in the last 24 bytes of the prefix
        prefix = prefix[:131]
    return _text(prefix) + b"/" + _text(name)


def _choose(own: bytes, long: bytes | None, pax: bytes) -> bytes:
    if long is not None and pax and long != pax:
        raise MalformedError("GNU long name and PAX record disagree")
    return pax or long or own


def _check_path(path: bytes) -> bytes:
    if not path:
        raise MalformedError("empty name")
    if len(path) > MAX_PATH:
        raise MalformedError(f"name of {len(path)} bytes, more than {MAX_PATH}")
    if len(path) > MAX_COMPONENT and max(map(len, path.split(b"/"))) > MAX_COMPONENT:
        raise MalformedError(f"name with a component of more than {MAX_COMPONENT} bytes")
    return path


def _linkname(target: bytes) -> bytes:
    if not target:
        raise MalformedError("link without a target")
    if len(target) > MAX_PATH:
        raise MalformedError(f"link target of {len(target)} bytes, more than {MAX_PATH}")
    return target


def _size(own: int, pax: int | None) -> int:
    if pax is None:
        return own
    if own not in {0, pax}:
        raise MalformedError(f"header says {own} bytes and PAX record says {pax}")
    return pax


@lru_cache(maxsize=1024)  # most members of an archive have the same few modes, owners and times
def number(raw: bytes, what: str) -> int:
    """An octal or base-256 field; blank is 0.

    Raises:
        MalformedError: no number between 0 and 2**63 - 1; `what` says which one it should be.
    """
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    if digits.isdigit() and raw[0]:  # parsers disagree about digits after a NUL
        try:
            return int(digits, 8)
        except ValueError:
            pass
    elif raw[0] == 0x80:  # noqa: PLR2004 - GNU's mark of a positive binary number
        value = int.from_bytes(raw[1:], "big")
        if value <= MAX_NUMBER:
            return value
    raise MalformedError(f"{what} {show(raw)} is no number between 0 and 2**63")


@lru_cache(maxsize=1024)
def _time(raw: bytes) -> int:
    """A time field in nanoseconds. Times before 1970 are legal, and no time is worth refusing an archive."""
    if raw[0] & 0x80:
        return nanoseconds(int.from_bytes(raw, "big") - (1 << (96 if raw[0] & 0x40 else 95)), 0)
    try:
        return nanoseconds(number(raw, "mtime"), 0)
    except MalformedError:
        return 0
