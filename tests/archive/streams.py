"""Compressed streams to test with, and short ways to read or be refused."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import struct

import pytest
import zstandard

from imgdb.archive.compression import (
    Compression,
    open_decompressed,
)
from imgdb.errors import BadArchiveError

KINDS = [Compression.GZIP, Compression.BZIP2, Compression.XZ, Compression.ZSTD]
PLAIN = b"".join(b"%d squared is %d\n" % (i, i * i) for i in range(20_000))
SKIPPABLE = b"\x5a\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"


def zstd(data, **options):
    """One zstd frame."""
    return zstandard.ZstdCompressor(**options).compress(data)


COMPRESS = {
    Compression.GZIP: functools.partial(gzip.compress, mtime=0),
    Compression.BZIP2: bz2.compress,
    Compression.XZ: lzma.compress,
    Compression.ZSTD: functools.partial(zstd, write_checksum=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)


def plain_of(source, *, step=1 << 20, warnings=None):
    """All that comes out, and the compression."""
    warn = (lambda _: None) if warnings is None else warnings.append
    reader, kind = open_decompressed(
        io.BytesIO(source) if isinstance(source, bytes) else source, on_warning=warn
    )
    pieces = []
    while piece := reader.read(step):
        assert len(piece) <= step
        pieces.append(piece)
    assert reader.read(1) == b""
    return b"".join(pieces), kind


def refused(data, words):
    """The stream is refused with these words."""
    with pytest.raises(BadArchiveError) as caught:
        plain_of(data)
    assert words in str(caught.value)
