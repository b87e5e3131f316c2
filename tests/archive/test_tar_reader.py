"""How the tar reader reads a source, and where an archive ends."""

from __future__ import annotations

import io
import os

import pytest

from imgdb.archive.stream import READ_AHEAD, Stream
from imgdb.archive.tar import TarReader
from imgdb.errors import BadArchiveError, NoImageError
from tests.archive.rawtar import (
    BLOCK,
    END,
    FILE,
    Trickle,
    header,
    member,
    pax,
    read_all,
    refused,
)


def test_offsets_are_where_bodies_begin():
    """A member's offset points at its body in the file, also where reading began in the middle."""
    file = io.BytesIO(b"front" + FILE + member(b"two", b"second") + END)
    file.seek(5)

    offsets = [(found.offset, found.size) for found in TarReader(file)]

    assert [file.getvalue()[offset : offset + size] for offset, size in offsets] == [b"body", b"second"]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, READ_AHEAD - 1, READ_AHEAD, 3 * READ_AHEAD + 7])
@pytest.mark.parametrize("step", [1000, 1 << 20])
@pytest.mark.parametrize("readinto", [True, False])
def test_bodies_through_any_source(size, step, readinto):
    """Bodies are whole and the next member is found, whatever pieces the source gives."""
    body = os.urandom(size)
    archive = member(b"a", body) + FILE + END

    found = read_all(Trickle(archive, step, readinto=readinto))

    assert [content for _, content in found] == [body, b"body"]


def test_byte_by_byte():
    """The slowest pipe gives the same members."""
    archive = pax((b"path", b"p" * 200)) + FILE + header(b"d/", flag=b"5") + END

    assert read_all(Trickle(archive)) == read_all(archive)


@pytest.mark.parametrize("seekable", [True, False])
def test_unread_bodies_are_skipped(seekable):
    """Whatever was read of a body, the next member follows."""
    archive = b"".join(member(b"%d" % i, os.urandom(100_000 + i)) for i in range(4)) + END
    reader = TarReader(io.BytesIO(archive) if seekable else Trickle(archive, 1 << 16))

    names = []
    for index, found in enumerate(reader):
        names.append(found.name)
        assert len(reader.read((0, 1, 99_999, 10**6)[index])) == (0, 1, 99_999, found.size)[index]

    assert names == [b"0", b"1", b"2", b"3"]
    assert reader.offset == len(archive)


def test_skipping_seeks():
    """A seekable source isn't read where nobody looks."""

    class Counting(io.BytesIO):
        count = 0

        def readinto(self, buffer):
            got = super().readinto(buffer)
            self.count += got
            return got

    source = Counting(member(b"big", bytes(10_000_000)) + FILE + END)

    assert len(list(TarReader(source))) == 2
    assert source.count < 3 * READ_AHEAD


def test_large_bodies_go_straight_into_the_buffer():
    """No copy in between: the source is asked to fill the caller's own memory."""
    asked = []

    class Asking(Trickle):
        def __init__(self, data):
            super().__init__(data, 1 << 30)
            self.readinto = self._noting

        def _noting(self, buffer):
            asked.append(len(buffer))
            return self._readinto(buffer)

    reader = TarReader(Asking(member(b"big", bytes(4 << 20)) + END))
    buffer = memoryview(bytearray(1 << 20))
    next(reader)
    while reader.readinto(buffer):
        pass

    assert asked.count(1 << 20) >= 3


def test_readinto_takes_any_buffer_and_stops_at_the_body():
    """A bytearray will do, and what lies behind the body is never given out."""
    reader = TarReader(io.BytesIO(FILE + END))
    next(reader)
    buffer = bytearray(100)

    assert [reader.readinto(buffer), reader.readinto(buffer), reader.read(10)] == [4, 0, b""]
    assert buffer[:5] == b"body\0"


def test_a_stream_can_be_handed_over():
    """What was peeked at isn't lost."""
    stream = Stream(Trickle(FILE + END))

    assert stream.peek(4) == b"file"
    assert [found.name for found in TarReader(stream)] == [b"file"]


def test_blocking_sources_only():
    """A non-blocking source without data is an OSError, not an end."""

    class Dry:
        def readinto(self, _buffer):
            return None

    with pytest.raises(BlockingIOError):
        next(TarReader(Dry()))


def test_errors_of_the_source_pass():
    """A disk that fails is no bad archive."""

    class Failing:
        def read(self, _size):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        next(TarReader(Failing()))


def test_errors_stay():
    """Who catches an error and goes on doesn't mistake the rest for the end."""
    reader = TarReader(io.BytesIO(FILE + b"x" * BLOCK + END))
    next(reader)

    for step in (lambda: next(reader), lambda: next(reader), reader.drain, lambda: reader.read(1)):
        with pytest.raises(BadArchiveError, match="wrong checksum"):
            step()


def test_no_tar_stays_no_tar():
    """The same for an input that is no tar at all."""
    reader = TarReader(io.BytesIO(b"<html>" * 200))

    for _ in range(2):
        with pytest.raises(NoImageError):
            next(reader)


# --- where it ends


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\x7fELF" * 1000, b"x" * 511, bytes(100)])
def test_what_is_no_tar(data):
    """Bytes that no tar begins with are no image archive."""
    with pytest.raises(NoImageError):
        read_all(data)


def test_a_damaged_first_header_with_magic_is_a_bad_archive():
    """It was a tar once, so damage is what the user should hear of."""
    damaged = bytearray(FILE)
    damaged[0] ^= 1

    refused(bytes(damaged), "wrong checksum")
    refused(FILE[:300], "truncated", end=b"")


def test_zero_blocks_only():
    """An empty tar has no members and is no error here."""
    assert read_all(END) == []


def test_missing_end_blocks_are_accepted_with_a_warning():
    """Several tools write none (corpus/README)."""
    warnings = []

    assert len(read_all(FILE, on_warning=warnings.append)) == 1
    assert ["no end blocks" in line for line in warnings] == [True]


def test_one_zero_block_at_the_end_is_accepted_with_a_warning():
    """GNU tar calls it a lone zero block."""
    warnings = []

    assert len(read_all(FILE + bytes(BLOCK), on_warning=warnings.append)) == 1
    assert ["one zero block" in line for line in warnings] == [True]


def test_drain_counts_junk_and_warns_once():
    """Everything is read; NULs are silent, anything else is counted."""
    warnings = []
    source = io.BytesIO(FILE + END + bytes(70_000) + b"junk" + bytes(10) + b"x")
    reader = TarReader(source, on_warning=warnings.append)

    assert reader.drain() == 5
    assert source.read() == b""
    assert ["5 bytes of junk" in line for line in warnings] == [True]


def test_drain_is_silent_about_padding():
    """Tapes and tarfile pad with NULs."""
    warnings = []
    reader = TarReader(io.BytesIO(FILE + END + bytes(10_000)), on_warning=warnings.append)

    assert (reader.drain(), warnings) == (0, [])


def test_extension_without_member():
    """An x header at the end describes nothing."""
    refused(FILE + pax((b"path", b"x")), "without a member")
    refused(FILE + pax((b"path", b"x")), "without a member", end=b"")


def test_a_global_header_alone():
    """An empty git archive ends properly; without end blocks it is truncated."""
    assert read_all(pax(flag=b"g") + END) == []
    refused(pax(flag=b"g"), "truncated", end=b"")


def test_messages_name_member_and_offset():
    """A message tells where to look, with the name escaped."""
    message = refused(FILE + header(b"\x1b[31m\xff\n", flag=b"Z"), "offset 1024")

    assert r"'\x1b[31m\\xff\n'" in message
