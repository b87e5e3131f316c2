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

_NAME = 100
_PREFIX = 155
_OCTAL_LIMIT = 8**11
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
    return _extended(path, records) + own if records else own


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
    return _extended(path, records) + own if records else own


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
        records += _record(b"path", path)
    if size >= _OCTAL_LIMIT:
        records += _record(b"size", b"%d" % size)
    return records


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE`` and a newline, where LENGTH counts its own digits too."""
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


def _extended(path: bytes, records: bytes) -> bytes:
    """A PAX header with its body."""
    name = b"PaxHeaders/" + path.rstrip(b"/").rpartition(b"/")[2]
    block = _block(name[:_NAME], b"", len(records), bytes((EXTENDED,)), 0o644)
    return block + records + padding(len(records))


def _own(path: bytes, size: int, flag: bytes, mode: int) -> bytes:
    prefix, name = _split(path) if _fits(path) else (b"", path[:_NAME])
    return _block(name, prefix, size if size < _OCTAL_LIMIT else 0, flag, mode)


def _fits(path: bytes) -> bool:
    return path.isascii() and bool(_split(path)[1])


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Prefix and name for ustar, the prefix as short as it can be; no name where none fits."""
    if len(path) <= _NAME:
        return b"", path
    cut = path.find(b"/", len(path) - _NAME - 1, len(path) - 1)
    return (path[:cut], path[cut + 1 :]) if 0 < cut <= _PREFIX else (b"", b"")


def _block(name: bytes, prefix: bytes, size: int, flag: bytes, mode: int) -> bytes:
    block = b"".join(
        (
            name.ljust(_NAME, b"\0"),
            b"%07o\0" % mode,
            b"0000000\0" * 2,  # owner and group
            b"%011o\0" % size,
            b"00000000000\0",  # time
            b" " * 8,
            flag.ljust(101, b"\0"),  # no link name
            b"ustar\x0000".ljust(72, b"\0"),  # no names of owner and group
            b"0000000\0" * 2,  # no device
            prefix.ljust(_PREFIX + 12, b"\0"),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
