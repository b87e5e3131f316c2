"""Outer compression: sniffed, taken off once, bounded; damage, bombs and junk as decided."""

from __future__ import annotations

import bz2
import collections
import contextlib
import functools
import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imgdb.archive import codecs, compression
from imgdb.archive.compression import (
    SNIFF_LENGTH,
    Compression,
    open_compressor,
    open_decompressed,
    sniff,
)
from imgdb.archive.tar import TarReader
from imgdb.errors import BadArchiveError, InvalidArgumentError
from tests.archive.rawtar import END, Trickle, member

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


@pytest.fixture(params=["isal", "zlib"])
def inflater(request, monkeypatch):
    """Both ways to read gzip: with isal, and where there is none."""
    if request.param == "isal" and not codecs.HAVE_ISAL:
        pytest.skip("isal is not installed")
    monkeypatch.setattr(codecs, "HAVE_ISAL", request.param == "isal")
    return request.param


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


# --- sniffing


@every_kind
def test_sniff(kind):
    """The first bytes tell, whatever the content."""
    for content in (b"", b"x", PLAIN):
        assert sniff(COMPRESS[kind](content)[:SNIFF_LENGTH]) is kind


@pytest.mark.parametrize("magic", [bytes((0x50 + x,)) + b"\x2a\x4d\x18" for x in range(16)])
def test_sniff_skippable_frames(magic):
    """All sixteen of them begin a zstd stream."""
    assert sniff(magic + bytes(6)) is Compression.ZSTD


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0" * 10,
        b"\x1f\x8b\x09",
        b"BZhello.tx",
        b"BZh0",
        b"BZh9hello!",
        b"\xfd7zXY\0",
        b"P*M",
        b"`*M\x18",
        b"(\xb5/",
    ],
)
def test_sniff_nothing(head):
    """Almost a magic is none, and a tar may begin with a file called BZh9…."""
    assert sniff(head) is Compression.NONE


# --- reading


@every_kind
@pytest.mark.parametrize("step", [7, 4096, 1 << 20])
def test_round_trip(kind, step, inflater):
    """What was compressed comes out, in pieces of any size."""
    assert plain_of(COMPRESS[kind](PLAIN), step=step) == (PLAIN, kind), inflater


@every_kind
@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("readinto", [True, False])
def test_from_a_pipe(kind, step, readinto, inflater):
    """A source that can't seek and gives little at a time."""
    content = PLAIN[:30_000]

    assert plain_of(Trickle(COMPRESS[kind](content), step, readinto=readinto)) == (content, kind), inflater


@every_kind
def test_incompressible(kind):
    """Blocks that are stored as they are."""
    content = os.urandom(700_000)

    assert plain_of(COMPRESS[kind](content)) == (content, kind)


@every_kind
def test_readinto(kind):
    """The other way to read."""
    reader, _ = open_decompressed(io.BytesIO(COMPRESS[kind](PLAIN)))
    buffer, found = bytearray(1000), bytearray()
    while count := reader.readinto(memoryview(buffer)):
        found += buffer[:count]

    assert found == PLAIN
    assert reader.readinto(memoryview(buffer)) == 0


@every_kind
def test_nothing_inside(kind):
    """A compressed empty file is empty."""
    assert plain_of(COMPRESS[kind](b"")) == (b"", kind)


@every_kind
@settings(deadline=None)
@given(data=st.data())
def test_any_content_in_any_pieces(kind, data):
    """Members, pieces of input and pieces of output fall anywhere."""
    parts = data.draw(st.lists(st.binary(max_size=2000), min_size=1, max_size=4))
    source = Trickle(b"".join(COMPRESS[kind](b"." + part) for part in parts), data.draw(st.integers(1, 50)))

    assert plain_of(source, step=data.draw(st.integers(1, 3000))) == (
        b"".join(b"." + part for part in parts),
        kind,
    )


def test_a_tar_inside():
    """The tar reader works on top."""
    archive = member(b"name", PLAIN) + END
    reader = TarReader(open_decompressed(io.BytesIO(zstd(archive)))[0])

    assert next(reader).name == b"name"
    assert reader.read(len(PLAIN) + 1) == PLAIN
    assert reader.drain() == 0


def test_uncompressed_file_comes_back_itself():
    """So that whoever reads it can seek; it stands where it stood."""
    file = io.BytesIO(b"front" + PLAIN)
    file.seek(5)

    reader, kind = open_decompressed(file)

    assert (reader is file, kind, file.tell()) == (True, Compression.NONE, 5)


@pytest.mark.parametrize("content", [b"", b"x", b"BZ", PLAIN[:5000]])
@pytest.mark.parametrize("readinto", [True, False])
def test_uncompressed_pipe(content, readinto):
    """What was looked at is still read."""
    assert plain_of(Trickle(content, 7, readinto=readinto)) == (content, Compression.NONE)


def test_only_the_rest_is_read():
    """A seekable source is read from where it stands."""
    file = io.BytesIO(b"front" + gzip.compress(b"content"))
    file.seek(5)

    assert plain_of(file) == (b"content", Compression.GZIP)


# --- members, padding, junk


@every_kind
def test_members(kind, inflater):
    """Several members are one stream; empty ones are nothing."""
    one = COMPRESS[kind]
    parts = [b"", PLAIN, b"", b"", b"x", PLAIN[:5000], b""]

    assert plain_of(b"".join(map(one, parts))) == (b"".join(parts), kind), inflater


@every_kind
def test_empty_members_are_counted(kind):
    """Ten thousand in a row are enough."""
    empty = COMPRESS[kind](b"")

    assert plain_of((empty * 10_000 + COMPRESS[kind](b"x")) * 2)[0] == b"xx"
    refused(empty * 10_002, "more than 10000 empty")


@every_kind
def test_nuls_behind_are_fine(kind):
    """Tapes and block devices pad, silently; members may follow even then."""
    warnings = []
    stream = COMPRESS[kind](PLAIN) + bytes(70_001)

    assert plain_of(stream, warnings=warnings)[0] == PLAIN
    assert plain_of(stream + COMPRESS[kind](b"more"), warnings=warnings)[0] == PLAIN + b"more"
    assert warnings == []


@every_kind
@pytest.mark.parametrize("junk", [b"junk", b"\0\0\0x", bytes(50_000) + b"junk" * 50_000, b"\x1f\x8b"])
def test_junk_behind_is_ignored_with_a_warning(kind, junk):
    """As corpus/README decides; the source is read to its end all the same."""
    warnings = []
    source = Trickle(COMPRESS[kind](PLAIN) + junk, 1 << 16)

    assert plain_of(source, warnings=warnings)[0] == PLAIN
    assert [("junk" in line, kind.value in line) for line in warnings] == [(True, True)]
    assert source.readinto(bytearray(1)) == 0


def test_other_compression_behind_is_junk():
    """Only members of the same kind continue a stream."""
    warnings = []

    assert plain_of(gzip.compress(b"one") + zstd(b"two"), warnings=warnings)[0] == b"one"
    assert len(warnings) == 1


# --- damage


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
    assert harmless <= 1  # where the last bits fill a byte


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
        Compression.GZIP: gzip.compress(bytes(20 << 20), 9) * 50,
        Compression.BZIP2: bz2.compress(bytes(20 << 20)) * 50,
        Compression.XZ: lzma.compress(bytes(100 << 20), preset=0) * 10,
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
    assert len(plain_of(COMPRESS[kind](bytes(50 << 20)))[0]) == 50 << 20


def test_ratio_below_a_thousand_is_free(monkeypatch):
    """Beyond 64 MiB it is the ratio that counts."""
    monkeypatch.setattr(compression, "RATIO_FREE", 1 << 16)
    content = b"".join(os.urandom(1000) + bytes(200_000) for _ in range(30))

    assert plain_of(zstd(content))[0] == content


# --- writing


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_compressor_round_trip(name, inflater):
    """What is written is read again, and the sink stays open."""
    sink = io.BytesIO()
    compressor = open_compressor(sink, name)
    for start in range(0, len(PLAIN), 10_000):
        assert compressor.write(memoryview(PLAIN)[start : start + 10_000]) == len(
            PLAIN[start : start + 10_000]
        )
    compressor.close()

    assert plain_of(sink.getvalue()) == (PLAIN, Compression(name)), inflater
    assert len(sink.getvalue()) < len(PLAIN) / 2


@pytest.mark.parametrize(("name", "tool"), [("gzip", "gzip"), ("zstd", "zstd")])
def test_compressor_against_the_tools(name, tool, inflater):
    """The tools of the same name read what is written, checksums and all."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    sink = io.BytesIO()
    with open_compressor(sink, name) as compressor:
        compressor.write(PLAIN)
    found = subprocess.run([tool, "-dc"], input=sink.getvalue(), check=True, capture_output=True)

    assert (found.stdout, found.stderr) == (PLAIN, b""), inflater


def test_compressed_archives_are_read_by_tarfile():
    """Python reads a compressed archive too."""
    sink = io.BytesIO()
    with open_compressor(sink, "gzip") as compressor:
        compressor.write(member(b"name", PLAIN) + END)
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue()), mode="r:gz") as archive:
        names = archive.getnames()

    assert names == ["name"]


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_compressor_is_repeatable(name, inflater):
    """No time, no name, nothing of the day in the stream."""
    streams = set()
    for _ in range(2):
        sink = io.BytesIO()
        with open_compressor(sink, name) as compressor:
            compressor.write(PLAIN)
        streams.add(sink.getvalue())

    assert len(streams) == 1, inflater
    if name == "gzip":
        assert streams.pop()[:8] == b"\x1f\x8b\x08\0" + bytes(4)


def test_half_an_archive_does_not_end():
    """An exception in the block leaves the stream without its end."""
    sink = io.BytesIO()
    with contextlib.suppress(KeyError), open_compressor(sink, "zstd") as compressor:
        compressor.write(os.urandom(1 << 20))
        raise KeyError

    refused(sink.getvalue(), "truncated")


def test_unknown_compression():
    """The message says what there is."""
    with pytest.raises(InvalidArgumentError, match="gzip and zstd"):
        open_compressor(io.BytesIO(), "bzip2")
