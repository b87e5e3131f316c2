"""Sparse files in layers: the four forms of GNU tar, and maps that don't add up (reliability B10)."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgdb.archive.sparse import MAX_REALSIZE, MAX_REGIONS
from imgdb.archive.tar import MemberKind, TarReader
from imgdb.errors import BadArchiveError, NoImageError
from tests.archive import rawtar
from tests.archive.rawtar import BLOCK, END, FILE, Trickle, base256, header, octal, padded, pax, read_all
from tests.archive.test_tar_differential import EDITS, edited, healed

GNU_TAR = pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
FORMS = ["--format=gnu", "--format=oldgnu"] + [
    f"--format=pax --sparse-version={version}" for version in ("0.0", "0.1", "1.0")
]


def key(name):
    """A record's full key."""
    return b"GNU.sparse." + name


def numbers(regions):
    """A map as one list."""
    return [b"%d" % number for region in regions for number in region]


def old_gnu(regions, realsize, data, *, name=b"f", magic=b"ustar  \0", number=octal):
    """An `S` header with as many further blocks as the map needs."""
    entries = [number(offset, 12) + number(length, 12) for offset, length in regions]
    size = number(len(data), 12)
    block = header(name, size, b"S", magic=magic)
    first, rest = b"".join(entries[:4]).ljust(96, b"\0"), entries[4:]
    block = block[:386] + first + bytes((bool(rest),)) + number(realsize, 12) + block[495:]
    blocks = [rawtar.rechecksum(block)]
    while rest:
        here, rest = rest[:21], rest[21:]
        blocks.append(b"".join(here).ljust(504, b"\0") + bytes((bool(rest),)) + bytes(7))
    return b"".join(blocks) + padded(data)


def pax_0_0(regions, realsize, data, *, name=b"f"):
    """Two records for each region."""
    records = [(key(b"size"), b"%d" % realsize), (key(b"numblocks"), b"%d" % len(regions))]
    for offset, length in regions:
        records += [(key(b"offset"), b"%d" % offset), (key(b"numbytes"), b"%d" % length)]
    return pax(*records) + header(name, len(data)) + padded(data)


def pax_0_1(regions, realsize, data, *, name=b"f", more=()):
    """One record with all regions."""
    records = [
        (key(b"size"), b"%d" % realsize),
        (key(b"numblocks"), b"%d" % len(regions)),
        (key(b"name"), name),
        (key(b"map"), b",".join(numbers(regions))),
    ]
    return pax(*records, *more) + header(b"GNUSparseFile.1/f", len(data)) + padded(data)


def pax_1_0(regions, realsize, data, *, name=b"f", lines=None, said=None):
    """The map in front of the data."""
    records = [
        (key(b"major"), b"1"),
        (key(b"minor"), b"0"),
        (key(b"name"), name),
        (key(b"realsize"), b"%d" % realsize),
    ]
    if lines is None:
        lines = padded(b"".join(b"%s\n" % n for n in [b"%d" % len(regions), *numbers(regions)]))
    size = len(lines) + len(data) if said is None else said
    return pax(*records) + header(b"GNUSparseFile.1/f", size) + lines + padded(data)


MAKERS = [old_gnu, pax_0_0, pax_0_1, pax_1_0]
every_form = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def read(archive, **options):
    """The members with their bodies, sparse files allowed."""
    return read_all(archive, sparse=True, **options)


def refused(archive, words):
    """The message of the refusal, with and without being asked for sparse files."""
    rawtar.refused(archive, "sparse", end=END)
    with pytest.raises(BadArchiveError, match=words):
        read(archive + END)


def expanded(member, data):
    """The whole file."""
    content = bytearray(member.realsize)
    for offset, length in member.sparse:
        content[offset : offset + length], data = data[:length], data[length:]
    assert data == b""
    return bytes(content)


def sparse_content(pieces):
    """A file with holes between some pieces of data."""
    content = bytearray()
    for number in range(pieces):
        content += bytes(4096 * (1 + number % 3)) + bytes((1 + number % 255,)) * (4096 + number)
        content += bytes(-len(content) % 4096)
    return bytes(content + bytes(20_000))


@GNU_TAR
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [0, 1, 3, 4, 5, 24, 25, 26, 60, 400])
def test_archives_of_gnu_tar(tmp_path, form, pieces):
    """What GNU tar makes of a file with holes is read as that file, and what follows it as well."""
    name = "n" * 120 if pieces == 5 else "holes"
    content = sparse_content(pieces)
    with (tmp_path / name).open("wb") as file:
        for at in range(0, len(content), 4096):
            if content[at : at + 4096].strip(b"\0"):
                file.seek(at)
                file.write(content[at : at + 4096])
        file.truncate(len(content))
    (tmp_path / "z").write_bytes(b"after")
    command = ["tar", "--sparse", "--hole-detection=raw", *form.split(), "-cf", "-", name, "z"]
    archive = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    (holes, data), after = read(archive)

    assert (holes.name, holes.kind, holes.realsize) == (name.encode(), MemberKind.FILE, len(content))
    assert (holes.size, len(data)) == (len(data), sum(length for _, length in holes.sparse))
    assert len(data) < len(content)
    assert expanded(holes, data) == content
    assert (after[0].name, after[0].sparse, after[0].realsize, after[1]) == (b"z", None, 5, b"after")


@every_form
@given(data=st.data())
def test_any_map_in_any_form(make, data):
    """The same map comes out whatever form it is in, from any source; the data is found behind it."""
    steps = data.draw(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 700)), max_size=60))
    regions, end = [], 0
    for gap, length in steps:
        regions.append((end + gap, length))
        end += gap + length
    realsize = end + data.draw(st.integers(0, 2**30))
    stored = bytes(range(256)) * (sum(length for _, length in regions) // 256 + 1)
    stored = stored[: sum(length for _, length in regions)]
    archive = make(regions, realsize, stored) + FILE + END
    source = Trickle(archive, data.draw(st.integers(1, 700))) if data.draw(st.booleans()) else archive

    (found, body), (after, _) = read(source)

    assert (found.sparse, found.realsize, found.size, body) == (
        tuple(regions),
        realsize,
        len(stored),
        stored,
    )
    assert (found.name, after.name) == (b"f", b"file")


@every_form
def test_offset_is_where_the_data_begins(make):
    """Behind further headers and behind a map that stands in the body."""
    regions = [(4096 * n, 1) for n in range(100)]
    archive = make(regions, 1 << 20, b"d" * 100) + END

    ((found, _),) = read(archive)

    assert archive[found.offset : found.offset + 101] == b"d" * 100 + b"\0"
    assert archive[found.offset - 1] == 0


@every_form
def test_unread_data_is_skipped(make):
    """Who doesn't want the data gets the next member all the same."""
    archive = make([(10, 5000), (9000, 5000)], 20_000, b"d" * 10_000) + FILE + END

    assert [found.name for found in TarReader(io.BytesIO(archive), sparse=True)] == [b"f", b"file"]


@every_form
@pytest.mark.parametrize(
    ("regions", "realsize", "stored", "words"),
    [
        ([(0, 5), (4, 5)], 100, 10, "overlap or go backwards"),
        ([(50, 5), (0, 5)], 100, 10, "overlap or go backwards"),
        ([(0, 5), (0, 5)], 100, 10, "overlap or go backwards"),
        ([(0, 50), (20, 0)], 100, 50, "overlap or go backwards"),
        ([(0, 101)], 100, 101, "data up to 101"),
        ([(101, 0)], 100, 0, "data up to 101"),
        ([(2**62, 2**62)], 2**40, 0, "data up to"),
        ([(0, 5)], 100, 4, "4 bytes stored and 5 in its map"),
        ([(0, 5)], 100, 6, "6 bytes stored and 5 in its map"),
        ([], 100, 6, "6 bytes stored and 0 in its map"),
        ([(0, 0)], MAX_REALSIZE + 1, 0, "more than 17592186044416"),
        ([(n, 0) for n in range(MAX_REGIONS + 1)], 10_000, 0, "more than 4096 regions"),
    ],
)
def test_maps_that_do_not_add_up(make, regions, realsize, stored, words):
    """Overlapping, unsorted, outside, too short, too long, too many, too large."""
    options = {"number": base256} if make is old_gnu and realsize > 2**33 else {}
    refused(make(regions, realsize, b"d" * stored, **options), words)


@every_form
def test_as_many_regions_as_allowed(make):
    """4096 of them, and not a byte of data."""
    ((found, body),) = read(make([(n, 0) for n in range(MAX_REGIONS)], MAX_REGIONS, b"") + END)

    assert (len(found.sparse), found.sparse[-1], body) == (MAX_REGIONS, (MAX_REGIONS - 1, 0), b"")


@every_form
def test_empty_regions_may_stand_at_ends(make):
    """GNU tar ends a file that ends with a hole so; an empty region at the end of another is legal."""
    ((found, _),) = read(make([(0, 5), (5, 0), (5, 5), (90, 0)], 90, b"d" * 10) + END)

    assert found.sparse == ((0, 5), (5, 0), (5, 5), (90, 0))


@every_form
def test_truncated(make):
    """At every block: refused, never a shorter file."""
    archive = make([(n * 4096, 7) for n in range(60)], 1 << 20, b"d" * 420)

    for length in range(BLOCK, len(archive), BLOCK):
        for source in (archive[:length], Trickle(archive[:length], 1000)):
            with pytest.raises(BadArchiveError, match=r"truncated|without a member"):
                read(source)


def test_the_name_of_a_sparse_file_is_its_record():
    """The header has a made-up one; long names, directories in them and any byte pass."""
    for name in (b"d/" + b"n" * 200, b"\xff\xfe", b"/abs/../x"):
        for make in (pax_0_1, pax_1_0):
            assert read(make([(0, 1)], 9, b"d", name=name) + END)[0][0].name == name


@pytest.mark.parametrize("make", [pax_0_1, pax_1_0])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (b"a\0b", "NUL"),
        (b"x" * 256, "component"),
        (b"d/" * 2049, "more than 4096"),
    ],
)
def test_the_name_of_a_sparse_file_is_checked(make, name, words):
    """As any other name."""
    refused(make([(0, 1)], 9, b"d", name=name), words)


def test_old_gnu_names_may_be_long():
    """An L header in front of an S header."""
    archive = rawtar.member(b"././@LongLink", b"n" * 150 + b"\0", b"L") + old_gnu([(0, 1)], 9, b"d")

    assert read(archive + END)[0][0].name == b"n" * 150


def lines(*numbers_, end=b""):
    """A map of version 1.0 as it is given."""
    return padded(b"".join(b"%s\n" % n for n in numbers_) + end)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lines(b"1", b"0"), "does not end"),
        (lines(b"1", b"0", b"1", b"5"), "behind its end"),
        (lines(b"1", b"0", b"1", end=b"x"), "behind its end"),
        (lines(b"", b"0", b"1"), "no number"),
        (lines(b"+1", b"0", b"1"), "no number"),
        (lines(b" 1", b"0", b"1"), "no number"),
        (lines(b"1", b"-0", b"1"), "no number"),
        (lines(b"1", b"0", b"1_0"), "no number"),
        (lines(b"\xd9\xa1", b"0", b"1"), "no number"),
        (lines(b"9" * 18, b"0", b"1"), "does not end"),
        (b"1" * 512, "no number"),
        (bytes(512), "no number"),
        (b"", "does not end"),
    ],
)
def test_maps_in_front_of_the_data(text, words):
    """What is no count, no number, or longer than it says."""
    refused(pax_1_0([], 100, b"", lines=text), words)


def test_a_map_can_not_be_longer_than_its_member():
    """The lines end where the next header stands, even if that would go on with digits."""
    refused(pax_1_0([(0, 1)], 9, b"", said=100), "does not end")
    refused(pax_1_0([], 100, b"", lines=b"200\n" + b"0\n" * 510, said=512), "does not end")


def test_numbers_may_be_split_between_blocks():
    """A line that begins in one block and ends in the next is one number."""
    regions = [(1000 + n, 0) for n in range(100)]
    archive = pax_1_0(regions, 2000, b"")

    assert read(archive + END)[0][0].sparse == tuple(regions)


GOOD = {b"major": b"1", b"minor": b"0", b"realsize": b"9"}


@pytest.mark.parametrize(
    "records",
    [
        [(b"name", b"x")],
        [(b"size", b"9")],
        [(b"map", b"0,1"), (b"size", b"9")],
        [(b"map", b"0,1"), (b"size", b"9"), (b"numblocks", b"2")],
        [(b"map", b"0,1,2"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"map", b"0,1,"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"map", b"0, 1"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"map", b"0,1"), (b"size", b"9"), (b"numblocks", b"1"), (b"offset", b"0"), (b"numbytes", b"1")],
        [(b"map", b"0,1"), (b"map", b"0,1"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"map", b"0,1"), (b"size", b"9"), (b"numblocks", b"1"), (b"major", b"1"), (b"minor", b"0")],
        [(b"map", b"0,1"), (b"size", b"9"), (b"numblocks", b"1"), (b"major", b"0")],
        [(b"offset", b"0"), (b"numbytes", b"1"), (b"size", b"9")],
        [(b"numbytes", b"1"), (b"offset", b"1"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"offset", b"0"), (b"offset", b"1"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"offset", b"0"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"offset", b"0,1"), (b"numbytes", b"1"), (b"size", b"9"), (b"numblocks", b"1")],
        [(b"major", b"1"), (b"minor", b"0")],
        [(b"major", b"1"), (b"minor", b"1"), (b"realsize", b"9")],
        [(b"major", b"2"), (b"minor", b"0"), (b"realsize", b"9")],
        [(b"realsize", b"9")],
        [*GOOD.items(), (b"size", b"9")],
        [*GOOD.items(), (b"realsize", b"9")],
        [*GOOD.items(), (b"colour", b"red")],
    ],
)
def test_records_of_no_form(records):
    """Incomplete, contradicting, repeated or unknown records; other parsers see other files in them."""
    archive = pax(*((key(name), value) for name, value in records)) + header(b"f", 1) + padded(b"d")

    refused(archive, "sparse")


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"5", b"6"])
def test_only_files_are_sparse(flag):
    """No link, device or directory has a map."""
    archive = pax(*((key(name), value) for name, value in GOOD.items())) + header(
        b"f", 0, flag, linkname=b"t"
    )

    refused(archive, "sparse")


def test_two_forms_in_one():
    """An S header with PAX records, or without GNU's magic."""
    records = pax((key(b"size"), b"9"), (key(b"numblocks"), b"0"))
    refused(records + old_gnu([(0, 1)], 9, b"d"), "two forms")
    with pytest.raises(BadArchiveError, match="unknown form"):
        read(old_gnu([(0, 1)], 9, b"d", magic=b"ustar\x0000") + END)


def spoiled(archive, at, data):
    """With other bytes in the first header, and a right checksum."""
    return rawtar.rechecksum((archive[:at] + data + archive[at + len(data) :])[:BLOCK]) + archive[BLOCK:]


def test_old_gnu_maps_end_once():
    """No region behind an empty one, no half regions, no further blocks behind the end."""
    one = old_gnu([(0, 1)], 9, b"d")
    for at, data, words in [
        (482, b"\1", "behind its end"),
        (386 + 48, octal(8, 12) + octal(0, 12), "empty field"),
        (386 + 36, octal(0, 12), "empty field"),
        (386, bytes(12), "empty field"),
        (386, b" " * 12, "empty field"),
        (386, b"-1".ljust(12, b"\0"), "no number"),
        (386, base256(-1, 12), "no number"),
        (483, base256(-1, 12), "no number"),
    ]:
        with pytest.raises(BadArchiveError, match=words):
            read(spoiled(one, at, data) + END)


def test_old_gnu_maps_may_end_with_an_empty_block():
    """A full header that announces a block with nothing in it."""
    four = old_gnu([(n, 0) for n in range(4)], 9, b"")

    ((found, _),) = read(spoiled(four, 482, b"\1") + bytes(BLOCK) + END)

    assert len(found.sparse) == 4


def test_old_gnu_maps_are_bounded():
    """Blocks that go on for ever are left after the 4096th region."""

    class Endless:
        count = 0

        def read(self, size):
            self.count += size
            full = b"".join(octal(0, 12) + octal(0, 12) for _ in range(21)) + b"\1" + bytes(7)
            first = spoiled(old_gnu([(0, 0)] * 4, 9, b""), 482, b"\1")
            return (first + full * 200)[:size] if self.count == size else (full * 200)[:size]

    source = Endless()
    with pytest.raises(BadArchiveError, match="more than 4096 regions"):
        read(source)
    assert source.count < 1 << 20


def test_ordinary_members_have_no_map():
    """Of these, realsize is size; a value that only looks like a record is none."""
    archive = pax((b"SCHILY.xattr.user.a", b"9 GNU.sparse.size=1\n")) + FILE + header(b"d/", 0, b"5") + END

    (file, body), (directory, _) = read(archive)

    assert (file.size, file.realsize, file.sparse, body) == (4, 4, None, b"body")
    assert (directory.realsize, directory.sparse) == (0, None)


def test_global_sparse_records_stay_refused():
    """They would turn every member into a sparse one."""
    with pytest.raises(BadArchiveError, match="every member"):
        read(pax((key(b"size"), b"9"), flag=b"g") + FILE + END)


SEEDS = [make([(512 * n, n) for n in range(6)], 4096, b"d" * 15) + FILE + END for make in MAKERS]


@given(st.sampled_from(SEEDS), EDITS, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_damaged_archives_raise_nothing_else(seed, edits, heal, seekable):
    """Whatever the bytes: maps that fit the data, data that fits the archive, or one of the two errors."""
    data = edited(seed, edits)
    data = healed(data) if heal else data
    reader = TarReader(io.BytesIO(data) if seekable else Trickle(data, 700), sparse=True)
    total = 0

    with contextlib.suppress(BadArchiveError, NoImageError):
        for found in reader:
            body = reader.read(found.size)
            total += BLOCK + len(body)
            assert len(body) == found.size
            if found.sparse is None:
                assert found.realsize == found.size
            elif found.realsize < 1 << 20:
                expanded(found, body)

    assert total <= len(data)
