"""Exact tar headers: the same arguments give the same bytes, always. PURE.

ustar headers with owner 0 and time 0, and a PAX header in front where ustar can't hold the
path or the size. Bodies that are worth it begin at a multiple of 4096, so that a file system
can share their extents with the store's blobs: the PAX header is then made longer, by a
comment of spaces. Source: design §5, POSIX pax.
"""

from __future__ import annotations

from imgdb.archive.tarheader import BLOCK, EXTENDED, MAX_PATH, ZERO_BLOCK, MemberKind
from imgdb.errors import InvalidArgumentError

ALIGNMENT = 4096
ALIGN_FROM = 1 << 16
"""Bodies of this many bytes and more are aligned."""
END = 2 * ZERO_BLOCK
"""What every archive ends with."""

NAME = 100
"""Bytes that the fields for a name and for a link's target hold."""
OCTAL_LIMIT = 8**11
"""The first size, and the first time, that an octal field can't hold."""
DEVICE_LIMIT = 1 << 56
"""The first device number that no field can hold."""

_PREFIX = 155
_MAX_SIZE = 2**63
_TYPES = {MemberKind.FILE: b"0", MemberKind.DIRECTORY: b"5"}
_SHORTEST_COMMENT = len("12 comment=\n")


def header(name: str, size: int, *, kind: MemberKind = MemberKind.FILE, mode: int) -> bytes:
    """All headers of one member.

    Args:
        name: path inside the archive; a directory's gets its ``/``.
        size: bytes of body that will follow; 0 for directories.
        kind: FILE or DIRECTORY.
        mode: permission bits.

    Returns:
        512 bytes, or where PAX is needed a multiple of them.

    Raises:
        InvalidArgumentError: no such member can be written.
    """
    if kind is MemberKind.DIRECTORY and not name.endswith("/"):
        name += "/"
    path = _checked(name, size, kind, mode)
    records = _records(path, size)
    own = _own(path, size, _TYPES[kind], mode)
    return extended(path, records) + own if records else own


def aligned_header(name: str, size: int, position: int, *, mode: int = 0o444) -> bytes:
    """All headers of a file whose body is to begin at a multiple of `ALIGNMENT`.

    Args:
        name: path inside the archive.
        size: bytes of body that will follow; below `ALIGN_FROM` nothing is aligned.
        position: where the headers will stand in the archive, a multiple of 512.
        mode: permission bits.

    Returns:
        As few bytes as get the body there.

    Raises:
        InvalidArgumentError: no such member can be written, or not there.
    """
    if position < 0 or position % BLOCK:
        raise InvalidArgumentError(f"no tar header can stand at {position}")
    path = _checked(name, size, MemberKind.FILE, mode)
    records = _records(path, size)
    own = _own(path, size, _TYPES[MemberKind.FILE], mode)
    if size >= ALIGN_FROM and (records or (position + BLOCK) % ALIGNMENT):
        room = BLOCK * _blocks(len(records), position)
        records += _comment(room - len(records))
    return extended(path, records) + own if records else own


def header_length(name: str, size: int, position: int) -> int:
    """Bytes that `aligned_header` will give, so that a plan knows the archive's exact size.

    Raises:
        InvalidArgumentError: as `aligned_header`.
    """
    return len(aligned_header(name, size, position))


def padding(size: int) -> bytes:
    """The NULs between a body of `size` bytes and the next header."""
    return bytes(-size % BLOCK)


def _checked(name: str, size: int, kind: MemberKind, mode: int) -> bytes:
    path = name.encode("utf-8", "surrogateescape")
    if not path or 0 in path or len(path) > MAX_PATH:
        raise InvalidArgumentError(f"no tar member can be called {name[:80]!r}")
    if kind not in _TYPES or not 0 <= size < _MAX_SIZE or (size and kind is MemberKind.DIRECTORY):
        raise InvalidArgumentError(f"{name}: no tar member for a {kind.value} of {size} bytes")
    if not 0 <= mode <= 0o7777:  # noqa: PLR2004 - all permission bits
        raise InvalidArgumentError(f"{name}: mode {mode:o}")
    return path


def _records(path: bytes, size: int) -> bytes:
    """The PAX records that ustar makes necessary."""
    records = b""
    if not _fits(path):
        records += record(b"path", path)
    if size >= OCTAL_LIMIT:
        records += record(b"size", b"%d" % size)
    return records


def record(key: bytes, value: bytes) -> bytes:
    """A PAX record: ``LENGTH KEY=VALUE`` and a newline, where LENGTH counts its own digits too."""
    rest = len(key) + len(value) + 3
    length = rest
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _comment(length: int) -> bytes:
    """A comment record of exactly `length` bytes; nothing for 0."""
    start = b"%d comment=" % length
    return start.ljust(length - 1) + b"\n" if length else b""


def _blocks(needed: int, position: int) -> int:
    """Fewest blocks of records that hold `needed` bytes, leave room for a comment, and align."""
    count = -(position // BLOCK + 2) % (ALIGNMENT // BLOCK) or ALIGNMENT // BLOCK
    while 0 < count * BLOCK - needed < _SHORTEST_COMMENT or count * BLOCK < needed:
        count += ALIGNMENT // BLOCK
    return count


def extended(path: bytes, records: bytes) -> bytes:
    """A PAX header with its body, for the member called `path`."""
    name = b"PaxHeaders/" + path.rstrip(b"/").rpartition(b"/")[2]
    block = ustar_block(name[:NAME], b"", len(records), bytes((EXTENDED,)), 0o644)
    return block + records + padding(len(records))


def _own(path: bytes, size: int, flag: bytes, mode: int) -> bytes:
    prefix, name = split_path(path) if _fits(path) else (b"", path[:NAME])
    return ustar_block(name, prefix, size if size < OCTAL_LIMIT else 0, flag, mode)


def _fits(path: bytes) -> bool:
    return path.isascii() and bool(split_path(path)[1])


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """Prefix and name for ustar, the prefix as short as it can be; both empty where none fits."""
    if len(path) <= NAME:
        return b"", path
    cut = path.find(b"/", len(path) - NAME - 1, len(path) - 1)
    return (path[:cut], path[cut + 1 :]) if 0 < cut <= _PREFIX else (b"", b"")


def ustar_block(
    name: bytes,
    prefix: bytes,
    size: int,
    flag: bytes,
    mode: int,
    *,
    owner: tuple[int, int] = (0, 0),
    mtime: int = 0,
    linkname: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One header block. Everything must fit its field; owners' names stay empty.

    Args:
        name: at most 100 bytes.
        prefix: what stands before the name and a ``/``; at most 155 bytes.
        size: bytes of body.
        flag: the type.
        mode: permission bits.
        owner: uid and gid, of at most 7 octal digits.
        mtime: seconds since the epoch, not before it.
        linkname: at most 100 bytes.
        device: major and minor number below `DEVICE_LIMIT`; what octal can't hold is binary, as in GNU's.
    """
    block = b"".join(
        (
            name.ljust(NAME, b"\0"),
            b"%07o\0%07o\0%07o\0" % (mode, *owner),
            b"%011o\0%011o\0" % (size, mtime),
            b" " * 8,
            flag,
            linkname.ljust(NAME, b"\0"),
            b"ustar\x0000".ljust(72, b"\0"),  # no names of owner and group
            *map(_device_number, device),
            prefix.ljust(_PREFIX + 12, b"\0"),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _device_number(number: int) -> bytes:
    return b"%07o\0" % number if number < 8**7 else (1 << 63 | number).to_bytes(8, "big")
