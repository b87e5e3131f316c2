"""Names in layers: where they lead, and which of them hide others."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdb.archive.layernames import MAX_DEPTH, Whiteout, below_whiteout, cleaned, components, whiteout
from imgdb.errors import BadArchiveError

PARTS = st.lists(st.sampled_from([b"a", b"b", b".", b"..", b"", b"...", b"\xff", b".wh.a", b" "]), max_size=9)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (b"a/b", [b"a", b"b"]),
        (b"/a//b/", [b"a", b"b"]),
        (b"./a/./b/.", [b"a", b"b"]),
        (b"a/../../b", [b"a", b"..", b"..", b"b"]),
        (b"...", [b"..."]),
        (b"\xff\n", [b"\xff\n"]),
        (b"", []),
        (b"/", []),
        (b".", []),
        (b"//./", []),
    ],
)
def test_components(name, parts):
    """Empty ones and dots go, everything else stays as it is."""
    assert components(name) == parts


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (b"../x", [b"x"]),
        (b"/../../x", [b"x"]),
        (b"a/../../b", [b"b"]),
        (b"a/b/..", [b"a"]),
        (b"a/..", []),
        (b"..", []),
        (b"/.", []),
        (b"a/.../b", [b"a", b"...", b"b"]),
    ],
)
def test_cleaned(name, parts):
    """`..` at the root stays at the root."""
    assert cleaned(name) == parts


@given(PARTS)
def test_cleaned_is_what_go_and_posix_make_of_an_absolute_path(parts):
    """The standard library's normpath is the oracle."""
    name = b"/".join(parts)

    assert b"/" + b"/".join(cleaned(name)) == posixpath.normpath(b"/" + name.lstrip(b"/"))
    assert cleaned(b"/" + name) == cleaned(name + b"/") == cleaned(b"../" + name) == cleaned(name)


def test_depth():
    """256 components are fine whatever stands between them, one more is not."""
    assert len(cleaned(b"/".join([b"d"] * MAX_DEPTH))) == MAX_DEPTH
    assert len(cleaned(b"/".join([b"d", b".", b"x", b".."] * MAX_DEPTH))) == MAX_DEPTH
    with pytest.raises(BadArchiveError, match="deeper than 256"):
        cleaned(b"/".join([b"d"] * (MAX_DEPTH + 1)))


@pytest.mark.parametrize(
    ("base", "kind", "hidden"),
    [
        (b"file", Whiteout.NONE, b""),
        (b".wh", Whiteout.NONE, b""),
        (b"x.wh.y", Whiteout.NONE, b""),
        (b".WH.x", Whiteout.NONE, b""),
        (b".wh.x", Whiteout.PLAIN, b"x"),
        (b".wh. ", Whiteout.PLAIN, b" "),
        (b".wh..x", Whiteout.PLAIN, b".x"),
        (b".wh....", Whiteout.PLAIN, b"..."),
        (b".wh..wh", Whiteout.PLAIN, b".wh"),
        (b".wh.\xff", Whiteout.PLAIN, b"\xff"),
        (b".wh..wh..opq", Whiteout.OPAQUE, b""),
        (b".wh..wh.", Whiteout.RESERVED, b""),
        (b".wh..wh.plnk", Whiteout.RESERVED, b""),
        (b".wh..wh.aufs", Whiteout.RESERVED, b""),
        (b".wh..wh..opq2", Whiteout.RESERVED, b""),
        (b".wh..wh..", Whiteout.RESERVED, b""),
    ],
)
def test_whiteouts(base, kind, hidden):
    """Each kind, and the names that only look like one."""
    assert whiteout(base) == (kind, hidden)


@pytest.mark.parametrize("base", [b".wh.", b".wh..", b".wh..."])
def test_whiteouts_of_the_directory_itself(base):
    """They would remove the root, or what is above it (reliability A14)."""
    with pytest.raises(BadArchiveError, match="invalid whiteout name"):
        whiteout(base)


def test_below_whiteouts():
    """What lies in AUFS's directories goes with them; in a whiteout nothing can lie."""
    assert below_whiteout([b"a", b"b"]) is Whiteout.NONE
    assert below_whiteout([]) is Whiteout.NONE
    assert below_whiteout([b".wh..wh.plnk", b"b"]) is Whiteout.RESERVED
    assert below_whiteout([b"a", b".wh..wh.orph"]) is Whiteout.RESERVED
    for bad in (b".wh.x", b".wh..wh..opq"):
        with pytest.raises(BadArchiveError, match="is a directory"):
            below_whiteout([b"a", bad, b"b"])
    with pytest.raises(BadArchiveError, match="invalid whiteout name"):
        below_whiteout([b".wh..", b"b"])
