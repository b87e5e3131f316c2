"""Exact headers: frozen bytes, alignment, and that every reader lists what was written."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imgdb.archive import tarwriter
from imgdb.archive.tar import MemberKind, TarReader
from imgdb.archive.tarwriter import ALIGN_FROM, ALIGNMENT, END, aligned_header, header, header_length, padding
from imgdb.errors import InvalidArgumentError

SHA256 = "blobs/sha256/" + "0123456789abcdef" * 4
SHA512 = "blobs/sha512/" + "0123456789abcdef" * 8
BIG = 8 << 30
FROZEN = "44988d9bf23857491d22135d54a7fc0b15f7f82a8193e49573753467fc4359f4"
POSITIONS = st.integers(0, 1 << 20).map(lambda blocks: blocks * 512)
NAMES = st.one_of(
    st.sampled_from([SHA256, SHA512, "index.json"]),
    st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
        min_size=1,
        max_size=8,
    ).map("/".join),
)
SIZES = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([ALIGN_FROM - 1, ALIGN_FROM, BIG - 1, BIG]))


def only(headers):
    """What the strict reader makes of headers whose body never comes."""

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    reader = TarReader(Pipe(headers))
    return next(reader), reader.offset


def entries(archive):
    """Names, kinds, modes, sizes and bodies by the strict reader."""
    reader = TarReader(io.BytesIO(archive))
    return [(one.name.decode(), one.kind, one.mode, one.size, reader.read(one.size)) for one in reader]


def sample_archive():
    """An archive with every kind of header, and what is in it."""
    content = [
        ("blobs/", MemberKind.DIRECTORY, 0o755, b""),
        ("blobs/sha256/", MemberKind.DIRECTORY, 0o755, b""),
        (SHA256, MemberKind.FILE, 0o444, b"small"),
        (SHA256[:-1] + "0", MemberKind.FILE, 0o444, b"a" * 70_000),
        (SHA256[:-1] + "1", MemberKind.FILE, 0o444, b"b" * ALIGN_FROM),
        ("blobs/sha512/", MemberKind.DIRECTORY, 0o755, b""),
        (SHA512, MemberKind.FILE, 0o444, b"c" * 100_001),
        (SHA512[:-1] + "0", MemberKind.FILE, 0o444, b"tiny"),
        ("d" * 90 + "/" + "f" * 90, MemberKind.FILE, 0o600, b"prefix"),
        ("ümlaut", MemberKind.FILE, 0o644, b"pax"),
        ("index.json", MemberKind.FILE, 0o644, b"{}"),
    ]
    archive = bytearray()
    for name, kind, mode, body in content:
        if mode == 0o444:
            archive += aligned_header(name, len(body), len(archive))
        else:
            archive += header(name, len(body), kind=kind, mode=mode)
        archive += body + padding(len(body))
    return bytes(archive + END), [(name, kind, mode, len(body), body) for name, kind, mode, body in content]


def test_plain_header_is_frozen():
    """Every byte of a ustar header, once and for all."""
    expected = bytearray(512)
    expected[0:10] = b"index.json"
    expected[100:148] = b"0000644\0" + b"0000000\0" * 2 + b"00000000002\0" + b"00000000000\0"
    expected[148:157] = b"011177\0 0"
    expected[257:265] = b"ustar\x0000"
    expected[329:345] = b"0000000\0" * 2

    assert header("index.json", 2, mode=0o644) == expected


def test_the_archive_is_frozen():
    """A change of any byte that we write shows here."""
    archive, _ = sample_archive()

    assert hashlib.sha256(archive).hexdigest() == FROZEN


def test_directories_get_their_slash():
    """With or without, the header is the same."""
    assert header("blobs", 0, kind=MemberKind.DIRECTORY, mode=0o755) == header(
        "blobs/", 0, kind=MemberKind.DIRECTORY, mode=0o755
    )
    assert only(header("blobs", 0, kind=MemberKind.DIRECTORY, mode=0o755))[0].name == b"blobs/"


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("n" * 100, 512),
        ("n" * 101, 1536),
        ("p" * 155 + "/" + "n" * 100, 512),
        ("p" * 156 + "/" + "n" * 100, 1536),
        ("/" + "n" * 100, 1536),
        ("é", 1536),
        (SHA512, 1536),
    ],
)
def test_pax_only_where_ustar_cannot_hold_the_path(name, length):
    """One block where the name fits, with or without a prefix; else a PAX header with the path."""
    headers = header(name, 0, mode=0o644)

    assert len(headers) == length
    assert only(headers)[0].name.decode() == name


def test_pax_size_from_8_gib_on():
    """Eleven octal digits, then a PAX record beside a zero."""
    assert len(header("f", BIG - 1, mode=0o644)) == 512
    headers = header("f", BIG, mode=0o644)

    assert b"19 size=8589934592\n" in headers
    assert headers[1024 + 124 : 1024 + 136] == b"00000000000\0"
    assert only(headers)[0].size == BIG


def test_pax_header_block():
    """Its name, mode, owners and time, as the design says."""
    pax = only_block(aligned_header(SHA512, ALIGN_FROM, 0))

    assert pax.name == ("PaxHeaders/" + SHA512[13:])[:100]
    assert (pax.mode, pax.uid, pax.gid, pax.mtime, pax.uname, pax.gname) == (0o644, 0, 0, 0, "", "")
    assert (pax.type, pax.size % 512) == (b"x", 0)


def only_block(headers):
    """The first block as tarfile understands it, without following it."""
    return tarfile.TarInfo.frombuf(headers[:512], "utf-8", "strict")


def test_no_pax_where_the_body_is_aligned_anyway():
    """At 3584 the body begins at 4096."""
    assert aligned_header(SHA256, ALIGN_FROM, 3584) == header(SHA256, ALIGN_FROM, mode=0o444)


def test_small_bodies_are_not_aligned():
    """Below 64 KiB there is nothing to share."""
    assert aligned_header(SHA256, ALIGN_FROM - 1, 0) == header(SHA256, ALIGN_FROM - 1, mode=0o444)


def test_the_comment_is_spaces():
    """Nothing but `path`, `size` and a comment of spaces is written."""
    headers = aligned_header(SHA512, BIG, 0)
    with tarfile.open(fileobj=io.BytesIO(headers + bytes(1024))) as archive:
        records = archive.next().pax_headers

    assert records.pop("path") == SHA512
    assert records.pop("size") == str(BIG)
    assert set(records.pop("comment")) == {" "}
    assert records == {}


@given(NAMES, SIZES, POSITIONS)
def test_alignment(name, size, position):
    """The body begins at a multiple of 4096, behind the shortest header that gets it there."""
    assume(len(name.encode()) <= 4096)
    headers = aligned_header(name, size, position)
    found, length = only(headers)

    assert (found.name.decode(), found.size, found.mode, length) == (name, size, 0o444, len(headers))
    assert header_length(name, size, position) == len(headers)
    plain = header(name, size, mode=0o444)
    if size < ALIGN_FROM or (len(plain) == 512 and (position + 512) % ALIGNMENT == 0):
        assert headers == plain
        return
    assert (position + len(headers)) % ALIGNMENT == 0
    records = int(headers[124:135], 8)
    assert headers[156:157] == b"x"
    assert records % 512 == 0
    assert len(headers) == records + 1024
    needed = len(headers[512 : 512 + records].partition(b" comment=")[0].rstrip(b"0123456789"))
    # A block of alignment less must be impossible: nothing left, no room for the records, or for a comment.
    shorter = records - ALIGNMENT
    assert shorter <= 0 or shorter < needed or 0 < shorter - needed < len("12 comment=\n")


@pytest.mark.parametrize("left", range(-2, 16))
def test_comment_fits_whatever_is_left(left):
    """Records that end a few bytes before the block's end: exactly, or a whole round more."""
    base = "/".join(["é" * 100] * 20) + "/"
    name = base + "x" * (4096 - len(f"4096 path={base}\n".encode()) - left)

    found, length = only(aligned_header(name, ALIGN_FROM, 3072))

    assert (found.name.decode(), (3072 + length) % ALIGNMENT) == (name, 0)
    assert length == (4096 if left == 0 or left >= 12 else 8192) + 1024


@given(NAMES, SIZES, st.integers(0, 0o7777))
def test_tarfile_reads_the_same(name, size, mode):
    """The standard library sees the same name, size and mode."""
    headers = header(name, size, mode=mode)
    with tarfile.open(fileobj=io.BytesIO(headers)) as archive:
        found = archive.next()

    assert (found.name, found.size, found.mode, found.type) == (name.rstrip("/"), size, mode, tarfile.REGTYPE)
    assert (found.mtime, found.uid, found.gid, found.uname, found.gname) == (0, 0, 0, "", "")


def test_our_reader_reads_the_whole_archive():
    """What goes in comes out, and every large body is aligned."""
    archive, content = sample_archive()

    assert entries(archive) == content
    assert [one.offset % ALIGNMENT for one in TarReader(io.BytesIO(archive)) if one.size >= ALIGN_FROM] == [
        0
    ] * 3
    assert TarReader(io.BytesIO(archive)).drain() == 0


def test_tarfile_reads_the_whole_archive():
    """The standard library lists the same."""
    archive, content = sample_archive()
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        listed = [(one.name, one.mode, one.size) for one in found]

    assert listed == [(name.rstrip("/"), mode, size) for name, _, mode, size, _ in content]


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
def test_gnu_tar_reads_the_whole_archive(tmp_path):
    """GNU tar lists the same, extracts the same, and has nothing to say."""
    archive, content = sample_archive()
    (tmp_path / "a.tar").write_bytes(archive)
    command = ["tar", "--quoting-style=literal", "--numeric-owner", "--full-time", "--utc", "-tvf", "a.tar"]
    listing = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"}
    )
    lines = [line.split(None, 5) for line in listing.stdout.decode().splitlines()]

    assert listing.stderr == b""
    assert [(line[5], int(line[2])) for line in lines] == [(name, size) for name, _, _, size, _ in content]
    assert {(line[1], line[3], line[4]) for line in lines} == {("0/0", "1970-01-01", "00:00:00")}
    subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, check=True)
    files = [(name, body) for name, kind, _, _, body in content if kind is MemberKind.FILE]
    assert [(tmp_path / name).read_bytes() for name, _ in files] == [body for _, body in files]


@pytest.mark.parametrize(
    "arguments",
    [
        ("", 0),
        ("a\0b", 0),
        ("n" * 4097, 0),
        ("n", -1),
        ("n", 2**63),
        ("d", 1, MemberKind.DIRECTORY),
        ("l", 0, MemberKind.SYMLINK),
    ],
)
def test_what_can_not_be_written(arguments):
    """No header that our own reader would refuse."""
    name, size, kind = (*arguments, MemberKind.FILE)[:3]

    with pytest.raises(InvalidArgumentError):
        header(name, size, kind=kind, mode=0o644)


@pytest.mark.parametrize("position", [-512, 1, 511, 4095])
def test_headers_stand_at_blocks(position):
    """A position between blocks is a mistake of the caller."""
    with pytest.raises(InvalidArgumentError, match="can stand at"):
        aligned_header("n", ALIGN_FROM, position)


def test_mode_is_checked():
    """File type bits are no mode."""
    with pytest.raises(InvalidArgumentError, match="mode"):
        header("n", 0, mode=0o100644)


@given(st.integers(0, 2**63 - 1))
def test_padding(size):
    """Up to the next block, nothing where the body ends there."""
    assert (size + len(padding(size))) % 512 == 0
    assert set(padding(size)) <= {0}
    assert len(padding(size)) < 512


def test_end():
    """Two zero blocks and no more."""
    assert bytes(1024) == tarwriter.END
