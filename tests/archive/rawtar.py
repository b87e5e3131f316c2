"""Tar headers byte by byte, also wrong ones, slow sources, and short ways to read or be refused."""

from __future__ import annotations

import io

import pytest

from imgdb.archive.tar import TarReader
from imgdb.errors import BadArchiveError

BLOCK = 512
END = bytes(2 * BLOCK)


def octal(number, width):
    """A number field as most writers write it."""
    return b"%0*o\0" % (width - 1, number)


def base256(number, width):
    """A number field as GNU tar writes what octal can't hold."""
    marked = number + (1 << (8 * width - 1)) if number >= 0 else number + (1 << (8 * width))
    return marked.to_bytes(width, "big")


def header(
    name=b"file",
    size=0,
    flag=b"0",
    *,
    linkname=b"",
    mode=b"0000644\0",
    uid=b"0000000\0",
    gid=b"0000000\0",
    mtime=b"00000000000\0",
    magic=b"ustar\x0000",
    uname=b"",
    gname=b"",
    devmajor=b"0000000\0",
    devminor=b"0000000\0",
    prefix=b"",
    tail=b"",
    signed=False,
):
    """One header block with a right checksum; `size` may be the raw field."""
    size = size if isinstance(size, bytes) else octal(size, 12)
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            mode.ljust(8, b"\0"),
            uid.ljust(8, b"\0"),
            gid.ljust(8, b"\0"),
            size,
            mtime.ljust(12, b"\0"),
            b" " * 8,
            flag,
            linkname.ljust(100, b"\0"),
            magic.ljust(8, b"\0"),
            uname.ljust(32, b"\0"),
            gname.ljust(32, b"\0"),
            devmajor.ljust(8, b"\0"),
            devminor.ljust(8, b"\0"),
            prefix.ljust(167 - len(tail), b"\0"),
            tail,
        )
    )
    assert len(block) == BLOCK
    return rechecksum(block, signed=signed)


def rechecksum(block, *, signed=False):
    """The block with its checksum field made right."""
    block = block[:148] + b" " * 8 + block[156:]
    total = sum(block) - (256 * sum(byte > 127 for byte in block) if signed else 0)
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(body):
    """A body with the NULs behind it."""
    return body + bytes(-len(body) % BLOCK)


def member(name=b"file", body=b"", flag=b"0", **fields):
    """A header and its body."""
    return header(name, len(body), flag, **fields) + padded(body)


def record(key, value):
    """One PAX record."""
    rest = len(key) + len(value) + 3
    length = next(n for n in range(rest, rest + 22) if n == rest + len(str(n)))
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records, flag=b"x"):
    """A PAX header; records are pairs of key and value, or raw bytes."""
    return member(b"PaxHeaders/0", b"".join(r if isinstance(r, bytes) else record(*r) for r in records), flag)


FILE = member(b"file", b"body")


class Trickle:
    """A source that can't seek and gives `step` bytes at a time, by `readinto` or by `read`."""

    def __init__(self, data, step=1, *, readinto=True):
        self._file = io.BytesIO(data)
        self._step = step
        if readinto:
            self.readinto = self._readinto
        else:
            self.read = self._read

    def _readinto(self, buffer):
        return self._file.readinto(memoryview(buffer)[: self._step])

    def _read(self, size):
        return self._file.read(min(size, self._step))


def read_all(source, **options):
    """Every member with its body."""
    reader = TarReader(io.BytesIO(source) if isinstance(source, bytes) else source, **options)
    return [(found, reader.read(found.size)) for found in reader]


def only(archive):
    """The single member of an archive without end blocks."""
    ((found, _),) = read_all(archive + END)
    return found


def refused(archive, words, *, end=END):
    """The message of the refusal, which holds `words`."""
    with pytest.raises(BadArchiveError) as caught:
        read_all(archive + end)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)
