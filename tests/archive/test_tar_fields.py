"""What the tar reader reads out of headers, and what each kind of header means."""

from __future__ import annotations

import pytest

from imgdb.archive.tar import Member, MemberKind
from tests.archive.rawtar import (
    BLOCK,
    END,
    base256,
    header,
    member,
    octal,
    only,
    padded,
    pax,
    read_all,
)


def test_fields_of_a_ustar_member():
    """Every field of a header comes out."""
    found = only(
        header(
            b"name",
            0,
            b"3",
            mode=octal(0o104755, 8),
            uid=octal(1, 8),
            gid=octal(2, 8),
            mtime=octal(3, 12),
            uname=b"root",
            gname=b"wheel",
            devmajor=octal(8, 8),
            devminor=octal(9, 8),
            prefix=b"some/where",
        )
    )

    assert found == Member(
        name=b"some/where/name",
        kind=MemberKind.CHARACTER,
        size=0,
        linkname=b"",
        mode=0o4755,
        uid=1,
        gid=2,
        mtime_ns=3 * 10**9,
        uname=b"root",
        gname=b"wheel",
        devmajor=8,
        devminor=9,
        xattrs={},
        offset=BLOCK,
        realsize=0,
    )


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        (b"0", MemberKind.FILE),
        (b"\0", MemberKind.FILE),
        (b"7", MemberKind.FILE),
        (b"1", MemberKind.HARDLINK),
        (b"2", MemberKind.SYMLINK),
        (b"3", MemberKind.CHARACTER),
        (b"4", MemberKind.BLOCK),
        (b"5", MemberKind.DIRECTORY),
        (b"6", MemberKind.FIFO),
    ],
)
def test_kinds(flag, kind):
    """Each type flag has its kind."""
    assert only(header(flag=flag, linkname=b"target")).kind is kind


def test_v7_headers_have_no_names_prefix_or_devices():
    """Without a magic, what lies behind the link name means nothing."""
    found = only(header(b"file", magic=b"", uname=b"root", prefix=b"prefix", devmajor=b"garbage!"))

    assert (found.name, found.uname, found.devmajor) == (b"file", b"", 0)


def test_gnu_headers_have_no_prefix():
    """GNU keeps times where ustar keeps the prefix."""
    found = only(header(b"file", magic=b"ustar  \0", uname=b"root", prefix=octal(1, 12)))

    assert (found.name, found.uname) == (b"file", b"root")


def test_star_headers_have_a_shorter_prefix():
    """Star keeps times in the last bytes of the prefix."""
    block = header(b"file", prefix=b"dir".ljust(131, b"\0") + octal(1, 12) + octal(1, 12), tail=b"tar\0")

    assert only(block).name == b"dir/file"


def test_body_of_links_and_directories_is_empty():
    """Sizes in headers of links (symbolic ones), directories and devices mean nothing, as in Go."""
    archive = b"".join(header(b"m", 5, flag, linkname=b"t") for flag in (b"2", b"3", b"4", b"5", b"6"))

    assert [(found.size, body) for found, body in read_all(archive + END)] == [(0, b"")] * 5


def test_pax_overrides():
    """PAX records win over the header's own fields."""
    found = only(
        pax(
            (b"path", b"long/p\xc3\xa4th"),
            (b"uid", b"70000000"),
            (b"gid", b"80000000"),
            (b"uname", b"J\xc3\xb6rg"),
            (b"gname", b"users"),
            (b"mtime", b"1700000000.123456789"),
            (b"atime", b"1"),
            (b"comment", b"   "),
            (b"SCHILY.xattr.user.a", b"1\0\n=2"),
            (b"SCHILY.xattr.user.empty", b""),
        )
        + header()
    )

    assert (found.name, found.uid, found.gid) == (b"long/p\xc3\xa4th", 70000000, 80000000)
    assert (found.uname, found.gname, found.mtime_ns) == ("Jörg".encode(), b"users", 1700000000123456789)
    assert found.xattrs == {b"user.a": b"1\0\n=2", b"user.empty": b""}


def test_pax_linkpath_and_size():
    """Link targets and sizes come from PAX where it has them."""
    archive = (
        pax((b"linkpath", b"t" * 300))
        + header(flag=b"2", linkname=b"t")
        + pax((b"size", b"3"))
        + header()
        + padded(b"abc")
    )

    (link, _), (file, body) = read_all(archive + END)

    assert (link.linkname, file.size, body) == (b"t" * 300, 3, b"abc")


def test_empty_pax_records_leave_the_header_in_force():
    """As POSIX says: an empty value deletes what an earlier record said."""
    found = only(pax((b"path", b""), (b"uid", b""), (b"mtime", b"")) + header(b"own", uid=octal(5, 8)))

    assert (found.name, found.uid, found.mtime_ns) == (b"own", 5, 0)


def test_pax_records_end_with_their_member():
    """The next member has its own name again."""
    archive = pax((b"path", b"first")) + header(b"x") + header(b"second")

    assert [found.name for found, _ in read_all(archive + END)] == [b"first", b"second"]


def test_gnu_long_names():
    """L and K headers, with and without the final NUL."""
    archive = member(b"././@LongLink", b"n" * 200 + b"/f\0", b"L") + member(
        b"././@LongLink", b"t" * 200, b"K"
    )

    found = only(archive + header(b"nnn", flag=b"2", linkname=b"ttt"))

    assert (found.name, found.linkname) == (b"n" * 200 + b"/f", b"t" * 200)


def test_global_headers_are_ignored():
    """As Go does; git archive writes one with the commit."""
    found = only(pax((b"comment", b"c0ffee"), (b"uid", b"7"), flag=b"g") + header())

    assert (found.name, found.uid) == (b"file", 0)


def test_base256_numbers():
    """GNU's binary numbers, negative ones only for times."""
    found = only(header(uid=base256(2**40, 8), mtime=base256(-5, 12), size=base256(0, 12)))

    assert (found.uid, found.mtime_ns, found.size) == (2**40, -5 * 10**9, 0)


@pytest.mark.parametrize("field", [b"      7 ", b"7", b"7 \0", b"0000007 ", b"00000007", b"7\0\0 \0"])
def test_octal_spellings(field):
    """Spaces and NULs around the digits are all the same."""
    assert only(header(uid=field)).uid == 7


def test_blank_numbers_are_zero():
    """Old writers leave out what they don't know."""
    found = only(header(uid=bytes(8), gid=b" " * 8, mtime=bytes(12)))

    assert (found.uid, found.gid, found.mtime_ns) == (0, 0, 0)


def test_signed_checksum():
    """The historic sum of signed bytes is right too."""
    assert only(header("Öl".encode(), signed=True)).name == "Öl".encode()


def test_names_stay_raw():
    """No decoding, no normalising: `./`, `..`, `//` and bytes that are no UTF-8."""
    names = [b"./", b"./a//b/../c", b"/etc/passwd", b"\xff\xfe", b"\x1b[31m", b"a\nb"]

    assert [found.name for found, _ in read_all(b"".join(map(header, names)) + END)] == names
