"""What the tar reader refuses: reliability §2b, rows B1 to B16, each by name, and the limits."""

from __future__ import annotations

import contextlib
import io
import time

import pytest

from imgdb.archive.tar import MemberKind, TarReader
from imgdb.errors import BadArchiveError, NoImageError
from tests.archive.rawtar import (
    BLOCK,
    END,
    FILE,
    Trickle,
    base256,
    header,
    member,
    octal,
    only,
    pax,
    read_all,
    record,
    refused,
)


@pytest.mark.parametrize(
    "archive",
    [
        header(size=base256(-1, 12)),
        header(size=base256(-(2**62), 12)),
        header(size=b"-0000000001\0"),
        pax((b"size", b"-1")) + header(),
        header(b"x", base256(-512, 12), b"x"),
        header(b"x", base256(-512, 12), b"L"),
    ],
)
def test_b1_negative_size(archive):
    """A negative size is refused wherever it stands."""
    refused(archive, "is no number")


@pytest.mark.parametrize(
    "archive",
    [
        header(size=base256(2**63, 12)),
        header(size=b"\x80" + b"\xff" * 11),
        header(size=b"\xbf" + b"\xff" * 11),
        pax((b"size", b"9" * 19)) + header(),
        pax((b"size", b"9" * 5000)) + header(),
    ],
)
def test_b2_size_beyond_63_bits(archive):
    """What no file can have is refused before anything is allocated."""
    refused(archive, "is no number")


@pytest.mark.parametrize("size", [base256(2**63 - 1, 12), b"777777777777", octal(10**6, 12)])
@pytest.mark.parametrize("seekable", [True, False])
def test_b2_size_beyond_the_input(size, seekable):
    """A size that the input can't have is found in the header, or at the input's end."""
    archive = header(size=size) + b"little"

    with pytest.raises(BadArchiveError, match="truncated"):
        list(TarReader(io.BytesIO(archive) if seekable else Trickle(archive, 512)))


def test_b2_read_allocates_what_comes():
    """Asking for all of an announced body costs the memory of what is there."""
    reader = TarReader(Trickle(header(size=base256(2**62, 12)) + b"little", 512))
    found = next(reader)

    with pytest.raises(BadArchiveError, match="truncated"):
        reader.read(found.size)


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_b2_huge_extension(flag):
    """Extension headers are bounded before they are read."""
    refused(header(b"x", 2**20 + 1, flag), "more than 1048576")
    refused(header(b"x", base256(2**62, 12), flag), "more than 1048576")


def test_b2_largest_extension():
    """One MiB is allowed."""
    archive = pax((b"comment", b" " * (2**20 - len(b"1048576 comment=\n")))) + header()

    assert only(archive).name == b"file"


def test_b3_pax_size_against_ustar_size():
    """Two sizes hide members from one parser or the other (CVE-2025-62518)."""
    hidden = member(b"hidden", b"evil")

    refused(pax((b"size", b"%d" % len(hidden))) + header(size=BLOCK) + hidden, "PAX record says")
    refused(pax((b"size", b"0")) + header(size=BLOCK) + hidden, "PAX record says")
    assert only(pax((b"size", b"%d" % len(hidden))) + header() + hidden).size == len(hidden)
    assert only(pax((b"size", b"4")) + FILE).size == 4


@pytest.mark.parametrize(
    "bad",
    [
        b"8 path=x\n",
        b"11 path=x\n",
        b"10 path=x",
        b"7 path\n",
        b"5 =x\n",
        b"+10 path=x\n",
        b"-10 path=x\n",
        b" 10 path=x\n",
        b"0x0a path=x\n",
        b"1_0 path=x\n",
        "\u0661\u0660 path=x\n".encode(),
        b"10\tpath=x\n",
        b"10path=x\n",
        b"path=x\n",
        b"10 path=x\n\0",
        b"\0",
        b"\n",
        b"13 pa\0th=x\n\n",
        b"99999999999999999999 a=b\n",
        b"9" * 5000 + b" a=b\n",
        record(b"path", b"a\0b"),
        record(b"size", b"1_0"),
        record(b"size", "\u0665".encode()),
        record(b"size", b" 5"),
        record(b"size", b"+5"),
        record(b"size", b"5 "),
        record(b"uid", b"0x5"),
        record(b"gid", b"-5"),
        record(b"path", b"a") + record(b"path", b"b"),
        record(b"size", b"4") * 2,
        record(b"GNU.sparse.size", b"1"),
    ],
)
def test_b4_malformed_pax_record(bad):
    """One bad record refuses the archive; nothing is skipped or guessed."""
    refused(pax(bad) + FILE, "")


@pytest.mark.parametrize(
    "body", [b"1" * (1 << 20), b"a=" * (1 << 19), b"9 a=bcd\n" * 9999, b"10 " + b"=" * 10**6]
)
@pytest.mark.parametrize("flag", [b"x", b"g"])
def test_b5_header_parsing_takes_linear_time(body, flag):
    """What made tarfile's regular expressions run for minutes is refused or read at once."""
    started = time.process_time()
    with contextlib.suppress(BadArchiveError):
        read_all(pax(body, flag=flag) + FILE + END)

    assert time.process_time() - started < 1


def test_b6_stream_that_never_gives_what_it_announced():
    """A short read is a truncated archive, not a reason to wait."""
    reader = TarReader(Trickle(header(size=base256(2**60, 12)) + b"abc", 512))
    next(reader)

    with pytest.raises(BadArchiveError, match="truncated"):
        reader.drain()


@pytest.mark.parametrize("bad", [b"0 path=x\n", b"00 a=b\n", b"1 a=b\n", b"3 a=b\n", b"2 \n"])
def test_b7_pax_records_that_do_not_advance(bad):
    """A record of no length must not be read for ever (CVE-2019-20907)."""
    refused(pax(bad) + FILE, "PAX record")


@pytest.mark.parametrize(
    "extension", [pax((b"path", b"x")), member(b"l", b"name\0", b"L"), member(b"l", b"name\0", b"K")]
)
def test_b8_chained_extensions(extension):
    """One of each kind for a member, however many follow."""
    refused(extension * 2 + FILE, "second extension header")
    refused(extension * 5000 + FILE, "second extension header")


def test_b8_one_of_each_is_allowed():
    """x, L and K together, as long as they agree."""
    archive = pax((b"path", b"name")) + member(b"l", b"name\0", b"L") + member(b"l", b"target\0", b"K")

    found = only(archive + header(flag=b"2", linkname=b"t"))

    assert (found.name, found.linkname) == (b"name", b"target")
    refused(pax((b"path", b"other")) + member(b"l", b"name\0", b"L") + FILE, "disagree")


def test_b8_global_headers_are_counted():
    """Sixteen an archive, wherever they stand."""
    assert len(read_all((pax(flag=b"g") + FILE) * 16 + END)) == 16
    refused((pax(flag=b"g") + FILE) * 17, "more than 16 global headers")


@pytest.mark.parametrize("key", [b"path", b"size", b"linkpath", b"GNU.sparse.name"])
def test_b8_global_headers_name_and_size_nothing(key):
    """Go ignores these and GNU tar obeys them."""
    refused(pax((key, b"1"), flag=b"g") + FILE, "every member")


def test_b9_old_file_with_trailing_slash_is_a_directory_after_all_extensions():
    """The type is decided by the final name (CVE-2025-13462)."""
    assert only(header(b"d/", flag=b"\0")).kind is MemberKind.DIRECTORY
    assert only(member(b"l", b"d/\0", b"L") + header(b"d", flag=b"\0")).kind is MemberKind.DIRECTORY
    assert only(pax((b"path", b"f")) + header(b"f/", flag=b"\0")).kind is MemberKind.FILE
    assert only(header(b"d/", flag=b"0")).kind is MemberKind.FILE


@pytest.mark.parametrize(
    "archive",
    [
        header(b"s", 0, b"S", magic=b"ustar  \0"),
        pax((b"GNU.sparse.size", b"10"), (b"GNU.sparse.numblocks", b"1")) + FILE,
        pax((b"GNU.sparse.map", b"0,1,2,3"), (b"GNU.sparse.size", b"10")) + FILE,
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1" * 18))
        + FILE,
    ],
)
def test_b10_sparse(archive):
    """No sparse file of any form."""
    refused(archive, "sparse files are not supported")


def test_b11_bad_checksum():
    """A damaged header is damage, never the end."""
    for index in (0, 100, 124, 148, 156, 257, 345, 511):
        damaged = bytearray(FILE)
        damaged[index] ^= 4
        refused(FILE + bytes(damaged) + FILE, "wrong checksum")


def test_b11_checksum_spellings():
    """The checksum field is digits or the header is damaged."""
    for field in (b"\0" * 8, b"-1\0\0\0\0\0\0", b"99999\0 \0", b"0x12\0 \0\0", b"\x80\0\0\0\0\0\x12\x34"):
        refused(FILE + FILE[:148] + field + FILE[156:], "wrong checksum")


def test_b12_zero_block_in_the_middle():
    """One zero block ends an archive for some parsers and not for others."""
    refused(FILE + bytes(BLOCK) + FILE, "zero block in the middle")
    refused(bytes(BLOCK) + FILE, "zero block in the middle")


def test_b12_members_after_the_end_are_junk():
    """What follows two zero blocks is never a member."""
    warnings = []
    reader = TarReader(io.BytesIO(FILE + END + FILE), on_warning=warnings.append)

    assert len(list(reader)) == 1
    assert reader.drain() > 0
    assert "junk" in warnings[0]


CUTTABLE = pax((b"path", b"p" * 120)) + member(b"one", b"1" * 600) + FILE + header(b"d/", flag=b"5")


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize(
    "cut",
    sorted(
        {cut + near for cut in range(0, len(CUTTABLE + END) + 1, BLOCK) for near in (-1, 0, 1)}
        - {-1, len(CUTTABLE + END) + 1}
    ),
)
def test_b13_truncated_at_every_block(cut, seekable):
    """A cut is found, except exactly behind a complete member, where it can't be known."""
    archive = (CUTTABLE + END)[:cut]
    complete = {len(CUTTABLE), len(CUTTABLE) - BLOCK, len(CUTTABLE) - BLOCK - len(FILE)}
    complete |= {len(CUTTABLE) + BLOCK, len(CUTTABLE + END)}

    try:
        found = read_all(archive if seekable else Trickle(archive, 700))
    except (BadArchiveError, NoImageError):
        assert cut not in complete
    else:
        assert cut in complete
        assert len(found) >= 1


@pytest.mark.parametrize("flag", [b"V", b"M", b"D", b"N", b"X", b"8", b"\xff", b" "])
def test_b14_unknown_type_flags(flag):
    """Who doesn't know a type can't know what its body means."""
    refused(member(b"m", b"body", flag), "unknown type flag")


def test_b14_hard_link_with_data():
    """The data of a link is passed over."""
    archive = member(b"link", b"data of the file", b"1", linkname=b"file") + FILE

    assert [(found.name, found.size, body) for found, body in read_all(archive + END)] == [
        (b"link", 0, b""),
        (b"file", 4, b"body"),
    ]


@pytest.mark.parametrize("data", [member(b"hidden", b"evil"), bytes(1024)])
def test_b14_hard_link_whose_data_may_be_members(data):
    """Where others would see members and an end, the archive is ambiguous."""
    refused(member(b"link", data, b"1", linkname=b"file") + FILE, "may as well be members")


def test_b15_extended_attributes():
    """Names and values have the kernel's limits."""
    assert only(pax((b"SCHILY.xattr." + b"n" * 255, b"v" * 2**16)) + header()).xattrs == {
        b"n" * 255: b"v" * 2**16
    }
    refused(pax((b"SCHILY.xattr." + b"n" * 256, b"v")) + FILE, "extended attribute")
    refused(pax((b"SCHILY.xattr.n", b"v" * (2**16 + 1))) + FILE, "extended attribute")
    refused(pax((b"SCHILY.xattr.", b"v")) + FILE, "extended attribute")


def test_b15_number_of_records():
    """A hundred thousand keys are more than a header may have."""
    assert (
        len(only(pax(*((b"SCHILY.xattr.%d" % i, b"v") for i in range(10_000))) + header()).xattrs) == 10_000
    )
    refused(
        pax(*((b"SCHILY.xattr.%d" % i, b"v") for i in range(10_001))) + FILE, "more than 10000 PAX records"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"NaN", 0),
        (b"inf", 2**63 - 1),
        (b"-inf", -(2**63)),
        (b"1e400", 2**63 - 1),
        (b"-1e400", -(2**63)),
        (b"1e3", 10**12),
        (b"-1.5", -1_500_000_000),
        (b"-0.25", -250_000_000),
        (b"1.", 10**9),
        (b".5", 500_000_000),
        (b"31557600000000000000", 2**63 - 1),
        (b"9" * 10_000, 2**63 - 1),
        (b"1.0000000019", 10**9 + 1),
        (b"yesterday", 0),
        (b"\0", 0),
        (b"1.2.3", 0),
        ("\u0665".encode(), 0),
    ],
)
def test_b16_odd_times(value, expected):
    """No time is worth an exception: what is too large is clamped, what is no time is the epoch."""
    assert only(pax((b"mtime", value)) + header()).mtime_ns == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"garbage", 0),
        (b"777777777777", 2**63 - 1),
        (b"\x80" + b"\xff" * 11, 2**63 - 1),
        (b"\x80\0\0\0\0\0\0\0\0\0\0\x05", 5 * 10**9),
        (b"\xff" * 12, -(10**9)),
        (b"\xc0" + bytes(11), -(2**63)),
    ],
)
def test_b16_odd_times_in_headers(field, expected):
    """The same for the header's own field."""
    assert only(header(mtime=field)).mtime_ns == expected


# --- limits


def test_entries_are_counted():
    """One more than allowed is refused."""
    assert len(read_all(FILE * 3 + END, max_entries=3)) == 3
    with pytest.raises(BadArchiveError, match="more than 3 members"):
        read_all(FILE * 4 + END, max_entries=3)


def test_lengths_of_names():
    """Paths of 4096 bytes, components of 255, and not one more."""
    longest = b"/".join([b"c" * 255] * 16)

    assert only(pax((b"path", longest)) + header()).name == longest
    refused(pax((b"path", longest + b"/d")) + header(), "more than 4096")
    refused(pax((b"path", b"c" * 256)) + header(), "more than 255")
    refused(pax((b"linkpath", b"t" * 4097)) + header(flag=b"2"), "more than 4096")


def test_missing_names():
    """A member has a name and a link a target."""
    refused(header(b""), "empty name")
    refused(header(flag=b"2"), "without a target")
    refused(header(flag=b"1"), "without a target")
    refused(member(b"l", b"\0\0", b"L") + FILE, "long name")
    refused(member(b"l", b"a\0b\0", b"L") + FILE, "long name")


@pytest.mark.parametrize(
    "field", [b"abcdefg\0", b"0000009\0", b"\0000007\0", b"1 2\0", b"\x81" + bytes(7), b"\xff" * 8]
)
def test_numbers_that_parsers_disagree_about(field):
    """An owner that isn't clearly a number is refused."""
    refused(header(uid=field), "uid")
