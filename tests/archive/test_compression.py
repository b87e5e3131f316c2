"""Outer compression: sniffed and taken off once, member after member; and put on again."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgdb.archive.compression import (
    SNIFF_LENGTH,
    Compression,
    open_compressor,
    open_decompressed,
    sniff,
)
from imgdb.archive.tar import TarReader
from imgdb.errors import InvalidArgumentError
from tests.archive.rawtar import END, Trickle, member
from tests.archive.streams import COMPRESS, PLAIN, every_kind, plain_of, refused, zstd


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
    content = PLAIN[: 1000 * step]

    assert plain_of(COMPRESS[kind](content), step=step) == (content, kind), inflater


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
    with contextlib.suppress(KeyError), open_compressor(sink, "gzip") as compressor:
        compressor.write(os.urandom(1 << 20))
        raise KeyError

    refused(sink.getvalue(), "truncated")


def test_unknown_compression():
    """The message says what there is."""
    with pytest.raises(InvalidArgumentError, match="gzip and zstd"):
        open_compressor(io.BytesIO(), "bzip2")
