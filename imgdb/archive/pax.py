"""PAX extended headers: records into values. PURE: bytes in, values out.

A record is ``LENGTH KEY=VALUE`` and a newline; LENGTH counts all of it. Anything else is refused, since
parsers that skip or guess see other members than those that don't (CVE-2025-62518 and its
like). No regular expression ever sees an archive's bytes. Source: POSIX pax, reliability §2b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RECORDS = 10_000
MAX_XATTR_NAME = 255
MAX_XATTR_VALUE = 1 << 16
MAX_NUMBER = 2**63 - 1

_NANOSECOND = 10**9
_DIGITS = 20  # of the largest 64-bit number
_FOREVER = 1e12  # seconds; more than 64 bits of nanoseconds
XATTR = b"SCHILY.xattr."
SPARSE = b"GNU.sparse."
"""What the records of sparse files begin with."""
_SPARSE_NAME = b"GNU.sparse.name"
# Given twice, or for all members at once, these are understood differently by different parsers.
_IDENTITY = (b"path", b"linkpath", b"size")


class MalformedError(Exception):
    """The header breaks a rule. `TarReader` adds which and where; it never leaves this package."""


def show(name: bytes) -> str:
    """A name from an archive for a message: quoted, escaped, at most some 200 characters."""
    text = name[:200].decode("utf-8", "backslashreplace")
    return repr(text if len(name) <= 200 else text + "…")  # noqa: PLR2004 - said above


@dataclass(slots=True)
class Pax:
    """The records of a member that mean something here, checked.

    An absent or empty record leaves the header's own value in force: empty here, or None.
    """

    path: bytes = b""
    linkpath: bytes = b""
    uname: bytes = b""
    gname: bytes = b""
    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def pax_records(data: bytes) -> dict[bytes, bytes]:
    """Records of an extended header's body; of a key given twice the last counts.

    Raises:
        MalformedError: anything but records, more than 10 000, or path, linkpath or size twice.
    """
    records: dict[bytes, bytes] = {}
    for key, value in _each_record(data):
        if key in records and key in _IDENTITY:
            raise MalformedError(f"PAX record {show(key)} given twice")
        records[key] = value
    return records


def sparse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a sparse file in an extended header's body, in order, without ``GNU.sparse.``.

    Version 0.0 repeats two keys for each region, so order and repetition mean something here.

    Raises:
        MalformedError: as `pax_records`.
    """
    return [(key[len(SPARSE) :], value) for key, value in _each_record(data) if key.startswith(SPARSE)]


def _each_record(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    for _ in range(MAX_RECORDS + 1):
        if position == len(data):
            return
        key, value, position = _record(data, position)
        yield key, value
    raise MalformedError(f"more than {MAX_RECORDS} PAX records")


def _record(data: bytes, position: int) -> tuple[bytes, bytes, int]:
    space = data.find(b" ", position, position + _DIGITS + 1)
    digits = data[position : max(space, position)]
    if not digits.isdigit():  # bytes.isdigit is ASCII and non-empty
        raise MalformedError("PAX record without a length")
    end = position + int(digits)
    if end > len(data) or data[end - 1 : end] != b"\n":
        raise MalformedError("PAX record does not end where its length says")
    equals = data.find(b"=", space + 1, end - 1)
    key = data[space + 1 : equals]
    if equals < 0 or not key or 0 in key:
        raise MalformedError("PAX record without a key")
    return key, data[equals + 1 : end - 1], end


def check_global(records: dict[bytes, bytes]) -> None:
    """Refuse a global header that would rename or resize members; the rest is ignored, as in Go.

    Raises:
        MalformedError: it has path, linkpath, size or sparse records.
    """
    for key in records:
        if key in _IDENTITY or key.startswith(SPARSE):
            raise MalformedError(f"global PAX record {show(key)} would apply to every member")


def interpret(records: dict[bytes, bytes], *, sparse: bool = False) -> Pax:
    """Check the records that matter and turn them into values.

    Args:
        records: from `pax_records`.
        sparse: let records of sparse files pass; of these only the name is looked at here, which
            stands for the path, that of a sparse file being made up.

    Raises:
        MalformedError: no number where one belongs, a NUL in a name, an extended attribute
            beyond the kernel's limits, or without `sparse` any record of a sparse file.
    """
    pax = Pax()
    for key, value in records.items():
        if key.startswith(XATTR):
            pax.xattrs[key[len(XATTR) :]] = _xattr(key, value)
        elif key.startswith(SPARSE):
            if not sparse:
                raise MalformedError("sparse files are not supported")
        elif value:
            _apply(pax, key, value)
    if name := records.get(_SPARSE_NAME):
        _apply(pax, b"path", name)
    return pax


def _apply(pax: Pax, key: bytes, value: bytes) -> None:
    match key:
        case b"path" | b"linkpath" | b"uname" | b"gname":
            if 0 in value:
                raise MalformedError(f"NUL in PAX record {show(key)}")
            setattr(pax, key.decode(), value)
        case b"size" | b"uid" | b"gid":
            setattr(pax, key.decode(), decimal(key, value))
        case b"mtime":
            pax.mtime_ns = _pax_time(value)


def _xattr(key: bytes, value: bytes) -> bytes:
    if not 0 < len(key) - len(XATTR) <= MAX_XATTR_NAME:
        raise MalformedError(f"extended attribute with a name of {len(key) - len(XATTR)} bytes")
    if len(value) > MAX_XATTR_VALUE:
        raise MalformedError(f"extended attribute of {len(value)} bytes, more than {MAX_XATTR_VALUE}")
    return value


def decimal(key: bytes, value: bytes) -> int:
    """The number in a record: ASCII digits and nothing else.

    Raises:
        MalformedError: no number between 0 and 2**63 - 1.
    """
    number = int(value) if len(value) <= _DIGITS and value.isdigit() else -1
    if not 0 <= number <= MAX_NUMBER:
        raise MalformedError(f"PAX record {show(key)} is no number between 0 and 2**63: {show(value)}")
    return number


def nanoseconds(seconds: int, part: int) -> int:
    """Seconds and nanoseconds as nanoseconds, clamped to 64 bits."""
    return max(-MAX_NUMBER - 1, min(MAX_NUMBER, seconds * _NANOSECOND + part))


def _pax_time(value: bytes) -> int:
    """Seconds with a fraction. Whatever is no number is the epoch, whatever is too large the limit."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if len(digits) <= _DIGITS and digits.isdigit() and (not fraction or fraction.isdigit()):
        part = int(fraction[:9].ljust(9, b"0"))
        return nanoseconds(int(whole), -part if whole.startswith(b"-") else part)
    try:
        number = float(value[:64])
    except ValueError:
        return 0
    if math.isnan(number):
        return 0
    return nanoseconds(0, int(max(-_FOREVER, min(_FOREVER, number)) * _NANOSECOND))
