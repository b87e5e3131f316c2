"""Headers of any member: what is written is read again, by our reader and by other people's."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imgdb.archive.memberwriter import member_headers
from imgdb.archive.tar import Member, MemberKind, TarReader
from imgdb.archive.tarwriter import END, padding
from imgdb.errors import InvalidArgumentError
from tests.archive.rawtar import header

FROZEN = "e98ef3c399aa06e2c60c468b6c28c95e"
MAX = 2**63 - 1
LINKS = {MemberKind.HARDLINK, MemberKind.SYMLINK}
DEVICES = {MemberKind.CHARACTER, MemberKind.BLOCK}


def make(name=b"f", kind=MemberKind.FILE, **fields):
    """A member with nothing special about it but what is given."""
    given_ = {"size": 0, "linkname": b"", "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0} | fields
    given_ |= {"uname": b"", "gname": b"", "offset": 0}
    given_ = {"devmajor": 0, "devminor": 0, "xattrs": {}, "realsize": given_["size"]} | given_
    return Member(name=name, kind=kind, **given_)


def read_back(headers):
    """What our reader makes of headers whose body never comes, and how many bytes these are."""

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    reader = TarReader(Pipe(headers))
    return next(reader), reader.offset


def same(member):
    """All of a member but where it stands."""
    return {name: getattr(member, name) for name in Member.__slots__ if name != "offset"}


COMPONENTS = st.one_of(
    st.binary(min_size=1, max_size=255),
    st.text("abc.é", min_size=1, max_size=80).map(str.encode),
    st.sampled_from([b".", b"..", b"\xff", b"a=b", b"a\nb", b"x" * 255]),
).map(lambda part: part.replace(b"/", b"_").replace(b"\0", b"_"))
PATHS = st.builds(
    lambda front, parts, back: front + b"/".join(parts) + back,
    st.sampled_from([b"", b"/", b"./"]),
    st.lists(COMPONENTS, min_size=1, max_size=14),
    st.sampled_from([b"", b"/"]),
)
NUMBERS = st.one_of(st.integers(0, MAX), st.sampled_from([0, 8**7 - 1, 8**7, 8**11 - 1, 8**11, MAX]))
DEVICE_NUMBERS = st.one_of(st.integers(0, 2**56 - 1), st.sampled_from([8**7 - 1, 8**7, 2**56 - 1]))
TIMES = st.one_of(
    st.integers(-MAX - 1, MAX),
    st.integers(0, 10**9).map(lambda seconds: seconds * 10**9),
    st.sampled_from([-1, 1, -(10**9), 8**11 * 10**9 - 1, 8**11 * 10**9, MAX, -MAX - 1, 1_500_000_000]),
)
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=40).map(lambda key: b"user." + key.replace(b"=", b"").replace(b"\0", b"")),
    st.binary(max_size=300),
    max_size=4,
)


@st.composite
def members(draw):
    """Any member that our reader can give."""
    kind = draw(st.sampled_from(list(MemberKind)))
    name = draw(PATHS)
    assume(len(name) <= 4096)
    device = kind in DEVICES
    return make(
        name,
        kind,
        size=draw(NUMBERS) if kind is MemberKind.FILE else 0,
        linkname=draw(PATHS)[:4096] if kind in LINKS else b"",
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(NUMBERS),
        gid=draw(NUMBERS),
        mtime_ns=draw(TIMES),
        devmajor=draw(DEVICE_NUMBERS) if device else 0,
        devminor=draw(DEVICE_NUMBERS) if device else 0,
        xattrs=draw(XATTRS),
    )


@given(members())
@settings(max_examples=500)
def test_what_is_written_is_read(member):
    """Every member comes back equal, and nothing of the headers is left over."""
    headers = member_headers(member)
    found, length = read_back(headers)

    assert same(found) == same(member)
    assert length == len(headers)


@given(members())
def test_headers_are_the_members_alone(member):
    """The order of attributes, names of owners and the place in another archive change nothing."""
    xattrs = dict(reversed(member.xattrs.items()))
    other = Member(**same(member) | {"xattrs": xattrs, "uname": b"x", "gname": b"y", "offset": 7})

    assert member_headers(other) == member_headers(member)


def stdlib(headers):
    """The first member as the standard library reads it."""
    with tarfile.open(fileobj=io.BytesIO(headers), errors="surrogateescape") as archive:
        return archive.next()


@given(members())
@settings(max_examples=300)
def test_tarfile_reads_the_same(member):
    """Names, links, numbers, times (as far as a float goes) and attributes."""
    # It strips slashes off the end and can't tell a file from a directory then.
    assume(not member.name.endswith(b"/") and not member.linkname.endswith(b"/"))
    info = stdlib(member_headers(member))

    assert os.fsencode(info.name) == member.name
    assert os.fsencode(info.linkname) == member.linkname
    assert (info.mode, info.uid, info.gid) == (member.mode, member.uid, member.gid)
    assert info.size == member.size
    assert (info.devmajor, info.devminor) == (member.devmajor, member.devminor)
    assert info.mtime == pytest.approx(member.mtime_ns / 10**9)
    found = {k.encode("utf-8", "surrogateescape"): v for k, v in info.pax_headers.items() if "xattr" in k}
    assert found == {
        b"SCHILY.xattr." + k: v.decode("utf-8", "surrogateescape") for k, v in member.xattrs.items()
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": b"n" * 100},
        {"name": b"p" * 155 + b"/" + b"n" * 100},
        {"name": b"\xff" * 100},
        {"size": 8**11 - 1},
        {"uid": 8**7 - 1, "gid": 8**7 - 1},
        {"mtime_ns": (8**11 - 1) * 10**9},
        {"kind": MemberKind.SYMLINK, "linkname": b"t" * 100},
        {"kind": MemberKind.HARDLINK, "linkname": b"\xff"},
        {"kind": MemberKind.CHARACTER, "devmajor": 2**56 - 1, "devminor": 8**7},
        {"mode": 0o7777},
    ],
)
def test_one_block_where_that_holds_everything(fields):
    """No PAX header where ustar will do."""
    assert len(member_headers(make(**fields))) == 512


@pytest.mark.parametrize(
    ("fields", "records"),
    [
        ({"name": b"n" * 101}, b"111 path=" + b"n" * 101 + b"\n"),
        ({"name": "é".encode()}, "11 path=é\n".encode()),
        ({"kind": MemberKind.SYMLINK, "linkname": b"t" * 101}, b"115 linkpath=" + b"t" * 101 + b"\n"),
        ({"kind": MemberKind.SYMLINK, "linkname": "é".encode()}, "15 linkpath=é\n".encode()),
        ({"size": 8**11}, b"19 size=8589934592\n"),
        ({"uid": 8**7}, b"15 uid=2097152\n"),
        ({"gid": 2**32 - 2}, b"18 gid=4294967294\n"),
        ({"mtime_ns": 1}, b"21 mtime=0.000000001\n"),
        ({"mtime_ns": 1_500_000_000}, b"13 mtime=1.5\n"),
        ({"mtime_ns": -1}, b"22 mtime=-0.000000001\n"),
        ({"mtime_ns": -2_000_000_000}, b"12 mtime=-2\n"),
        ({"mtime_ns": 8**11 * 10**9}, b"20 mtime=8589934592\n"),
        (
            {"xattrs": {b"user.b": b"\0\n", b"user.a": b""}, "uid": 8**7},
            b"24 SCHILY.xattr.user.a=\n26 SCHILY.xattr.user.b=\0\n\n15 uid=2097152\n",
        ),
    ],
)
def test_pax_records(fields, records):
    """Each thing that ustar can't hold, in the order of the keys."""
    headers = member_headers(make(**fields))

    assert headers[156:157] == b"x"
    assert headers[512:1024].rstrip(b"\0") == records
    assert len(headers) == 3 * 512


def test_a_sparse_file_is_written_out():
    """Its body will have holes and all."""
    holes = make(size=3, realsize=1000, sparse=((500, 3),))

    found, _ = read_back(member_headers(holes))
    assert (found.size, found.sparse) == (1000, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": b""},
        {"name": b"a\0b"},
        {"name": b"n" * 256},
        {"name": b"d/" * 2049},
        {"size": -1},
        {"size": 2**63},
        {"size": 1, "kind": MemberKind.DIRECTORY},
        {"linkname": b"t"},
        {"kind": MemberKind.SYMLINK},
        {"kind": MemberKind.HARDLINK, "linkname": b"\0"},
        {"mode": 0o10000},
        {"uid": -1},
        {"kind": MemberKind.BLOCK, "devminor": 2**56},
        {"gid": 2**63},
        {"mtime_ns": 2**63},
        {"xattrs": {b"": b""}},
        {"xattrs": {b"user.a=b": b""}},
        {"xattrs": {b"user.\0": b""}},
        {"xattrs": {b"user.a": bytes(65_537)}},
        {"xattrs": {b"user.%d" % n: bytes(65_536) for n in range(16)}},
    ],
)
def test_what_can_not_be_written(fields):
    """Nothing that our own reader would refuse, or read differently."""
    with pytest.raises(InvalidArgumentError):
        member_headers(make(**fields))


# -- other people's readers -------------------------------------------------------------------------

TREE = [
    make(b"d/", MemberKind.DIRECTORY, mode=0o1777, mtime_ns=1_600_000_000_123_456_789),
    make(b"d/file", size=4, mode=0o4755, uid=1, gid=2, mtime_ns=1_500_000_000_500_000_000),
    make(b"d/hard", MemberKind.HARDLINK, linkname=b"d/file"),
    make(b"d/sym", MemberKind.SYMLINK, linkname=b"../" * 40 + b"x", mode=0o777, mtime_ns=-1_000_000_000),
    make(b"d/fifo", MemberKind.FIFO, mode=0o600),
    make(b"d/null", MemberKind.CHARACTER, devmajor=1, devminor=3, mode=0o666),
    make(b"d/disk", MemberKind.BLOCK, devmajor=259, devminor=1_048_575),
    make(b"d/" + b"l" * 200, size=4, xattrs={b"user.key": b"a\0\n=b", b"user.b": b"2"}),
    make("d/ünïcode".encode(), size=4, uid=2**32 - 2, gid=2**32 - 2),
    make(b"d/\xff\xfe", size=4),
    make(b"d/" + b"\xff" * 150, MemberKind.SYMLINK, linkname=b"\xfe" * 120),
    make(b"/".join([b"d"] + [b"p" * 90] * 12), MemberKind.SYMLINK, linkname=b"t"),
]


def archive(members_=TREE):
    """Some members, every file's body the word `body`."""
    parts = []
    for member in members_:
        parts.append(member_headers(member))
        if member.kind is MemberKind.FILE:
            parts.append(b"body" + padding(4))
    return b"".join(parts) + END


def test_the_archive_is_frozen():
    """A change of any byte that we write shows here."""
    assert hashlib.sha256(archive()).hexdigest().startswith(FROZEN)


def kind_of(path):
    """What a path is, in the words of members."""
    mode = os.lstat(path).st_mode
    kinds = {
        stat.S_IFREG: MemberKind.FILE,
        stat.S_IFDIR: MemberKind.DIRECTORY,
        stat.S_IFLNK: MemberKind.SYMLINK,
        stat.S_IFIFO: MemberKind.FIFO,
        stat.S_IFCHR: MemberKind.CHARACTER,
        stat.S_IFBLK: MemberKind.BLOCK,
    }
    return kinds[stat.S_IFMT(mode)]


def check_extracted(root, members_):
    """What a tool made of them: everything, to the nanosecond."""
    for member in members_:
        path = os.path.join(os.fsencode(root), member.name)
        status = os.lstat(path)
        if member.kind is MemberKind.HARDLINK:
            assert os.path.samestat(status, os.lstat(os.path.join(os.fsencode(root), member.linkname)))
            continue
        assert kind_of(path) is member.kind, member.name
        assert (status.st_uid, status.st_gid) == (member.uid, member.gid), member.name
        assert status.st_mtime_ns == member.mtime_ns, member.name
        if member.kind is MemberKind.SYMLINK:
            assert os.readlink(path) == member.linkname
        else:
            assert stat.S_IMODE(status.st_mode) == member.mode, member.name
        if member.kind in DEVICES:
            assert status.st_rdev == os.makedev(member.devmajor, member.devminor)
        if member.kind is MemberKind.FILE:
            with open(path, "rb") as file:
                assert file.read() == b"body"
            assert {os.fsencode(key): os.getxattr(path, key) for key in os.listxattr(path)} == member.xattrs


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for owners and devices")
@pytest.mark.parametrize(
    "command",
    [["tar", "--warning=no-timestamp", "--xattrs"], ["bsdtar", "--xattrs"]],
    ids=lambda command: command[0],
)
def test_other_tools_extract_it(tmp_path, command):
    """GNU tar and bsdtar make exactly this tree, and have nothing to say."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    # bsdtar makes what is no UTF-8 from PAX, too, but complains.
    tree = [one for one in TREE if command[0] != "bsdtar" or b"\xff" * 150 not in one.name]
    (tmp_path / "a.tar").write_bytes(archive(tree))
    (tmp_path / "root").mkdir()

    done = subprocess.run(
        [*command, "--numeric-owner", "-xpf", "a.tar", "-C", "root"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )

    assert (done.stderr, done.returncode) == (b"", 0)
    check_extracted(tmp_path / "root", tree)


def test_plain_headers_are_those_of_any_writer():
    """A member without anything special is what the tests' own maker of headers makes."""
    assert member_headers(make(b"file", size=4)) == header(b"file", 4)
