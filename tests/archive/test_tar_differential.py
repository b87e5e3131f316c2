"""The tar reader against other people's writers, real archives, and any bytes at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imgdb.archive.compression import open_decompressed
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
    padded,
    pax,
    read_all,
    rechecksum,
)

MEMBERSHIP = ("name", "kind", "linkname", "mode", "uid", "gid", "mtime_ns", "uname", "gname", "devmajor")

NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
    min_size=1,
    max_size=5,
).map("/".join)
TYPES = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
    ]
)
KINDS = {
    tarfile.REGTYPE: MemberKind.FILE,
    tarfile.DIRTYPE: MemberKind.DIRECTORY,
    tarfile.SYMTYPE: MemberKind.SYMLINK,
    tarfile.LNKTYPE: MemberKind.HARDLINK,
    tarfile.FIFOTYPE: MemberKind.FIFO,
    tarfile.CHRTYPE: MemberKind.CHARACTER,
    tarfile.BLKTYPE: MemberKind.BLOCK,
}


@st.composite
def stdlib_member(draw, tar_format):
    """A TarInfo that the format can hold, and a body."""
    wide = tar_format != tarfile.USTAR_FORMAT
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(TYPES)
    body = draw(st.binary(max_size=1200)) if info.type == tarfile.REGTYPE else b""
    info.size = len(body)
    info.linkname = draw(NAMES) if info.type in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 2**40 if wide else 8**7 - 1))
    info.gid = draw(st.integers(0, 2**40 if wide else 8**7 - 1))
    info.mtime = draw(st.integers(-(2**32) if wide else 0, 2**33 - 1))
    if tar_format == tarfile.PAX_FORMAT and draw(st.booleans()):
        info.mtime += draw(st.sampled_from([0.25, 0.5, 0.125]))
    info.uname, info.gname = draw(st.sampled_from(["", "root", "Jörg"])), draw(st.sampled_from(["", "wheel"]))
    if info.type in {tarfile.CHRTYPE, tarfile.BLKTYPE}:
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20))
    return info, body


def stdlib_expectation(info, body):
    """What `read_all` should give, but for xattrs and offset."""
    name = info.name.encode() + (b"/" if info.isdir() else b"")
    nanoseconds = int(Decimal(str(info.mtime)) * 10**9)
    who = (info.uname.encode(), info.gname.encode())
    owner = (info.mode, info.uid, info.gid, nanoseconds, *who, info.devmajor)
    return dict(zip(MEMBERSHIP, (name, KINDS[info.type], info.linkname.encode(), *owner), strict=True)), body


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(data=st.data())
@settings(deadline=None)
def test_archives_of_the_standard_library(tar_format, data):
    """What tarfile writes, in any format, is read as it was meant."""
    content = data.draw(st.lists(stdlib_member(tar_format), min_size=1, max_size=5))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
        for info, body in content:
            try:
                archive.addfile(info, io.BytesIO(body))
            except ValueError:  # a name that ustar can't hold
                assume(False)

    found = read_all(file.getvalue())

    assert [({key: getattr(one, key) for key in MEMBERSHIP}, body) for one, body in found] == [
        stdlib_expectation(info, body) for info, body in content
    ]


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("tar_format", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_archives_of_gnu_tar(tmp_path, tar_format):
    """What GNU tar writes, in any format, is read as it was meant."""
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "dir" / "file").write_bytes(b"content" * 1000)
    (tree / "dir" / "empty").touch()
    os.link(tree / "dir" / "file", tree / "dir" / "zlink")
    (tree / "sym").symlink_to("dir/file")
    expected = {b"./", b"./dir/", b"./dir/file", b"./dir/empty", b"./dir/zlink", b"./sym"}
    if tar_format not in {"v7", "ustar"}:
        (tree / ("ü" * 80)).mkdir()
        (tree / ("ü" * 80) / ("n" * 200)).symlink_to("t" * 300)
        expected |= {f"./{'ü' * 80}/".encode(), f"./{'ü' * 80}/{'n' * 200}".encode()}
    command = ["tar", f"--format={tar_format}", "--sort=name", "-cf", "-", "."]

    found = read_all(subprocess.run(command, cwd=tree, check=True, capture_output=True).stdout)

    assert {one.name for one, _ in found} == expected
    assert {one.name: body for one, body in found}[b"./dir/file"] == b"content" * 1000
    links = {one.name: (one.kind, one.linkname) for one, _ in found if one.linkname}
    assert links[b"./dir/zlink"] == (MemberKind.HARDLINK, b"./dir/file")
    assert links[b"./sym"] == (MemberKind.SYMLINK, b"dir/file")


def test_archives_of_the_corpus(corpus):
    """Every collected archive that import accepts is read to its end."""
    records = json.loads((corpus / "corpus.json").read_text())
    accepted = [
        one["path"] for one in records if one["form"].startswith("tar") and one["verdict"] == "accept"
    ]
    members = 0
    for path in accepted:
        with (corpus / path).open("rb") as file:
            reader = TarReader(open_decompressed(file)[0])
            members += sum(1 for _ in reader)
            reader.drain()

    assert members > len(accepted) > 100


# --- any bytes at all

SEEDS = [
    FILE + header(b"d/", flag=b"5") + header(b"l", flag=b"2", linkname=b"t") + END,
    pax((b"path", b"p" * 150), (b"mtime", b"1.5"), (b"size", b"700"))
    + header()
    + padded(b"x" * 700)
    + FILE
    + END,
    member(b"././@LongLink", b"n" * 150 + b"\0", b"L")
    + header(magic=b"ustar  \0", uid=base256(2**33, 8))
    + END,
    pax((b"comment", b"c"), flag=b"g") + pax((b"SCHILY.xattr.user.a", b"b")) + FILE + FILE + END,
    member(b"link", b"1234", b"1", linkname=b"file") + header(b"dev", 0, b"3") + FILE,
]
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 5000), st.integers(1, 255)),
        st.tuples(st.just("put"), st.integers(0, 5000), st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("splice"), st.integers(0, 10), st.integers(0, 10)),
        st.tuples(st.just("cut"), st.integers(0, 5000), st.just(0)),
        st.tuples(st.just("insert"), st.integers(0, 10), st.binary(max_size=600)),
    ),
    min_size=1,
    max_size=6,
)


def edited(data, edits):
    """The archive after some damage."""
    for action, where, what in edits:
        match action:
            case "flip" if where < len(data):
                data = data[:where] + bytes((data[where] ^ what,)) + data[where + 1 :]
            case "put":
                data = data[:where] + what + data[where + len(what) :]
            case "splice":
                data = data[: where * BLOCK] + data[what * BLOCK :]
            case "cut":
                data = data[:where]
            case "insert":
                data = data[: where * BLOCK] + what + data[where * BLOCK :]
    return data


def healed(data):
    """The same with right checksums wherever a header may stand, so that damage gets further in."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return b"".join(
        rechecksum(one) if len(one) == BLOCK and one[257:262] == b"ustar" else one for one in blocks
    )


@given(st.sampled_from(SEEDS), EDITS, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=400)
def test_damaged_archives_raise_nothing_else(seed, edits, heal, seekable):
    """Whatever the bytes: members that fit into them, or one of the two errors."""
    data = edited(seed, edits)
    data = healed(data) if heal else data
    reader = TarReader(io.BytesIO(data) if seekable else Trickle(data, 700))
    members = total = 0

    with contextlib.suppress(BadArchiveError, NoImageError):
        for found in reader:
            members += 1
            total += len(reader.read(found.size))
        reader.drain()

    assert members * BLOCK + total <= len(data)
