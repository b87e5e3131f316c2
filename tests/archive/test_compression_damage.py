"""Damaged, truncated and hostile streams: refused in bounded time and memory (reliability §2c)."""

from __future__ import annotations

import bz2
import collections
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imgdb.archive import compression
from imgdb.archive.compression import (
    Compression,
    open_decompressed,
    sniff,
)
from imgdb.errors import BadArchiveError
from tests.archive.rawtar import END, Trickle, member
from tests.archive.streams import COMPRESS, KINDS, PLAIN, SKIPPABLE, every_kind, plain_of, refused, zstd


@every_kind
def test_truncated_anywhere(kind, inflater):
    """Every cut is found that leaves a magic to know the stream by."""
    stream = COMPRESS[kind](PLAIN[:3000])
    for cut in range(len(stream)):
        if sniff(stream[:cut]) is kind:
            refused(stream[:cut], "truncated")
            refused(Trickle(stream[:cut], 100), "truncated")
        else:
            assert cut < 6, inflater


@every_kind
def test_truncated_second_member(kind):
    """A cut in a later member is found as well."""
    first, second = COMPRESS[kind](b"first"), COMPRESS[kind](PLAIN[:300])
    for cut in range(10, len(second)):
        refused(first + second[:cut], "truncated")


@every_kind
def test_flipped_bits(kind, inflater):
    """A flipped bit is refused, or is in a part that means nothing: the content is never wrong."""
    stream = COMPRESS[kind](PLAIN[:3000])
    harmless = 0
    for index in range(10, len(stream)):
        damaged = stream[:index] + bytes((stream[index] ^ 0x10,)) + stream[index + 1 :]
        try:
            found, _ = plain_of(damaged)
        except BadArchiveError:
            continue
        assert found == PLAIN[:3000], inflater
        harmless += 1
    assert harmless < 10  # where bits fill a byte


@every_kind
def test_wrong_checksum(kind, inflater):
    """The content is right and its checksum isn't."""
    at = {Compression.GZIP: -5, Compression.BZIP2: 10, Compression.XZ: -36, Compression.ZSTD: -1}[kind]
    stream = bytearray(COMPRESS[kind](PLAIN))
    stream[at] ^= 1

    refused(bytes(stream), f"damaged {kind.value} stream"), inflater


def test_wrong_gzip_length(inflater):
    """ISIZE is checked too."""
    stream = bytearray(gzip.compress(PLAIN))
    stream[-1] ^= 1

    refused(bytes(stream), "wrong CRC or length"), inflater


def test_damage_stays():
    """Who catches an error and reads on gets it again."""
    reader, _ = open_decompressed(io.BytesIO(gzip.compress(PLAIN)[:-9]))

    for _ in range(2):
        with pytest.raises(BadArchiveError, match="truncated"):
            collections.deque(iter(lambda: reader.read(1 << 20), b""))


@every_kind
@settings(deadline=None, max_examples=150)
@given(
    cuts=st.lists(st.tuples(st.integers(6, 400), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4)
)
def test_damage_raises_nothing_else(kind, cuts):
    """Whatever the bytes behind the magic: content or a BadArchiveError."""
    stream = COMPRESS[kind](PLAIN[:500])
    for where, what in cuts:
        stream = stream[:where] + what + stream[where + len(what) :]
    try:
        found, _ = plain_of(stream)
    except BadArchiveError:
        found = b""

    assert len(found) < 1 << 26


# --- gzip headers

HEADER_FIELDS = struct.pack("<H", 300) + b"e" * 300 + b"name" * 50 + b"\0" + b"comment" * 30 + b"\0"


def gzip_with_fields(fields=HEADER_FIELDS, flags=0x1E, content=PLAIN[:500]):
    """A gzip member with every optional header field."""
    front = b"\x1f\x8b\x08" + bytes((flags,)) + bytes(6) + fields
    front += struct.pack("<H", zlib.crc32(front) & 0xFFFF) if flags & 2 else b""
    return front + gzip.compress(content)[10:]


@pytest.mark.parametrize("step", [1, 2, 3, 100, 311, 1 << 16])
def test_gzip_header_fields_in_pieces(step, inflater):
    """A header split between two reads is one header (isal alone gets this wrong)."""
    assert plain_of(Trickle(gzip_with_fields() * 2, step))[0] == PLAIN[:500] * 2, inflater


def test_gzip_header_crc():
    """Where a header has a checksum it is checked."""
    stream = bytearray(gzip_with_fields())
    stream[20] ^= 1

    refused(bytes(stream), "wrong header CRC")


def test_gzip_reserved_flags():
    """Flags that nobody has defined could mean anything."""
    refused(gzip_with_fields(b"", 0x20), "unknown header")


@pytest.mark.parametrize("flags", [8, 16])
def test_endless_gzip_header(flags):
    """A name of any length is no header."""
    refused(b"\x1f\x8b\x08" + bytes((flags,)) + bytes(6) + b"n" * 70_000, "header of more than 65536 bytes")
    refused(gzip_with_fields(b"n" * 66_000 + b"\0", flags), "header of more than 65536 bytes")


# --- zstd frames


@pytest.mark.parametrize(
    "stream",
    [
        SKIPPABLE + zstd(PLAIN),
        zstd(PLAIN) + SKIPPABLE,
        zstd(PLAIN[:999]) + SKIPPABLE * 3 + zstd(PLAIN[999:]),
        b"\x50\x2a\x4d\x18"
        + bytes(4)
        + zstd(PLAIN)
        + b"\x5f\x2a\x4d\x18"
        + struct.pack("<I", 1 << 20)
        + bytes(1 << 20),
    ],
    ids=["first", "last", "between", "empty and largest"],
)
@pytest.mark.parametrize("step", [999, 1 << 16])
def test_skippable_frames(stream, step):
    """They may stand anywhere and hold up to a MiB."""
    warnings = []

    assert plain_of(Trickle(stream, step), warnings=warnings) == (PLAIN, Compression.ZSTD)
    assert warnings == []


def test_skippable_frame_too_large():
    """Its size is looked at before it is skipped."""
    refused(b"\x50\x2a\x4d\x18" + struct.pack("<I", (1 << 20) + 1), "skippable frame of 1048577 bytes")


def test_skippable_frame_truncated():
    """Also what is skipped must be there."""
    refused(zstd(PLAIN) + SKIPPABLE[:-1], "truncated")
    assert plain_of(SKIPPABLE) == (b"", Compression.ZSTD)


@pytest.mark.parametrize("level", [1, 3, 19])
@pytest.mark.parametrize("options", [{}, {"write_checksum": True}, {"write_content_size": False}])
def test_zstd_frames_of_any_shape(level, options):
    """With and without checksum and size, small windows and large ones."""
    content = PLAIN * 3 + bytes(300_000) + os.urandom(300_000)

    assert plain_of(zstd(content, level=level, **options)) == (content, Compression.ZSTD)
    assert plain_of(zstd(b"tiny", level=level, **options))[0] == b"tiny"


def test_zstd_long_window():
    """128 MiB are allowed, as zstd --long has them."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, write_content_size=False)

    assert plain_of(zstd(PLAIN, compression_params=parameters))[0] == PLAIN


@pytest.mark.parametrize("descriptor", [b"\x00\x89", b"\x00\xff", b"\xe0" + struct.pack("<Q", (1 << 27) + 1)])
def test_zstd_window_too_large(descriptor):
    """A frame that wants gigabytes of memory is refused by its header."""
    refused(b"\x28\xb5\x2f\xfd" + descriptor + b"\x01\0\0", "window of")


def test_zstd_dictionary():
    """A frame that needs a dictionary can't be read by anyone."""
    refused(b"\x28\xb5\x2f\xfd\x01\x58\x07" + b"\x01\0\0", "needs a dictionary")


@pytest.mark.parametrize("block", [b"\x07\0\0", b"\x01\0\x20" + bytes(10), b"\x1d\0\0abc", b"\xff\xff\xff"])
def test_zstd_bad_blocks(block):
    """Reserved types, sizes beyond 128 KiB, nonsense."""
    refused(b"\x28\xb5\x2f\xfd\0\x58" + block + bytes(100), "damaged zstd stream")


def test_zstd_empty_blocks():
    """Many blocks that hold nothing, and then something."""
    stream = b"\x28\xb5\x2f\xfd\0\x58" + bytes(3) * 50_000 + b"\x29\0\0" + b"hello"

    assert plain_of(stream)[0] == b"hello"


def test_zstd_content_size_is_checked():
    """A frame that announces more than it has is damaged."""
    refused(b"\x28\xb5\x2f\xfd\x20\x06\x29\0\0hello", "damaged zstd stream")


# --- xz


def test_xz_wants_too_much_memory():
    """A dictionary of 1.5 GiB, patched into the header, is refused before it is allocated."""
    stream = bytearray(lzma.compress(PLAIN))
    stream[16] = 37
    stream[20:24] = struct.pack("<I", zlib.crc32(stream[12:20]))

    refused(bytes(stream), "damaged xz stream")


def test_xz_without_checksum():
    """An xz stream need not have one."""
    assert plain_of(lzma.compress(PLAIN, check=lzma.CHECK_NONE))[0] == PLAIN


# --- bombs and nesting


@pytest.mark.parametrize("outer", KINDS, ids=lambda kind: kind.value)
@pytest.mark.parametrize("inner", KINDS, ids=lambda kind: kind.value)
def test_compressed_twice(outer, inner):
    """One outer compression only, whatever the two are."""
    with pytest.raises(BadArchiveError, match=f"compressed twice: {inner.value} inside {outer.value}"):
        open_decompressed(io.BytesIO(COMPRESS[outer](COMPRESS[inner](PLAIN))))


def test_compressed_twice_across_members():
    """The inner magic may be spread over members."""
    inner = gzip.compress(PLAIN)

    refused(b"".join(gzip.compress(inner[i : i + 1]) for i in range(20)), "compressed twice")


def test_a_magic_further_in_is_content():
    """Only the beginning counts: tars hold compressed files."""
    archive = member(b"layer.tar.gz", gzip.compress(PLAIN)) + END

    assert plain_of(gzip.compress(archive))[0] == archive


BOMB = """
import io, sys
from imgdb.archive.compression import open_decompressed
from imgdb.errors import BadArchiveError

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

before, total = peak(), 0
with open(sys.argv[1], "rb") as file:
    try:
        reader, _ = open_decompressed(file)
        while data := reader.read(1 << 20):
            total += len(data)
        print("accepted", total, peak() - before)
    except BadArchiveError as error:
        print(str(error).split(":")[0], total, peak() - before, sep="|")
"""


@every_kind
def test_bombs(kind, tmp_path):
    """A thousandfold beyond 64 MiB is refused, with little memory and soon."""
    bomb = {
        Compression.GZIP: gzip.compress(bytes(10 << 20), 9) * 100,
        Compression.BZIP2: bz2.compress(bytes(1 << 20)) * 200,
        Compression.XZ: lzma.compress(bytes(5 << 20), preset=0) * 100,
        Compression.ZSTD: zstd(bytes(500 << 20)) * 2,
    }[kind]
    (tmp_path / "bomb").write_bytes(bomb)
    process = subprocess.run(
        [sys.executable, "-c", BOMB, tmp_path / "bomb"], check=True, capture_output=True, text=True
    )
    word, total, kibibytes = process.stdout.strip().split("|")

    assert word == "decompression bomb"
    assert 63 << 20 <= int(total) <= 800 << 20
    assert int(kibibytes) < 24 << 10


@every_kind
def test_ratio_below_64_mib_is_free(kind):
    """Small archives of zeros are nobody's bomb."""
    assert len(plain_of(COMPRESS[kind](bytes(5 << 20)) * 12)[0]) == 60 << 20


def test_ratio_below_a_thousand_is_free(monkeypatch):
    """Beyond 64 MiB it is the ratio that counts."""
    monkeypatch.setattr(compression, "RATIO_FREE", 1 << 16)
    content = b"".join(os.urandom(1000) + bytes(200_000) for _ in range(30))

    assert plain_of(zstd(content))[0] == content
